"""The data sets: one module per set or family of sets, found by listing this folder.

A set is a function with ``@dataset`` that takes a Request and returns a DataSet; it need not be registered elsewhere.
"""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from imnet.data.base import DataSet
from imnet.data.files import environment_path
from imnet.data.readers.base import Found
from imnet.errors import DataError, UsageError
from imnet.resources import free_memory_bytes


@dataclass(frozen=True, kw_only=True)
class Request:
    """The options of a data set, described in ``imnet.data.load``; None leaves the choice to the set."""

    data_dir: Path | None = None
    image_px: int | None = None
    split: str | None = None
    num_classes: int | None = None
    seed: int = 0
    train_images: int | None = None
    test_images: int | None = None
    channels: int | None = None
    hold_out: float = 0.0
    val_images: int | None = None
    whole: bool = False
    download: bool = True
    look: bool = False
    on_bad: str = "stop"

    def __post_init__(self) -> None:
        for option in ("image_px", "num_classes", "train_images", "test_images", "val_images"):
            value = getattr(self, option)
            if value is not None and value < 1:
                raise UsageError(f"{option} is {value}; allowed 1 or more")


class AbsentError(DataError):
    """The set is not on this machine; that does not mean that anything is wrong with it."""


class Unpacked(Exception):  # noqa: N818  (not an error, but the result of ``Request.look``)
    """The set exists only at its source (``found``), and would first be packed into the folder ``target``."""

    def __init__(self, found: Found, target: Path) -> None:
        super().__init__(str(target))
        self.found, self.target = found, target


Source = Callable[[Request], DataSet]
_SETS: dict[str, Source] = {}


def dataset(source: Source) -> Source:
    """Register ``source`` under its name with hyphens instead of underscores (the value of ``--data``)."""
    name = source.__name__.replace("_", "-")
    if name in _SETS:
        raise ValueError(f"data set {name!r} is registered twice")
    _SETS[name] = source
    return source


@lru_cache(maxsize=1)
def all_sets() -> dict[str, Source]:
    """All sets by name. Imports the modules of this folder, which register their functions with ``@dataset``."""
    for module in pkgutil.iter_modules(__path__, f"{__name__}."):
        importlib.import_module(module.name)
    return _SETS


def search_path(data_dir: Path | None, names: tuple[str, ...]) -> list[Path]:
    """The paths to search, in order: ``data_dir``, then ``$IMNET_DATA``, each followed by the ``names`` inside it."""
    roots = [Path(data_dir)] if data_dir is not None else []
    if place := environment_path("IMNET_DATA"):
        roots.append(place)
    found: list[Path] = []
    for root in roots:
        found += [path for path in (root, *(root / name for name in names)) if path not in found]
    return found


def require_memory(shape: tuple[int, ...], name: str) -> None:
    """Raise UsageError if the uint8 images (N, H, W, C) that data set ``name`` makes do not fit in the free memory: the
    system may promise the memory all the same, and kill the process when it is used."""
    needed, free = (num / 2**30 for num in (math.prod(shape), free_memory_bytes()))
    if needed > free:
        what = f"got {shape[0]:,} images of {shape[1]} px for data set {name}: {needed:,.1f} GiB"
        hint = "set fewer --data.train_images or --data.test_images, or a smaller --data.image_px"
        raise UsageError(f"{what}; allowed: {free:,.1f} GiB, the free memory", hint=hint)


def require(option: str, got: object, allowed: object, name: str) -> None:
    """Raise UsageError unless ``got`` is None (not asked for) or ``allowed``, the only value of data set ``name``."""
    if got is not None and got != allowed:
        flag = "--num-classes" if option == "num_classes" else f"--data.{option}"
        hint = f"leave {flag} out" if allowed is None else f"give {flag} {allowed}"
        raise UsageError(f"{option} is {got} for data set {name}; allowed {allowed}", hint=hint)
