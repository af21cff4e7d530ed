"""Every recipe: its facts, its network at its size, its dry run, its JSON, and two steps on its own data format."""

import functools
import json
import pickle
import re
import shutil

import numpy as np
import pytest
import torch

from imnet import cli, models, recipes
from imnet.errors import UsageError
from imnet.models.catalog import CATALOG
from imnet.models.count import num_params
from imnet.options import parse
from imnet.recipe import Augment, Comm, Recipe, replace
from imnet.recipe_json import config_hash, dump_config, from_dict, to_dict
from imnet.recipes import RECIPES, by_model
from imnet.run_options import RunOptions
from imnet.start import train
from tests.recipes.conftest import NUM_CLASSES

# Recipes whose two steps take 3 seconds or more on one core, or whose network and data format others train already.
SLOW_STEPS = (
    r"fashion-mnist/(.*_fast|speedrun_long|densenet_bc100_12_as_run)",
    r"fashion-mnist/(wrn28|dpn28|shake_shake).*",
    r"cifar10/.*(64|96)d_stem16",
    r"imagenet64/(wrn36_(2|5|10)(_lasagne)?|wide_.*|davit_.*)",
    r"tiny-imagenet/(resnet101|resnet152|resnet34|resnet50|resnet18_baseline|resnet18_64).*",
    r"spectral/(vgg16_.*|resnet50_.*|alexnet_(224|sub4|sub36)|resnet34_.*)",
)
# Recipes whose network is counted for another recipe of the same kind, and the largest networks.
SLOW_DRY_RUNS = (
    r"fashion-mnist/(.*_(as_run|fast)|shake_shake.*|speedrun_long)",
    r"imagenet64/(davit_tiny|davit_tiny_custom_conv|wide_.*_reference|wrn36_(2|5|10)|wrn36_5_lasagne)",
    r"spectral/resnet34_(sub36|21k_224)",
    r"spectral/(alexnet_(224|sub4|sub36)|vgg16_sub(4|16)|resnet50_(sub4|sub16|sub36|21k_.*))",
    r"tiny-imagenet/(resnet101|resnet152|resnet34).*",
    r"tiny-imagenet/.*_augmented",
    r"cifar10/.*(64|96)d_stem16",
)
# Listed networks that no recipe trains, because the stem-16 form and the form with BN are the published ones.
WITHOUT_RECIPE = {"shake_shake26_2x32d", "vgg16_bn", "vgg16_112", "vgg16_56"}


def slow_where(patterns):
    slow = re.compile("|".join(patterns))
    return [pytest.param(n, marks=pytest.mark.slow if slow.fullmatch(n) else ()) for n in recipes]


@pytest.mark.parametrize("name", list(recipes))
def test_a_recipe_names_its_source_and_goes_through_json(name):
    """tests/cli/test_commands.py also takes every recipe through the command line."""
    recipe = recipes[name]
    assert recipe.source
    assert recipe.name == name
    assert from_dict(json.loads(json.dumps(to_dict(recipe)))) == recipe


def on_meta(recipe):
    """The parameters of a recipe's network, and the shape of its answer to two images; equal networks are built once,
    because the large ones take a second."""
    options = json.dumps(recipe.model_options, sort_keys=True)
    return _on_meta(recipe.model, recipe.num_outputs, recipe.data.channels, recipe.input_px, options)


@functools.cache
def _on_meta(model, outputs, channels, px, options):
    with torch.device("meta"):
        net = models.build(model, outputs, channels, **json.loads(options))
        return num_params(net), net(torch.empty(2, channels, px, px)).shape


@pytest.mark.parametrize("name", list(recipes))
def test_a_recipe_feeds_its_network_the_size_that_it_is_for(name):
    recipe = recipes[name]
    known = CATALOG.get(recipe.model)
    # In document 004, torchvision's unchanged ResNets take the 112-pixel bands of sub4.
    # speednet averages a map of any size.
    anything = recipe.model == "speednet" or (recipe.name.endswith("_sub4") and known.image_px == 224)
    if known is not None and not anything:
        assert known.image_px == recipe.input_px
    assert on_meta(recipe)[1] == (2, recipe.num_outputs)


def test_every_listed_network_has_a_recipe():
    assert CATALOG.keys() - {recipe.model for recipe in recipes.values()} == WITHOUT_RECIPE


def test_imagenet_21k_as_published():
    band = recipes["spectral/resnet50_21k_sub36"]
    assert (band.num_outputs, band.input_px, band.data.batch_images, band.epochs) == (10_450, 56, 512, 100)
    rates = [band.lr_at(epoch * 10, 10) for epoch in (0, 29, 30, 60, 99)]
    assert rates == pytest.approx([1e-3, 1e-3, 1e-4, 1e-5, 1e-6])


PUBLISHED_PARAMETERS = {18: 11_689_512, 34: 21_797_672, 50: 25_557_032, 101: 44_549_160, 152: 60_192_808}


@pytest.mark.parametrize("depth", PUBLISHED_PARAMETERS)
@pytest.mark.parametrize("kind", ["baseline", "augmented"])
def test_the_published_tiny_imagenet_runs_have_the_wide_head(depth, kind):
    recipe = recipes[f"tiny-imagenet/resnet{depth}_{kind}"]
    assert (recipe.data.num_classes, recipe.num_outputs, recipe.input_px) == (200, 1000, 224)
    assert (recipe.optim.lr, recipe.optim.momentum, recipe.optim.weight_decay) == (0.1, 0.0, 0.0)
    assert recipe.lr_at(10**6, 1500) == 0.1
    assert on_meta(recipe)[0] == PUBLISHED_PARAMETERS[depth]


def test_schedules_end_where_the_sources_say():
    wide = recipes["imagenet64/wide_resnet50_2"]
    assert wide.lr_at(62 * 625 // 100, 625) < wide.optim.lr  # 1 % of 80 epochs of 625 steps: still warming up
    assert max(wide.lr_at(i, 625) for i in range(0, 50_000, 25)) == pytest.approx(1e-3, rel=1e-3)
    assert wide.lr_at(80 * 625, 625) == pytest.approx(1e-5)
    band = recipes["spectral/resnet34_sub16"]
    assert band.lr_at(100 * 5004, 5004) == pytest.approx(1e-4)
    assert band.lr_at(5003, 5004) == 0.01


def test_band_chooses_a_band_and_nothing_else():
    for name, bands in (("sub4", 4), ("sub16", 16), ("sub36", 36)):
        recipe = recipes[f"spectral/resnet34_{name}"]
        assert len(recipe.augment.spectral_std) == bands
        chosen = parse(["--recipe", recipe.name, "--band", str(bands - 1)]).recipe
        assert chosen == replace(recipe, augment=replace(recipe.augment, spectral_band=bands - 1))
        with pytest.raises(UsageError, match=f"allowed: 0..{bands - 1}"):
            parse(["--recipe", recipe.name, "--band", str(bands)])
    with pytest.raises(UsageError, match="spectral_r"):
        parse(["--band", "1"])


def test_a_model_with_several_recipes_lists_them():
    with pytest.raises(UsageError, match=r"resnet18_baseline, tiny-imagenet/resnet18_augmented.*choose with --recipe"):
        by_model("resnet18")
    assert by_model("resnet18_64") is RECIPES["tiny-imagenet/resnet18_64"]
    assert by_model("davit_tiny_wrn_conv") is RECIPES["imagenet64/davit_tiny_wrn_conv"]


MISTAKES = [
    (["--augment.resize_px", "0"], "1 or more, or null"),
    (["--augment.crop_px", "33"], "at most 32, the side of the training images"),
    (["--augment.crop_px", "30", "--augment.resize_eval_px", "28"], "the side of the test images"),
    (["--augment.color_jitter", "[0.1,0.1]"], "four numbers"),
    (["--augment.color_jitter", "[0,0,0,0.6]"], "the last at most 0.5"),
    (["--augment.spectral_r", "3"], "2, 4, 6 or null"),
    (["--augment.spectral_r", "6"], "multiples of 6"),
    (["--augment.spectral_std", "[1,2]"], "without spectral_r"),
    (["--augment.spectral_std", "[]"], "without spectral_r"),
    (["--augment.spectral_r", "2", "--augment.spectral_std", "[1,2]"], "1 or 4 numbers"),
    (["--augment.spectral_r", "2", "--augment.cutout_px", "4"], "leave one of them out"),
    (["--augment.crop_px", "16", "--augment.cutout_px", "20"], "at most the input size = 16"),
    (["--augment.mean", "image", "--augment.resize_px", "64"], "one value a channel"),
    (["--data.channels", "1", "--augment.mean", "[1,2,3]"], "allowed: 1; set --augment.mean and --augment.std to one"),
    (["--data.channels", "1", "--augment.trivial_augment"], "leave the colours alone"),
    (["--head_outputs", "9"], "10 or more"),
]


@pytest.mark.parametrize(("argv", "hint"), MISTAKES, ids=lambda v: " ".join(v) if isinstance(v, list) else None)
def test_a_value_that_does_not_fit_is_one_line(argv, hint):
    with pytest.raises(UsageError, match=hint.replace(".", r"\.")) as caught:
        parse(argv)
    assert "\n" not in str(caught.value)


def test_every_new_leaf_is_an_option():
    argv = ["--augment.resize_px", "40", "--augment.resize_eval_px", "44", "--augment.crop_px", "36"]
    argv += ["--augment.color_jitter", "[0.1,0.2,0.3,0.4]", "--augment.trivial_augment", "--head_outputs", "12"]
    recipe = parse([*argv, "--augment.spectral_r", "2", "--augment.spectral_std", "[1,2,3,4]", "--band", "3"]).recipe
    want = Augment(
        resize_px=40, resize_eval_px=44, crop_px=36, color_jitter=(0.1, 0.2, 0.3, 0.4), trivial_augment=True,
        spectral_r=2, spectral_std=(1, 2, 3, 4), spectral_band=3,
    )  # fmt: skip
    kept = {name: getattr(recipe.augment, name) for name in ("crop_pad_px", "hflip", "mean", "std")}
    assert recipe.augment == replace(want, **kept)
    assert (recipe.head_outputs, recipe.input_px) == (12, 18)


@pytest.mark.parametrize("name", slow_where(SLOW_DRY_RUNS))
def test_a_recipe_dry_runs(name, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.train_main(["--recipe", name, "--dry-run", "--data-dir", str(tmp_path / "nothing")]) == 0
    out = capsys.readouterr().out
    recipe = recipes[name]
    count = on_meta(recipe)[0]
    assert f"{recipe.model}: {count:,} parameters" in out
    assert "GFLOP an image forward" in out
    known = CATALOG.get(recipe.model)
    if known and (known.image_px, known.num_params) == (recipe.input_px, count):
        assert f"{known.forward_flops / 1e9:.3f} GFLOP an image forward" in out


def shrunk(recipe: Recipe) -> Recipe:
    """Shorten a recipe to two steps of two images: DenseNet and others normalise maps of 1 x 1, which takes two."""
    data = recipe.data
    classes = NUM_CLASSES.get(data.name, data.num_classes)
    small = replace(data, batch_images=2, train_images=4, test_images=2, num_classes=classes)
    schedule = replace(recipe.schedule, warmup_epochs=min(1.0, recipe.schedule.warmup_epochs))
    return replace(recipe, data=small, head_outputs=recipe.num_outputs, epochs=1, schedule=schedule)


@pytest.mark.parametrize("name", slow_where(SLOW_STEPS))
def test_two_steps_on_its_own_data_format(name, stand_in, tmp_path):
    recipe = shrunk(recipes[name])
    folder = tmp_path / "run"
    options = {"device": "cpu", "precision": "fp32", "threads": 1, "log_every_steps": 1}
    code, _ = train(recipe, RunOptions(out=str(folder), data_dir=str(stand_in(recipe.data.name)), **options))
    assert code == 0
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "train"] == [1, 2]
    assert all(torch.isfinite(torch.tensor(line["loss"])) for line in lines)
    assert json.loads((folder / "evaluation.json").read_text())["num_images"] == 2
    shutil.rmtree(folder)  # VGG's checkpoints are a gigabyte


def test_a_change_of_one_recipes_network_options_reaches_no_other():
    """Otherwise, an option that a notebook sets in its own variant would be trained under the registry's name."""
    named = RECIPES["tiny-imagenet/speedrun_gpu"]
    raw, given = to_dict(named), {"width": 8, "strides": [1, 2]}
    made = [replace(named, seed=3), from_dict(raw), replace(named, model_options=given)]
    before = config_hash(named, "fp32")
    for changed in (made[0].model_options, raw["model_options"], given):
        changed["width"] = 999  # pyright: ignore[reportIndexIssue]
    given["strides"].append(3)  # pyright: ignore[reportAttributeAccessIssue]
    assert config_hash(named, "fp32") == before
    assert made[1] == named
    assert made[2].model_options == {"width": 8, "strides": [1, 2]}
    assert pickle.loads(pickle.dumps(made[0])) == made[0]


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.array, torch.tensor], ids=lambda kind: kind.__name__)
def test_numbers_of_numpy_and_torch_are_as_good_as_pythons_also_in_lists_and_network_options(kind):
    base = recipes["quickstart"]
    mean = kind([0.5]) if kind in (np.array, torch.tensor) else [kind(0.5)]
    found = replace(base, augment=replace(base.augment, mean=mean), model_options={"width": np.int64(8)})
    plain = replace(base, augment=replace(base.augment, mean=(0.5,)), model_options={"width": 8})
    assert dump_config(found, RunOptions()) == dump_config(plain, RunOptions())
    assert config_hash(found, "fp32") == config_hash(plain, "fp32")


@pytest.mark.parametrize("name", ["bucket_mb", "first_bucket_mb"])
def test_sizes_are_positive(name):
    with pytest.raises(ValueError, match=f"comm.{name} = 0; allowed: a positive number; set --comm.{name}"):
        Comm(**{name: 0})
