"""The names of networks, how they are registered, found, refused and listed; and the options of networks."""

import inspect
import math
import subprocess
import sys
from typing import Any

import pytest
import torch
import torchvision

from imnet import listing
from imnet.errors import UsageError
from imnet.models import build, model, names, option_names
from imnet.models.catalog import CATALOG
from imnet.models.registry import MODELS


def test_listing_names_does_not_import_torch():
    code = "import imnet.models as m, sys; print(len(m.names())); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) >= len(CATALOG)


def test_list_models_prints_parameters_flops_input_and_source_of_every_network():
    head, *lines = listing.table("models").splitlines()
    assert head.split() == ["model", "parameters", "GFLOP", "classes", "input", "source"]
    rows = {line.split()[0]: line.split(maxsplit=5)[1:] for line in lines[: len(CATALOG)]}
    assert rows["wrn36_5"] == ["37,633,464", "14.11", "1000", "3x64x64", CATALOG["wrn36_5"].source]
    assert rows["densenet_bc100_12"][:4] == ["768,730", "0.44", "10", "1x28x28"]
    assert rows.keys() == CATALOG.keys()
    for name, entry in CATALOG.items():
        counts = [f"{entry.num_params:,}", f"{entry.forward_flops / 1e9:.2f}"]
        assert [*rows[name][:2], rows[name][4]] == [*counts, entry.source]
    assert "2 FLOPs per multiply-add" in lines[len(CATALOG)]


def test_every_catalogued_name_is_a_registered_function_of_its_file():
    for name, entry in CATALOG.items():
        option_names(name)
        assert MODELS[name].__module__ == f"imnet.models.{entry.module}"
        assert inspect.signature(MODELS[name]).parameters["in_channels"].default == 3
    in_our_files = {n for n, b in MODELS.items() if b.__module__.startswith("imnet.models.")}
    assert in_our_files == set(CATALOG)


def test_own_network_is_registered_under_its_function_name_and_a_duplicate_is_refused():
    def my_network(num_classes, in_channels=3, *, width=4):
        from torch import nn

        return nn.Linear(width, num_classes)

    try:
        model(my_network)
        assert "my_network" in names()
        assert build("my_network", 5, width=7).weight.shape == (5, 7)
        with pytest.raises(ValueError, match="my_network"):
            model(my_network)
    finally:
        MODELS.pop("my_network", None)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("wrn36_55x", "wrn36_5"),
        ("shake_shake26_2x96", "shake_shake26_2x96d"),
        ("no such thing", "imnet-train --list"),
        ("timm:resnet18x", "resnet18"),
        ("torchvision:resnet181", "resnet18"),
    ],
)
def test_unknown_name_is_one_line_with_the_nearest(name, hint):
    with pytest.raises(UsageError) as error:
        build(name, 10)
    assert hint in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "option", "value", "says"),
    [
        ("timm:resnet18", "drop_rat", 0.1, "drop_rat"),
        ("timm:resnet18", "drop_rate", "hello", "drop_rate='hello'; allowed: a number"),
        ("timm:resnet18", "output_stride", "banana", "'output_stride': 'banana'}: AssertionError"),
        ("timm:vit_tiny_patch16_224", "img_size", "big", "img_size"),
        ("torchvision:resnet18", "zero_init", True, "zero_init"),
        ("torchvision:resnet18", "zero_init_residual", "hello", "zero_init_residual='hello'; allowed: True or False"),
        ("torchvision:vgg11", "dropout", "much", "dropout"),
    ],
)
def test_options_of_other_libraries_networks_are_refused_in_one_line(name, option, value, says):
    """They are refused when the network is built; many networks would look at them only in their forward pass."""
    if name.startswith("timm"):
        pytest.importorskip("timm")
    with torch.device("meta"), pytest.raises(UsageError) as error:
        build(name, 10, **{option: value})
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_word_stays_a_word_where_another_librarys_network_takes_one():
    pytest.importorskip("timm")
    for options in ({"global_pool": "max"}, {"act_layer": "silu"}, {"stem_type": "deep"}, {"drop_rate": 1}):
        with torch.device("meta"):
            assert build("timm:resnet18", 10, **options) is not None


def test_unknown_option_lists_the_nearest_or_the_allowed():
    with pytest.raises(UsageError, match="did you mean drop_rate"):
        build("wrn28_10", 10, drop_rat=0.1)
    with pytest.raises(UsageError, match="allowed: groups, drop_rate, zero_init_last_bn"):
        build("wrn28_10", 10, quux=1)
    with pytest.raises(UsageError, match="torchvision:resnet18 refused"):
        build("torchvision:resnet18", 10, quux=1)


@pytest.mark.parametrize(
    "value", ["flase", -1, float("nan"), float("inf"), 10**400, [1], {}, ""], ids=lambda value: repr(value)[:9]
)
def test_every_option_of_every_network_refuses_what_it_cannot_be_in_one_line(value):
    """Otherwise any word switches an option on, and a NaN probability trains until torch uses it for dropout."""
    for name in CATALOG:
        for option in option_names(name):
            with pytest.raises(UsageError) as error:
                build(name, 10, **{option: value})
            assert f"model_options.{option}=" in str(error.value), name
            assert "\n" not in str(error.value), name


@pytest.mark.parametrize(
    ("name", "options", "allowed"),
    [
        ("speednet", {"width": 0}, "allowed: 1 to 4,096"),
        ("speednet", {"num_stages": 0}, "1 to 10"),
        ("speednet", {"num_residuals": 10**9}, "0 to 100"),
        ("speednet", {"num_residuals": True}, "0 to 100"),
        ("wrn28_10", {"groups": 5}, "2, 3, 4, or null"),
        ("wrn16_1", {"drop_rate": 1.0}, "0 or more, below 1"),
        ("davit_tiny", {"drop_path_rate": 1.0}, "0 or more, below 1"),
        ("vgg16", {"drop_rate": 1}, "0 or more, below 1"),
        ("alexnet", {"image_px": 46}, "47 to 4,096"),
        ("vgg16_bn", {"image_px": 31}, "32 to 4,096"),
        ("resnet18", {"stem": "big"}, "imagenet, small"),
        ("resnet18", {"zero_init_last_bn": 1}, "True or False"),
    ],
)
def test_the_refusal_tells_what_an_option_may_be(name, options, allowed):
    with pytest.raises(UsageError, match=allowed):
        build(name, 10, **options)


def test_a_users_network_is_held_to_the_types_that_can_be_looked_up():
    from torch import nn

    def typed(num_classes, in_channels=3, *, width: int = 4):
        return nn.Linear(width, num_classes)

    def several(num_classes, in_channels=3, *, widths: tuple[int, ...] = (4,), kind: Any = 3, norm: type = nn.ReLU):
        return nn.Linear(sum(widths), num_classes)

    def untold(num_classes, in_channels=3, *, width: "NotThere" = 4):  # noqa: F821  # pyright: ignore
        return nn.Linear(int(width), num_classes)

    try:
        model(typed), model(several), model(untold)
        assert build("several", 5, widths=[1, 2], kind={}, norm="relu").weight.shape == (5, 3)
        assert build("untold", 5, width="7").weight.shape == (5, 7)
        with pytest.raises(UsageError, match="a whole number"):
            build("typed", 5, width="7")
        with pytest.raises(UsageError, match="a whole number"):
            build("typed", 5, width=math.nan)
        with pytest.raises(UsageError, match="a list"):
            build("several", 5, widths=3)
    finally:
        for name in ("typed", "several", "untold"):
            MODELS.pop(name, None)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("wrn37_5", {}),
        ("wrn4_1", {}),
        ("wrn28_0", {}),
        ("wrn28_10", {"groups": 2, "drop_rate": 0.1, "num_classes": 0}),
        ("wrn16_1", {"in_channels": 0}),
    ],
)
def test_impossible_sizes_are_refused(name, options):
    with pytest.raises(UsageError):
        build(name, **({"num_classes": 10} | options))


def test_depth_decides_the_number_of_groups_and_the_option_overrules():
    def widths(name, **options):
        return [block.conv2.out_channels for block in build(name, 10, **options).blocks]

    assert widths("wrn16_1") == [16, 16, 32, 32, 64, 64]
    assert widths("wrn28_1") == [16] * 4 + [32] * 4 + [64] * 4
    assert widths("wrn12_2") == [32, 64, 128, 256]
    assert widths("wrn36_1") == [16] * 4 + [32] * 4 + [64] * 4 + [128] * 4
    assert widths("wrn20_1", groups=2) == [16] * 4 + [32] * 4
    assert widths("wrn28_1", groups=4) == [16] * 3 + [32] * 3 + [64] * 3 + [128] * 3


@pytest.mark.parametrize(("name", "px"), [("regnet_y_400mf", 32), ("inception_v3", 75), ("googlenet", 32)])
def test_torchvisions_odd_ones_build_without_memory_and_give_logits_while_training(name, px):
    with torch.device("meta"):
        network = build(f"torchvision:{name}", 7, 1)
        assert network.train()(torch.empty(2, 1, px, px)).shape == (2, 7)
    assert {parameter.device.type for parameter in network.parameters()} == {"meta"}


@pytest.mark.slow
def test_every_network_of_torchvision_builds_for_any_channels():
    """Every twelfth of timm's 1,400 networks was tried in the same way once: half a minute more, no fault found."""
    for name in torchvision.models.list_models(torchvision.models):
        with torch.device("meta"):
            network = build(f"torchvision:{name}", 7, 2)
        first = next(module for module in network.modules() if isinstance(module, torch.nn.Conv2d))
        assert first.in_channels == 2, name
