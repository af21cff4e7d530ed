"""A run used elsewhere: predictions from every kind of picture, files that give other tools the run's own logits."""

import csv
import io
import json
import os
import resource
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import imnet
from imnet.classifier import Card, Classifier, load
from imnet.cli import export_main, predict_main
from imnet.errors import DataError, IOFailure, UsageError
from imnet.export import Portable, describe, export, network_input, resized_twice, timm_pictures
from imnet.files import write_atomic
from imnet.from_recipe import build_network, build_pipelines, load_data
from imnet.launch import World
from imnet.recipe import Augment
from imnet.run_options import RunOptions


def small(**changes):
    base = imnet.recipes["quickstart"]
    data = replace(base.data, train_images=128, test_images=64, image_px=16, batch_images=32)
    return replace(base, data=data, augment=replace(base.augment, crop_pad_px=1, cutout_px=0), epochs=1, **changes)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return imnet.train(small(), out=tmp_path_factory.mktemp("run") / "r", device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def test_split(run):
    return load_data(run.recipe, RunOptions(device="cpu")).test


@pytest.fixture
def pictures(test_split, tmp_path):
    """A folder with six good pictures, in a folder of its own two of them, and what is none."""
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    for i in range(6):
        where = folder / "more" if i > 3 else folder
        Image.fromarray(test_split.images[i]).save(where / f"{i}.png")
    (folder / "cut.jpg").write_bytes(b"\xff\xd8\xff")
    (folder / ".hidden.png").write_bytes(b"")
    (folder / "notes.txt").write_text("no picture")
    return folder


def evaluated(run, split):
    """Logits of the test images by the pipeline that evaluates."""
    options = RunOptions(device="cpu", precision="fp32", pipeline="resident")
    from imnet import device

    data = load_data(run.recipe, options)
    _, test, _ = build_pipelines(run.recipe, options, data, device.resolve(options), World(), None)
    ((images, _),) = test.stream([torch.arange(len(split))], 0, False)
    with torch.no_grad():
        return run.model()(images)


def test_a_picture_is_judged_as_in_evaluation(run, test_split):
    wanted = evaluated(run, test_split).softmax(1)
    found = run.predict(list(test_split.images), top=3)
    assert [row["name"] for row in found] == [str(i) for i in range(len(test_split))]
    names = run.info["data"]["class_names"]
    for row, shares in zip(found, wanted, strict=True):
        values, ids = shares.topk(3)
        assert [name for name, _ in row["top"]] == [names[i] for i in ids]
        assert [share for _, share in row["top"]] == pytest.approx(values.tolist(), abs=1e-5)


def test_paths_bytes_pictures_and_arrays_are_one(run, pictures, test_split):
    path = pictures / "0.png"
    forms = [path, str(path), path.read_bytes(), Image.open(path), test_split.images[0]]
    tops = [row["top"] for row in run.predict(forms)]
    assert all(top == tops[0] for top in tops)
    grey, rgba = Image.open(path).convert("L"), Image.open(path).convert("RGBA")
    assert [len(row["top"]) for row in run.predict([grey, rgba, Image.open(path).convert("CMYK")])] == [5, 5, 5]


@pytest.mark.parametrize("batch", ["1", "64"])
def test_a_folder_in_every_form(run, pictures, capsys, batch):
    argv = [str(run.path), str(pictures), "--top", "2", "--batch-size", batch, "--device", "cpu"]
    assert predict_main(argv) == 65  # one is damaged; the others are judged
    lines = capsys.readouterr().out.splitlines()
    names = ["0.png", "1.png", "2.png", "3.png", "cut.jpg", "more/4.png", "more/5.png"]
    assert [line.split(": ")[0] for line in lines] == [str(pictures / name) for name in names]
    assert "not a picture" in lines[4]
    assert predict_main([*argv, "--json"]) == 65
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [len(row.get("top", [])) for row in rows] == [2, 2, 2, 2, 0, 2, 2]
    assert predict_main([*argv, "--csv"]) == 65
    table = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(table) == 6 * 2 + 1
    assert float(table[0]["probability"]) == pytest.approx(rows[0]["top"][0]["probability"], abs=1e-6)


class Stdin:
    def __init__(self, data):
        self.buffer = io.BytesIO(data)


def test_standard_input_is_a_picture_or_names(run, pictures, capsys, monkeypatch):
    argv = [str(run.path), "-", "--json", "--top", "1"]
    monkeypatch.setattr(sys, "stdin", Stdin((pictures / "1.png").read_bytes()))
    assert predict_main(argv) == 0
    one = json.loads(capsys.readouterr().out)
    monkeypatch.setattr(sys, "stdin", Stdin(f"{pictures / '1.png'}\n\n{pictures / 'more'}\n".encode()))
    assert predict_main(argv) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [rows[0]["top"], len(rows)] == [one["top"], 3]
    for data in (b"\0\0\0\x18ftypheic", b"1.png\0" + b"more\0", b"II*\0cut"):  # bytes that are no names of files
        monkeypatch.setattr(sys, "stdin", Stdin(data))
        assert predict_main(argv) == 65
        assert json.loads(capsys.readouterr().out)["name"] == "0"


@pytest.mark.parametrize("picture", [torch.zeros(3, 16, 16), None, 3])
def test_what_is_no_picture_is_named(run, picture):
    with pytest.raises(UsageError, match=f"got a {type(picture).__name__} for a picture; allowed: a path"):
        run.predict([picture])


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["nothing.png"], 65, "No such file"),
        (["."], 65, "no picture there"),
        ([".", "--top", "0"], 2, "got --top 0"),
        ([".", "--tops", "3"], 2, "did you mean --top?"),
        ([".", "--json", "--csv"], 2, "not allowed with"),
    ],
)
def test_mistakes_are_one_line(run, tmp_path, monkeypatch, capsys, words, code, says):
    monkeypatch.chdir(tmp_path)
    assert predict_main([str(run.path), *words]) == code
    found = capsys.readouterr()
    assert says in found.out + found.err


def test_what_is_no_classifier_is_said(tmp_path, capsys):
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(2)}, tmp_path / "a.safetensors")
    paths = {tmp_path / "a.safetensors": "no card", tmp_path / "b.pt2": "No such file", tmp_path: "run.json"}
    for path, says in paths.items():
        assert predict_main([str(path), "x.png"]) == 65
        assert says in capsys.readouterr().err


@pytest.mark.parametrize("to", ["safetensors", "pt2", "onnx"])
def test_other_tools_get_the_runs_logits(run, test_split, tmp_path, to, capsys):
    for module in ("onnx", "onnxscript", "onnxruntime") if to == "onnx" else ():
        pytest.importorskip(module)
    out = tmp_path / f"model.{to}"
    assert export_main([str(run.path), "--to", to, "--out", str(out)]) == 0
    assert f"{out}: {to}, 4 pictures judged as by the run" in capsys.readouterr().out
    wanted, card = evaluated(run, test_split), run.classifier().card
    images = network_input(card, test_split.images)
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
        assert imnet.load(out).predict([test_split.images[0]]) == run.predict([test_split.images[0]])
    elif to == "pt2":
        extra = {"imnet.json": ""}
        found = torch.export.load(out, extra_files=extra).module()(images).detach()
        assert Card.loads(extra["imnet.json"]) == card
    else:
        import onnx
        import onnxruntime

        session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
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
    for _ in range(2):  # the second one takes the first one's place
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
    """A limit of 2 KiB a file, which libraries tell by errors of their own kinds."""
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
    """Of pictures kept encoded: the shorter side, then the middle; nothing is resized twice."""
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
