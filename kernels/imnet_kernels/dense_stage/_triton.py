"""dense_stage in Triton and torch's 3x3 convolutions, over one channels_last map that every layer extends.

A channel's statistics are computed once, when it is written: all layers normalise it with the same mean and deviation,
and only weight and bias differ by layer. The kernel of the 1x1 convolution normalises what it reads, so the normalised
map is never written; the backward pass recomputes it. Nothing uses atomics: equal inputs give equal bits.

Launches of a layer forward: project, join, normalise, 3x3, append, join. Backward: 3x3, three of the second norm,
reduce, sum, and gradient, which accumulates into one map of gradients and also writes the gradient of the layer before.
The 3x3 convolution's new channels are padded to a multiple of eight; cuDNN would pad three tensors in extra launches.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import triton
from torch import Tensor

from ..batch_norm import _triton as norms
from ..tritonlib import Build, on_own_device
from ._triton_kernels import SIZES, append_kernel, gradient_kernel, project_kernel, reduce_kernel

if TYPE_CHECKING:
    from . import Layer


class Tile(NamedTuple):
    """The tile of the map that a program holds at a time, and its warps."""

    rows: int
    columns: int
    warps: int


APPEND, PROJECT, PROJECT_FEW, REDUCE, GRADIENT = (
    Tile(64, 64, 4), Tile(128, 32, 4), Tile(16, 32, 2), Tile(64, 32, 2), Tile(32, 64, 4),
)  # fmt: skip
"""The fastest of 17 tiles in half precision over DenseNet-BC-100's three stages on an H200, 2026-11-27 (NEGATIVES.md).
PROJECT_FEW is for maps with too few rows to give every multiprocessor a tile of PROJECT."""
SINGLE = Tile(32, 32, 4)
"""The tile of fp32 matrix products, which do not use tensor cores; chosen by registers and spills, not timed."""
PROGRAMS_PER_SM = 4
"""Programs per multiprocessor of the two backward kernels. Forward, a program takes one tile, or more if that would
exceed MOST_PARTS programs."""
LAST, FP32 = torch.channels_last, torch.float32
ONES = [1, 1]


class _Stage:
    """A stage's sizes and the division of its map's rows among programs. Of ``total`` channels ``first`` are the input;
    ``vector`` divides ``first`` and ``new``, so that every layer starts at a multiple of it; ``pitch`` counts vectors.
    """

    def __init__(self, features: Tensor, layers: int, inner: int, new: int):
        self.device, self.total = features.device, features.shape[1]
        self.rows, self.layers, self.inner, self.new = features.numel() // self.total, layers, inner, new
        self.first = self.total - layers * new
        self.vector = math.gcd(self.first, new, 8)
        self.pitch, self.padded = self.total // self.vector, triton.cdiv(new, 8) * 8
        self.single = features.dtype == FP32
        self.wanted = PROGRAMS_PER_SM * norms._multiprocessors(features.device)

    def constants(self, tile: Tile) -> dict[str, Any]:
        """The constants and warps of a kernel for this tile."""
        width = max(16, triton.next_power_of_2(self.inner))
        found = {"INNER": self.inner, "WIDTH": width, "ROWS": tile.rows, "COLUMNS": tile.columns}
        return found | {"VECTOR": self.vector, "num_warps": tile.warps}

    def groups(self, index: int) -> int:
        """The number of channels that layer ``index`` reads, in vectors."""
        return (self.first + index * self.new) // self.vector

    def shared(self, height: int, most: int = norms.MOST_PARTS) -> tuple[int, int]:
        """(number of programs, rows per program): whole tiles of ``height`` rows for at most ``most`` programs."""
        rows = height * triton.cdiv(triton.cdiv(self.rows, height), min(most, norms.MOST_PARTS))
        return triton.cdiv(self.rows, rows), rows

    def joined(self, partial: Tensor, rows_a_program: int, momentum: float, eps: float, *statistics: Tensor) -> None:
        """partial (programs, 2, channels) -> mean, inverse (written), running mean and variance (updated)."""
        programs, _, channels = partial.shape
        most = triton.next_power_of_2(programs)
        columns = max(1, min(16, norms.JOINED // most))
        norms.join_statistics_kernel[(triton.cdiv(channels, columns),)](
            partial, *statistics, self.rows, channels, 1, rows_a_program, programs, momentum, eps,
            MOST=most, JOIN_COLUMNS=columns, num_warps=norms.WARPS,
        )  # fmt: skip

    def append(self, source: Tensor, features: Tensor, at: int, channels: int, statistics: Tensor, eps: float) -> None:
        """Copy source's first ``channels`` into the map from channel ``at`` and write their ``statistics`` (3, total).
        Joined with momentum 1, running mean and variance are the batch's mean and unbiased variance."""
        columns = min(APPEND.columns, max(16, triton.next_power_of_2(channels)))
        height = APPEND.rows * APPEND.columns // columns
        programs, rows_a_program = self.shared(height)
        partial = torch.empty((programs, 2, channels), dtype=FP32, device=self.device)
        append_kernel[programs, triton.cdiv(channels, columns)](
            source, features, partial, self.rows, source.shape[1] // self.vector, self.pitch, at // self.vector,
            channels // self.vector, rows_a_program, ROWS=height, COLUMNS=columns, VECTOR=self.vector,
            num_warps=APPEND.warps,
        )  # fmt: skip
        mean, inverse, var = statistics[:, at : at + channels]
        self.joined(partial, rows_a_program, 1.0, eps, mean, inverse, mean, var)

    def cast(self, layers: Sequence[Layer], dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
        """Every layer's 1x1 weights and zero-padded 3x3 weights (padded, inner, 3, 3) in ``dtype``, cast together."""
        matrices = [torch.empty_like(layer.conv1, dtype=dtype) for layer in layers]
        shape = (self.layers, self.padded, 3, 3, self.inner)
        kernels = list(torch.zeros(shape, dtype=dtype, device=self.device).permute(0, 1, 4, 2, 3))
        sources = [*(layer.conv1.detach() for layer in layers), *(layer.conv2.detach() for layer in layers)]
        torch._foreach_copy_([*matrices, *(k[: self.new] for k in kernels)], sources)
        return list(zip(matrices, kernels, strict=True))


@on_own_device
def forward(x: Tensor, layers: Sequence[Layer], momentum: float, eps: float) -> tuple[Tensor, list[Tensor]]:
    """Return (the map (B, C, H, W) with every layer's features, the other tensors that ``backward`` needs)."""
    (inner, first), new = layers[0].conv1.shape[:2], layers[0].conv2.shape[0]
    shape = (x.shape[0], first + new * len(layers), *x.shape[2:])
    features = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=LAST)
    stage = _Stage(features, len(layers), inner, new)
    # Mean, 1 / sqrt(var + eps) and unbiased variance of every channel. Zeros: old values count 0 times, but may be NaN.
    statistics = torch.zeros((3, stage.total), dtype=FP32, device=x.device)
    saved = [statistics]
    stage.append(x, features, 0, first, statistics, eps)
    for index, (layer, (matrix, kernel)) in enumerate(zip(layers, stage.cast(layers, x.dtype), strict=True)):
        h, y, *inside = _inside(stage, features, index, layer, matrix, statistics, momentum, eps)
        features_new = torch.ops.aten.convolution(y, kernel, None, ONES, ONES, ONES, False, [0, 0], 1)
        features_new = features_new.contiguous(memory_format=LAST)
        stage.append(features_new, features, first + index * new, new, statistics, eps)
        saved += [matrix, kernel, h, y, *inside]
    _move(layers, statistics, momentum)
    return features, saved


def _inside(
    stage: _Stage, features: Tensor, index: int, layer: Layer, matrix: Tensor, statistics: Tensor,
    momentum: float, eps: float,
) -> tuple[Tensor, ...]:  # fmt: skip
    """The 1x1 convolution's output h, y = relu(norm2(h)), and norm2's mean and 1 / sqrt(var + eps)."""
    shape = (features.shape[0], stage.inner, *features.shape[2:])
    h = torch.empty(shape, dtype=features.dtype, device=features.device, memory_format=LAST)
    y, plan, norm = torch.empty_like(h), norms.Plan(h), layer.norm2
    mean, inverse = torch.empty_like(norm.weight), torch.empty_like(norm.weight)
    few = stage.rows < PROJECT.rows * norms._multiprocessors(stage.device)
    tile = SINGLE if stage.single else PROJECT_FEW if few else PROJECT
    programs, rows_a_program = stage.shared(tile.rows)
    partial = torch.empty((programs, 2, stage.inner), dtype=FP32, device=features.device)
    project_kernel[(programs,)](
        features, h, partial, *statistics[:2], layer.norm1.weight, layer.norm1.bias, matrix, stage.rows, stage.pitch,
        stage.groups(index), rows_a_program, **stage.constants(tile),
    )  # fmt: skip
    stage.joined(partial, rows_a_program, momentum, eps, mean, inverse, norm.running_mean, norm.running_var)
    norms.normalise_kernel[plan.whole](
        h, y, y, mean, inverse, norm.weight, norm.bias, plan.rows, plan.pitch, plan.channels,
        RELU=True, ADDS=False, GROUP=plan.group, DEPTH=norms.DEPTH, **plan.tile,
    )  # fmt: skip
    return h, y, mean, inverse


def _move(layers: Sequence[Layer], statistics: Tensor, momentum: float) -> None:
    """Update the running statistics of every layer's first norm with those of the channels that it reads."""
    for name, found in (("running_mean", statistics[0]), ("running_var", statistics[2])):
        running = [getattr(layer.norm1, name) for layer in layers]
        torch._foreach_lerp_(running, [found[: len(r)] for r in running], momentum)


@on_own_device
def backward(
    grad: Tensor, features: Tensor, parameters: Sequence[Tensor], saved: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """Return (d_x, the parameters' gradients), from six parameters and six saved tensors per layer. From the last layer
    to the first, ``passed`` accumulates the map's gradient; ``d_new`` is that of a layer's new features, padded."""
    new, inner = parameters[5].shape[:2]
    stage = _Stage(features, len(parameters) // 6, inner, new)
    batch, _, height, width = grad.shape
    grad, passed = grad.contiguous(memory_format=LAST), torch.empty_like(features)
    d_x = torch.empty((batch, stage.first, height, width), dtype=grad.dtype, device=grad.device, memory_format=LAST)
    d_new = torch.zeros((batch, height, width, stage.padded), dtype=grad.dtype, device=grad.device).permute(0, 3, 1, 2)
    d_new[:, :new] = grad[:, stage.total - new :]
    tile, sums, d_norms, d_kernels = SINGLE if stage.single else GRADIENT, [], [], []
    programs, rows_a_program = stage.shared(tile.rows, stage.wanted)
    for index in reversed(range(stage.layers)):
        weight, bias, _, *norm2, _ = parameters[6 * index : 6 * index + 6]
        matrix, kernel, h, y, *inside = saved[1 + 6 * index : 7 + 6 * index]
        d_y, d_kernel, _ = torch.ops.aten.convolution_backward(
            d_new, y, kernel, None, ONES, ONES, ONES, False, [0, 0], 1, [True, True, False]
        )
        d_h, *d_norm, _ = norms.backward(d_y, h, *norm2, *inside, None, True)
        known = (*saved[0][:2], weight, bias, matrix)
        summed = _summed(stage, index, d_h, features, known)
        source, target = passed if sums else grad, passed if index else d_x
        gradient_kernel[programs, _blocks(stage, index, tile)](
            d_h, features, source, target, d_new, *known, summed, stage.rows, stage.pitch,
            target.shape[1] // stage.vector, stage.groups(index), new // stage.vector if index else 0, rows_a_program,
            NEW_PITCH=stage.padded, **stage.constants(tile),
        )  # fmt: skip
        sums.append(summed)
        d_norms.append(d_norm)
        d_kernels.append(d_kernel[:new])
    return d_x, _gradients(parameters, saved[0][1], sums[::-1], d_norms[::-1], d_kernels[::-1])


def _blocks(stage: _Stage, index: int, tile: Tile) -> int:
    return triton.cdiv(stage.groups(index) * stage.vector, tile.columns)


def _summed(stage: _Stage, index: int, d_h: Tensor, features: Tensor, known: Sequence[Tensor]) -> Tensor:
    """(2 + inner, channels) fp32: the results of reduce_kernel, summed over its programs."""
    tile, groups = SINGLE if stage.single else REDUCE, stage.groups(index)
    blocks = _blocks(stage, index, tile)
    programs, rows_a_program = stage.shared(tile.rows, triton.cdiv(stage.wanted, blocks))
    partial = torch.empty((programs, 2 + stage.inner, groups * stage.vector), dtype=FP32, device=d_h.device)
    reduce_kernel[programs, blocks](
        d_h, features, partial, *known, stage.rows, stage.pitch, groups, rows_a_program, **stage.constants(tile)
    )
    return partial.sum(0)


def _gradients(
    parameters: Sequence[Tensor], inverse: Tensor, sums: list[Tensor], d_norms: list[list[Tensor]],
    d_kernels: list[Tensor],
) -> list[Tensor]:  # fmt: skip
    """The gradients of all parameters, in their order, dtype and layout."""
    weights = torch._foreach_mul([s[1] for s in sums], [inverse[: s.shape[1]] for s in sums])
    kernels = [torch.empty_like(conv2) for conv2 in parameters[5::6]]
    torch._foreach_copy_(kernels, d_kernels)
    found = []
    for weight, conv1, summed, d_norm, kernel in zip(weights, parameters[2::6], sums, d_norms, kernels, strict=True):
        d_conv1 = summed[2:].as_strided(conv1.shape, conv1.stride()).to(conv1.dtype)
        found += [weight, summed[0], d_conv1, *d_norm, kernel]
    return found


def builds() -> list[Build]:
    """The kernels of DenseNet-BC-100's first stage in bf16 and fp32 and its last in bf16, to compile without a GPU."""
    return [build for data, vector in (("*bf16", 4), ("*bf16", 2), ("*fp32", 4)) for build in _builds(data, vector)]


def _builds(data: str, vector: int) -> Iterator[Build]:
    maps = ("source", "features", "x", "h", "d_h", "target", "new", "matrix")
    numbers = ("partial", "mean", "inverse", "weight", "bias", "sums")
    types = dict.fromkeys((f"{name}_ptr" for name in maps), data)
    types |= dict.fromkeys((f"{name}_ptr" for name in numbers), "*fp32") | dict.fromkeys(SIZES, "i32")
    tiles = (append_kernel, APPEND), (project_kernel, PROJECT), (reduce_kernel, REDUCE), (gradient_kernel, GRADIENT)
    few = ((project_kernel, PROJECT_FEW),) if data != "*fp32" else ()
    for kernel, halves in (*tiles, *few):
        tile = SINGLE if data == "*fp32" and kernel is not append_kernel else halves
        constants = {"INNER": 48, "WIDTH": 64, "NEW_PITCH": 16, "ROWS": tile.rows, "COLUMNS": tile.columns}
        constants = {k: v for k, v in (constants | {"VECTOR": vector}).items() if k in kernel.arg_names}
        signature = {k: v for k, v in types.items() if k in kernel.arg_names}
        name = f"{kernel.__name__} {data} by {vector}, {tile.rows} rows"
        yield Build(name, kernel, signature, constants, num_warps=tile.warps)
