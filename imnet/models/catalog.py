"""The catalogue of networks, readable without torch: name -> file, parameters, FLOPs and source. A test checks every
number against the network.

Parameters and FLOPs are for the ``num_classes``, ``in_channels`` and ``image_px`` of the source. FLOPs are those of one
image's forward pass, 2 per multiply-add of convolutions and matrix products; training takes about 3 times as many.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """One network, a line of ``imnet-train --list models``."""

    module: str
    num_classes: int
    in_channels: int
    image_px: int
    num_params: int
    forward_flops: int
    source: str


_WRN = "Zagoruyko and Komodakis 2016 (arXiv 1605.07146)"
_IMAGENET64 = "Chrabaszcz, Loshchilov and Hutter 2017 (arXiv 1707.08819)"
_DENSENET = "Huang et al. 2017 (arXiv 1608.06993)"
_DPN = "Chen et al. 2017 (arXiv 1707.01629) in the form of Queequeg92/DualPathNet"
_SPEED = "imnet; in the spirit of Page 2018 and Jordan 2024 (arXiv 2404.00498)"
_SHAKE = "Gastaldi 2017 (arXiv 1705.07485)"
_RESNET = "torchvision; He et al. 2016 (arXiv 1512.03385)"
_RESNET_SMALL = _RESNET + ", 3x3 stem, no pool"
_WIDE64 = "torchvision, 3x3 stem, as automl/FOB trains it"
_ALEXNET = "torchvision; Krizhevsky 2014 (arXiv 1404.5997)"
_VGG = "torchvision; Simonyan and Zisserman 2015 (arXiv 1409.1556)"
_SIZED = ", classifier sized to the map"
_DAVIT = "timm; Ding et al. 2022 (arXiv 2204.03645)"
_DAVIT_STEM = _DAVIT + ", stem of automl/FOB"

CATALOG: dict[str, Entry] = {
    "wrn36_1": Entry("wrn", 1000, 3, 64, 1_614_008, 582_608_896, _IMAGENET64),
    "wrn36_2": Entry("wrn", 1000, 3, 64, 6_183_864, 2_285_752_320, _IMAGENET64),
    "wrn36_5": Entry("wrn", 1000, 3, 64, 37_633_464, 14_108_166_144, _IMAGENET64),
    "wrn36_10": Entry("wrn", 1000, 3, 64, 149_185_464, 56_209_772_544, _IMAGENET64),
    "wrn36_2_lasagne": Entry("wrn", 1000, 3, 64, 6_185_784, 2_285_752_320, _IMAGENET64 + ", as its code has it"),
    "wrn36_5_lasagne": Entry("wrn", 1000, 3, 64, 37_638_264, 14_108_166_144, _IMAGENET64 + ", as its code has it"),
    "wrn28_10": Entry("wrn", 10, 1, 28, 36_478_906, 8_028_398_592, _WRN),
    "densenet_bc100_12": Entry("densenet", 10, 1, 28, 768_730, 440_216_568, _DENSENET),
    "dpn28_10": Entry("dpn", 10, 1, 28, 47_751_450, 10_425_613_568, _DPN),
    "speednet": Entry("speednet", 10, 1, 28, 140_960, 21_992_192, _SPEED),
    "shake_shake26_2x96d": Entry("shake_shake", 10, 1, 28, 26_330_026, 5_998_397_952, _SHAKE),
    "shake_shake26_2x64d": Entry("shake_shake", 10, 1, 28, 11_708_362, 2_666_257_408, _SHAKE),
    "shake_shake26_2x32d": Entry("shake_shake", 10, 3, 32, 2_932_266, 872_090_112, _SHAKE),
    "shake_shake26_2x96d_stem16": Entry("shake_shake", 10, 3, 32, 26_192_922, 7_553_785_344, _SHAKE),
    "shake_shake26_2x64d_stem16": Entry("shake_shake", 10, 3, 32, 11_653_978, 3_371_013_120, _SHAKE),
    "shake_shake26_2x32d_stem16": Entry("shake_shake", 10, 3, 32, 2_923_162, 853_379_584, _SHAKE),
    "resnet18": Entry("resnet", 1000, 3, 224, 11_689_512, 3_628_146_688, _RESNET),
    "resnet34": Entry("resnet", 1000, 3, 224, 21_797_672, 7_327_522_816, _RESNET),
    "resnet50": Entry("resnet", 1000, 3, 224, 25_557_032, 8_178_368_512, _RESNET),
    "resnet101": Entry("resnet", 1000, 3, 224, 44_549_160, 15_602_810_880, _RESNET),
    "resnet152": Entry("resnet", 1000, 3, 224, 60_192_808, 23_027_253_248, _RESNET),
    "resnet18_64": Entry("resnet", 1000, 3, 64, 11_681_832, 4_444_364_800, _RESNET_SMALL),
    "resnet34_64": Entry("resnet", 1000, 3, 64, 21_789_992, 9_276_203_008, _RESNET_SMALL),
    "resnet50_64": Entry("resnet", 1000, 3, 64, 25_549_352, 10_386_571_264, _RESNET_SMALL),
    "resnet101_64": Entry("resnet", 1000, 3, 64, 44_541_480, 20_083_802_112, _RESNET_SMALL),
    "resnet152_64": Entry("resnet", 1000, 3, 64, 60_185_128, 29_781_032_960, _RESNET_SMALL),
    "resnet34_56": Entry("resnet", 1000, 3, 56, 21_789_992, 7_102_332_928, _RESNET_SMALL),
    "resnet50_56": Entry("resnet", 1000, 3, 56, 25_549_352, 7_953_178_624, _RESNET_SMALL),
    "wide_resnet50_2_imagenet64": Entry("resnet", 1000, 3, 64, 68_875_560, 7_383_449_600, _WIDE64),
    "alexnet": Entry("alexnet", 1000, 3, 224, 61_100_840, 1_428_376_960, _ALEXNET),
    "alexnet_112": Entry("alexnet", 1000, 3, 112, 27_546_408, 341_784_960, _ALEXNET + _SIZED),
    "alexnet_56": Entry("alexnet", 1000, 3, 56, 24_400_680, 90_919_296, _ALEXNET + _SIZED),
    "vgg16": Entry("vgg", 1000, 3, 224, 138_357_544, 30_940_528_640, _VGG),
    "vgg16_112": Entry("vgg", 1000, 3, 112, 54_471_464, 7_752_810_496, _VGG + _SIZED),
    "vgg16_56": Entry("vgg", 1000, 3, 56, 37_694_248, 1_918_263_296, _VGG + _SIZED),
    "vgg16_bn": Entry("vgg", 1000, 3, 224, 138_365_992, 30_940_528_640, _VGG),
    "vgg16_bn_112": Entry("vgg", 1000, 3, 112, 54_479_912, 7_752_810_496, _VGG + _SIZED),
    "vgg16_bn_56": Entry("vgg", 1000, 3, 56, 37_702_696, 1_918_263_296, _VGG + _SIZED),
    "davit_tiny": Entry("davit", 1000, 3, 64, 28_360_168, 1_144_027_008, _DAVIT),
    "davit_tiny_wrn_conv": Entry("davit", 1000, 3, 64, 28_348_648, 13_197_656_832, _DAVIT_STEM),
    "davit_tiny_custom_conv": Entry("davit", 1000, 3, 64, 28_410_856, 9_361_517_568, _DAVIT_STEM),
}
