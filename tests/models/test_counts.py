"""Parameters and FLOPs, to the integer; built on the meta device, so nothing here costs memory."""

import pytest
import torch

from imnet.models import build
from imnet.models.catalog import CATALOG
from imnet.models.count import flops, num_params

# The published integers and those of the same networks with other inputs, independent of the catalogue's table.
COUNTS = [
    ("wrn36_1", 1000, 3, 1_614_008),
    ("wrn36_2", 1000, 3, 6_183_864),
    ("wrn36_5", 1000, 3, 37_633_464),
    ("wrn36_10", 1000, 3, 149_185_464),
    ("wrn36_2_lasagne", 1000, 3, 6_185_784),
    ("wrn36_5_lasagne", 1000, 3, 37_638_264),
    ("wrn28_10", 10, 1, 36_478_906),
    ("wrn28_10", 10, 3, 36_479_194),
]

# GFLOP of one image forward and backward, counted independently as three forward passes.
TRAIN_GFLOPS = {"wrn36_5": 42.32, "wrn28_10": 24.09}


def on_meta(name, num_classes, in_channels, **options):
    with torch.device("meta"):
        return build(name, num_classes, in_channels, **options)


@pytest.mark.parametrize(("name", "num_classes", "in_channels", "count"), COUNTS)
def test_parameters(name, num_classes, in_channels, count):
    assert num_params(on_meta(name, num_classes, in_channels)) == count


@pytest.mark.parametrize("name", CATALOG)
def test_catalogue_agrees_with_the_network(name):
    entry = CATALOG[name]
    network = on_meta(name, entry.num_classes, entry.in_channels)
    assert num_params(network) == entry.num_params
    assert flops(network, (entry.in_channels, entry.image_px, entry.image_px)) == entry.forward_flops
    assert entry.source


@pytest.mark.parametrize("name", TRAIN_GFLOPS)
def test_training_flops_of_the_performance_model(name):
    assert 3 * CATALOG[name].forward_flops / 1e9 == pytest.approx(TRAIN_GFLOPS[name], rel=0.01)


def test_flops_of_a_plain_convolution_and_linear_by_hand():
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Flatten(), torch.nn.Linear(8 * 25, 7))
    assert flops(network, (3, 5, 5)) == 2 * (5 * 5 * 8 * 27) + 2 * (8 * 25 * 7)


def test_counting_leaves_a_real_network_and_the_random_state_as_they_were():
    network = build("wrn10_1", 10)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    random = torch.get_rng_state()
    assert flops(network, (3, 8, 8)) > 0
    assert network.training
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
