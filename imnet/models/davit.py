"""timm's DaViT-tiny, also with the stems that automl/FOB tried at 64 pixels. Needs timm (``pip install imnet[timm]``).

Ding, Xiao, Codella, Luo, Wang and Yuan, "DaViT: Dual Attention Vision Transformers", ECCV 2022 (arXiv 2204.03645).
"""

from __future__ import annotations

from typing import Any

from torch import nn

from .external import from_timm
from .layers import Rate
from .registry import model


@model
def davit_tiny(num_classes: int, in_channels: int = 3, *, drop_path_rate: Rate = 0.0) -> nn.Module:
    """timm's DaViT-tiny: (B, in_channels, H, W) -> logits (B, num_classes); stem 7x7, stride 4."""
    return from_timm("davit_tiny", num_classes, in_channels, drop_path_rate=drop_path_rate)


@model
def davit_tiny_wrn_conv(num_classes: int, in_channels: int = 3, *, drop_path_rate: Rate = 0.0) -> nn.Module:
    """DaViT-tiny with a stem of 3x3, stride 1, and LayerNorm, which keeps 64 pixels."""
    return _with_stem(davit_tiny(num_classes, in_channels, drop_path_rate=drop_path_rate), kernel_px=3, padding_px=1)


@model
def davit_tiny_custom_conv(num_classes: int, in_channels: int = 3, *, drop_path_rate: Rate = 0.0) -> nn.Module:
    """DaViT-tiny with a stem of 15x15, stride 1, and LayerNorm, which turns 64 pixels into 56, the map that the network
    was designed for."""
    return _with_stem(davit_tiny(num_classes, in_channels, drop_path_rate=drop_path_rate), kernel_px=15, padding_px=3)


def _with_stem(network: Any, kernel_px: int, padding_px: int) -> nn.Module:
    from timm.layers.norm import LayerNorm2d

    old = network.stem.conv
    conv = nn.Conv2d(old.in_channels, old.out_channels, kernel_px, padding=padding_px)
    network.stem = nn.Sequential(conv, LayerNorm2d(old.out_channels, eps=1e-5))
    return network
