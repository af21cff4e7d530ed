"""Parameters and FLOPs, exact integers of networks on the meta device, which need no memory; and activation bytes."""

import pytest
import torch

from imnet.models import build
from imnet.models.catalog import CATALOG
from imnet.models.count import activation_bytes, flops, num_params, passes

# Parameters as published, and of the same networks with other inputs; not taken from the catalogue.
COUNTS = [
    ("wrn36_1", 1000, 3, 1_614_008),
    ("wrn36_2", 1000, 3, 6_183_864),
    ("wrn36_5", 1000, 3, 37_633_464),
    ("wrn36_10", 1000, 3, 149_185_464),
    ("wrn36_2_lasagne", 1000, 3, 6_185_784),
    ("wrn36_5_lasagne", 1000, 3, 37_638_264),
    ("wrn28_10", 10, 1, 36_478_906),
    ("wrn28_10", 10, 3, 36_479_194),
    ("wide_resnet50_2_imagenet64", 1000, 3, 68_875_560),
    ("davit_tiny", 1000, 3, 28_360_168),
    ("densenet_bc100_12", 10, 1, 768_730),
    ("densenet_bc100_12", 10, 3, 769_162),
    ("dpn28_10", 10, 1, 47_751_450),
    ("dpn28_10", 10, 3, 47_751_738),
    ("shake_shake26_2x96d", 10, 1, 26_330_026),
    ("shake_shake26_2x96d", 10, 3, 26_331_754),
    ("shake_shake26_2x64d", 10, 1, 11_708_362),
    ("shake_shake26_2x64d", 10, 3, 11_709_514),
    ("shake_shake26_2x96d_stem16", 10, 1, 26_192_634),
    ("shake_shake26_2x96d_stem16", 10, 3, 26_192_922),
    ("shake_shake26_2x64d_stem16", 10, 1, 11_653_690),
    ("shake_shake26_2x64d_stem16", 10, 3, 11_653_978),
    ("resnet18", 1000, 3, 11_689_512),
    ("resnet34", 1000, 3, 21_797_672),
    ("resnet50", 1000, 3, 25_557_032),
    ("resnet101", 1000, 3, 44_549_160),
    ("resnet152", 1000, 3, 60_192_808),
    ("resnet34_56", 1000, 3, 21_789_992),
    ("alexnet", 1000, 3, 61_100_840),
    ("vgg16", 1000, 3, 138_357_544),
    ("vgg16_bn", 1000, 3, 138_365_992),
]

# GFLOP per image, forward and backward (2 per multiply-add), computed elsewhere; Shake-Shake in its stem-16 form.
TRAIN_GFLOPS = [
    ("wrn36_5", (3, 64, 64), 42.32),
    ("wrn28_10", (1, 28, 28), 24.09),
    ("shake_shake26_2x96d_stem16", (1, 28, 28), 17.35),
    ("shake_shake26_2x64d_stem16", (1, 28, 28), 7.74),
    ("densenet_bc100_12", (1, 28, 28), 1.32),
    ("resnet18", (3, 64, 64), 0.87),
    ("resnet50", (3, 64, 64), 1.99),
    ("resnet50", (3, 224, 224), 24.30),
    ("resnet34", (3, 224, 224), 21.75),
    ("vgg16", (3, 224, 224), 92.65),
    ("alexnet", (3, 224, 224), 4.15),
]


def on_meta(name, num_classes, in_channels, **options):
    with torch.device("meta"):
        return build(name, num_classes, in_channels, **options)


@pytest.mark.parametrize(("name", "num_classes", "in_channels", "count"), COUNTS)
def test_parameters(name, num_classes, in_channels, count):
    entry = CATALOG[name]
    if (entry.num_classes, entry.in_channels) == (num_classes, in_channels):
        assert entry.num_params == count  # the next test compares the entry with the network
    else:
        assert num_params(on_meta(name, num_classes, in_channels)) == count


@pytest.mark.parametrize("name", CATALOG)
def test_catalogue_agrees_with_the_network(name):
    entry = CATALOG[name]
    network = on_meta(name, entry.num_classes, entry.in_channels)
    assert num_params(network) == entry.num_params
    assert flops(network, (entry.in_channels, entry.image_px, entry.image_px)) == entry.forward_flops
    assert entry.source


def test_speednet_grows_by_what_its_options_add():
    """Counted by hand at width 8 and 32 px: a 3x3 layer and its norm, a stem at every pixel, a stage twice as wide."""

    def counted(**options):
        network = on_meta("speednet", 10, 3, width=8, **options)
        return num_params(network), flops(network, (3, 32, 32))

    params, work = counted()
    third, second = 9 * 32 * 32, 9 * 16 * 16  # weights of one layer in the third and in the second stage
    assert counted(last_residuals=1) == (params + third + 2 * 32, work + 2 * 4 * 4 * third)
    stem = 25 * 3 * 8
    assert counted(pool_stem=True) == (params, work + 2 * (32 * 32 - 16 * 16) * stem)
    # The third stage gains the residual layer that every stage but the last has; the head reads 64 features, not 32.
    added = third + 9 * 32 * 64 + 2 * (32 + 64) + 10 * 32
    layers = 2 * 4 * 4 * (third + 9 * 32 * 64) + 2 * 10 * 32
    assert counted(num_stages=4) == (params + added, work + layers)
    assert counted(num_stages=2, num_residuals=0)[0] == stem + 9 * 8 * 16 + 2 * (8 + 16) + 10 * 16
    assert counted(num_residuals=2)[0] == params + 9 * 8 * 8 + second + 2 * (8 + 16)


@pytest.mark.parametrize(("name", "shape", "gflops"), TRAIN_GFLOPS)
def test_training_flops_of_the_performance_model(name, shape, gflops):
    network = on_meta(name, CATALOG[name].num_classes, shape[0])
    assert flops(network, shape, backward=True) / 1e9 == pytest.approx(gflops, abs=0.01)


def test_wide_resnet_at_64_pixels_keeps_32_pixel_maps_in_its_first_stage():
    stage1_at_32 = 5.58 * 4  # 5.58 GFLOP with 16 x 16 maps in the first stage, which has 32 x 32
    network = on_meta("wide_resnet50_2_imagenet64", 1000, 3)
    assert flops(network, (3, 64, 64), backward=True) / 1e9 == pytest.approx(stage1_at_32, rel=0.01)


@pytest.mark.parametrize(
    ("name", "mib"),
    [("vgg16", 527.79), ("vgg16_bn_112", 207.82), ("resnet34", 83.15), ("alexnet", 233.08), ("alexnet_112", 105.08)],
)
def test_size_in_mib(name, mib):
    assert CATALOG[name].num_params * 4 / 2**20 == pytest.approx(mib, abs=0.005)


@pytest.mark.parametrize(("num_classes", "mib"), [(1000, 97.69), (10_450, 171.56)])
def test_published_sizes_of_resnet50_count_the_running_statistics(num_classes, mib):
    network = on_meta("resnet50", num_classes, 3)
    statistics = sum(buffer.numel() for buffer in network.buffers() if buffer.is_floating_point())
    assert (num_params(network) + statistics) * 4 / 2**20 == pytest.approx(mib, abs=0.0051)


@pytest.mark.parametrize(("groups", "wide"), [(1, 1), (4, 1), (8, 1), (8, 2)])
@pytest.mark.parametrize("kind", [torch.nn.Conv2d, torch.nn.ConvTranspose2d])
def test_a_grouped_convolution_trains_for_three_times_its_forward(groups, wide, kind):
    """More than one layer, because the first has no gradient of its input: that would be the gradient of the images."""
    network = torch.nn.Sequential(*(kind(8, 8, 3, padding=1, groups=groups) for _ in range(1 + wide)))
    forward, both = flops(network, (8, 6, 6)), flops(network, (8, 6, 6), backward=True)
    assert forward == (1 + wide) * 2 * 36 * 8 * (8 // groups) * 9
    assert both == 3 * forward - forward // (1 + wide)


@pytest.mark.parametrize("name", ["torchvision:mobilenet_v2", "torchvision:resnext50_32x4d", "davit_tiny"])
def test_networks_of_grouped_convolutions_train_for_three_times_their_forward(name):
    network = on_meta(name, 1000, 3)
    assert flops(network, (3, 64, 64), backward=True) / flops(network, (3, 64, 64)) == pytest.approx(3, abs=0.12)


def test_flops_of_a_plain_convolution_and_linear_by_hand():
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Flatten(), torch.nn.Linear(8 * 25, 7))
    assert flops(network, (3, 5, 5)) == 2 * (5 * 5 * 8 * 27) + 2 * (8 * 25 * 7)


def test_norms_of_every_form_pass_both_passes_on(monkeypatch):
    """A norm counts nothing, and is not taken apart on the meta device, which takes longer than all the rest."""
    norms = [torch.nn.BatchNorm2d(4, **options) for options in ({"affine": False}, {"track_running_stats": False}, {})]
    norms[2].requires_grad_(False)
    layers = [layer for norm in norms for layer in (torch.nn.Conv2d(4, 4, 3, padding=1), norm)]
    forward = 2 * 3 * (5 * 5 * 4 * 36)
    monkeypatch.setattr(torch, "batch_norm", lambda *_: pytest.fail("torch took a norm apart"))
    assert passes(torch.nn.Sequential(*layers), (4, 5, 5)) == (forward, 3 * forward - forward // 3)


def test_counting_leaves_a_real_network_and_the_random_state_as_they_were():
    network = build("wrn10_1", 10)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    random = torch.get_rng_state()
    assert flops(network, (3, 8, 8)) > 0
    assert network.training
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


# The networks cover maps, concatenated maps, (B, N, C) tokens, in-place activations and heads of several linear layers.
KEPT = [
    ("wrn10_1", 1, 8),
    ("densenet_bc100_12", 1, 8),
    ("resnet18", 3, 32),
    ("alexnet_56", 3, 56),
    ("davit_tiny_wrn_conv", 3, 32),
    ("timm:mixer_s32_224", 3, 224),
]


@pytest.mark.parametrize(("name", "channels", "px"), KEPT)
def test_activations_are_what_autograd_keeps_of_real_images(name, channels, px):
    """The estimate must be the bytes that one more image adds to the saved tensors, counted by real addresses."""
    torch.manual_seed(0)
    network, kept = build(name, 10, channels).train(), []
    weights = {p.untyped_storage().data_ptr() for p in [*network.parameters(), *network.buffers()]}
    for num_images in (2, 3):
        seen: dict[int, torch.Tensor] = {}
        with torch.autograd.graph.saved_tensors_hooks(lambda t, seen=seen: seen.setdefault(id(t), t), lambda t: t):
            logits = network(torch.randn(num_images, channels, px, px))
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in seen.values()}
        kept.append(sum(size for address, size in storages.items() if address not in weights))
        del logits
    # Not exactly equal, because attention runs another kernel on the meta device, one that keeps its weights.
    found = activation_bytes(on_meta(name, 10, channels), (channels, px, px))
    assert found == pytest.approx(kept[1] - kept[0], rel=0.1)
