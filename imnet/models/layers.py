"""What several networks share: convolutions, pooling, initialisation."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from imnet_kernels import add_batch_norm, batch_norm, tier
from imnet_kernels.batch_norm import Norm
from torch import nn

from ..fields import Range

Rate = Annotated[float, Range(low=0, below=1)]
"""How likely something is dropped."""


def conv3x3(in_channels: int, out_channels: int, stride: int = 1, bias: bool = False) -> nn.Conv2d:
    """3x3 convolution that keeps the map's size at stride 1."""
    return nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=bias)


def conv1x1(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """1x1 convolution without bias."""
    return nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)


Sum = torch.Tensor | tuple[torch.Tensor, torch.Tensor]
"""A map (B, C, H, W), or the two that it is the sum of: see :func:`summed_later`."""


def normed(
    norm: nn.Module, x: torch.Tensor, *, relu: bool = False, residual: torch.Tensor | None = None
) -> torch.Tensor:
    """``norm(x)``, plus ``residual`` and through ReLU where asked, in one kernel where a faster one is chosen."""
    if is_plain(norm) and tier.choose("batch_norm", x.device.type) != "reference":
        tensors, options = counted(norm)
        return batch_norm(x, *tensors, **options, relu=relu, residual=residual)
    y = norm(x)
    if residual is not None:
        y += residual
    # Written over it: neither backward reads the norm's output.
    return F.relu(y, inplace=True) if relu else y


def summed_later(x: torch.Tensor, addend: torch.Tensor) -> Sum:
    """``x + addend`` for :func:`sum_norm_relu`: both as they are where a faster kernel is chosen, which adds them."""
    return x + addend if tier.choose("batch_norm", x.device.type) == "reference" else (x, addend)


def sum_norm_relu(norm: nn.Module, x: Sum) -> tuple[torch.Tensor, torch.Tensor]:
    """(the sum, ReLU of ``norm`` of it), the addition in the norm's kernel where it is still to be done."""
    if isinstance(x, tuple):
        if is_plain(norm):
            tensors, options = counted(norm)
            return add_batch_norm(*x, *tensors, **options, relu=True)
        x = x[0] + x[1]
    return x, norm_relu(norm, x)


def is_plain(norm: nn.Module) -> bool:
    """Whether it is torch's own batch norm, with weights, and takes the batch's statistics and keeps running ones."""
    complete = type(norm) is nn.BatchNorm2d and norm.affine and norm.track_running_stats
    return complete and norm.training and norm.momentum is not None


def tensors_of(norm: nn.Module) -> Norm:
    """A plain norm's tensors, as kernels take them."""
    return Norm(*(getattr(norm, name) for name in Norm._fields))


def counted(norm: nn.Module) -> tuple[Norm, dict[str, Any]]:
    """What :func:`batch_norm` is given of a norm, which has now seen one batch more."""
    norm.num_batches_tracked.add_(1)  # pyright: ignore[reportOptionalMemberAccess, reportCallIssue]
    return tensors_of(norm), {"momentum": norm.momentum, "eps": norm.eps}


def norm_relu(norm: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """ReLU of ``norm(x)``."""
    return normed(norm, x, relu=True)


def global_mean(x: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) -> (B, C).

    As a sum, whose backward is a view: that of ``mean`` and of adaptive pooling writes the map's gradient in NCHW. The
    dtype is named because autocast would otherwise widen the sum, and its backward then copies the map in NCHW too.
    """
    return x.sum((2, 3), dtype=x.dtype) / (x.shape[2] * x.shape[3])


def global_max(x: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) -> (B, C), by a max-pool over the whole map, whose backward looks positions up.

    That of ``amax`` asks which elements equal the maximum. Compiled for a GPU, Inductor recomputes them without the
    rounding to bf16 that the maximum has: none is equal, and the gradient is 0 / 0.
    """
    return F.max_pool2d(x, x.shape[2:]).flatten(1)


def he_init(network: nn.Module, mode: Literal["fan_in", "fan_out"] = "fan_out") -> None:
    """Convolutions ~ N(0, 2 / fan); every bias 0; norms 1 and 0; linear weights keep torch's default (He et al. 2015).

    The Torch-7 networks (WRN, DenseNet, Shake-Shake) take the fan of the output (k * k * out), Lasagne's of the input.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode=mode, nonlinearity="relu")
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
