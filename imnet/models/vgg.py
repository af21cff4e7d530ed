"""torchvision's VGG-16, with a classifier that fits smaller images. At 224 pixels its weights are interchangeable.

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
"""Side of the images; the smallest leaves the classifier a map of one pixel."""


def vgg_for(
    name: str, num_classes: int, in_channels: int = 3, *, image_px: Pixels = 224, drop_rate: Rate = 0.5
) -> nn.Module:
    """torchvision's ``name`` for square images of ``image_px``: (B, in_channels, H, W) -> logits (B, num_classes).

    The convolutions are torchvision's; the classifier's first layer takes the map that they leave, of side
    ``image_px`` // 32.
    """
    network = from_torchvision(name, num_classes, in_channels, dropout=drop_rate)
    resize_classifier(network, 0, 512, image_px // 32, init_std=0.01)
    return network


@model
def vgg16(num_classes: int, in_channels: int = 3, *, image_px: Pixels = 224, drop_rate: Rate = 0.5) -> nn.Module:
    """torchvision's VGG-16 for 224 pixels, or for another ``image_px``."""
    return vgg_for("vgg16", num_classes, in_channels, image_px=image_px, drop_rate=drop_rate)


@model
def vgg16_112(num_classes: int, in_channels: int = 3, *, drop_rate: Rate = 0.5) -> nn.Module:
    """VGG-16 for the 112-pixel spectral bands: 207.79 MiB of fp32 parameters."""
    return vgg_for("vgg16", num_classes, in_channels, image_px=112, drop_rate=drop_rate)


@model
def vgg16_56(num_classes: int, in_channels: int = 3, *, drop_rate: Rate = 0.5) -> nn.Module:
    """VGG-16 for the 56-pixel spectral bands: 143.79 MiB of fp32 parameters."""
    return vgg_for("vgg16", num_classes, in_channels, image_px=56, drop_rate=drop_rate)


@model
def vgg16_bn(num_classes: int, in_channels: int = 3, *, image_px: Pixels = 224, drop_rate: Rate = 0.5) -> nn.Module:
    """torchvision's VGG-16 with BN for 224 pixels, or for another ``image_px``."""
    return vgg_for("vgg16_bn", num_classes, in_channels, image_px=image_px, drop_rate=drop_rate)


@model
def vgg16_bn_112(num_classes: int, in_channels: int = 3, *, drop_rate: Rate = 0.5) -> nn.Module:
    """VGG-16 with BN for the 112-pixel spectral bands: 207.82 MiB of fp32 parameters, the published figure."""
    return vgg_for("vgg16_bn", num_classes, in_channels, image_px=112, drop_rate=drop_rate)


@model
def vgg16_bn_56(num_classes: int, in_channels: int = 3, *, drop_rate: Rate = 0.5) -> nn.Module:
    """VGG-16 with BN for the 56-pixel spectral bands: 143.82 MiB of fp32 parameters.

    The published figure, 128.05, is not reproduced. These were tried: VGG-11, 13, 16 and 19, with and without BN and
    its running statistics, all pools or one block less, maps of 1 to 7 pixels, a classifier with no, one or two hidden
    layers of 42 usual widths. No VGG-16 with a map that 56 pixels leave has this size.
    """
    return vgg_for("vgg16_bn", num_classes, in_channels, image_px=56, drop_rate=drop_rate)
