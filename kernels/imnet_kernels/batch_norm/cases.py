"""batch_norm's cases: the maps of the systems' networks and odd shapes."""

from __future__ import annotations

import math

import torch

from .. import tier
from ..family import Call, Case, Family
from . import backward_op, batch_norm, reference

EPS = 1e-5


def _case(name: str, shape: tuple[int, int, int, int], *, gpu: bool = False, **keys: object) -> Case:
    return Case(name=name, options={"shape": shape, **keys}, gpu=gpu)


CASES = (
    _case("vectors of eight", (3, 24, 5, 7)),
    _case("vectors of four", (5, 36, 6, 6)),
    _case("odd channels", (2, 7, 9, 5)),
    _case("two blocks of columns", (2, 160, 4, 4)),
    _case("many rows", (9, 16, 36, 35)),
    _case("no relu", (4, 24, 5, 5), relu=False),
    _case("residual", (4, 24, 5, 5), residual=True),
    _case("residual without relu", (4, 24, 5, 5), residual=True, relu=False),
    _case("four values a channel", (2, 8, 1, 2)),
    _case("planar", (2, 8, 4, 4), planar=True),
    _case("wrn36_5 stage 1", (256, 80, 64, 64), gpu=True),
    _case("wrn36_5 stage 4", (256, 640, 8, 8), gpu=True),
    _case("wrn28_10 stage 2", (256, 320, 14, 14), gpu=True),
    _case("densenet", (128, 132, 28, 28), gpu=True),
    _case("resnet50 stage 1", (256, 256, 56, 56), gpu=True, residual=True),
)


def make(case: Case, dtype: torch.dtype, device: str) -> Call:
    """A map with other means and deviations in every channel; the leaves are what gets a gradient."""
    o, generator = case.options, torch.Generator().manual_seed(4)
    channels, relu = o["shape"][1], o.get("relu", True)
    layout = torch.contiguous_format if o.get("planar") else torch.channels_last
    precise = torch.float64 if dtype == torch.float64 else torch.float32

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    maps = [drawn(*o["shape"]) * (0.5 + torch.rand(channels, 1, 1, generator=generator)) + drawn(channels, 1, 1)]
    if o.get("residual"):
        # Far from zero: where a sum is next to it, the reference's second rounding may decide what ReLU lets through.
        maps.append(drawn(*o["shape"]) + 8.0 * drawn(*o["shape"]).sign())
    maps = [m.to(dtype).to(device).contiguous(memory_format=layout).requires_grad_() for m in maps]
    weight, bias, mean = (drawn(channels).to(device, precise) for _ in range(3))
    var = torch.rand(channels, generator=generator).to(device, precise)
    weight, bias = weight.requires_grad_(), bias.requires_grad_()
    x, residual = maps[0], maps[1] if len(maps) == 2 else None
    return Call(
        run=lambda: batch_norm(x, weight, bias, mean, var, momentum=0.1, eps=EPS, relu=relu, residual=residual),
        leaves=(*maps, weight, bias),
        in_place=(mean, var),
    )


def make_backward(case: Case, dtype: torch.dtype, device: str, name: str) -> Call:
    """The backward alone on the tier ``name``, with ReLU's mask from the result where the tier needs it."""
    call, options = make(case, dtype, device), case.options
    relu, adds = options.get("relu", True), options.get("residual", False)
    x, weight, bias = (leaf.detach() for leaf in (call.leaves[0], *call.leaves[-2:]))
    with tier.using("reference"), torch.no_grad():
        y = call.run()
    grad, dims = torch.randn_like(x), (0, 2, 3)
    mean, inverse = x.float().mean(dims), (x.float().var(dims, correction=0) + EPS).rsqrt()
    if name == "reference":
        return Call(run=lambda: reference.backward(grad, x, weight, mean, inverse, y if relu else None))
    return Call(run=lambda: backward_op(grad, x, weight, bias, mean, inverse, y if relu and adds else None, relu))


def backward_bytes(case: Case, dtype: torch.dtype) -> int:
    """Map and gradient read twice, one gradient written; with a residual its gradient too, and the result read."""
    return (7 if case.options.get("residual") else 5) * math.prod(case.options["shape"]) * dtype.itemsize


def bytes_moved(case: Case, dtype: torch.dtype) -> int:
    """The forward's floor: read for the statistics, read again with the residual, written."""
    return (4 if case.options.get("residual") else 3) * math.prod(case.options["shape"]) * dtype.itemsize


FAMILY = Family(
    name="batch_norm",
    cases=CASES,
    tolerance={torch.float32: 1e-5, torch.bfloat16: 4e-3, torch.float16: 5e-4},
    make=make,
    bytes_moved=bytes_moved,
    make_backward=make_backward,
    backward_bytes=backward_bytes,
)
