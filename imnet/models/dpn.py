"""Dual path network on a WRN-28-10 backbone: each block adds to the residual features and appends dense features.

Chen, Li, Xiao, Jin, Yan and Feng, "Dual Path Networks", NIPS 2017 (arXiv 1707.01629), in the small-image form of
github.com/Queequeg92/DualPathNet: 3x3 basic blocks, no groups, no 1x1 bottleneck.
"""

from __future__ import annotations

import torch
from torch import nn

from .layers import conv3x3, global_mean, he_init, norm_relu
from .registry import model
from .wrn import PreActBlock


class DualTransition(nn.Module):
    """Start of a stage: (B, C, H, W) -> features, residual (B, width, H / s, W / s), dense (B, 2 growth, H / s, W / s).

    The residual ones come from a pre-activation block, the dense ones from a 3x3 convolution of the RAW input.
    """

    def __init__(self, in_channels: int, width: int, growth: int, stride: int) -> None:
        super().__init__()
        self.residual = PreActBlock(in_channels, width, stride)
        self.dense = conv3x3(in_channels, 2 * growth, stride)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.residual(x), self.dense(x)


class DualBlock(nn.Module):
    """BN-ReLU-3x3-BN-ReLU-3x3 of all features, to ``width`` channels to add and ``growth`` channels to append."""

    def __init__(self, width: int, dense_width: int, growth: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(width + dense_width)
        self.conv1 = conv3x3(width + dense_width, width + growth)
        self.bn2 = nn.BatchNorm2d(width + growth)
        self.conv2 = conv3x3(width + growth, width + growth)
        self.width, self.growth = width, growth

    def forward(self, residual: torch.Tensor, dense: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.cat([residual, dense], 1)
        new = self.conv2(norm_relu(self.bn2, self.conv1(norm_relu(self.bn1, x))))
        # split rather than two slices: its backward is one cat; that of slices adds two maps in NCHW, filled up with 0.
        added, appended = new.split([self.width, self.growth], 1)
        return residual + added, torch.cat([dense, appended], 1)


class DualStage(nn.Module):
    """A transition and ``num_blocks - 1`` dual blocks: (B, C, H, W) -> (B, ``out_channels``, H / s, W / s)."""

    def __init__(self, in_channels: int, width: int, growth: int, num_blocks: int, stride: int) -> None:
        super().__init__()
        self.transition = DualTransition(in_channels, width, growth, stride)
        self.blocks = nn.ModuleList(DualBlock(width, (2 + i) * growth, growth) for i in range(num_blocks - 1))
        self.out_channels = width + (num_blocks + 1) * growth

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        residual, dense = self.transition(x)
        for block in self.blocks:
            residual, dense = block(residual, dense)
        return torch.cat([residual, dense], 1)


class DualPathNet(nn.Module):
    """Three stages of ``num_blocks``: images (B, in_channels, H, W) -> logits (B, num_classes).

    ``widths`` and ``growths`` are per stage. With ``zero_init_last_bn`` every block starts as the identity on the
    residual path: the channels that its last convolution ADDS start at zero (for why it is the convolution see
    WideResNet), those that it appends do not.
    """

    def __init__(
        self,
        widths: tuple[int, int, int],
        growths: tuple[int, int, int],
        num_blocks: int,
        num_classes: int,
        in_channels: int = 3,
        *,
        zero_init_last_bn: bool = False,
    ) -> None:
        super().__init__()
        self.stem = conv3x3(in_channels, 16)
        stages: list[DualStage] = []
        width = 16
        for i in range(3):
            stages.append(DualStage(width, widths[i], growths[i], num_blocks, stride=2 if i else 1))
            width = stages[-1].out_channels
        self.stages = nn.Sequential(*stages)
        self.bn = nn.BatchNorm2d(width)
        self.head = nn.Linear(width, num_classes)
        he_init(self)
        nn.init.kaiming_normal_(self.head.weight)
        if zero_init_last_bn:
            self._zero_added()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.stages(self.stem(images))
        return self.head(global_mean(norm_relu(self.bn, features)))

    @torch.no_grad()
    def _zero_added(self) -> None:
        for module in self.modules():
            if isinstance(module, PreActBlock):
                module.conv2.weight.zero_()
            elif isinstance(module, DualBlock):
                module.conv2.weight[: module.width].zero_()


@model(options_of=DualPathNet)
def dpn28_10(num_classes: int, in_channels: int = 3, **options) -> DualPathNet:
    """Three stages of four blocks with widths 160/320/640 and growths 16/32/64, which end at 240/480/960 channels."""
    return DualPathNet((160, 320, 640), (16, 32, 64), 4, num_classes, in_channels, **options)
