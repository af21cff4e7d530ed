"""spectral's cases: the systems' 224 and 336 px images, and odd sizes, layouts and bands."""

from __future__ import annotations

import torch

from ..family import Call, Case, Family
from . import spectral

CASES = (
    Case.of("sub4", (4, 3, 224, 224), r=2, real=True, channels_last=True),
    Case.of("sub16", (4, 3, 224, 224), r=4, real=True, channels_last=True),
    Case.of("sub36", (2, 3, 336, 336), r=6, real=True, channels_last=True),
    Case.of("sub4_planar", (2, 3, 32, 48), r=2, normalise="band"),
    Case.of("sub16_planar", (2, 3, 32, 48), r=4, normalise="channel"),
    Case.of("sub36_planar", (2, 3, 36, 48), r=6, normalise="channel"),
    Case.of("some_bands", (3, 3, 24, 36), r=4, bands=(15, 0, 7, 7, 2), channels_last=True, normalise="channel"),
    Case.of("one_band", (1, 1, 12, 18), r=6, bands=(35,), normalise="band"),
    Case.of("odd_sizes", (1, 3, 10, 14), r=2, channels_last=True),
    Case.of("five_channels", (2, 5, 12, 24), r=6, channels_last=True, normalise="channel"),
    Case.of("float_input", (2, 3, 24, 36), r=4, channels_last=True, float_input=True, normalise="band"),
    Case.of("float_planar", (2, 3, 24, 36), r=6, float_input=True),
    Case.of("one_output", (1, 3, 6, 6), r=6, channels_last=True),
    Case.of("empty_batch", (0, 3, 8, 8), r=2),
    Case.of("sub4 64", (64, 3, 224, 224), r=2, gpu=True, channels_last=True, normalise="band"),
    Case.of("sub16 64", (64, 3, 224, 224), r=4, gpu=True, channels_last=True, normalise="band"),
    Case.of("sub36 64", (64, 3, 336, 336), r=6, gpu=True, channels_last=True, normalise="band"),
)


def make(case: Case, dtype: torch.dtype, device: str) -> Call:
    """spectral with random images on ``device``, uint8 or (with ``float_input``) of ``dtype``."""
    o, s = case.options, case.options["r"] ** 2
    generator = torch.Generator().manual_seed(s)
    images = torch.randint(0, 256, o["shape"], dtype=torch.uint8, generator=generator)
    if o.get("float_input"):
        images = (images.float() / 255).to(dtype)
    if o.get("channels_last"):
        images = images.to(memory_format=torch.channels_last)
    images, bands = images.to(device), o.get("bands")
    keys = {}
    if o.get("normalise"):
        num_bands = s if bands is None else len(bands)
        shape = (num_bands,) if o["normalise"] == "band" else (num_bands, o["shape"][1])
        keys = {"mean": torch.rand(shape, generator=generator) * 99, "std": torch.rand(shape, generator=generator) + 50}
        keys = {name: value.to(device) for name, value in keys.items()}
    return Call(run=lambda: spectral(images, o["r"], bands, dtype=dtype, **keys))


def bytes_moved(case: Case, dtype: torch.dtype) -> int:
    """The least traffic: each input element is read once; with all bands as many elements are written."""
    batch, channels, height, width = case.options["shape"]
    r, bands = case.options["r"], case.options.get("bands")
    share = 1.0 if bands is None else len(bands) / r**2
    in_bytes = dtype.itemsize if case.options.get("float_input") else 1
    return round(batch * channels * height * width * (in_bytes + share * dtype.itemsize))


FAMILY = Family(
    name="spectral",
    cases=CASES,
    # Tiers sum the s products in another order: fp32 rounding differs, and with it the final rounding to the dtype.
    tolerance={torch.float32: 1e-6, torch.bfloat16: 5e-4, torch.float16: 1e-4},
    make=make,
    bytes_moved=bytes_moved,
)
