"""augment's cases. Every tier rounds as the reference does, so all outputs must be equal bit for bit."""

from __future__ import annotations

import torch

from ..family import Call, Case, Family
from . import augment

_CIFAR = {"pad_px": 4, "hflip": "random", "cutout_px": 16}

CASES = (
    Case.of("imagenet64", (512, 64, 64, 3), batch=256, real=True, **_CIFAR),
    Case.of("imagenet64_reflect", (128, 64, 64, 3), batch=64, real=True, pad_px=4, pad_mode="reflect", hflip="random"),
    Case.of("imagenet64_mean_image", (128, 64, 64, 3), batch=64, real=True, pad_px=4, hflip="random", per_pixel=True),
    Case.of("fashion28", (1024, 28, 28, 1), batch=256, real=True, **_CIFAR),
    Case.of("plain", (9, 28, 28, 1), batch=7),
    Case.of("alternating", (9, 32, 32, 3), batch=5, pad_px=2, hflip="alternating"),
    Case.of("cutout_inside", (9, 32, 32, 3), batch=5, cutout_px=9, cutout_inside=True),
    Case.of("one_image", (1, 5, 7, 3), batch=1, pad_px=2, hflip="random", cutout_px=3),
    Case.of("four_channels", (3, 6, 11, 4), batch=4, pad_px=5, pad_mode="reflect", hflip="alternating"),
    Case.of(
        "two_channels_mean_image", (3, 9, 6, 2), batch=4, pad_px=3, pad_mode="reflect", hflip="random", per_pixel=True
    ),
    Case.of("one_pixel", (3, 1, 1, 3), batch=2, hflip="random"),
    Case.of("shard", (6, 12, 12, 3), batch=3, pad_px=4, hflip="random", offset=(1 << 40) + 5),
    Case.of("empty_batch", (3, 8, 8, 3), batch=0, pad_px=4, hflip="random", cutout_px=4),
    Case.of("64px 256", (512, 64, 64, 3), batch=256, gpu=True, **_CIFAR),
    Case.of("64px 8192", (8192, 64, 64, 3), batch=8192, gpu=True, **_CIFAR),
    Case.of("28px 256", (512, 28, 28, 1), batch=256, gpu=True, **_CIFAR),
    Case.of("28px 8192", (8192, 28, 28, 1), batch=8192, gpu=True, **_CIFAR),
)


def make(case: Case, dtype: torch.dtype, device: str) -> Call:
    """augment with a random store and random ids on ``device``."""
    keys = dict(case.options)
    shape, batch, offset = keys.pop("shape"), keys.pop("batch"), keys.pop("offset", 0)
    generator = torch.Generator().manual_seed(sum(shape) + batch)
    store = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(device)
    ids = torch.randint(0, shape[0], (batch,), generator=generator).to(device)
    mean, std = [0.48, 0.44, 0.39, 0.41][: shape[3]], [0.27, 0.26, 0.28, 0.25][: shape[3]]
    if keys.pop("per_pixel", False):
        mean = torch.rand(shape[1:], generator=generator).to(device)
    names = ids + offset if offset else None
    return Call(
        run=lambda: augment(
            store, ids, seed=2**63 + 11, epoch=7, mean=mean, std=std, dtype=dtype, sample_ids=names, **keys
        )
    )


def bytes_moved(case: Case, dtype: torch.dtype) -> int:
    """The least traffic: for each output element one byte is read and one value written."""
    _, height, width, channels = case.options["shape"]
    return case.options["batch"] * height * width * channels * (1 + dtype.itemsize)


FAMILY = Family(
    name="augment",
    cases=CASES,
    tolerance={torch.float32: 0.0, torch.bfloat16: 0.0, torch.float16: 0.0},
    make=make,
    bytes_moved=bytes_moved,
)
