"""imnet-predict and Run.predict take every kind of picture and process it as an evaluation does."""

import csv
import io
import json
import math
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from imnet.cli import export_main, predict_main
from imnet.errors import UsageError
from tests.use.judging import logits_of


def test_a_picture_is_judged_as_in_evaluation(run, split):
    wanted = logits_of(run, split).softmax(1)
    found = run.predict(list(split.images), top=3)
    assert [row["name"] for row in found] == [str(i) for i in range(len(split))]
    names = run.info["data"]["class_names"]
    for row, shares in zip(found, wanted, strict=True):
        values, ids = shares.topk(3)
        assert [name for name, _ in row["top"]] == [names[i] for i in ids]
        assert [share for _, share in row["top"]] == pytest.approx(values.tolist(), abs=1e-5)


def test_paths_bytes_pictures_and_arrays_are_one(run, pictures, split):
    path = pictures / "0.png"
    forms = [path, str(path), path.read_bytes(), Image.open(path), split.images[0]]
    tops = [row["top"] for row in run.predict(forms)]
    assert all(top == tops[0] for top in tops)
    grey, rgba = Image.open(path).convert("L"), Image.open(path).convert("RGBA")
    assert [len(row["top"]) for row in run.predict([grey, rgba, Image.open(path).convert("CMYK")])] == [5, 5, 5]


@pytest.mark.parametrize("batch", ["1", "64"])
def test_a_folder_in_every_form(run, pictures, capsys, batch):
    argv = [str(run.path), str(pictures), "--top", "2", "--batch-size", batch, "--device", "cpu"]
    assert predict_main(argv) == 65  # one is damaged; the others are predicted
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


def test_answers_that_are_no_numbers_name_no_class(run, pictures, tmp_path, capsys):
    """The picture is right, so the exit code is 0; but a class with "nan%" would pass for a prediction."""
    file = tmp_path / "net.safetensors"
    assert export_main([str(run.path), "--to", "safetensors", "--out", str(file)]) == 0
    with safe_open(file, "pt") as opened:
        head = opened.metadata()
    tensors = load_file(file)
    list(tensors.values())[-1].view(-1)[0] = math.nan
    save_file(tensors, file, head)
    capsys.readouterr()
    words = [str(file), str(pictures / "0.png"), "--device", "cpu"]
    assert predict_main(words) == 0
    assert "0.png: the network's answer is not a number (NaN)" in capsys.readouterr().out
    assert predict_main([*words, "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert (row["top"], row["error"][:20]) == ([], "the network's answer")
    assert predict_main([*words, "--csv"]) == 0
    assert len(list(csv.DictReader(io.StringIO(capsys.readouterr().out)))) == 1


def test_an_archive_and_a_crop_without_pixels_are_rows_with_a_reason(run, pictures, tmp_path):
    """Of a file of gigabytes that was named by mistake only as much is read as a picture may have."""
    with open(tmp_path / "set.tar", "wb") as file:
        file.truncate(1 << 40)
    empty = [Image.open(pictures / "0.png").crop((9, 9, 9, 20)), np.zeros((0, 8, 3), np.uint8)]
    found = run.predict([tmp_path / "set.tar", *empty, pictures / "0.png"], top=1)
    said = ["file has more than", "picture is 0 x 11 pixels", "picture is 8 x 0 pixels", "None"]
    assert [words in str(row.get("error")) for words, row in zip(said, found, strict=True)] == [True] * 4


class Stdin:
    def __init__(self, data):
        self.buffer = io.BytesIO(data)


def test_standard_input_is_a_picture_or_names(run, pictures, tmp_path, capsys, monkeypatch):
    argv = [str(run.path), "-", "--json", "--top", "1"]
    monkeypatch.setattr(sys, "stdin", Stdin((pictures / "1.png").read_bytes()))
    assert predict_main(argv) == 0
    one = json.loads(capsys.readouterr().out)
    monkeypatch.setattr(sys, "stdin", Stdin(f"{pictures / '1.png'}\n\n{pictures / 'more'}\n".encode()))
    assert predict_main(argv) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [rows[0]["top"], len(rows)] == [one["top"], 3]
    (odd := tmp_path / "a\u2028b\x85c.png").write_bytes((pictures / "1.png").read_bytes())
    monkeypatch.setattr(sys, "stdin", Stdin(f"{odd}\n".encode()))
    assert predict_main(argv) == 0  # only a line end ends a name
    assert json.loads(capsys.readouterr().out)["top"] == one["top"]
    for data in (b"\0\0\0\x18ftypheic", b"1.png\0" + b"more\0", b"II*\0cut"):  # bytes that are not file names
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
    away = "No such file or folder; give a run folder"
    paths = {tmp_path / "a.safetensors": "no card", tmp_path / "b.pt2": away, tmp_path: "run.json"}
    for path, says in paths.items():
        assert predict_main([str(path), "x.png"]) == 65
        assert says in capsys.readouterr().err
