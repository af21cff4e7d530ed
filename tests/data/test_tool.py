"""imnet-data as users call it: every command works, and every mistake gives one line and its exit code."""

import io
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from imnet.cli import train_main
from imnet.data import sets
from imnet.data.readers import recognise
from imnet.data.readers.picture import ResizeRule
from imnet.data.sets.fashion_mnist import FASHION_MNIST
from imnet.data.store import load_store, open_store, split_path
from imnet.data.store.export import folder_names
from imnet.data.store.pack import Options, pack
from imnet.data.tool import main
from tests.data import making


@pytest.fixture
def store(tmp_path):
    source = making.write_tree(tmp_path / "in", {**making.class_files(), **making.class_files("val", 2, 70)})
    pack(recognise(source), tmp_path / "store", Options(ResizeRule(16), workers=1, quiet=True))
    return tmp_path / "store"


def test_pack_inspect_verify(tmp_path, capsys):
    source = making.write_zip(tmp_path / "in.zip", making.class_files())
    assert main(["inspect", str(source)]) == 0
    assert "class folders" in capsys.readouterr().out
    assert main(["pack", str(source), str(tmp_path / "out"), "--size", "16", "--hold-out", "1"]) == 0
    out = capsys.readouterr().out
    assert "train.imnet: 9 images" in out
    assert "test.imnet: 3 images" in out
    assert main(["inspect", str(tmp_path / "out")]) == 0
    assert "16x16x3 pixels, 3 classes, from class folders" in capsys.readouterr().out
    assert main(["verify", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.count("are sound") == 2


def test_a_second_pack_keeps_what_is_there_and_refuses_what_differs(tmp_path, capsys):
    source = making.write_tree(tmp_path / "in", making.class_files())
    call = ["pack", str(source), str(tmp_path / "out"), "--size", "16"]
    assert main(call) == 0
    before = os.stat(tmp_path / "out" / "train.imnet").st_mtime_ns
    assert main(call) == 0
    assert os.stat(tmp_path / "out" / "train.imnet").st_mtime_ns == before
    assert main([*call[:-1], "8"]) == 74
    assert "already packed with another rule (--size was 16, is 8); choose" in capsys.readouterr().err
    assert main(call[:-2]) == 74
    assert "(--size was 16, is none, --filter was box, is none" in capsys.readouterr().err


def test_stats_are_exact(store, capsys, tmp_path):
    assert main(["stats", str(store), "--mean-image", str(tmp_path / "mean.npy")]) == 0
    out = json.loads(capsys.readouterr().out)
    images = open_store(split_path(store, "train")).images()[:]
    scaled = images.astype(np.float64) / 255
    assert out["images"] == 12
    assert np.allclose(out["mean"], scaled.mean(axis=(0, 1, 2)), atol=1e-6)
    assert np.allclose(out["std"], scaled.std(axis=(0, 1, 2)), atol=1e-6)
    assert np.allclose(np.load(tmp_path / "mean.npy"), images.astype(np.float64).mean(axis=0))


def test_export_and_back_gives_the_same_set(store, tmp_path, capsys):
    assert main(["export", str(store), str(tmp_path / "png")]) == 0
    pack(recognise(tmp_path / "png"), tmp_path / "again", Options(ResizeRule(16), workers=1, quiet=True))
    assert load_store(tmp_path / "again").train.digest() == load_store(store).train.digest()
    assert main(["export", str(store), str(tmp_path / "png")]) == 74
    assert "exists already" in capsys.readouterr().err


def test_export_names_stay_inside_and_sort_like_the_labels():
    assert folder_names(("Thumbs.db", "cat")) == ["0 Thumbs.db", "1 cat"]  # by its own name it would be left out again
    names = folder_names(("T-shirt/top", "../evil", "..", "b", "a", "a"))
    assert names == sorted(names)
    assert len(set(names)) == 6
    assert not any("/" in name or name in (".", "..") for name in names)


def test_grey_export(tmp_path):
    rng = np.random.default_rng(0)
    for part in ("train", "t10k"):
        file = tmp_path / "mnist" / f"{part}-images-idx3-ubyte"
        file.parent.mkdir(exist_ok=True)
        making.write_idx(rng.integers(0, 256, (3, 28, 28), dtype=np.uint8), file)
        making.write_idx(np.array([7, 0, 1], np.uint8), tmp_path / "mnist" / f"{part}-labels-idx1-ubyte")
    assert main(["pack", str(tmp_path / "mnist"), str(tmp_path / "out")]) == 0
    assert main(["export", str(tmp_path / "out"), str(tmp_path / "png")]) == 0
    with Image.open(tmp_path / "png" / "train" / "7" / "00000000.png") as image:
        assert image.mode == "L"
        assert np.array_equal(np.asarray(image), load_store(tmp_path / "out").train.images[0][..., 0])


def test_download_command(shared, server, tmp_path, capsys):
    for name in FASHION_MNIST.files:
        server.files[name] = (shared("fashion-mnist") / name).read_bytes()
    assert main(["download", "fashion-mnist", str(tmp_path / "f"), "--url", server.url]) == 0
    assert sorted(os.listdir(tmp_path / "f")) == sorted(FASHION_MNIST.files)
    server.files.clear()
    assert main(["download", "fashion-mnist", str(tmp_path / "g"), "--url", server.url]) == 74
    assert "Not Found" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (["pck", "a", "b"], "did you mean pack?"),
        (["pack", "a"], "required: target"),
        (["pack", "a", "b", "--size", "0"], "'0' is not a whole number"),
        (["pack", "a", "b", "--size", "9" * 5000], f"'{'9' * 40}' is not a whole number from 1 to 1,000,000,000"),
        (["pack", "a", "b", "--max-bad", "\u00b2"], "'\u00b2' is not a whole number"),
        (["pack", "a", "b", "--filter", "box"], "--filter without --size does nothing"),
        (["pack", "a", "b", "--size", "64", "--filter", "bx"], "did you mean box?"),
        (["pack", "a", "b", "--size", "64", "--shorter", "32"], "--shorter is 32; allowed 64"),
        (["download", "fashion", "b"], "did you mean fashion-mnist?"),
        ([], "required: COMMAND"),
        (["verify", "a", "--fast"], "--fast"),
    ],
)
def test_mistakes_are_one_line_with_code_2(call, expected, capsys):
    assert main(call) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert expected in lines[0]


def test_size_for_pixels_is_refused(tmp_path, capsys):
    making.imagenet64_folder(tmp_path / "in")
    assert main(["pack", str(tmp_path / "in"), str(tmp_path / "out"), "--size", "64"]) == 2
    assert "holds pixels of 16 x 16" in capsys.readouterr().err


def test_errors_on_stores_are_one_line(store, tmp_path, capsys):
    for call, code in ((["verify", str(tmp_path / "none")], 65), (["stats", str(tmp_path / "in")], 65)):
        assert main(call) == code
        assert len(capsys.readouterr().err.splitlines()) == 1
    raw = bytearray(split_path(store, "test").read_bytes())
    raw[4096] ^= 1
    split_path(store, "test").write_bytes(raw)
    assert main(["verify", str(store)]) == 65
    assert "(byte 4096): block 0 has crc" in capsys.readouterr().err


def test_debug_shows_the_traceback(tmp_path):
    call = [sys.executable, "-m", "imnet.data.tool", "--debug", "verify", str(tmp_path)]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert "Traceback" in done.stderr


def test_no_torch_in_the_data_modules():
    code = "import sys, imnet.data, imnet.data.tool; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_data_set_is_one_file(tmp_path, monkeypatch):
    """Adding a data set takes one module in the folder ``sets`` and no registration elsewhere."""
    body = "from imnet.data import sets\n@sets.dataset\ndef brand_new(request): return request.seed\n"
    (tmp_path / "brand_new.py").write_text(body)
    monkeypatch.setattr(sets, "__path__", [str(tmp_path)])
    monkeypatch.setattr(sets, "_SETS", dict(sets.all_sets()))
    sets.all_sets.cache_clear()
    assert sets.all_sets()["brand-new"](sets.Request(seed=7)) == 7
    with pytest.raises(ValueError, match="registered twice"):
        sets.dataset(sets.all_sets()["brand-new"])
    sets.all_sets.cache_clear()


@pytest.mark.parametrize("option", ["--size", "--shorter"])
@pytest.mark.parametrize("pixels", ["65537", "9999999", "0"])
def test_sides_that_no_image_has_are_refused_before_a_store_is_begun(option, pixels, tmp_path, capsys):
    asked = ["pack", str(tmp_path), str(tmp_path / "store"), *(["--size", "8"] if option != "--size" else [])]
    assert main([*asked, option, pixels]) == 2
    assert pixels in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [["pack", "IN"], ["download", "fashion-mnist"], ["export", "STORE"]])
def test_nothing_is_laid_into_the_folder_of_a_run(words, store, tmp_path, capsys):
    run = making.write_tree(tmp_path / "run", {"run.json": b"{}", "config.yaml": b""})
    words = [{"IN": str(tmp_path / "in"), "STORE": str(store)}.get(word, word) for word in words]
    assert main([*words, str(run), *(["--url", "http://127.0.0.1:9"] if words[0] == "download" else [])]) in (2, 74)
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "folder of a run as the target" in told or "exists already" in told
    assert sorted(path.name for path in run.iterdir()) == ["config.yaml", "run.json"]


def test_inspect_and_a_plan_say_what_will_be_refused(tmp_path, capsys):
    wide = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(wide, "PNG")
    files = {**making.class_files(), **making.class_files("val")}
    clean = making.write_tree(tmp_path / "clean", files)
    assert main(["inspect", str(clean)]) == 0
    assert "refused" not in capsys.readouterr().out
    bad = {"train/n01440764/x.png": wide.getvalue(), "val/n01440764/y.jpg": b"<html>", "val/n01440764/z.jpg": b""}
    for source in (making.write_tree(tmp_path / "in", files | bad), making.write_zip(tmp_path / "in.zip", files | bad)):
        plan = ["--recipe", "quickstart", str(source), "--dry-run", "--device", "cpu", "--batch-size", "4"]
        for command in (lambda: main(["inspect", str(source)]), lambda: train_main(plan)):  # noqa: B023
            assert command() == 0
            told = capsys.readouterr().out
            assert re.search(
                r"train: 1 of 13 pictures will be refused, the first is .*x\.png\)?: picture mode is I;16", told
            )
            assert re.search(r"test: 2 of 14 pictures will be refused, the first is .*y\.jpg\)?: not a picture", told)
        assert main(["pack", str(source), str(tmp_path / "out")]) == 65
        assert "y.jpg" in capsys.readouterr().err
