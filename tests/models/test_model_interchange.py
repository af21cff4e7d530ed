"""Weights are interchangeable: a state dict of torchvision or timm loads here with equal logits, and vice versa."""

import pytest
import timm
import torch
import torchvision

from imnet.models import build
from imnet.models.densenet import DenseNetBC
from imnet.models.external import EvenPool

THEIRS = {
    "resnet18": lambda: torchvision.models.resnet18(num_classes=7),
    "resnet18_64": lambda: _stem(timm.create_model("resnet18", num_classes=7), pool=False),
    "davit_tiny_custom_conv": lambda: _davit_stem(15, 3),
    "timm:resnet10t": lambda: timm.create_model("resnet10t", num_classes=7),
    "torchvision:squeezenet1_1": lambda: torchvision.models.squeezenet1_1(num_classes=7),
}
SLOW = {
    "davit_tiny": lambda: timm.create_model("davit_tiny", num_classes=7),
    "davit_tiny_wrn_conv": lambda: _davit_stem(3, 1),
    "wide_resnet50_2_imagenet64": lambda: _stem(timm.create_model("wide_resnet50_2", num_classes=7)),
    "resnet34_56": lambda: _stem(torchvision.models.resnet34(num_classes=7), pool=False),
    "resnet50": lambda: timm.create_model("resnet50", num_classes=7),
    "resnet101": lambda: torchvision.models.resnet101(num_classes=7),
    "resnet152": lambda: torchvision.models.resnet152(num_classes=7),
    "alexnet": lambda: torchvision.models.alexnet(num_classes=7),
    "vgg16": lambda: torchvision.models.vgg16(num_classes=7),
    "vgg16_bn": lambda: torchvision.models.vgg16_bn(num_classes=7),
}


def _stem(network, pool=True):
    network.conv1 = torch.nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    if not pool:
        network.maxpool = torch.nn.Identity()
    return network


def _davit_stem(kernel_px, padding_px):
    network = timm.create_model("davit_tiny", num_classes=7)
    conv = torch.nn.Conv2d(3, 96, kernel_px, padding=padding_px)
    network.stem = torch.nn.Sequential(conv, timm.layers.LayerNorm2d(96, eps=1e-5))
    return network


def check_both_ways(name, make, px):
    torch.manual_seed(0)
    ours, theirs = build(name, 7).eval(), make().eval()
    images = torch.randn(1, 3, px, px)
    with torch.no_grad():
        assert not torch.equal(ours(images), theirs(images))
        state = {key: value.clone() for key, value in ours.state_dict().items()}
        ours.load_state_dict(theirs.state_dict())
        assert torch.equal(ours(images), theirs(images))
        theirs.load_state_dict(state)
        ours.load_state_dict(state)
        assert torch.equal(ours(images), theirs(images))


@pytest.mark.parametrize("name", THEIRS)
def test_both_ways(name):
    check_both_ways(name, THEIRS[name], px=32)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_both_ways_big(name):
    check_both_ways(name, SLOW[name], px=64 if "64" in name or "davit" in name else 224)


@pytest.mark.parametrize("name", SLOW)
def test_same_keys_and_shapes(name):
    with torch.device("meta"):
        ours, theirs = build(name, 7).state_dict(), SLOW[name]().state_dict()
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}


def test_densenet_equals_torchvisions_class_weights_taken_in_order():
    ours = DenseNetBC(16, 4, 5)
    theirs = torchvision.models.DenseNet(4, (2, 2, 2), 8, bn_size=4, num_classes=5)
    theirs.features.conv0 = torch.nn.Conv2d(3, 8, 3, 1, 1, bias=False)
    for name in ("norm0", "relu0", "pool0"):
        setattr(theirs.features, name, torch.nn.Identity())
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    images = torch.randn(3, 3, 16, 16)
    torch.testing.assert_close(ours(images), theirs(images))


def test_sized_classifier_keeps_the_convolutions_of_torchvision():
    ours, theirs = build("alexnet_112", 7), torchvision.models.alexnet(num_classes=7)
    loaded = ours.features.load_state_dict(theirs.features.state_dict())
    assert not loaded.missing_keys
    images = torch.randn(1, 3, 112, 112)
    torch.testing.assert_close(ours.features(images), theirs.features(images))
    assert ours.features(images).shape == (1, 256, 2, 2)


@pytest.mark.parametrize(
    ("name", "px"), [("alexnet_56", 56), ("vgg16_56", 56), ("vgg16_bn_56", 56), ("alexnet_112", 112)]
)
def test_the_classifier_reads_the_whole_map(name, px):
    """The pooling between the convolutions and the classifier must neither drop nor repeat a pixel."""
    network = build(name, 7).eval()
    with torch.no_grad():
        features = network.features(torch.randn(1, 3, px, px))
    assert features[0].numel() == next(m for m in network.classifier if hasattr(m, "in_features")).in_features
    assert torch.equal(network.avgpool(features), features)


@pytest.mark.parametrize("name", ["torchvision:mobilenet_v3_small", "resnet18_64", "timm:resnet10t", "alexnet_56"])
def test_single_channel_input(name):
    network = build(name, 7, in_channels=1)
    assert network(torch.randn(2, 1, 64, 64)).shape == (2, 7)


@pytest.mark.parametrize("size", [3, 2, (6, None), (4, 5), 12])
def test_pooling_of_even_windows_is_adaptive_pooling(size):
    images = torch.randn(2, 3, 6, 9)
    torch.testing.assert_close(EvenPool(size)(images), torch.nn.AdaptiveAvgPool2d(size)(images))
