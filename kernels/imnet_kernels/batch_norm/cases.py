"""batch_norm's cases: feature maps of the systems' networks, and shapes that do not divide evenly."""

from __future__ import annotations

import math
from typing import Any

import torch

from .. import tier
from ..family import Call, Case, Family, results_of
from . import add_batch_norm, backward_op, batch_norm, reference

EPS = 1e-5

CASES = (
    Case.of("vectors of eight", (3, 24, 5, 7)),
    Case.of("vectors of four", (5, 36, 6, 6)),
    Case.of("odd channels", (2, 7, 9, 5)),
    Case.of("two blocks of columns", (2, 160, 4, 4)),
    Case.of("many rows", (5, 16, 28, 20)),
    Case.of("no relu", (4, 24, 5, 5), relu=False),
    Case.of("residual", (4, 24, 5, 5), residual=True),
    Case.of("residual without relu", (4, 24, 5, 5), residual=True, relu=False),
    Case.of("four values a channel", (2, 8, 1, 2)),
    Case.of("planar", (2, 8, 4, 4), planar=True),
    Case.of("sum", (4, 24, 5, 5), sum="kept"),
    Case.of("sum of odd channels", (2, 7, 9, 5), sum="kept"),
    Case.of("sum of many rows", (5, 16, 28, 20), sum="kept", relu=False),
    Case.of("sum that only the norm reads", (4, 24, 5, 5), sum="dropped"),
    Case.of("sum that only the norm reads, without relu", (5, 36, 6, 6), sum="dropped", relu=False),
    Case.of("planar sum", (2, 8, 4, 4), sum="kept", planar=True),
    Case.of("wrn36_5 stage 1", (256, 80, 64, 64), gpu=True),
    Case.of("wrn36_5 stage 4", (256, 640, 8, 8), gpu=True),
    Case.of("wrn28_10 stage 2", (256, 320, 14, 14), gpu=True),
    Case.of("densenet", (128, 132, 28, 28), gpu=True),
    Case.of("resnet50 stage 1", (256, 256, 56, 56), gpu=True, residual=True),
    Case.of("wrn36_5 stage 1 sum", (256, 80, 64, 64), gpu=True, sum="kept"),
)


def make(case: Case, dtype: torch.dtype, device: str) -> Call:
    """A map whose channels differ in mean and deviation; the leaves get a gradient.

    With ``sum`` "kept", the result is (sum, y) and both get a gradient; with "dropped" it is y alone.
    """
    o, generator = case.options, torch.Generator().manual_seed(4)
    channels, relu = o["shape"][1], o.get("relu", True)
    layout = torch.contiguous_format if o.get("planar") else torch.channels_last
    precise = torch.float64 if dtype == torch.float64 else torch.float32

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    maps = [drawn(*o["shape"]) * (0.5 + torch.rand(channels, 1, 1, generator=generator)) + drawn(channels, 1, 1)]
    if o.get("residual"):
        # Far from zero: for a sum next to zero, the reference's second rounding could change ReLU's mask.
        maps.append(drawn(*o["shape"]) + 8.0 * drawn(*o["shape"]).sign())
    if o.get("sum"):
        maps.append(drawn(*o["shape"]) + drawn(channels, 1, 1))
        if relu:
            # On a grid where no dtype rounds the sum, because different rounding could change ReLU's mask.
            maps = [(m.clamp(-8.0, 8.0) * 16.0).round() / 16.0 for m in maps]
    maps = [m.to(dtype).to(device).contiguous(memory_format=layout).requires_grad_() for m in maps]
    weight, bias, mean = (drawn(channels).to(device, precise) for _ in range(3))
    var = torch.rand(channels, generator=generator).to(device, precise)
    weight, bias = weight.requires_grad_(), bias.requires_grad_()

    def run() -> torch.Tensor | tuple[torch.Tensor, ...]:
        arguments = (weight, bias, mean, var)
        options: dict[str, Any] = {"momentum": 0.1, "eps": EPS, "relu": relu}
        if o.get("sum"):
            both = add_batch_norm(maps[0], maps[1], *arguments, **options)
            return both if o["sum"] == "kept" else both[1]
        return batch_norm(maps[0], *arguments, **options, residual=maps[1] if o.get("residual") else None)

    return Call(run=run, leaves=(*maps, weight, bias), in_place=(mean, var))


def make_backward(case: Case, dtype: torch.dtype, device: str, name: str) -> Call:
    """The backward pass alone on the tier ``name``, with the result y for ReLU's mask if the tier needs it."""
    call, options = make(case, dtype, device), case.options
    relu, adds, sums = options.get("relu", True), options.get("residual", False), options.get("sum")
    x, weight, bias = (leaf.detach() for leaf in (call.leaves[0], *call.leaves[-2:]))
    with tier.using("reference"), torch.no_grad():
        y = results_of(call)[-1]
    if sums:
        x = (call.leaves[0] + call.leaves[1]).detach()
    grad, dims = torch.randn_like(x), (0, 2, 3)
    grad_sum = torch.randn_like(x) if sums == "kept" else None
    mean, inverse = x.float().mean(dims), (x.float().var(dims, correction=0) + EPS).rsqrt()
    if name == "reference":
        return Call(run=lambda: reference.backward(grad, x, weight, mean, inverse, y if relu else None, grad_sum))
    kept = y if relu and adds else None
    known = (x, weight, bias, mean, inverse)
    return Call(run=lambda: backward_op(grad, *known, kept, relu, grad_sum))


def backward_bytes(case: Case, dtype: torch.dtype) -> int:
    """x and the gradient are read twice, d_x is written. With a residual, y is read and the residual's gradient
    written; with a kept sum, the sum's gradient is read."""
    o = case.options
    passes = 5 + 2 * bool(o.get("residual")) + (o.get("sum") == "kept")
    return passes * math.prod(o["shape"]) * dtype.itemsize


def bytes_moved(case: Case, dtype: torch.dtype) -> int:
    """The least traffic of the forward pass: x is read for the statistics and again, with the residual, to be
    normalised, and y is written. With a sum, the addend is read and the sum written."""
    o = case.options
    passes = 3 + bool(o.get("residual")) + 2 * bool(o.get("sum"))
    return passes * math.prod(o["shape"]) * dtype.itemsize


FAMILY = Family(
    name="batch_norm",
    cases=CASES,
    tolerance={torch.float32: 1e-5, torch.bfloat16: 4e-3, torch.float16: 5e-4},
    make=make,
    bytes_moved=bytes_moved,
    make_backward=make_backward,
    backward_bytes=backward_bytes,
)
