"""Shake-Shake 26 2 x W d: residual networks with two branches that random coefficients mix in training.

Gastaldi, "Shake-Shake regularization", 2017 (arXiv 1705.07485) and github.com/xgastaldi/shake-shake.
"""

from __future__ import annotations

import functools
from typing import Literal, NamedTuple

import torch
import torch.distributed
import torch.nn.functional as F
from imnet_kernels import shake_batch_norm, shake_shake, tier
from torch import nn

from .layers import conv1x1, conv3x3, counted, global_mean, he_init, is_plain, norm_relu, normed
from .registry import model


class Branch(nn.Module):
    """ReLU-3x3(stride)-BN-ReLU-3x3-BN: (B, C_in, H, W) -> (B, C_out, H / stride, W / stride).

    The first ReLU is computed by the previous block: both branches and the shortcut take its result, ``activated``.
    With ``norm_later`` the last norm is left to the block.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, out_channels, stride)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.bn2 = nn.BatchNorm2d(out_channels)

    def forward(self, activated: torch.Tensor, norm_later: bool = False) -> torch.Tensor:
        y = self.conv2(norm_relu(self.bn1, self.conv1(activated)))
        return y if norm_later else normed(self.bn2, y)


class Shortcut(nn.Module):
    """The skip connection if the channels change: (B, C_in, H, W) -> (B, C_out, H / stride, W / stride).

    Two 1x1 convolutions of the block's ``activated`` input, each to half the channels: one takes every ``stride``-th
    pixel, the other does the same after the map is shifted up and left by one pixel (zeros come in). The results are
    concatenated and normalised.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.path1 = conv1x1(in_channels, out_channels // 2, stride)
        self.path2 = conv1x1(in_channels, out_channels // 2, stride)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, activated: torch.Tensor) -> torch.Tensor:
        shifted = F.pad(activated, (-1, 1, -1, 1))
        return normed(self.bn, torch.cat([self.path1(activated), self.path2(shifted)], 1))


class Activated(NamedTuple):
    """A map (B, C, H, W) and its ReLU, once for each branch of the next block."""

    x: torch.Tensor
    first: torch.Tensor
    second: torch.Tensor


def activated(x: torch.Tensor) -> Activated:
    """``x`` and its ReLU, which both branches share."""
    y = F.relu(x)
    return Activated(x, y, y)


class ShakeBlock(nn.Module):
    """skip + a branch1 + (1 - a) branch2: (B, C_in, H, W) -> (B, C_out, H / stride, W / stride), each with its ReLU.

    ``coefficients`` are alpha for the forward and beta for the backward pass, each (B,) or (1,); None means one half.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.branch1 = Branch(in_channels, out_channels, stride)
        self.branch2 = Branch(in_channels, out_channels, stride)
        same = in_channels == out_channels and stride == 1
        self.shortcut = None if same else Shortcut(in_channels, out_channels, stride)

    def forward(self, before: Activated, coefficients: tuple[torch.Tensor, torch.Tensor] | None) -> Activated:
        skip = before.x if self.shortcut is None else self.shortcut(before.first)
        norms = self.branch1.bn2, self.branch2.bn2
        norm_later = coefficients is not None and mixed_in_one_kernel(*norms, skip.device)
        x1, x2 = self._branches(before, norm_later)
        if coefficients is not None and norm_later:
            (norm1, options), (norm2, _) = map(counted, norms)
            return Activated(*shake_batch_norm(x1, x2, skip, norm1, norm2, *coefficients, **options))
        if coefficients is None:  # plain operations, so that an exported network runs without imnet_kernels
            return activated(skip + 0.5 * (x1 + x2))
        return activated(shake_shake(x1, x2, skip, *coefficients))

    def _branches(self, before: Activated, norm_later: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """The results of both branches, computed at the same time if :func:`in_flight`; autograd then runs their
        backward passes on the same two streams."""
        if not in_flight(before.x):
            return self.branch1(before.first, norm_later), self.branch2(before.second, norm_later)
        main, side = torch.cuda.current_stream(), _side_stream(before.x.device)
        side.wait_stream(main)
        # The memory belongs to the main stream, which would reuse it as soon as the backward pass has used it there.
        before.first.record_stream(side)
        with torch.cuda.stream(side):
            x1 = self.branch1(before.first, norm_later)
        x2 = self.branch2(before.second, norm_later)
        # x1 needs no record_stream: the side stream waits for the main one, which reads x1, before its next block.
        main.wait_stream(side)
        return x1, x2


def mixed_in_one_kernel(norm1: nn.BatchNorm2d, norm2: nn.BatchNorm2d, device: torch.device) -> bool:
    """Whether a kernel is chosen that computes both norms while it mixes the branches."""
    alike = (norm1.momentum, norm1.eps) == (norm2.momentum, norm2.eps)
    chosen = tier.choose("shake_batch_norm", device.type) != "reference"
    return chosen and alike and is_plain(norm1) and is_plain(norm2)


def in_flight(x: torch.Tensor) -> bool:
    """Whether both branches run at the same time: in a CUDA graph of a single process, where launches cost nothing.

    A step of Shake-Shake 2x96d took 14.8 ms with this and 16.2 without (batch 256, H200, 2026-11-27), since the last
    wave of a kernel on small maps leaves most of the GPU idle.
    """
    if torch.compiler.is_compiling() or not x.is_cuda:
        return False
    return torch.cuda.is_current_stream_capturing() and not torch.distributed.is_initialized()


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


class ShakeShake26(nn.Module):
    """Shake-Shake 26 2 x ``width`` d: images (B, in_channels, H, W) -> logits (B, num_classes).

    Stem 3x3-BN; three stages of four blocks, ``width`` times 1, 2 and 4; ReLU, global mean, linear. ``stem_width`` 16
    is Gastaldi's; with ``stem_width`` = ``width`` the first stage needs no shortcut.

    In training ``shake_forward`` draws a ~ U(0, 1) ("shake") or uses one half ("even"); ``shake_backward`` draws an
    independent b ("shake"), uses one half ("even") or the forward's a ("keep"); ``shake_level`` draws per image and
    block ("image") or per batch and block ("batch"). All coefficients of a step are drawn at once, on the images'
    device, from torch's generator, so that a restored generator repeats them. In evaluation all are one half.
    """

    def __init__(
        self,
        width: int,
        stem_width: int,
        num_classes: int,
        in_channels: int = 3,
        *,
        shake_forward: Literal["shake", "even"] = "shake",
        shake_backward: Literal["shake", "even", "keep"] = "shake",
        shake_level: Literal["image", "batch"] = "image",
        zero_init_last_bn: bool = False,
    ) -> None:
        super().__init__()
        self.shake = (shake_forward, shake_backward, shake_level)
        self.stem = conv3x3(in_channels, stem_width)
        self.stem_bn = nn.BatchNorm2d(stem_width)
        blocks: list[ShakeBlock] = []
        before = stem_width
        for stage in range(3):
            for i in range(4):
                blocks.append(ShakeBlock(before, width * 2**stage, stride=2 if stage and not i else 1))
                before = width * 2**stage
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Linear(before, num_classes)
        he_init(self)
        if zero_init_last_bn:
            for block in blocks:
                nn.init.zeros_(block.branch1.bn2.weight)
                nn.init.zeros_(block.branch2.bn2.weight)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = activated(normed(self.stem_bn, self.stem(images)))
        coefficients = self.coefficients(images) if self.training else [None] * len(self.blocks)
        for block, pair in zip(self.blocks, coefficients, strict=True):
            x = block(x, pair)
        return self.head(global_mean(x.first))

    def coefficients(self, images: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """(alpha, beta) of every block for one step, fp32, each (B,), or (1,) at level "batch"; drawn in one call."""
        forward, backward, level = self.shake
        count = images.shape[0] if level == "image" else 1
        drawn = torch.rand(2, len(self.blocks), count, dtype=torch.float32, device=images.device)
        alpha = drawn[0] if forward == "shake" else torch.full_like(drawn[0], 0.5)
        beta = {"shake": drawn[1], "even": torch.full_like(drawn[1], 0.5), "keep": alpha}[backward]
        return list(zip(alpha.unbind(), beta.unbind(), strict=True))


@model(options_of=ShakeShake26)
def shake_shake26_2x96d(num_classes: int, in_channels: int = 3, **options) -> ShakeShake26:
    """Shake-Shake 26 2x96d: 96/192/384 channels, stem of 96."""
    return ShakeShake26(96, 96, num_classes, in_channels, **options)


@model(options_of=ShakeShake26)
def shake_shake26_2x64d(num_classes: int, in_channels: int = 3, **options) -> ShakeShake26:
    """Shake-Shake 26 2x64d: 64/128/256 channels, stem of 64."""
    return ShakeShake26(64, 64, num_classes, in_channels, **options)


@model(options_of=ShakeShake26)
def shake_shake26_2x32d(num_classes: int, in_channels: int = 3, **options) -> ShakeShake26:
    """Shake-Shake 26 2x32d: 32/64/128 channels, stem of 32."""
    return ShakeShake26(32, 32, num_classes, in_channels, **options)


@model(options_of=ShakeShake26)
def shake_shake26_2x96d_stem16(num_classes: int, in_channels: int = 3, **options) -> ShakeShake26:
    """Shake-Shake 26 2x96d: 96/192/384 channels, Gastaldi's stem of 16."""
    return ShakeShake26(96, 16, num_classes, in_channels, **options)


@model(options_of=ShakeShake26)
def shake_shake26_2x64d_stem16(num_classes: int, in_channels: int = 3, **options) -> ShakeShake26:
    """Shake-Shake 26 2x64d: 64/128/256 channels, Gastaldi's stem of 16."""
    return ShakeShake26(64, 16, num_classes, in_channels, **options)


@model(options_of=ShakeShake26)
def shake_shake26_2x32d_stem16(num_classes: int, in_channels: int = 3, **options) -> ShakeShake26:
    """Shake-Shake 26 2x32d: 32/64/128 channels, Gastaldi's stem of 16."""
    return ShakeShake26(32, 16, num_classes, in_channels, **options)
