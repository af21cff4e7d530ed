"""A small network for short runs: most of its arithmetic is done on a quarter of the pixels or fewer, in widths that
suit bf16 units. Narrow ones are for CPUs, wide ones for GPUs, where each of the few kernels then has enough to do."""

from __future__ import annotations

from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import nn

from ..fields import Range
from .layers import conv3x3, global_max, norm_relu
from .registry import model


class ConvNorm(nn.Module):
    """Convolution, max-pool if ``pool`` > 1, BatchNorm, ReLU. Pooling first (by 2) quarters the work of the norm."""

    def __init__(self, conv: nn.Conv2d, pool: int = 1):
        super().__init__()
        self.conv, self.pool = conv, pool
        self.norm = nn.BatchNorm2d(conv.out_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        if self.pool > 1:
            x = F.max_pool2d(x, self.pool)
        return norm_relu(self.norm, x)


class Residual(nn.Module):
    """x + ReLU(BN(conv(x))): the identity path is never normalised."""

    def __init__(self, channels: int):
        super().__init__()
        self.inner = ConvNorm(conv3x3(channels, channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.inner(x)


class SpeedNet(nn.Module):
    """5x5 stem that halves the map, then widths w, 2w, 4w with a max-pool of 2 between them, global max, linear layer.

    (B, C, 28, 28) -> 14 x 14 x w -> 7 x 7 x 2w -> 3 x 3 x 4w -> (B, num_classes), and so on for more ``num_stages``.
    Each stage but the last ends with ``num_residuals`` residual layers, the last one with ``last_residuals``. The stem
    halves the map by its stride, or with ``pool_stem`` by a max-pool. The design follows the networks of DAWNBench and
    airbench (Page 2018, Jordan 2024), from which it has the global maximum and the output scale of 1/8.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        *,
        width: Annotated[int, Range(low=1, high=4096)] = 32,
        num_residuals: Annotated[int, Range(low=0, high=100)] = 1,
        num_stages: Annotated[int, Range(low=1, high=10)] = 3,
        last_residuals: Annotated[int, Range(low=0, high=100)] = 0,
        pool_stem: bool = False,
    ):
        super().__init__()
        stride, pool = (1, 2) if pool_stem else (2, 1)
        layers: list[nn.Module] = [ConvNorm(nn.Conv2d(in_channels, width, 5, stride, 2, bias=False), pool)]
        for stage in range(num_stages):
            if stage:
                layers.append(ConvNorm(conv3x3(width, 2 * width), pool=2))
                width *= 2
            is_last = stage == num_stages - 1
            layers += [Residual(width) for _ in range(last_residuals if is_last else num_residuals)]
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(width, num_classes, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(global_max(self.features(x))) / 8


@model(options_of=SpeedNet)
def speednet(num_classes: int, in_channels: int = 3, **options: Any) -> nn.Module:
    """See :class:`SpeedNet`."""
    return SpeedNet(num_classes, in_channels, **options)
