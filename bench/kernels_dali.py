"""DALI on the CPU as a peer of augment: the same pixels, crops, flips and boxes; only the arithmetic is DALI's.

Its pipeline is given the gathered uint8 batch without a copy and the drawn numbers as arrays, runs one thread, and
writes channels_last fp32 or fp16 (it knows no bf16): slice with padding, crop_mirror_normalize, erase.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from imnet_kernels import augment
from imnet_kernels.augment.reference import Spec, choices
from imnet_kernels.family import Case

MEAN, STD = (0.48, 0.44, 0.39), (0.27, 0.26, 0.28)
SEED, EPOCH = 5, 7
TOLERANCE = {torch.float32: 1e-5, torch.float16: 5e-3}


def takes(case: Case) -> bool:
    """True for a case that this pipeline states: colour, zero padding, mean and std per channel, a cutout."""
    options = case.options
    plain = options.get("pad_mode", "zero") == "zero" and not options.get("per_pixel") and not options.get("offset")
    return plain and options["shape"][3] == 3 and options["batch"] > 0 and options.get("cutout_px", 0) > 0


def augment_column(case: Case, dtype: torch.dtype) -> dict[str, Callable[[], Any]]:
    """{label: one batch through DALI} for a case that takes() accepts; the gate runs first.

    dtype: torch.float32, or torch.float16 in the place of bf16. Raises RuntimeError where DALI's pixels are not ours.
    """
    options = dict(case.options)
    shape, batch = options.pop("shape"), options.pop("batch")
    generator = torch.Generator().manual_seed(1)
    store = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    ids = torch.randint(0, shape[0], (batch,), generator=generator)
    pipeline = _pipeline(_feeds(store[ids].numpy(), ids, Spec(SEED, EPOCH, **options)), shape[1:], batch, dtype)
    want = augment(store, ids, seed=SEED, epoch=EPOCH, mean=MEAN, std=STD, dtype=torch.float32, **options)
    got = torch.from_numpy(pipeline.run()[0].as_array()).permute(0, 3, 1, 2).float()
    error = float((got - want).abs().max())
    if not error <= TOLERANCE[dtype]:
        raise RuntimeError(
            f"DALI's batch is {error:.1e} away from ours; allowed {TOLERANCE[dtype]:.0e}; no speed for it"
        )
    return {f"DALI CPU, {str(dtype).removeprefix('torch.')}": pipeline.run}


def _feeds(images: np.ndarray, ids: torch.Tensor, spec: Spec) -> dict[str, np.ndarray]:
    """DALI's inputs by name: the batch, and per sample the slice's start, the flip, the box's start and size."""
    height, width = images.shape[1:3]
    drawn = choices(ids, height, width, spec)
    start = torch.stack([drawn.dy - spec.pad_px, drawn.dx - spec.pad_px], 1)
    # A box may hang over the image's edge: DALI gets the part inside.
    low = torch.stack([drawn.y0, drawn.x0], 1)
    limits = torch.tensor([height, width])
    first, last = low.clamp(min=0), torch.minimum(low + spec.cutout_px, limits)
    boxes = {"anchor": first.float().numpy(), "extent": (last - first).float().numpy()}
    return {"images": images, "start": start.int().numpy(), "flip": drawn.flip.int().numpy(), **boxes}


def _pipeline(feeds: dict[str, np.ndarray], shape: tuple[int, int, int], batch: int, dtype: torch.dtype):
    """A built pipeline of one thread that runs when asked, not ahead."""
    dali: Any = importlib.import_module("nvidia.dali")  # its stubs call every result a node or a list of them
    fn, types = importlib.import_module("nvidia.dali.fn"), dali.types
    out_type = types.FLOAT if dtype == torch.float32 else types.FLOAT16

    @dali.pipeline_def(
        batch_size=batch,
        num_threads=1,
        device_id=None,
        exec_async=False,
        exec_pipelined=False,
        prefetch_queue_depth=1,
    )
    def build():
        given = {name: _source(fn, name, array) for name, array in feeds.items()}
        cropped = fn.slice(
            given["images"], start=given["start"], shape=list(shape[:2]), axes=[0, 1], out_of_bounds_policy="pad"
        )
        normal = fn.crop_mirror_normalize(
            cropped,
            mirror=given["flip"],
            mean=[255 * m for m in MEAN],
            std=[255 * s for s in STD],
            dtype=out_type,
            output_layout="HWC",
        )
        return fn.erase(normal, anchor=given["anchor"], shape=given["extent"], axes=[0, 1], fill_value=0)

    made = build()
    made.build()
    return made


def _source(fn: Any, name: str, array: np.ndarray):
    """The same batch again and again, not copied."""
    layout = "HWC" if name == "images" else None
    return fn.external_source(source=lambda: array, batch=True, no_copy=True, layout=layout)


def random_pipeline(images: torch.Tensor, pad: int, on_gpu: bool) -> Any:
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
