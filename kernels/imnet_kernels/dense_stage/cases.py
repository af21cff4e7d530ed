"""dense_stage's cases: DenseNet-BC-100's stages with fewer layers, and shapes that do not divide evenly."""

from __future__ import annotations

import math

import torch

from ..family import Call, Case, Family
from . import Layer, Norm, dense_stage

CASES = (
    Case.of("stage 1", (2, 24, 6, 6), growth=12, layers=2),
    Case.of("stage 2", (3, 108, 5, 5), growth=12, layers=1),
    Case.of("stage 3", (3, 150, 3, 5), growth=12, layers=2),
    Case.of("growth of five", (3, 7, 5, 3), growth=5, layers=3),
    Case.of("growth of eight", (2, 16, 4, 4), growth=8, layers=2),
    Case.of("growth of 24", (1, 48, 4, 4), growth=24, layers=1),
    Case.of("one layer", (5, 24, 3, 3), growth=12, layers=1),
    Case.of("eight values a channel", (2, 24, 2, 2), growth=12, layers=2),
    Case.of("several tiles a program", (5, 24, 8, 9), growth=12, layers=1),
    Case.of("planar", (2, 24, 4, 4), growth=12, layers=2, planar=True),
    # Four of the sixteen layers, from the middle: torch.compile takes more than a minute for all of them.
    Case.of("densenet stage 1", (128, 120, 28, 28), growth=12, layers=4, gpu=True),
    Case.of("densenet stage 3", (128, 234, 7, 7), growth=12, layers=4, gpu=True),
)


def make(case: Case, dtype: torch.dtype, device: str) -> Call:
    """A map whose channels differ in mean and deviation; the leaves get a gradient."""
    o, generator = case.options, torch.Generator().manual_seed(5)
    precise = torch.float64 if dtype == torch.float64 else torch.float32
    channels = o["shape"][1]

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    def leaf(tensor: torch.Tensor) -> torch.Tensor:
        layout = torch.channels_last if tensor.dim() == 4 else torch.contiguous_format
        return tensor.to(device, precise).contiguous(memory_format=layout).requires_grad_()

    def norm(width: int) -> Norm:
        running = drawn(width).to(device, precise), torch.rand(width, generator=generator).to(device, precise)
        return Norm(leaf(1 + 0.2 * drawn(width)), leaf(0.5 * drawn(width)), *running)

    layers, growth = [], o["growth"]
    for index in range(o["layers"]):
        width, inner = channels + index * growth, 4 * growth
        conv1, conv2 = drawn(inner, width, 1, 1) / width**0.5, drawn(growth, inner, 3, 3) / (3 * inner**0.5)
        layers.append(Layer(norm(width), leaf(conv1), norm(inner), leaf(conv2)))
    x = drawn(*o["shape"]) * (0.5 + torch.rand(channels, 1, 1, generator=generator)) + drawn(channels, 1, 1)
    layout = torch.contiguous_format if o.get("planar") else torch.channels_last
    x = x.to(dtype).to(device).contiguous(memory_format=layout).requires_grad_()
    return Call(
        run=lambda: dense_stage(x, layers, momentum=0.1, eps=1e-5),
        leaves=(x, *(p for layer in layers for p in layer.parameters)),
        in_place=tuple(t for layer in layers for norm in (layer.norm1, layer.norm2) for t in norm[2:]),
    )


def bytes_moved(case: Case, dtype: torch.dtype) -> int:
    """The least traffic of the forward pass, without what is inside torch's 3x3 convolution: a layer reads its input;
    its inner map is written, read, written normalised and read; its new features are written twice and read once."""
    batch, channels, height, width = case.options["shape"]
    layers, growth = case.options["layers"], case.options["growth"]
    read = sum(channels + index * growth for index in range(layers))
    values = 2 * channels + read + layers * (4 * 4 * growth + 3 * growth)
    return math.prod((batch, height, width, values)) * dtype.itemsize


FAMILY = Family(
    name="dense_stage",
    cases=CASES,
    tolerance={torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2.5e-3},
    make=make,
    bytes_moved=bytes_moved,
)
