"""DALI on the same work as augment, where it is installed: uint8 images -> crop, mirror, normalise, erase."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterator
from typing import Any

import torch

from ..timing import Timing, windows
from .plan import Row, Setting, UnavailableError

ROUNDS, CALLS = 7, 50


def dali_rows(setting: Setting) -> Iterator[Row]:
    for px, channels in ((64, 3), (28, 1)):
        yield Row("dali", f"augment {px}px 256", "DALI", 8.0, functools.partial(measure, px, channels, setting))


def _pipeline(images: torch.Tensor, pad: int, on_gpu: bool) -> Any:
    """A DALI pipeline over one batch (B, H, W, C) that is fed again and again; fp16 out, since it has no bf16."""
    from nvidia.dali import fn, pipeline_def, types

    batch, height, width, channels = images.shape
    # A torch tensor on the CPU would make DALI ask torch for a CUDA stream.
    fed = images if on_gpu else images.numpy()
    device = "gpu" if on_gpu else "cpu"

    @pipeline_def(batch_size=batch, num_threads=4, device_id=0 if on_gpu else None)  # pyright: ignore[reportArgumentType]
    def make() -> Any:
        x = fn.external_source(source=lambda: fed, device=device, layout="HWC", batch=True)
        x = fn.pad(x, axes=(0, 1), shape=(height + pad, width + pad))
        where = [fn.random.uniform(range=(0.0, 1.0)) for _ in range(2)]
        x = fn.crop_mirror_normalize(
            x, crop=(height, width), crop_pos_x=where[0], crop_pos_y=where[1], mirror=fn.random.coin_flip(),
            mean=[127.5] * channels, std=[64.0] * channels, output_layout="HWC", dtype=types.DALIDataType.FLOAT16
        )  # fmt: skip
        corner = fn.random.uniform(range=(0.0, 1.0), shape=(2,))
        return fn.erase(x, anchor=corner, shape=(height / 4, width / 4), normalized_anchor=True, axis_names="HW")

    return make()


def measure(px: int, channels: int, setting: Setting, limit_s: float) -> dict[str, Any]:
    """Microseconds a batch of 256, all of it in DALI."""
    if importlib.util.find_spec("nvidia") is None or importlib.util.find_spec("nvidia.dali") is None:
        raise UnavailableError("nvidia-dali is not installed")
    import nvidia.dali

    batch = 4 if setting.dry else 256
    images = torch.randint(0, 256, (batch, px, px, channels), dtype=torch.uint8, device=setting.device)
    pipeline = _pipeline(images, 4, setting.device == "cuda")
    pipeline.build()
    shape = list(pipeline.run()[0].as_tensor().shape())
    found: dict[str, Any] = {"version": nvidia.dali.__version__, "shape": shape, "us": None}
    if setting.dry:
        return found
    times = Timing.of([w.wall_s for w in windows({"dali": pipeline.run}, ROUNDS, CALLS)["dali"]])
    figures = {"us": round(times.median_s * 1e6, 2), "us_iqr": round(times.iqr_s * 1e6, 2), "n": times.n}
    return found | figures | {"dtype": "float16"}
