"""imnet from Python: values of types that a command line cannot give, and calls that are refused with one line."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from imnet_kernels import tier
from safetensors import safe_open

import imnet
from imnet.augmentation import Augment
from imnet.classifier import Classifier
from imnet.cli import eval_main, export_main
from imnet.errors import DeviceError, ImnetError, UsageError
from imnet.export import export
from imnet.options import parse
from imnet.recipe_json import config_hash
from imnet.run_options import RunOptions
from imnet.schedules import MultiStep, OneCycle
from tests.use.conftest import TINY

ON_CPU = {"device": "cpu", "precision": "fp32"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run from a recipe whose numbers are numpy's, as grids in notebooks give them."""
    data, optim = imnet.replace(TINY.data, batch_images=np.int32(16)), imnet.replace(TINY.optim, lr=np.float64(0.1))
    numbers = imnet.replace(TINY, seed=np.int64(3), epochs=np.uint8(1), data=data, optim=optim)
    return imnet.train(numbers, out=tmp_path_factory.mktemp("run") / "r", threads=np.int64(1), **ON_CPU)


def test_numbers_of_numpy_are_numbers(run):
    again = imnet.load_run(run.path).recipe
    assert (again.seed, again.epochs, again.data.batch_images, again.optim.lr) == (3, 1, 16, 0.1)
    assert again == imnet.replace(TINY, seed=3, optim=imnet.replace(TINY.optim, lr=0.1))
    assert imnet.replace(TINY, epochs=torch.tensor(2)).epochs == 2


def test_a_whole_number_of_division_is_the_whole_number(run, tmp_path):
    """256 / 16 is 16.0, with which torch would fail, and the run would be another experiment."""
    data = imnet.replace(TINY.data, batch_images=256 / 16, train_images=64.0, image_px=16.0)
    halved = imnet.replace(TINY, seed=3.0, epochs=1.0, data=data, optim=imnet.replace(TINY.optim, lr=0.1))
    assert config_hash(halved, "fp32") == run.info["config_hash"]
    again = imnet.train(halved, out=run.path, threads=2 / 2, micro_batch_images=32 / 2, **ON_CPU)
    assert again.info["config_hash"] == run.info["config_hash"]
    assert str(RunOptions(procs=2.0).procs) == "2"  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"got epochs = 1\.5; allowed: a whole number"):
        imnet.replace(TINY, epochs=1.5)  # pyright: ignore[reportArgumentType]


def test_a_whole_number_in_the_place_of_a_fraction_is_the_same_experiment(tmp_path):
    """``lr: 1`` in a file is ``--lr 1.0``: with another hash, it would be trained again in another folder."""

    def told(lr: Any, mean: Any, milestones: Any, width: Any) -> imnet.Recipe:
        optim, augment = imnet.replace(TINY.optim, lr=lr), imnet.replace(TINY.augment, mean=mean)
        schedule = MultiStep(milestones_epochs=milestones, warmup_epochs=type(lr)(0))
        parts = {"optim": optim, "augment": augment, "schedule": schedule, "model_options": {"width": width}}
        return imnet.replace(TINY, **parts)

    as_fractions = told(1.0, (0.0,), (1, 2), 8)
    for again in (told(1, [0], (1.0, 2.0), np.int64(8)), told(np.float32(1), [np.float32(0)], [np.int8(1), 2], 8)):
        assert repr(again) == repr(as_fractions)
        assert config_hash(again, "fp32") == config_hash(as_fractions, "fp32")
    (tmp_path / "c.yaml").write_text("optim:\n  lr: 1\n  weight_decay: 0\ngrad_clip: 2\n")
    words = ["--lr", "1.0", "--optim.weight_decay", "0.0", "--grad-clip", "2.0"]
    found = [parse(words).recipe, parse(["--config", str(tmp_path / "c.yaml")]).recipe]
    assert repr(found[0]) == repr(found[1])


def test_a_whole_number_that_no_float_can_hold_is_refused():
    with pytest.raises(ValueError, match=r"got optim\.lr = 1000.*; allowed: a positive number"):
        imnet.replace(TINY.optim, lr=10**400)


def test_a_tilde_is_home_where_no_shell_expands_it(run, tmp_path, monkeypatch):
    """Else a folder called ~ would be made in the current one."""
    monkeypatch.setenv("HOME", str(run.path.parent))
    monkeypatch.chdir(tmp_path)
    assert imnet.train(run.recipe, out=f"~/{run.path.name}", **ON_CPU).path == run.path
    assert imnet.load_run(f"~/{run.path.name}").path == run.path
    (tmp_path / "c.yaml").write_text("out: ~/here\ndata_dir: ~/there\n")
    read = parse(["--config", "c.yaml"]).options
    assert (read.out, read.data_dir) == (str(run.path.parent / "here"), str(run.path.parent / "there"))
    assert [path.name for path in tmp_path.iterdir()] == ["c.yaml"]
    for load in (imnet.load_run, imnet.load):  # of a user that there is not
        with pytest.raises(ImnetError, match="~nobodys/"):
            load("~nobodys/x.safetensors")


@pytest.mark.parametrize("number", [0, -1, "4", 1.5])
def test_a_number_of_classes_or_images_is_at_least_one(run, number):
    picture = np.zeros((16, 16, 3), np.uint8)
    for ask in (
        lambda: run.predict([picture], top=number),
        lambda: run.classifier().predict([picture], batch=number),
        lambda: run.evaluate(batch_images=number),
    ):
        with pytest.raises(UsageError, match=r"got (top|batch|batch_images) .*; allowed: 1 or more; leave"):
            ask()
    assert len(run.predict([picture], top=np.int64(2))[0]["top"]) == 2


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("epochs", r"imnet.replace\(recipe, epochs=...\)"),
        ("lr", r"imnet.replace\(recipe, optim=imnet.replace\(recipe.optim, lr=...\)\)"),
        ("batch_images", r"imnet.replace\(recipe, data=imnet.replace\(recipe.data, batch_images=...\)\)"),
        ("cutout_px", r"augment=imnet.replace\(recipe.augment, cutout_px=...\)"),
        ("epoch", r"did you mean epochs\?"),
        ("batch_size", r"did you mean batch_images\?"),
        ("pression", r"did you mean precision\?"),
        ("xyzzy", r"allowed: allow_change, bands, .*workers$"),
    ],
)
def test_an_option_that_there_is_not_is_told_where_it_belongs(name, says):
    with pytest.raises(UsageError, match=rf"^got unknown option {name}; .*{says}"):
        imnet.train(TINY, **{name: 1})


@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [
        ("device", "tpu", "auto, cpu, cuda"),
        ("precision", "fp23", "auto, fp32, bf16, fp16"),
        ("on_bad_image", "skpi", "stop, skip"),
        ("resume", "always", "auto, never"),
        ("compile", "no", "True or False, or null"),
        ("lock", 0, "True or False"),
        ("log", ["csv"], "a word, or null"),
        ("threads", "1", "1 to 1,024, or null"),
        ("log_every_steps", 2.5, "a whole number, or null"),
    ],
)
def test_a_value_that_an_option_has_not_is_refused(tmp_path, option, value, allowed):
    with pytest.raises(UsageError, match=rf"^got {option} = .*; allowed: {allowed}"):
        imnet.train(TINY, out=tmp_path / "run", **{option: value})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("", "class_weights", "balance"),
        ("", "epochs", "2"),
        ("", "epochs", True),
        ("data", "sampler", "even"),
        ("augment", "hflip", "sometimes"),
        ("optim", "nesterov", "no"),
        ("", "augment", {"hflip": "none"}),
        ("", "data", None),
        ("", "optim", "sgd"),
        ("", "schedule", TINY.optim),
        ("", "model_options", "width"),
        ("augment", "crop_scale", 0.5),
    ],
)
def test_a_value_that_a_recipe_has_not_is_refused(part, field, value):
    of = getattr(TINY, part) if part else TINY
    with pytest.raises(ValueError, match=rf"^got {part and part + '.'}{field} = "):
        imnet.replace(of, **{field: value})


def test_plain_values_stay_what_they_were():
    assert RunOptions(keep=3).keeps == RunOptions(keep="3").keeps  # pyright: ignore[reportArgumentType]
    assert OneCycle(peak_fraction=0.5, start_factor=0).start_factor == 0
    assert RunOptions(threads=2.0).threads == 2  # pyright: ignore[reportArgumentType]
    assert imnet.replace(TINY.augment, mean=[0.5]) == imnet.replace(TINY.augment, mean=(0.5,))


@pytest.mark.parametrize(("name", "words"), [("quickstrat", "did you mean quickstart?"), (3, "--list recipes")])
def test_a_recipe_that_there_is_not_is_said(name, words):
    with pytest.raises(UsageError, match=f"got unknown recipe {name!r}; .*{re.escape(words)}"):
        imnet.recipes[name]
    assert name not in imnet.recipes
    assert imnet.recipes.get(name) is None


def test_a_value_of_the_recipe_is_no_option():
    with pytest.raises(UsageError, match=r"option epochs; it is a value of the recipe: imnet\.replace\(recipe"):
        imnet.train("quickstart", epochs=3)


@pytest.mark.parametrize("recipe", [{"model": "speednet"}, 3])
def test_what_is_no_recipe_is_said(recipe, tmp_path):
    with pytest.raises(UsageError, match="for a recipe; give a name"):
        imnet.train(recipe, out=tmp_path / "run")


@pytest.mark.parametrize("one", ["photos/1.png", b"\x89PNG", np.zeros((16, 16, 3), np.uint8), np.zeros((16, 16), "u1")])
def test_one_picture_is_not_its_letters_or_rows(run, one):
    with pytest.raises(UsageError, match=r"got one picture.*write \[picture\]"):
        run.predict(one)


@pytest.mark.parametrize("array", [np.zeros((16, 16, 3)), np.zeros((3, 16, 16), np.uint8), np.zeros(16, np.uint8)])
def test_an_array_that_is_no_picture_is_one_line(run, array):
    with pytest.raises(UsageError, match=r"allowed uint8 \(H, W\), \(H, W, C\)"):
        run.predict([array])


def test_a_kernel_that_is_not_here_is_one_line_in_all_that_uses_a_network(run, capsys):
    with tier.using("cuda"):
        with pytest.raises(DeviceError, match="augment: tier cuda runs on CUDA tensors"):
            run.predict([np.zeros((16, 16, 3), np.uint8)])
        for command, words in ((eval_main, ("--device", "cpu")), (export_main, ("--to", "pt2"))):
            assert command([str(run.path), *words]) == DeviceError.exit_code
            said = capsys.readouterr().err
            assert said.count("\n") == 1
            assert "augment: tier cuda" in said


def test_parts_and_epochs(run):
    with pytest.raises(UsageError, match="got split nosuch; shapes has: test, train"):
        run.evaluate(split="nosuch", device_name="cpu")
    with pytest.raises(UsageError, match="got split final"):
        run.evaluate(split="final", device_name="cpu")
    with pytest.raises(UsageError, match="got device = 'tpu'"):
        run.evaluate(device_name="tpu")
    for mine, last in zip(run.model(1).parameters(), run.model().parameters(), strict=True):
        assert torch.equal(mine, last)


@pytest.mark.slow
def test_ranks_that_import_the_script_that_starts_them_say_so(tmp_path):
    """Without its guard, a script would start the training again in every rank, and the ranks would wait forever."""
    script = tmp_path / "unguarded.py"
    script.write_text('import imnet\nimnet.train("quickstart", out="run", device="cpu", procs=2)\n')
    ended = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert 'put the call under if __name__ == "__main__":' in ended.stderr
    assert ended.stderr.strip().splitlines()[-1].endswith("failed; see its words above")
    assert not (tmp_path / "run").exists()


def test_an_exported_band_says_that_it_sees_a_band(run, tmp_path):
    """A reader without imnet can learn it only from the metadata in the file's header."""
    model = run.classifier()
    augment = Augment(spectral_r=2, spectral_band=1, spectral_std=(2.0, 0.5, 0.25, 0.5))
    for network, wanted in ((model.card.augment, set()), (augment, {"spectral_r", "spectral_band", "spectral_std"})):
        path = tmp_path / "model.safetensors"
        export(Classifier(model.network, replace(model.card, augment=network)), "safetensors", path)
        with safe_open(path, "pt") as file:
            about = json.loads(file.metadata()["preprocessing"])
        assert set(about) == {"image_px", "mean", "std"} | wanted
    assert (about["image_px"], about["spectral_r"], about["spectral_band"]) == (8, 2, 1)
    assert about["spectral_std"] == [2.0, 0.5, 0.25, 0.5]


@pytest.mark.parametrize(
    ("command", "words", "name", "better"),
    [
        (export_main, "--to safetensors", "x.onnx", "x.safetensors"),
        (export_main, "--to onnx", "x.PT2", "x.onnx"),
        (export_main, "--to pt2", "x.pth", "x.pt2"),
        (export_main, "--to safetensors", "x.png", "x.safetensors"),
        (export_main, "--to timm", "x.safetensors", "x"),
        (eval_main, "--no-flip", "x.json", "x.csv"),
        (eval_main, "--no-flip", "x.pdf", "x.csv"),
    ],
)
def test_a_file_is_not_written_under_the_name_of_another_kind(run, tmp_path, capsys, command, words, name, better):
    there = sorted(tmp_path.iterdir())
    assert command([str(run.path), *words.split(), "--out", str(tmp_path / name)]) == 2
    assert capsys.readouterr().err.endswith(f"; --out {tmp_path / better}\n")
    assert sorted(tmp_path.iterdir()) == there


def test_a_field_that_there_is_not_is_answered_with_the_nearest():
    with pytest.raises(ImnetError, match=r"got unknown field epoch of Recipe; did you mean epochs\?"):
        imnet.replace(TINY, epoch=3)  # pyright: ignore[reportCallIssue]
