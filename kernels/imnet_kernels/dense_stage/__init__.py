"""A stage of DenseNet-BC in training: every layer's new features are written into their place of one map.

Why a family: torch concatenates before every layer, takes the statistics of the same channels again in each, writes the
normalised map out, and adds the layers' gradients up slice by slice. Of a captured step's 12.4 ms on an H200 that was
more than half. Under torch.compile it is the traced reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .. import tier
from ..batch_norm import Norm, rows_of_channels
from ..calls import unobserved
from . import reference

__all__ = ["Layer", "dense_stage"]

MAX_INNER = 128
"""Channels between a layer's convolutions that a program's tile has room for."""


class Layer(NamedTuple):
    """BN-ReLU-1x1-BN-ReLU-3x3 of a layer with K channels before it, I inside and k new ones: conv1 (I, K, 1, 1),
    conv2 (k, I, 3, 3)."""

    norm1: Norm
    conv1: Tensor
    norm2: Norm
    conv2: Tensor

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """What gets a gradient, six tensors."""
        return self.norm1.weight, self.norm1.bias, self.conv1, self.norm2.weight, self.norm2.bias, self.conv2


def dense_stage(x: Tensor, layers: Sequence[Layer], *, momentum: float = 0.1, eps: float = 1e-5) -> Tensor:
    """(B, C, H, W) -> (B, C + k len(layers), H, W): ``x`` and every layer's k new features after it; like x.

    Norms take the batch's statistics and move the running ones; convolutions run in x's dtype. The faster tiers take
    channels_last fp32, bf16 and fp16; everything else, and what a compiler or a dispatch mode watches, is torch's own.
    Raises ValueError for layers that do not follow each other, and for one value a channel.
    """
    _check(x, layers)
    if tier.choose("dense_stage", x.device.type) == "reference" or not fits(x, layers):
        return reference.dense_stage(x, layers, momentum, eps)
    parameters = [p for layer in layers for p in layer.parameters]
    return DenseStage.apply(x, layers, momentum, eps, *parameters)  # pyright: ignore[reportReturnType]


def _check(x: Tensor, layers: Sequence[Layer]) -> None:
    channels = x.shape[1]
    for index, layer in enumerate(layers):
        inner, new = layer.conv1.shape[0], layer.conv2.shape[0]
        wanted = (inner, channels, 1, 1), (new, inner, 3, 3)
        got = tuple(layer.conv1.shape), tuple(layer.conv2.shape)
        if got != wanted:
            raise ValueError(f"layers[{index}] is {got[0]}, {got[1]}; allowed {wanted[0]}, {wanted[1]}; correct it")
        channels += new


def fits(x: Tensor, layers: Sequence[Layer]) -> bool:
    """Whether a kernel reads it as rows of channels, and nothing watches; one value a channel is torch's to refuse."""
    if not layers:
        return False
    inner, new = layers[0].conv1.shape[0], layers[0].conv2.shape[0]
    alike = all((layer.conv1.shape[0], layer.conv2.shape[0]) == (inner, new) for layer in layers)
    vectors = [tensor for layer in layers for tensor in (*layer.norm1, *layer.norm2)]
    dense = all(layer.conv1.is_contiguous() for layer in layers)
    return alike and rows_of_channels(x, *vectors) and dense and inner <= MAX_INNER and unobserved()


class DenseStage(torch.autograd.Function):
    """A tier's two functions as one; the running statistics get no gradient."""

    @staticmethod
    def forward(ctx, x, layers, momentum, eps, *parameters):
        chosen = tier.implementation("dense_stage", x.device.type)
        features, saved = chosen.forward(x, layers, momentum, eps)
        ctx.save_for_backward(features, *parameters, *saved)
        ctx.num_parameters, ctx.run_backward = len(parameters), chosen.backward  # whatever is chosen by then
        return features

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        features, *others = ctx.saved_tensors
        parameters, saved = others[: ctx.num_parameters], others[ctx.num_parameters :]
        d_x, d_parameters = ctx.run_backward(grad, features, parameters, saved)
        return d_x, None, None, None, *d_parameters
