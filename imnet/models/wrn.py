"""Wide residual networks: the clean pre-activation form and the downsampled-ImageNet authors' Lasagne form.

Zagoruyko and Komodakis, "Wide Residual Networks", BMVC 2016 (arXiv 1605.07146); Chrabaszcz, Loshchilov and Hutter,
"A Downsampled Variant of ImageNet", 2017 (arXiv 1707.08819), for the four groups at 64 pixels.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import UsageError
from .layers import Rate, Sum, conv1x1, conv3x3, global_mean, he_init, norm_relu, sum_norm_relu, summed_later
from .registry import model


class PreActBlock(nn.Module):
    """BN-ReLU-3x3-BN-ReLU-(dropout)-3x3 plus skip: (B, C_in, H, W) -> (B, C_out, H / stride, W / stride).

    The skip is the identity, or a 1x1 convolution of the PRE-ACTIVATED input if the channels or the map change. With
    ``norm_follows`` the last addition may be left to the next norm, which :func:`sum_norm_relu` has to compute.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, drop_rate: float = 0.0, *, norm_follows: bool = False
    ) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv3x3(in_channels, out_channels, stride)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = conv3x3(out_channels, out_channels)
        same = in_channels == out_channels and stride == 1
        self.projection = None if same else conv1x1(in_channels, out_channels, stride)
        self.drop_rate = drop_rate
        self.norm_follows = norm_follows

    def forward(self, x: Sum) -> Sum:
        total, activated = sum_norm_relu(self.bn1, x)
        skip = total if self.projection is None else self.projection(activated)
        out = norm_relu(self.bn2, self.conv1(activated))
        if self.drop_rate:
            out = F.dropout(out, self.drop_rate, self.training)
        out = self.conv2(out)
        return summed_later(out, skip) if self.norm_follows else out + skip


class LasagneBlock(nn.Module):
    """The block of the authors' Lasagne code: :class:`PreActBlock` with three differences.

    The network's ``first`` block has no leading BN-ReLU, because the stem ends with one; the projection takes the RAW
    input, and is in the first block of every group (``opens_group``); the second convolution has a bias. The last
    addition may be left to the next norm.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, *, opens_group: bool, first: bool) -> None:
        super().__init__()
        self.bn1 = None if first else nn.BatchNorm2d(in_channels)
        self.conv1 = conv3x3(in_channels, out_channels, stride)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = conv3x3(out_channels, out_channels, bias=True)
        self.projection = conv1x1(in_channels, out_channels, stride) if opens_group else None

    def forward(self, x: Sum) -> Sum:
        if self.bn1 is None:
            assert isinstance(x, torch.Tensor), "the stem adds nothing"
            total = activated = x
        else:
            total, activated = sum_norm_relu(self.bn1, x)
        skip = total if self.projection is None else self.projection(total)
        return summed_later(self.conv2(norm_relu(self.bn2, self.conv1(activated))), skip)


class WideResNet(nn.Module):
    """WRN-``depth``-``widen``: images (B, in_channels, H, W) -> logits (B, num_classes).

    Stem 3x3 to 16 channels; ``groups`` groups of n blocks of width 16k, 32k, 64k, (128k), each but the first halving
    the map; BN-ReLU, global mean, linear. By default there are three groups if depth = 6n + 4, else four if it is
    8n + 4. With ``zero_init_last_bn`` every block starts as its skip connection: the convolution that ends the
    pre-activation branch is zero, not a BN, which in front of a ReLU would never receive a gradient.
    """

    def __init__(
        self,
        depth: int,
        widen: int,
        num_classes: int,
        in_channels: int = 3,
        *,
        groups: Literal[2, 3, 4] | None = None,
        drop_rate: Rate = 0.0,
        zero_init_last_bn: bool = False,
    ) -> None:
        super().__init__()
        sizes = _group_sizes(depth, widen, groups)
        self.stem = conv3x3(in_channels, 16)
        blocks: list[PreActBlock] = []
        width = 16
        for out_width, stride in sizes:
            blocks.append(PreActBlock(width, out_width, stride, drop_rate, norm_follows=True))
            width = out_width
        self.blocks = nn.Sequential(*blocks)
        self.bn = nn.BatchNorm2d(width)
        self.head = nn.Linear(width, num_classes)
        he_init(self)
        if zero_init_last_bn:
            for block in blocks:
                nn.init.zeros_(block.conv2.weight)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        _, features = sum_norm_relu(self.bn, self.blocks(self.stem(images)))
        return self.head(global_mean(features))


class LasagneWideResNet(nn.Module):
    """The authors' Lasagne WRN-``depth``-``widen`` at 64 pixels: (B, in_channels, H, W) -> logits (B, num_classes).

    Stem 3x3-BN-ReLU, then blocks of :class:`LasagneBlock`; BN epsilon 1e-4. The initial weights are those of their
    code: He normal by fan-in (for the head without the factor 2 of ReLU), and Lasagne's default, Glorot uniform, for
    the projections. The errors that the paper reports are of this form.
    """

    def __init__(self, depth: int, widen: int, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        sizes = _group_sizes(depth, widen, 4)
        self.stem = conv3x3(in_channels, 16)
        self.stem_bn = nn.BatchNorm2d(16)
        blocks: list[nn.Module] = []
        width = 16
        for i, (out_width, stride) in enumerate(sizes):
            opens = i % (len(sizes) // 4) == 0
            blocks.append(LasagneBlock(width, out_width, stride, opens_group=opens, first=i == 0))
            width = out_width
        self.blocks = nn.Sequential(*blocks)
        self.bn = nn.BatchNorm2d(width)
        self.head = nn.Linear(width, num_classes)
        he_init(self, mode="fan_in")
        nn.init.kaiming_normal_(self.head.weight, nonlinearity="linear")
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = 1e-4  # Lasagne's default
            if isinstance(module, LasagneBlock) and module.projection is not None:
                nn.init.xavier_uniform_(module.projection.weight)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        _, features = sum_norm_relu(self.bn, self.blocks(norm_relu(self.stem_bn, self.stem(images))))
        return self.head(global_mean(features))


def _group_sizes(depth: int, widen: int, groups: int | None) -> list[tuple[int, int]]:
    """(width, stride) of every block, in order."""
    if groups is None:
        groups = 3 if depth % 6 == 4 else 4
    num_blocks, rest = divmod(depth - 4, 2 * groups)
    if rest or num_blocks < 1 or widen < 1:
        allowed = "depth 6n + 4 (three groups) or 8n + 4 (four), n and the widening factor 1 or more"
        raise UsageError(f"wide residual network of depth {depth}, width {widen}, {groups} groups", hint=allowed)
    return [(16 * widen * 2**group, 2 if group and not i else 1) for group in range(groups) for i in range(num_blocks)]


@model(options_of=WideResNet)
def wrn28_10(num_classes: int, in_channels: int = 3, **options) -> WideResNet:
    """Three groups of four blocks with 160/320/640 channels."""
    return WideResNet(28, 10, num_classes, in_channels, **options)


@model(options_of=WideResNet)
def wrn36_1(num_classes: int, in_channels: int = 3, **options) -> WideResNet:
    """Four groups of four blocks with 16/32/64/128 channels."""
    return WideResNet(36, 1, num_classes, in_channels, **options)


@model(options_of=WideResNet)
def wrn36_2(num_classes: int, in_channels: int = 3, **options) -> WideResNet:
    """Four groups of four blocks with 32/64/128/256 channels."""
    return WideResNet(36, 2, num_classes, in_channels, **options)


@model(options_of=WideResNet)
def wrn36_5(num_classes: int, in_channels: int = 3, **options) -> WideResNet:
    """Four groups of four blocks with 80/160/320/640 channels."""
    return WideResNet(36, 5, num_classes, in_channels, **options)


@model(options_of=WideResNet)
def wrn36_10(num_classes: int, in_channels: int = 3, **options) -> WideResNet:
    """Four groups of four blocks with 160/320/640/1280 channels."""
    return WideResNet(36, 10, num_classes, in_channels, **options)


@model
def wrn36_2_lasagne(num_classes: int, in_channels: int = 3) -> LasagneWideResNet:
    """The Lasagne form of wrn36_2, by the paper's authors."""
    return LasagneWideResNet(36, 2, num_classes, in_channels)


@model
def wrn36_5_lasagne(num_classes: int, in_channels: int = 3) -> LasagneWideResNet:
    """The Lasagne form of wrn36_5, by the paper's authors."""
    return LasagneWideResNet(36, 5, num_classes, in_channels)
