"""What there is, without torch: name -> file, parameters, FLOPs and source. A test holds every number to the network.

Parameters and FLOPs are those of the network in its source: ``num_classes``, ``in_channels`` and ``image_px``. FLOPs
are of one image's forward pass, 2 per multiply-add (convolutions and matrix products only); training costs about 3
times as many.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """One line of ``imnet-train --list models``."""

    module: str
    num_classes: int
    in_channels: int
    image_px: int
    num_params: int
    forward_flops: int
    source: str


_WRN = "Zagoruyko and Komodakis 2016 (arXiv 1605.07146)"
_IMAGENET64 = "Chrabaszcz, Loshchilov and Hutter 2017 (arXiv 1707.08819)"

CATALOG: dict[str, Entry] = {
    "wrn36_1": Entry("wrn", 1000, 3, 64, 1_614_008, 582_608_896, _IMAGENET64),
    "wrn36_2": Entry("wrn", 1000, 3, 64, 6_183_864, 2_285_752_320, _IMAGENET64),
    "wrn36_5": Entry("wrn", 1000, 3, 64, 37_633_464, 14_108_166_144, _IMAGENET64),
    "wrn36_10": Entry("wrn", 1000, 3, 64, 149_185_464, 56_209_772_544, _IMAGENET64),
    "wrn36_2_lasagne": Entry("wrn", 1000, 3, 64, 6_185_784, 2_285_752_320, _IMAGENET64 + ", as its code has it"),
    "wrn36_5_lasagne": Entry("wrn", 1000, 3, 64, 37_638_264, 14_108_166_144, _IMAGENET64 + ", as its code has it"),
    "wrn28_10": Entry("wrn", 10, 1, 28, 36_478_906, 8_028_398_592, _WRN),
}
