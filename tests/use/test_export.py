"""Exported runs: files with which other tools compute the run's own logits."""

import json
import os
import resource
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import imnet
from imnet import weights
from imnet.classifier import Card, Classifier, load
from imnet.cli import export_main, predict_main
from imnet.errors import DataError, IOFailure, UsageError
from imnet.export import Portable, describe, export, network_input, resized_twice, timm_pictures
from imnet.files import write_atomic
from imnet.from_recipe import build_network
from imnet.recipe import Augment
from tests.use.judging import logits_of


def small(**changes):
    base = imnet.recipes["quickstart"]
    data = replace(base.data, train_images=128, test_images=64, image_px=16, batch_images=32)
    return replace(base, data=data, augment=replace(base.augment, crop_pad_px=1, cutout_px=0), epochs=1, **changes)


@pytest.mark.parametrize("to", ["safetensors", "pt2", "onnx"])
def test_other_tools_get_the_runs_logits(run, split, tmp_path, to, capsys):
    for module in ("onnx", "onnxscript", "onnxruntime") if to == "onnx" else ():
        pytest.importorskip(module)
    out = tmp_path / f"model.{to}"
    assert export_main([str(run.path), "--to", to, "--out", str(out)]) == 0
    assert f"{out}: {to}, 4 pictures judged as by the run" in capsys.readouterr().out
    wanted, card = logits_of(run, split), run.classifier().card
    images = network_input(card, split.images)
    if to == "safetensors":
        from safetensors import safe_open
        from safetensors.torch import load_file

        plain = build_network(run.recipe)
        plain.load_state_dict(load_file(out))
        mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (card.augment.mean, card.augment.std))
        found = plain.eval()((images - mean) / std).detach()
        with safe_open(out, "pt") as file:
            assert json.loads(file.metadata()["classes"]) == list(card.class_names)
        assert imnet.load(out).card == card
        assert imnet.load(out).predict([split.images[0]]) == run.predict([split.images[0]])
    elif to == "pt2":
        extra = {"imnet.json": ""}
        found = torch.export.load(out, extra_files=extra).module()(images).detach()
        assert Card.loads(extra["imnet.json"]) == card
    else:
        import onnx
        import onnxruntime

        session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
        assert [end[0].shape[0] for end in (session.get_inputs(), session.get_outputs())] == ["batch", "batch"]
        found = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
        props = {p.key: p.value for p in onnx.load(out).metadata_props}
        assert Card.loads(props["imnet"]) == card
        assert props["input"] == describe(card)
        assert f" pixels by Pillow's {card.rule.filter}" in props["input"]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_timm_loads_its_own_networks_from_the_folder(tmp_path):
    timm = pytest.importorskip("timm")
    asked = small(model="timm:resnet10t", model_options={})
    run = imnet.train(asked, out=tmp_path / "r", device="cpu", precision="fp32")
    for _ in range(2):  # the second export replaces the first
        assert export_main([str(run.path), "--to", "timm", "--out", str(tmp_path / "folder")]) == 0
    network = timm.create_model(f"local-dir:{tmp_path / 'folder'}", pretrained=True).eval()
    assert network.num_classes == run.recipe.data.num_classes
    card = run.classifier().card
    assert tuple(network.pretrained_cfg["mean"]) == tuple(card.augment.mean_per_channel(3))
    pixels = np.random.default_rng(1).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    mean, std = (torch.tensor(network.pretrained_cfg[k]).view(1, -1, 1, 1) for k in ("mean", "std"))
    found = network((network_input(card, pixels) - mean) / std).detach()
    torch.testing.assert_close(found, run.classifier().logits(pixels), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "augment",
    [
        Augment(),
        Augment(crop_px=12),
        Augment(crop_scale=(0.3, 1.0), crop_px=16, resize_eval_px=20),
        Augment(crop_scale=(0.3, 1.0), crop_px=16, resize_eval_px=16),
    ],
    ids=["squashed", "squashed and cut", "shorter side and cut", "shorter side"],
)
def test_timm_makes_of_a_picture_what_the_run_makes_of_it(run, augment):
    timm_data = pytest.importorskip("timm.data")
    card = replace(run.classifier().card, whole=True, augment=augment)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 61, 3), dtype=np.uint8))
    config = timm_data.resolve_data_config(pretrained_cfg={**timm_pictures(card), "mean": [0.0] * 3, "std": [1.0] * 3})
    found = timm_data.create_transform(**config)(picture)
    wanted = network_input(card, Classifier(run.model(), card).pixels(picture)[None].copy())[0]
    assert not resized_twice(card)
    assert torch.equal(found, wanted)


def test_what_timm_cannot_repeat_is_said(tmp_path):
    pytest.importorskip("timm")
    asked = small(model="timm:resnet10t", model_options={})
    run = imnet.train(replace(asked, augment=replace(asked.augment, resize_px=24)), out=tmp_path / "r", device="cpu")
    line = export(run.classifier(), "timm", tmp_path / "folder")
    assert "the run did it twice: float32 (N, 3, 24, 24)" in line


@pytest.mark.parametrize("to", ["safetensors", "onnx", "pt2", "timm"])
@pytest.mark.parametrize("out", ["pictures", ".", "run", "model.safetensors"])
def test_no_folder_is_taken_away_for_an_export(run, pictures, tmp_path, monkeypatch, capsys, to, out):
    monkeypatch.chdir(tmp_path)
    Path("run").symlink_to(run.path)
    Path("model.safetensors/kept").mkdir(parents=True)
    there = [*sorted(tmp_path.rglob("*")), *sorted(run.path.rglob("*"))]
    assert export_main(["run", "--to", to, "--out", out]) == 2
    assert "got a folder for --out" in capsys.readouterr().err
    assert [*sorted(tmp_path.rglob("*")), *sorted(run.path.rglob("*"))] == there


def test_a_file_that_says_something_else_is_not_kept(run, tmp_path, monkeypatch):
    model = run.classifier()
    monkeypatch.setattr(
        Portable, "forward", lambda self, images: self.network(images - self.mean)[:, : self.classes] + 1
    )
    out = tmp_path / "model.pt2"
    with pytest.raises(DataError, match=r"away from the run's logits"):
        export(model, "pt2", out)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("to", ["safetensors", *(pytest.param(n, marks=pytest.mark.slow) for n in ("pt2", "onnx"))])
def test_a_full_disk_is_one_line_and_nothing_is_left(run, tmp_path, to, capsys):
    """The disk is simulated by a limit of 2 KiB per file, which every library reports by an exception of its own."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    model, out = run.classifier(), tmp_path / f"model.{to}"
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, limits[1]))
    try:
        with pytest.raises(IOFailure, match="cannot be written: File too large; choose another --out"):
            export(model, to, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def test_where_not_even_the_remains_can_be_removed_it_is_one_line(run, tmp_path):
    with pytest.raises(IOFailure, match="cannot be written: File name too long; choose another --out"):
        export(run.classifier(), "safetensors", tmp_path / ("x" * 250))


def test_a_pipe_is_not_replaced_by_a_file(run, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(UsageError, match="got a device or a pipe for --out"):
        export(run.classifier(), "safetensors", pipe)
    reader = os.open(pipe, os.O_RDWR)
    write_atomic(pipe, "a table")
    assert os.read(reader, 100) == b"a table"
    os.close(reader)
    assert pipe.is_fifo()
    assert list(tmp_path.iterdir()) == [pipe]


def test_what_cannot_be_said_elsewhere_is_refused(run, tmp_path):
    model = run.classifier()
    with pytest.raises(UsageError, match="a network that timm has not"):
        export(model, "timm", tmp_path / "x")
    with pytest.raises(UsageError, match=r"allowed: safetensors, onnx"):
        export(model, "tflite", tmp_path / "x")
    band = replace(model.card, augment=Augment(spectral_r=2))
    with pytest.raises(UsageError, match="spectral"):
        Portable(Classifier(model.network, band))
    mean = replace(model.card, augment=Augment(mean="image"))
    with pytest.raises(UsageError, match="mean image"):
        Classifier(model.network, mean)
    imaged = Classifier(model.network, mean, torch.rand(16, 16, 3))
    with pytest.raises(UsageError, match="--to onnx and --to pt2 hold it"):
        export(imaged, "safetensors", tmp_path / "x")
    export(imaged, "pt2", tmp_path / "x.pt2")
    assert not list(tmp_path.glob("*safetensors*"))


def test_the_whole_picture_is_cut_as_in_evaluation(run):
    """For a run on encoded pictures: the shorter side is resized, then the middle is cut; nothing is resized twice."""
    augment = Augment(crop_scale=(0.3, 1.0), crop_px=16, resize_eval_px=20)
    card = replace(run.classifier().card, whole=True, augment=augment)
    model = Classifier(run.model(), card)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    pixels = model.pixels(picture)
    wanted = picture.resize((30, 20), Image.Resampling.BILINEAR).crop((7, 2, 23, 18))
    assert np.array_equal(pixels, np.asarray(wanted))
    assert card.input_px == 16
    assert model.logits(pixels[None]).shape == (1, len(card.class_names))


def test_load_refuses_what_is_absent(tmp_path):
    with pytest.raises(DataError, match="No such file"):
        load(tmp_path / "none.safetensors")
    with pytest.raises(UsageError, match="got a folder for a file"):
        load(tmp_path)


BROKEN = {
    "no JSON": "{", "no object": "[]", "a number": "NaN", "nothing": "{}",
    **{f"{key} gone": {key: ...} for key in ("model", "num_outputs", "augment", "class_names", "model_options")},
    **{f"{key} null": {key: None} for key in ("model", "channels", "image_px", "whole", "augment", "class_names")},
    **{f"{key} of another type": {key: value} for key, value in {
        "model": -1, "num_outputs": "10", "channels": True, "image_px": float("nan"), "whole": "no", "augment": True,
        "class_names": "x", "model_options": [], "top1": "high"}.items()},
    **{f"{key} out of range": {key: value} for key, value in {
        "image_px": 10**30, "num_outputs": 0, "class_names": ["a"] * 11, "channels": 1}.items()},
    "an unknown word": {"more": 1},
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_file_whose_card_is_damaged_is_one_line(run, tmp_path, case, capsys):
    """Whichever key of the card is missing, of another type or out of range, for prediction and as initial weights."""
    from safetensors.torch import load_file, save_file

    model, out = run.classifier(), tmp_path / "model.safetensors"
    export(model, "safetensors", out)
    changed = BROKEN[case]
    if isinstance(changed, dict):
        values = json.loads(model.card.dumps()) | changed
        changed = json.dumps({key: value for key, value in values.items() if value is not ...})
    save_file(load_file(out), out, {"imnet": changed})
    assert predict_main([str(out), str(tmp_path)]) == 65
    assert len(capsys.readouterr().err.splitlines()) == 1
    if case in ("no JSON", "no object", "a number", "nothing", "model gone", "model_options gone", "model null"):
        with pytest.raises(DataError, match="imnet in its head"):
            weights.network_of(str(out))


@pytest.mark.parametrize("told", ["{", "[1]", "{}", '{"image_px": "64", "mean": [0], "std": [1]}', "7"])
def test_only_imnets_own_words_on_preprocessing_are_read(tmp_path, told):
    """Other programs may give "preprocessing" a meaning of their own; in imnet's files, a damaged one is reported."""
    from safetensors.torch import save_file

    out = tmp_path / "model.safetensors"
    save_file({"w": torch.zeros(1)}, out, {"preprocessing": told})
    assert weights.preprocessing(str(out)) == weights.Preprocessing()
    save_file({"w": torch.zeros(1)}, out, {"preprocessing": told, "imnet": "{}"})
    with pytest.raises(DataError, match="preprocessing in its head"):
        weights.preprocessing(str(out))


@pytest.mark.parametrize("to", ["safetensors", "pt2"])
def test_a_file_says_in_words_how_a_picture_becomes_its_input(run, tmp_path, to):
    out, card = tmp_path / f"model.{to}", run.classifier().card
    export(run.classifier(), to, out)
    if to == "safetensors":
        from safetensors import safe_open

        with safe_open(out, "pt") as file:
            words, classes = (file.metadata()[key] for key in ("input", "classes"))
    else:
        extra = {"input.txt": "", "classes.json": ""}
        torch.export.load(out, extra_files=extra)
        words, classes = extra["input.txt"], extra["classes.json"]
    assert words == describe(card)
    assert "convert('RGB')" in words
    assert json.loads(classes) == list(card.class_names)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (None, 65),
        ({}, 65),
        ({"name": 1.5}, 74),
        ({"encoded": "x"}, 74),
        ({"class_names": True}, 74),
        ({"class_names": []}, 65),
        ({"class_names": [1.5] * 6}, 65),
    ],
)
def test_a_run_folder_that_does_not_say_what_its_classes_are_is_one_line(run, tmp_path, data, code, capsys):
    folder = tmp_path / "copy"
    shutil.copytree(run.path, folder)
    told = json.loads((folder / "run.json").read_text())
    told["data"] = told["data"] | data if data else data
    (folder / "run.json").write_text(json.dumps(told))
    for command in (
        lambda: predict_main([str(folder), str(tmp_path)]),
        lambda: export_main([str(folder), "--to", "pt2"]),
    ):
        assert command() == code
        assert len(capsys.readouterr().err.splitlines()) == 1
