"""A stage of DenseNet-BC in training: every layer writes its new features into their place in one shared map.

Why a family: torch concatenates before every layer, computes the statistics of the same channels again in each layer,
writes the normalised map to memory, and sums the layers' gradients slice by slice. That was more than half of a
captured step's 12.4 ms on an H200. Under torch.compile the traced reference runs.
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
"""The most channels between a layer's two convolutions: a program's tile holds all of them."""


class Layer(NamedTuple):
    """A layer BN-ReLU-1x1-BN-ReLU-3x3 that reads K channels, has I between its convolutions and adds k new ones:
    conv1 (I, K, 1, 1), conv2 (k, I, 3, 3)."""

    norm1: Norm
    conv1: Tensor
    norm2: Norm
    conv2: Tensor

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """The six tensors that get a gradient."""
        return self.norm1.weight, self.norm1.bias, self.conv1, self.norm2.weight, self.norm2.bias, self.conv2


def dense_stage(x: Tensor, layers: Sequence[Layer], *, momentum: float = 0.1, eps: float = 1e-5) -> Tensor:
    """(B, C, H, W) -> (B, C + k len(layers), H, W): ``x`` followed by every layer's k new features, in x's dtype.

    Norms use the batch's statistics and update the running ones; convolutions run in x's dtype. The faster tiers serve
    channels_last fp32, bf16 and fp16; anything else, and calls under torch.compile or a dispatch mode, run the
    reference. Raises ValueError if the layers' shapes do not follow each other, and for one value per channel.
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
    """Whether the kernels can run: x and the norms fit rows_of_channels, all layers have equal I and k with I at most
    MAX_INNER, and neither torch.compile nor a dispatch mode observes the call."""
    if not layers:
        return False
    inner, new = layers[0].conv1.shape[0], layers[0].conv2.shape[0]
    alike = all((layer.conv1.shape[0], layer.conv2.shape[0]) == (inner, new) for layer in layers)
    vectors = [tensor for layer in layers for tensor in (*layer.norm1, *layer.norm2)]
    dense = all(layer.conv1.is_contiguous() for layer in layers)
    return alike and rows_of_channels(x, *vectors) and dense and inner <= MAX_INNER and unobserved()


class DenseStage(torch.autograd.Function):
    """A tier's forward and backward as one differentiable function; the running statistics get no gradient."""

    @staticmethod
    def forward(ctx, x, layers, momentum, eps, *parameters):
        chosen = tier.implementation("dense_stage", x.device.type)
        features, saved = chosen.forward(x, layers, momentum, eps)
        ctx.save_for_backward(features, *parameters, *saved)
        ctx.num_parameters, ctx.run_backward = len(parameters), chosen.backward  # the tier may change before
        return features

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        features, *others = ctx.saved_tensors
        parameters, saved = others[: ctx.num_parameters], others[ctx.num_parameters :]
        d_x, d_parameters = ctx.run_backward(grad, features, parameters, saved)
        return d_x, None, None, None, *d_parameters
