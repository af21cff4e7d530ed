"""shake_batch_norm's cases: maps of 26 2x96d, odd shapes, and calls of which not all results are read."""

from __future__ import annotations

import math

import torch

from ..batch_norm import Norm
from ..family import Call, Case, Family
from . import shake_batch_norm

CASES = (
    Case.of("vectors of eight", (3, 24, 5, 7)),
    Case.of("rows of an image read as four", (3, 32, 6, 6)),
    Case.of("rows of an image that are not even", (5, 32, 5, 3)),
    Case.of("odd channels", (2, 7, 9, 5)),
    Case.of("two blocks of columns", (2, 160, 4, 4)),
    Case.of("many rows", (5, 16, 28, 20)),
    Case.of("per batch", (3, 24, 5, 5), level="batch"),
    Case.of("one image", (1, 24, 5, 5)),
    Case.of("planar", (2, 8, 4, 4), planar=True),
    Case.of("sum alone is read", (4, 24, 5, 5), read=(0,)),
    Case.of("one reader behind ReLU", (4, 24, 5, 5), read=(1,)),
    Case.of("other reader and sum", (4, 24, 5, 5), read=(0, 2)),
    Case.of("two readers behind ReLU", (4, 24, 5, 5), read=(1, 2)),
    Case.of("2x96d stage 1", (256, 96, 28, 28), gpu=True),
    Case.of("2x96d stage 3", (256, 384, 7, 7), gpu=True),
)


def make(case: Case, dtype: torch.dtype, device: str) -> Call:
    """Branches whose channels differ in mean and deviation, and a residual far from zero; the leaves get a gradient.

    The call returns only the results whose index is in ``read``, so that the others get no gradient.
    """
    o, generator = case.options, torch.Generator().manual_seed(6)
    channels, images = o["shape"][1], o["shape"][0]
    layout = torch.contiguous_format if o.get("planar") else torch.channels_last
    precise = torch.float64 if dtype == torch.float64 else torch.float32

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    def norm() -> Norm:
        weight, bias = (drawn(channels).to(device, precise).requires_grad_() for _ in range(2))
        running = drawn(channels).to(device, precise), torch.rand(channels, generator=generator).to(device, precise)
        return Norm(weight, bias, *running)

    maps = [drawn(*o["shape"]) * (0.5 + torch.rand(channels, 1, 1, generator=generator)) + drawn(channels, 1, 1)]
    maps.append(drawn(*o["shape"]) + drawn(channels, 1, 1))
    # Far from zero: for a sum next to zero, rounding could change ReLU's mask.
    maps.append(drawn(*o["shape"]) + 16.0 * drawn(*o["shape"]).sign())
    maps = [m.to(dtype).to(device).contiguous(memory_format=layout).requires_grad_() for m in maps]
    norms = norm(), norm()
    count = 1 if o.get("level") == "batch" else images
    alpha, beta = (torch.rand(count, generator=generator).to(device) for _ in range(2))

    def run() -> tuple[torch.Tensor, ...]:
        results = shake_batch_norm(*maps, *norms, alpha, beta, momentum=0.1, eps=1e-5)  # pyright: ignore[reportCallIssue]
        return tuple(results[index] for index in o.get("read", (0, 1, 2)))

    trained = [t for n in norms for t in (n.weight, n.bias)]
    return Call(run=run, leaves=(*maps, *trained), in_place=tuple(t for n in norms for t in n[2:]))


def bytes_moved(case: Case, dtype: torch.dtype) -> int:
    """The least traffic of the forward pass: both branches are read for their statistics and again with the residual,
    and two results are written."""
    return 7 * math.prod(case.options["shape"]) * dtype.itemsize


FAMILY = Family(
    name="shake_batch_norm",
    cases=CASES,
    tolerance={torch.float32: 1e-5, torch.bfloat16: 8e-3, torch.float16: 1e-3},
    make=make,
    bytes_moved=bytes_moved,
)
