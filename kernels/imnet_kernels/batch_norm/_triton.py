"""batch_norm in Triton over channels_last maps, read as rows of channels: three launches each way, without atomics.

Sums are reduced in two stages: every program reduces its rows to one row of partial results, and a small kernel joins
these in a fixed order, so that equal inputs give equal bits. Several neighbouring rows are read as one (``fold``) so
that a row fills its blocks of columns: 8 rows of 80 channels are one row of 640 values, and no lane is idle.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
import triton
from torch import Tensor

from ..tritonlib import Build, on_own_device
from ._triton_kernels import (
    gradient_kernel,
    join_statistics_kernel,
    join_sums_kernel,
    normalise_kernel,
    reduce_kernel,
    statistics_kernel,
)

ROWS, COLUMNS, WARPS = 32, 128, 8
"""A tile has 32 rows of 128 values, 16 values per thread. Of 9 settings on an H200 (2026-11-26: 2,048 to 8,192 values,
4 to 16 warps, depth 1 to 4, 2 to 8 programs) this had the least time over five maps of the systems' networks."""
DEPTH = 4
"""Tiles per program of an elementwise pass; the statistics load this many tiles before they use the first."""
PROGRAMS_PER_SM = 2
"""Programs per multiprocessor of the reducing kernels: as many as their registers allow to run at once."""
MOST_PARTS, JOINED = 1024, 8192
"""The most partial results per channel, and the most values of each of the two kinds that a joining program holds."""


@cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


class Plan:
    """The launch grids and tiles for a map (B, C, H, W): ``fold`` of its B H W rows of C channels are read as one.

    With ``by_image`` a folded row never spans two images. ``pass_rows`` is the number of folded rows per program of an
    elementwise pass. ``pitch`` is the length of a folded row in units of VECTOR values.
    """

    def __init__(self, x: Tensor, *, by_image: bool = False, pass_rows: int = DEPTH * ROWS):
        self.channels = x.shape[1]
        rows = x.numel() // self.channels
        together = rows // x.shape[0] if by_image else rows
        self.fold = math.gcd(together, COLUMNS // math.gcd(self.channels, COLUMNS))
        self.rows, width = rows // self.fold, self.channels * self.fold
        vector = math.gcd(width, 8)
        self.tile: dict[str, Any] = {"ROWS": ROWS, "COLUMNS": COLUMNS, "VECTOR": vector, "num_warps": WARPS}
        self.group = math.gcd(self.channels, 8)
        self.pitch = width // vector
        blocks = triton.cdiv(width, COLUMNS)
        wanted = max(1, min(PROGRAMS_PER_SM * _multiprocessors(x.device) // blocks, MOST_PARTS // self.fold))
        self.rows_a_program = DEPTH * ROWS * triton.cdiv(triton.cdiv(self.rows, wanted), DEPTH * ROWS)
        self.programs = triton.cdiv(self.rows, self.rows_a_program)
        most = triton.next_power_of_2(self.programs * self.fold)
        columns = max(1, min(16, JOINED // most))
        self.reduce = (self.programs, blocks)
        self.whole = (triton.cdiv(self.rows, pass_rows), blocks)
        self.join = (triton.cdiv(self.channels, columns),)
        self.most = {"MOST": most, "JOIN_COLUMNS": columns, "num_warps": WARPS}
        self.partial = torch.empty((self.programs, 2, width), dtype=torch.float32, device=x.device)

    def joined_statistics(
        self, running_mean: Tensor, running_var: Tensor, momentum: float, eps: float
    ) -> tuple[Tensor, Tensor]:
        """Join the partial results of statistics_kernel to the mean and 1 / sqrt(var + eps), (C,) fp32 each; updates
        the running statistics."""
        mean, inverse = torch.empty_like(running_mean), torch.empty_like(running_mean)
        join_statistics_kernel[self.join](
            self.partial, mean, inverse, running_mean, running_var, self.rows, self.channels, self.fold,
            self.rows_a_program, self.programs, momentum, eps, **self.most,
        )  # fmt: skip
        return mean, inverse

    def joined_sums(self, partial: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Join the partial results of reduce_kernel to d_weight, d_bias and the means (2, C) for gradient_kernel."""
        d_weight, d_bias = torch.empty_like(inverse), torch.empty_like(inverse)
        means = torch.empty((2, self.channels), dtype=torch.float32, device=partial.device)
        join_sums_kernel[self.join](
            partial, inverse, d_weight, d_bias, means, self.rows, self.channels, self.fold, self.programs, **self.most
        )
        return d_weight, d_bias, means


@on_own_device
def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    residual: Tensor | None,
    momentum: float,
    eps: float,
    relu: bool,
    addend: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See forward_op in the package: statistics, their join, then normalisation; x is read twice."""
    plan, y = Plan(x), torch.empty_like(x)
    added = y if residual is None else residual.contiguous(memory_format=torch.channels_last)
    sums = addend is not None
    before, total = (addend.contiguous(memory_format=torch.channels_last), torch.empty_like(x)) if sums else (x, x)
    statistics_kernel[plan.reduce](
        x, before, total, plan.partial, plan.rows, plan.pitch, plan.rows_a_program, ADDS=sums, **plan.tile
    )
    mean, inverse = plan.joined_statistics(running_mean, running_var, momentum, eps)
    normalise_kernel[plan.whole](
        total, added, y, mean, inverse, weight, bias, plan.rows, plan.pitch, plan.channels,
        RELU=relu, ADDS=residual is not None, GROUP=plan.group, DEPTH=DEPTH, **plan.tile,
    )  # fmt: skip
    return y, mean, inverse, total if sums else x.new_empty(0)


@on_own_device
def backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    inverse: Tensor,
    y: Tensor | None,
    relu: bool,
    grad_sum: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See backward_op in the package: sums over the gradient, their join, then d_x; grad and x are read twice."""
    plan, d_x = Plan(x), torch.empty_like(x)
    grad = grad.contiguous(memory_format=torch.channels_last)
    adds, size = y is not None, (plan.rows, plan.pitch, plan.channels)
    let_through = torch.empty_like(x) if adds else x.new_empty(0)
    known = (mean, inverse, weight, bias)
    reduce_kernel[plan.reduce](
        grad, x, x if y is None else y, let_through, plan.partial, *known, *size, plan.rows_a_program,
        RELU=relu, ADDS=adds, GROUP=plan.group, **plan.tile,
    )  # fmt: skip
    d_weight, d_bias, means = plan.joined_sums(plan.partial, inverse)
    source = let_through if adds else grad
    other = grad if grad_sum is None else grad_sum.contiguous(memory_format=torch.channels_last)
    gradient_kernel[plan.whole](
        source, x, other, d_x, *known, means, *size,
        RELU=relu and not adds, ADDS=grad_sum is not None, GROUP=plan.group, DEPTH=DEPTH, **plan.tile,
    )  # fmt: skip
    return d_x, d_weight, d_bias, let_through


def builds() -> list[Build]:
    """The kernels of WRN-36-5's first stage in bf16 and fp32, and all other forms in bf16, to compile without a GPU."""
    return list(_builds())


def _builds() -> Iterator[Build]:
    for data in ("*bf16", "*fp32"):
        maps = ("x", "addend", "sum", "residual", "y", "grad", "grad_sum", "passed", "d_x")
        types = dict.fromkeys((f"{name}_ptr" for name in maps), data)
        names = ("mean", "inverse", "weight", "bias", "running_mean", "running_var", "d_weight", "d_bias", "means")
        types |= dict.fromkeys((f"{name}_ptr" for name in (*names, "partial")), "*fp32")
        types |= dict.fromkeys(("rows", "pitch", "channels", "fold", "rows_a_program", "programs"), "i32")
        types |= {"momentum": "fp32", "eps": "fp32"}
        tile = {"ROWS": ROWS, "COLUMNS": COLUMNS, "VECTOR": 8, "GROUP": 8, "DEPTH": DEPTH}
        tile |= {"MOST": MOST_PARTS, "JOIN_COLUMNS": JOINED // MOST_PARTS}
        half = data == "*bf16"
        for adds in (False, True) if half else (False,):
            for kernel in (statistics_kernel, join_statistics_kernel, normalise_kernel, reduce_kernel, join_sums_kernel,
                           gradient_kernel):  # fmt: skip
                constants = {k: v for k, v in (tile | {"RELU": True, "ADDS": adds}).items() if k in kernel.arg_names}
                if (adds and "ADDS" not in constants) or (not half and "MOST" in constants):
                    continue  # the same kernel again
                signature = {k: v for k, v in types.items() if k in kernel.arg_names}
                name = f"{kernel.__name__} {data}{' adds' if adds else ''}"
                yield Build(name, kernel, signature, constants, num_warps=WARPS)
