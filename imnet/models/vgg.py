"""VGG-16 of torchvision, with the classifier sized to smaller images. At 224 pixels weights interchange with theirs.

Simonyan and Zisserman, "Very Deep Convolutional Networks", ICLR 2015 (arXiv 1409.1556).
"""

from __future__ import annotations

from typing import Annotated

from torch import nn

from ..fields import Range
from .external import from_torchvision, resize_classifier
from .layers import Rate
from .registry import model

Pixels = Annotated[int, Range(low=32, high=4096)]
"""From those that leave one pixel to the classifier on."""


def vgg_for(
    name: str, num_classes: int, in_channels: int = 3, *, image_px: Pixels = 224, drop_rate: Rate = 0.5
) -> nn.Module:
    """torchvision's ``name`` for square images of ``image_px``: (B, in_channels, H, W) -> logits (B, num_classes).

    The convolutions as they are; the classifier's first layer reads the map they leave, image_px // 32 square.
    """
    network = from_torchvision(name, num_classes, in_channels, dropout=drop_rate)
    resize_classifier(network, 0, 512, image_px // 32, init_std=0.01)
    return network


@model
def vgg16(num_classes: int, in_channels: int = 3, *, image_px: Pixels = 224, drop_rate: Rate = 0.5) -> nn.Module:
    """torchvision's, for 224 pixels, or any ``image_px``."""
    return vgg_for("vgg16", num_classes, in_channels, image_px=image_px, drop_rate=drop_rate)


@model
def vgg16_112(num_classes: int, in_channels: int = 3, *, drop_rate: Rate = 0.5) -> nn.Module:
    """For the 112-pixel spectral bands: 207.79 MiB of fp32 parameters."""
    return vgg_for("vgg16", num_classes, in_channels, image_px=112, drop_rate=drop_rate)


@model
def vgg16_56(num_classes: int, in_channels: int = 3, *, drop_rate: Rate = 0.5) -> nn.Module:
    """For the 56-pixel spectral bands: 143.79 MiB of fp32 parameters."""
    return vgg_for("vgg16", num_classes, in_channels, image_px=56, drop_rate=drop_rate)


@model
def vgg16_bn(num_classes: int, in_channels: int = 3, *, image_px: Pixels = 224, drop_rate: Rate = 0.5) -> nn.Module:
    """torchvision's with BN, for 224 pixels, or any ``image_px``."""
    return vgg_for("vgg16_bn", num_classes, in_channels, image_px=image_px, drop_rate=drop_rate)


@model
def vgg16_bn_112(num_classes: int, in_channels: int = 3, *, drop_rate: Rate = 0.5) -> nn.Module:
    """For the 112-pixel spectral bands: 207.82 MiB of fp32 parameters, the published figure."""
    return vgg_for("vgg16_bn", num_classes, in_channels, image_px=112, drop_rate=drop_rate)


@model
def vgg16_bn_56(num_classes: int, in_channels: int = 3, *, drop_rate: Rate = 0.5) -> nn.Module:
    """For the 56-pixel spectral bands: 143.82 MiB of fp32 parameters.

    Published with 128.05, which is not reproduced. Tried: VGG-11, 13, 16 and 19, with and without BN and its running
    statistics, all pools or one block less, maps of 1 to 7 pixels, a classifier of none, one or two hidden layers out
    of 42 usual widths: nothing of VGG-16 with a map that 56 pixels leave.
    """
    return vgg_for("vgg16_bn", num_classes, in_channels, image_px=56, drop_rate=drop_rate)
