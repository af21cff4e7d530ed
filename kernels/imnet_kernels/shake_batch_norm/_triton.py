"""shake_batch_norm in Triton: batch_norm's statistics of both branches, then one pass over everything; backward two
passes with batch_norm's joins between them. Without atomics, so that the same numbers give the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..batch_norm import Norm
from ..batch_norm import _triton as norms
from ..batch_norm._triton_kernels import statistics_kernel
from ..tritonlib import Build
from ._triton_kernels import SIZES, gradient_kernel, mix_kernel, reduce_kernel

ROWS, DEPTH = 16, 4
"""Rows of a tile, and the tiles that a program of a pass without sums takes. Chosen by registers, so that two programs
share a multiprocessor; no other numbers were timed on a GPU."""
LAST = torch.channels_last


class _Shared:
    """How the maps' rows are shared out, a row within one image, and how coefficients are found."""

    def __init__(self, x: Tensor, coefficient: Tensor):
        self.plan = norms.Plan(x, by_image=True, pass_rows=DEPTH * ROWS)
        rows, pitch, channels = self.plan.rows, self.plan.pitch, self.plan.channels
        self.sizes = rows, pitch, channels
        self.images = rows // x.shape[0], int(coefficient.numel() > 1)
        self.constants: dict[str, Any] = self.plan.tile | {"GROUP": self.plan.group, "ROWS": ROWS}


def forward(
    x1: Tensor, x2: Tensor, residual: Tensor, norm1: Norm, norm2: Norm, alpha: Tensor, momentum: float, eps: float
) -> tuple[Tensor, ...]:
    """(y, relu(y), mean and 1 / sqrt(var + eps) of either branch)."""
    shared, y, activated = _Shared(x1, alpha), torch.empty_like(x1), torch.empty_like(x1)
    plan, found = shared.plan, []
    for x, norm in ((x1, norm1), (x2, norm2)):
        statistics_kernel[plan.reduce](
            x, x, x, plan.partial, plan.rows, plan.pitch, plan.rows_a_program, ADDS=False, **plan.tile
        )
        found += plan.joined_statistics(plan.partial, norm.running_mean, norm.running_var, momentum, eps)
    mix_kernel[plan.whole](
        x1, x2, residual, y, activated, *found[:2], norm1.weight, norm1.bias, *found[2:], norm2.weight, norm2.bias,
        alpha.contiguous(), *shared.sizes, *shared.images, DEPTH=DEPTH, **shared.constants,
    )  # fmt: skip
    return y, activated, *found


def backward(
    grad: Tensor | None, grads: Sequence[Tensor], activated: Tensor, x1: Tensor, x2: Tensor, weight1: Tensor,
    weight2: Tensor, beta: Tensor, *found: Tensor,
) -> tuple[Tensor, ...]:  # fmt: skip
    """(d_x1, d_x2, d_residual, d_weight1, d_bias1, d_weight2, d_bias2); ``grad`` is y's own, ``grads`` its ReLU's."""
    shared, beta = _Shared(x1, beta), beta.contiguous()
    plan, (mean1, inverse1, mean2, inverse2) = shared.plan, found
    d_x1, d_x2, g = (torch.empty_like(x1) for _ in range(3))
    own = x1 if grad is None else grad.contiguous(memory_format=LAST)
    one, two = ([t.contiguous(memory_format=LAST) for t in grads] + [x1, x1])[:2]
    partials = plan.partial, torch.empty_like(plan.partial)
    reduce_kernel[plan.reduce](
        own, one, two, activated, x1, x2, g, *partials, mean1, mean2, beta, *shared.sizes, plan.rows_a_program,
        *shared.images, OWN=grad is not None, READERS=len(grads), **shared.constants,
    )  # fmt: skip
    *d_norm1, means1 = plan.joined_sums(partials[0], inverse1)
    *d_norm2, means2 = plan.joined_sums(partials[1], inverse2)
    gradient_kernel[plan.whole](
        g, x1, x2, d_x1, d_x2, mean1, inverse1, weight1, means1, mean2, inverse2, weight2, means2, beta,
        *shared.sizes, *shared.images, DEPTH=DEPTH, **shared.constants,
    )  # fmt: skip
    return d_x1, d_x2, g, *d_norm1, *d_norm2


def builds() -> list[Build]:
    """What the first stage of 2x96d takes in bf16 and fp32, to compile without a GPU."""
    return [build for data in ("*bf16", "*fp32") for build in _builds(data)]


def _builds(data: str) -> Iterator[Build]:
    tile = {"ROWS": ROWS, "COLUMNS": norms.COLUMNS, "VECTOR": 8, "GROUP": 8, "DEPTH": DEPTH}
    maps = ("grad", "grad1", "grad2", "g", "activated", "x1", "x2", "residual", "y", "d_residual", "d_x1", "d_x2")
    for kernel in (mix_kernel, reduce_kernel, gradient_kernel):
        constants = {k: v for k, v in (tile | {"OWN": True, "READERS": 2}).items() if k in kernel.arg_names}
        pointers = (name for name in kernel.arg_names if name.endswith("_ptr"))
        types = {name: data if name.removesuffix("_ptr") in maps else "*fp32" for name in pointers}
        types |= {name: "i32" for name in SIZES if name in kernel.arg_names}
        yield Build(f"shake {kernel.__name__} {data}", kernel, types, constants, num_warps=norms.WARPS)
