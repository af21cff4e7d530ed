"""One epoch of imnet.train on each format gives the same losses with every pipeline that this machine has."""

import importlib.util
from dataclasses import replace

import pytest

from imnet import recipes, train
from imnet.data.pipelines import has_dali
from imnet.data.tool import main as imnet_data
from imnet.recipe import Augment, Recipe
from tests.data import making
from tests.data.test_tars import imagenet_tars
from tests.recipes.conftest import _MAKERS

PIPELINES = ["resident", "host", "torch"]
if has_dali() and importlib.util.find_spec("imnet.data.pipelines.dali") is not None:
    PIPELINES.append("dali")


def _idx(root):
    return {"data_dir": _MAKERS["fashion-mnist"](root)}, "fashion-mnist", 28, 1, 10


def _cifar(root):
    return {"data_dir": _MAKERS["cifar10"](root)}, "cifar10", 32, 3, 10


def _imagenet64(root, **form):
    making.imagenet64_folder(root / "imagenet16", **form)
    return {"data_dir": root}, "imagenet64", 16, 3, 1000


def _npz(root):
    return _imagenet64(root, make=making.npz_bytes, suffix=".npz")


def _tiny_zip(root):
    making.write_zip(root / "tiny-imagenet-200.zip", making.tiny_files(count=8))
    return {"data_dir": root}, "tiny-imagenet", 64, 3, 3


def _folders(root):
    making.write_tree(root / "set", making.class_files("train", 8) | making.class_files("val", 2, seed=900))
    return {"data_dir": root / "set"}, "folder", 24, 3, 3


def _tars(root):
    imagenet_tars(root / "imagenet")
    order = "\n".join(making.WNIDS[i % 3] for i in range(6))
    (root / "imagenet" / "imagenet_2012_validation_synset_labels.txt").write_text(order)
    return {"data_dir": root}, "imagenet", 24, 3, 3


def _store(root, *options):
    source = _folders(root)[0]["data_dir"]
    assert imnet_data(["pack", str(source), str(root / "store"), *options]) == 0
    return {}, f"packed:{root / 'store'}", 24, 3, 3


def _pixels(root):
    return _store(root, "--size", "24")


def _encoded(root):
    return _store(root)


# The slow ones are read into the same arrays or encoded pictures as _imagenet64 and _folders.
SLOW = [pytest.param(make, marks=pytest.mark.slow) for make in (_npz, _tiny_zip)]
FORMATS = [_idx, _cifar, _imagenet64, _folders, _tars, _pixels, _encoded, *SLOW]
SMALL = {_idx: {"train_images": 40, "test_images": 20}}


@pytest.fixture(scope="module", params=FORMATS, ids=lambda f: f.__name__.strip("_"))
def source(request, tmp_path_factory):
    """Writes a set in one format; returns (keyword arguments of train, recipe) for it."""
    root = tmp_path_factory.mktemp(request.param.__name__)
    where, name, px, channels, classes = request.param(root)
    base = recipes["quickstart"]
    data = replace(
        base.data, name=name, image_px=px, channels=channels, num_classes=classes, batch_images=8,
        split="custom" if name == "fashion-mnist" else None,
        **({"train_images": None, "test_images": None} | SMALL.get(request.param, {})),
    )  # fmt: skip
    augment = Augment(crop_pad_px=2, hflip="random", cutout_px=4, mean=(0.45,), std=(0.25,))
    return where, Recipe(
        name="format", model="wrn10_1", data=data, augment=augment, optim=base.optim, schedule=base.schedule, epochs=1
    )


def test_an_epoch_through_each_pipeline(source, tmp_path):
    where, recipe = source
    losses = {}
    for kind in PIPELINES:
        if kind == "resident" and "store" in recipe.data.name and where == {} and _is_encoded(recipe):
            continue
        run = train(
            recipe, out=tmp_path / kind, pipeline=kind, device="cpu", precision="fp32", threads=1, log_every_steps=1,
            **where,
        )  # fmt: skip
        assert run.info["pipeline"]["kind"] == kind
        losses[kind] = [row["loss"] for row in run.metrics]
    first = next(iter(losses.values()))
    assert len(first) >= 2
    for kind, values in losses.items():
        # DALI decodes and resizes with its own arithmetic.
        assert values == pytest.approx(first, rel=0.05 if kind == "dali" else 1e-4), kind


def _is_encoded(recipe):
    from imnet.data import EncodedSplit, load

    return isinstance(load(recipe.data.name, image_px=24).train, EncodedSplit)
