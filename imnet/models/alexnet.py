"""torchvision's AlexNet, with a classifier that fits smaller images. At 224 pixels its weights are interchangeable.

Krizhevsky, "One weird trick for parallelizing convolutional neural networks", 2014 (arXiv 1404.5997).
"""

from __future__ import annotations

from typing import Annotated, Any

from torch import nn

from ..fields import Range
from .external import from_torchvision, resize_classifier
from .layers import Rate
from .registry import model

Pixels = Annotated[int, Range(low=47, high=4096)]
"""Side of the images; the smallest leaves the last pool a map of 2 x 2, the least that it can pool."""


@model
def alexnet(num_classes: int, in_channels: int = 3, *, image_px: Pixels = 224, drop_rate: Rate = 0.5) -> nn.Module:
    """torchvision's AlexNet for square images of ``image_px``: (B, in_channels, H, W) -> logits (B, num_classes).

    The convolutions are torchvision's; the classifier's first layer takes the map that they leave: 6 x 6 at 224, 2 x 2
    at 112, 1 x 1 at 56 pixels. At 56 the last pool's window (3) is larger than its map (2), so it pools the whole map.

    The published sizes (document 004: 224, 61.04 and 37.73 MiB at 224, 112 and 56 pixels) are not reproduced. 224 is
    about the size of the three linear layers alone (223.66). For the other two these were tried, with 1000 outputs:
    first kernels of 3 to 11, seven sets of widths (torchvision's, the original's, grouped or not), with and without BN,
    maps of 1 to 7 pixels, a classifier with no, one or two hidden layers of 46 usual widths. No network with one
    classifier gives both sizes.
    """
    map_px = (image_px + 4 - 11) // 4 + 1
    for _ in range(2):
        map_px = (map_px - 3) // 2 + 1
    network: Any = from_torchvision("alexnet", num_classes, in_channels, dropout=drop_rate)
    if map_px == 2:
        network.features[-1].ceil_mode = True
    resize_classifier(network, 1, 256, max((map_px - 3) // 2 + 1, 1), init_std=None)
    return network


@model
def alexnet_112(num_classes: int, in_channels: int = 3, *, drop_rate: Rate = 0.5) -> nn.Module:
    """AlexNet for the 112-pixel spectral bands: 105.08 MiB of fp32 parameters; published: 61.04, see alexnet."""
    return alexnet(num_classes, in_channels, image_px=112, drop_rate=drop_rate)


@model
def alexnet_56(num_classes: int, in_channels: int = 3, *, drop_rate: Rate = 0.5) -> nn.Module:
    """AlexNet for the 56-pixel spectral bands: 93.08 MiB of fp32 parameters; published: 37.73, see alexnet."""
    return alexnet(num_classes, in_channels, image_px=56, drop_rate=drop_rate)
