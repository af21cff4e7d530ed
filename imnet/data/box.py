"""JPEG -> small square without Pillow's detour: decode, colour and BOX in one native call, byte for byte its pixels.

The kernel takes usual baseline JPEGs only and declines the rest. It is used where it is installed, ``IMNET_KERNELS``
does not say ``reference``, and this Pillow makes the same pixels of a few pictures drawn on the spot: a Pillow built on
another JPEG library, or one that rounds in another order, is noticed there and then decodes everything itself.
"""

from __future__ import annotations

import importlib.util
import io
import os
import sys
from collections.abc import Callable, Iterator
from functools import lru_cache
from importlib.machinery import PathFinder
from types import ModuleType

import numpy as np
from PIL import Image

_NAME = "imnet_kernels._host"
_MAX_PX = 4096
# (width, height) to _PROBE_PX: the tall one is resized in another order by Pillow 13 than by older ones.
_PROBES = ((61, 23), (23, 97), (40, 40))
_PROBE_PX = 16


@lru_cache(maxsize=1)
def jpeg() -> Callable[[bytes, int, int, np.ndarray], bool] | None:
    """``fill(data, size_px, channels, out)``: True when ``out`` was filled; None where there is no such kernel."""
    module = None if os.environ.get("IMNET_KERNELS") == "reference" else _host()
    kernel = getattr(module, "box_jpeg", None)
    if kernel is None:
        return None
    pictures = list(_probes())
    for tall_first in (True, False):

        def fill(data: bytes, size_px: int, channels: int, out: np.ndarray, order: bool = tall_first) -> bool:
            return kernel(data, size_px, channels, order, out)

        if all(_agrees(fill, data) for data in pictures):
            return fill
    return None


def small(data: bytes, size_px: int, channels: int) -> np.ndarray | None:
    """uint8 (size_px, size_px, channels), or None where Pillow has to do it."""
    fill = jpeg()
    if fill is None or size_px > _MAX_PX:
        return None
    out = np.empty((size_px, size_px, channels), np.uint8)
    return out if fill(data, size_px, channels, out) else None


def _host() -> ModuleType | None:
    """The host kernels' module, found without importing its package, which needs torch; None where it is not built."""
    if _NAME in sys.modules:
        return sys.modules[_NAME]
    package = importlib.util.find_spec("imnet_kernels")
    spec = PathFinder.find_spec(_NAME, package.submodule_search_locations) if package is not None else None
    if spec is None or spec.loader is None:
        return None
    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except ImportError:  # built for another interpreter or C++ library
        return None
    sys.modules[_NAME] = module
    return module


def _probes() -> Iterator[bytes]:
    rng = np.random.default_rng(0)
    for number, (width, height) in enumerate(_PROBES):
        noise = Image.fromarray(rng.integers(60, 196, (height, width, 3), dtype=np.uint8))
        for subsampling in range(3):
            file = io.BytesIO()
            noise.save(file, "JPEG", quality=80 + 5 * number, subsampling=subsampling)
            yield file.getvalue()


def _agrees(fill: Callable[[bytes, int, int, np.ndarray], bool], data: bytes) -> bool:
    out = np.empty((_PROBE_PX, _PROBE_PX, 3), np.uint8)
    with Image.open(io.BytesIO(data)) as picture:
        wanted = np.asarray(picture.resize((_PROBE_PX, _PROBE_PX), Image.Resampling.BOX))
    return fill(data, _PROBE_PX, 3, out) and bool(np.array_equal(out, wanted))
