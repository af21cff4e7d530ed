"""torchvision's ResNets, also with stems for small images. Their weights fit torchvision's and timm's, and vice versa.

He, Zhang, Ren and Sun, "Deep Residual Learning for Image Recognition", CVPR 2016 (arXiv 1512.03385).
"""

from __future__ import annotations

from typing import Literal

from torch import nn

from .external import from_torchvision, replace_conv
from .registry import model


def torchvision_resnet(
    name: str,
    num_classes: int,
    in_channels: int = 3,
    *,
    stem: Literal["imagenet", "small"] = "imagenet",
    zero_init_last_bn: bool = False,
) -> nn.Module:
    """torchvision's ``name``: images (B, in_channels, H, W) -> logits (B, num_classes).

    ``stem`` is "imagenet" (torchvision's: 7x7, stride 2, max-pool) or "small" (3x3, stride 1, no pool).
    """
    network = from_torchvision(name, num_classes, in_channels, zero_init_residual=zero_init_last_bn)
    if stem == "small":
        replace_conv(network, "conv1", kernel_size=3, stride=1, padding=1)
        network.maxpool = nn.Identity()
    return network


def small_resnet(name: str, num_classes: int, in_channels: int = 3, *, zero_init_last_bn: bool = False) -> nn.Module:
    """torchvision's ``name`` with the small stem, for images at their native, small resolution."""
    return torchvision_resnet(name, num_classes, in_channels, stem="small", zero_init_last_bn=zero_init_last_bn)


@model(options_of=torchvision_resnet)
def resnet18(num_classes: int, in_channels: int = 3, **options) -> nn.Module:
    """The same as torchvision's, for 224 pixels."""
    return torchvision_resnet("resnet18", num_classes, in_channels, **options)


@model(options_of=torchvision_resnet)
def resnet34(num_classes: int, in_channels: int = 3, **options) -> nn.Module:
    """The same as torchvision's, for 224 pixels."""
    return torchvision_resnet("resnet34", num_classes, in_channels, **options)


@model(options_of=torchvision_resnet)
def resnet50(num_classes: int, in_channels: int = 3, **options) -> nn.Module:
    """The same as torchvision's, for 224 pixels."""
    return torchvision_resnet("resnet50", num_classes, in_channels, **options)


@model(options_of=torchvision_resnet)
def resnet101(num_classes: int, in_channels: int = 3, **options) -> nn.Module:
    """The same as torchvision's, for 224 pixels."""
    return torchvision_resnet("resnet101", num_classes, in_channels, **options)


@model(options_of=torchvision_resnet)
def resnet152(num_classes: int, in_channels: int = 3, **options) -> nn.Module:
    """The same as torchvision's, for 224 pixels."""
    return torchvision_resnet("resnet152", num_classes, in_channels, **options)


@model(options_of=small_resnet)
def resnet18_64(num_classes: int, in_channels: int = 3, **options) -> nn.Module:
    """Small stem (3x3, stride 1, no pool), for 64 pixels."""
    return small_resnet("resnet18", num_classes, in_channels, **options)


@model(options_of=small_resnet)
def resnet34_64(num_classes: int, in_channels: int = 3, **options) -> nn.Module:
    """Small stem (3x3, stride 1, no pool), for 64 pixels."""
    return small_resnet("resnet34", num_classes, in_channels, **options)


@model(options_of=small_resnet)
def resnet50_64(num_classes: int, in_channels: int = 3, **options) -> nn.Module:
    """Small stem (3x3, stride 1, no pool), for 64 pixels."""
    return small_resnet("resnet50", num_classes, in_channels, **options)


@model(options_of=small_resnet)
def resnet101_64(num_classes: int, in_channels: int = 3, **options) -> nn.Module:
    """Small stem (3x3, stride 1, no pool), for 64 pixels."""
    return small_resnet("resnet101", num_classes, in_channels, **options)


@model(options_of=small_resnet)
def resnet152_64(num_classes: int, in_channels: int = 3, **options) -> nn.Module:
    """Small stem (3x3, stride 1, no pool), for 64 pixels."""
    return small_resnet("resnet152", num_classes, in_channels, **options)


@model(options_of=small_resnet)
def resnet34_56(num_classes: int, in_channels: int = 3, **options) -> nn.Module:
    """Small stem (3x3, stride 1, no pool), for the 56-pixel spectral bands."""
    return small_resnet("resnet34", num_classes, in_channels, **options)


@model(options_of=small_resnet)
def resnet50_56(num_classes: int, in_channels: int = 3, **options) -> nn.Module:
    """Small stem (3x3, stride 1, no pool), for the 56-pixel spectral bands."""
    return small_resnet("resnet50", num_classes, in_channels, **options)


@model
def wide_resnet50_2_imagenet64(num_classes: int, in_channels: int = 3, *, zero_init_last_bn: bool = True) -> nn.Module:
    """wide_resnet50_2 with a 3x3 stem of stride 1 that KEEPS the max-pool: 64 -> 32 -> 32 -> 16 -> 8 -> 4 pixels.

    This is the form that automl/FOB trains, with timm's initialisation (the last BN of a branch is 0), and torch's
    default for the new stem.
    """
    network = from_torchvision("wide_resnet50_2", num_classes, in_channels, zero_init_residual=zero_init_last_bn)
    replace_conv(network, "conv1", kernel_size=3, stride=1, padding=1).reset_parameters()
    return network
