"""Layers that several networks share: convolutions, fused norms, pooling, initialisation."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from imnet_kernels import add_batch_norm, batch_norm, tier
from imnet_kernels.batch_norm import Norm
from torch import nn

from ..fields import Range

Rate = Annotated[float, Range(low=0, below=1)]
"""A drop probability."""


def conv3x3(in_channels: int, out_channels: int, stride: int = 1, bias: bool = False) -> nn.Conv2d:
    """3x3 convolution, padded to keep the map's size at stride 1."""
    return nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=bias)


def conv1x1(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """1x1 convolution without bias."""
    return nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)


Sum = torch.Tensor | tuple[torch.Tensor, torch.Tensor]
"""A map (B, C, H, W), or its two summands, which are still to be added: see :func:`summed_later`."""


def normed(
    norm: nn.Module, x: torch.Tensor, *, relu: bool = False, residual: torch.Tensor | None = None
) -> torch.Tensor:
    """``norm(x)``, with ``residual`` added and then ReLU if requested; one kernel unless the tier is the reference."""
    if is_plain(norm) and tier.choose("batch_norm", x.device.type) != "reference":
        tensors, options = counted(norm)
        return batch_norm(x, *tensors, **options, relu=relu, residual=residual)
    y = norm(x)
    if residual is not None:
        y += residual
    # In place, because no backward pass needs the norm's output.
    return F.relu(y, inplace=True) if relu else y


def summed_later(x: torch.Tensor, addend: torch.Tensor) -> Sum:
    """``x + addend`` for :func:`sum_norm_relu`, or both if its kernel will add them, which every tier but the reference
    does."""
    return x + addend if tier.choose("batch_norm", x.device.type) == "reference" else (x, addend)


def sum_norm_relu(norm: nn.Module, x: Sum) -> tuple[torch.Tensor, torch.Tensor]:
    """(the sum ``s`` of ``x``, ReLU(norm(s))); an addition that is still to be done is part of the norm's kernel."""
    if isinstance(x, tuple):
        if is_plain(norm):
            tensors, options = counted(norm)
            return add_batch_norm(*x, *tensors, **options, relu=True)
        x = x[0] + x[1]
    return x, norm_relu(norm, x)


def is_plain(norm: nn.Module) -> bool:
    """Whether ``norm`` is torch's own BatchNorm2d in training mode, with weights and running statistics: a kernel may
    then compute it."""
    complete = type(norm) is nn.BatchNorm2d and norm.affine and norm.track_running_stats
    return complete and norm.training and norm.momentum is not None


def tensors_of(norm: nn.Module) -> Norm:
    """The tensors of a plain norm, as kernels take them."""
    return Norm(*(getattr(norm, name) for name in Norm._fields))


def counted(norm: nn.Module) -> tuple[Norm, dict[str, Any]]:
    """The arguments of :func:`batch_norm` for ``norm``, whose count of batches is raised by one."""
    norm.num_batches_tracked.add_(1)  # pyright: ignore[reportOptionalMemberAccess, reportCallIssue]
    return tensors_of(norm), {"momentum": norm.momentum, "eps": norm.eps}


def norm_relu(norm: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """ReLU of ``norm(x)``."""
    return normed(norm, x, relu=True)


def global_mean(x: torch.Tensor) -> torch.Tensor:
    """Mean over the map: (B, C, H, W) -> (B, C).

    Computed as a sum, whose backward is a view; ``mean`` and adaptive pooling write the map's gradient in NCHW. The
    dtype is given because autocast would widen the sum to fp32, whose backward copies the map in NCHW too.
    """
    return x.sum((2, 3), dtype=x.dtype) / (x.shape[2] * x.shape[3])


def global_max(x: torch.Tensor) -> torch.Tensor:
    """Maximum over the map: (B, C, H, W) -> (B, C), by max-pooling, whose backward uses the stored positions.

    The backward of ``amax`` searches for the elements that equal the maximum. Compiled for a GPU, Inductor recomputes
    them without the rounding to bf16 that the maximum has, so none is equal and the gradient is 0 / 0.
    """
    return F.max_pool2d(x, x.shape[2:]).flatten(1)


def he_init(network: nn.Module, mode: Literal["fan_in", "fan_out"] = "fan_out") -> None:
    """Initialise convolutions ~ N(0, 2 / fan) (He et al. 2015) and biases with 0; norms (1 and 0) and linear weights
    keep torch's default.

    The Torch-7 networks (WRN, DenseNet, Shake-Shake) use the fan of the output (k * k * out), Lasagne's of the input.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode=mode, nonlinearity="relu")
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
