"""Odd pictures, file systems without locks, sets recognised by their content, and --dry-run."""

import errno
import fcntl
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import warnings

import numpy as np
import pytest
from PIL import ExifTags, Image, features

from imnet import cli, load_run
from imnet.data import AbsentError, Unpacked, load
from imnet.data.readers import recognise
from imnet.data.readers.picture import BadPictureError, ResizeRule, decode
from imnet.data.readers.rule import parts_among, split_in, split_of
from imnet.data.store import open_store
from imnet.data.tool import main
from imnet.errors import DataError, IOFailure, UsageError
from tests.data import layouts, making


@pytest.mark.parametrize(
    ("name", "part"),
    [("train", "train"), ("TRAINING_SET", "train"), ("trn", "train"), ("TrainSet", "train"), ("train-2017", "train"),
     ("Valid", "val"), ("validation", "val"), ("dev", "val"), ("Test Images", "test"), ("testing", "test"),
     ("latest", None), ("carnival", None), ("retrain", None), ("bullet_train", None), ("trainval", None),
     ("contest", None),
     ("value", None), ("attestation", None), ("cat", None), ("", None)],
)  # fmt: skip
def test_what_a_folder_is_called(name, part):
    assert split_of(name) == part


def test_words_of_shards_and_pairs_of_folders():
    assert split_in("latest-train-0001") == {"train"}
    assert split_in("carnival-7") == set()
    assert split_in("imagenet-trainval-0") == set()
    assert parts_among(["seg_train", "seg_test", "seg_pred"]) == {"train": ["seg_train"], "test": ["seg_test"]}
    assert parts_among(["trainA", "testA"]) == {"train": ["trainA"], "test": ["testA"]}
    # Two such pairs are two training parts, which every reader refuses.
    pairs = {"train": ["fold1_train", "fold2_train"], "test": ["fold1_test", "fold2_test"]}
    assert parts_among([*pairs["train"], *pairs["test"], "notes"]) == pairs
    assert parts_among(["bullet_train", "test_tube"]) == {}


def test_a_phones_picture_is_exported_as_it_was(tmp_path):
    out = io.BytesIO()
    first, second = (Image.open(io.BytesIO(making.picture(i))) for i in range(2))
    first.save(out, "MPO", save_all=True, append_images=[second])
    source = making.write_tree(tmp_path / "in", {"train/a/x.jpg": out.getvalue()})
    assert main(["pack", str(source), str(tmp_path / "out")]) == 0
    assert main(["export", str(tmp_path / "out"), str(tmp_path / "again")]) == 0
    assert (tmp_path / "again" / "train" / "a" / "00000000.jpg").read_bytes() == out.getvalue()


def test_class_names_that_are_not_utf8(tmp_path, capsys):
    source = making.write_tree(tmp_path / "in", {**making.class_files("train", 2), **making.class_files("val", 1)})
    for part in ("train", "val"):
        os.rename(source / part / making.WNIDS[0], os.fsencode(source / part) + b"/caf\xe9")
    assert main(["inspect", str(source)]) == 0
    assert "caf\\xe9" in capsys.readouterr().out
    data = load("folder", source, image_px=8)
    assert data.class_names[0] == "caf\\xe9"
    assert main(["pack", str(source), str(tmp_path / "out")]) == 0
    assert main(["export", str(tmp_path / "out"), str(tmp_path / "png")]) == 0


def test_jpeg_of_12_bits_and_lfs_pointers_are_called_so():
    raw = bytearray(making.picture(1))
    raw[raw.index(b"\xff\xc0") + 4] = 12
    with pytest.raises(BadPictureError, match="JPEG of 12 bits a channel; allowed 8"):
        decode(bytes(raw), ResizeRule(8))
    with pytest.raises(BadPictureError, match="git lfs pull"):
        decode(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", ResizeRule(8))


def test_corrupt_exif_makes_no_noise():
    """Runs in a child process, because pytest resets the warning filter that the module installs."""
    code = "import sys; from imnet.data.readers.picture import check; check(sys.stdin.buffer.read())"
    body = b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x01\x0f\0\2\xff\xff\xff\xff\xff\xff\xff\xff" * 3
    raw = making.picture(1)
    raw = raw[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + raw[2:]
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        Image.open(io.BytesIO(raw)).getexif()
    assert heard, "the picture is not one that Pillow warns of"
    done = subprocess.run([sys.executable, "-c", code], input=raw, capture_output=True, check=True)
    assert done.stderr == b""


def turned(seed, orientation, form="JPEG"):
    """A picture with an EXIF orientation, as cameras write it."""
    out, note = io.BytesIO(), Image.Exif()
    note[ExifTags.Base.Orientation] = orientation
    Image.open(io.BytesIO(making.picture(seed))).save(out, form, exif=note)
    return out.getvalue()


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("whole", [[], ["--size", "8"]], ids=["encoded", "pixels"])
def test_pictures_that_a_camera_wants_turned_are_counted(tmp_path, capsys, whole, workers):
    """Phones write such pictures. Pixels are kept as they are, except in TIFF files: Pillow turns these itself."""
    files = {f"train/{label}/{i:02}.jpg": making.picture(i) for i in range(70) for label in "ab"}
    forms = {"06.jpg": "JPEG", "03.png": "PNG", "08.webp": "WEBP", "05.jpg": "JPEG"}
    if features.check("avif"):  # in place of EXIF, it has a rotation and a mirror of its own
        forms |= {"06.avif": "AVIF", "02.avif": "AVIF"}
    files |= {f"train/a/x{name}": turned(1, int(name[:2]), form) for name, form in forms.items()}
    files |= {"train/a/y01.jpg": turned(2, 1), "train/a/y99.jpg": turned(3, 99), "train/a/y6.tif": turned(4, 6, "TIFF")}
    files |= {f"val/{label}/{i}.jpg": making.picture(100 + i) for i in range(2) for label in "ab"}
    source, store = making.write_tree(tmp_path / "in", files), tmp_path / "out"
    assert main(["pack", str(source), str(store), "--workers", str(workers), *whole]) == 0
    assert f"which is not followed: {len(forms)}\n" in capsys.readouterr().err
    notes = load(f"packed:{store}", image_px=8).notes
    assert [note for note in notes if "EXIF" in note] == [
        f"pictures with a camera's note to turn them (EXIF), which nothing here follows: {len(forms)} of train"
    ]


def test_a_picture_as_thin_as_a_hair(tmp_path):
    thin = making.picture(1, 60_000, 1, form="PNG")
    assert decode(thin, ResizeRule(8)).shape == (8, 8, 3)
    with pytest.raises(BadPictureError, match=r"60000 x 1 becomes .* allowed"):
        decode(thin, ResizeRule(336, shorter_px=384))


@pytest.fixture
def no_locks(monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.delenv("IMNET_NO_LOCK", raising=False)
    yield
    os.environ.pop("IMNET_NO_LOCK", None)


def test_a_file_system_without_locks(no_locks, tmp_path, capsys):
    call = [
        "pack",
        str(making.write_tree(tmp_path / "in", making.class_files())),
        str(tmp_path / "out"),
        "--workers",
        "1",
    ]
    assert main(call) == 74
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "this file system has no locks (No locks available); --no-lock goes on without" in lines[0]
    assert main([*call, "--no-lock"]) == 0
    open_store(tmp_path / "out" / "train.imnet").verify()


def test_fashion_mnist_is_known_by_its_content(shared, tmp_path):
    shutil.copytree(shared("fashion-mnist"), tmp_path / "clothes")
    found = recognise(tmp_path / "clothes")
    assert (found.name, found.kind, found.class_names[9]) == ("fashion-mnist", "Fashion-MNIST files", "Ankle boot")
    labels = tmp_path / "clothes" / "train-labels-idx1-ubyte.gz"
    other = np.zeros(60_000, np.uint8)
    other[:10] = range(10)
    making.write_idx(other, labels)
    (tmp_path / "clothes").rename(tmp_path / "fashion-mnist")
    found = recognise(tmp_path / "fashion-mnist")
    assert (found.name, found.kind, found.class_names[9]) == ("idx", "IDX files", "9")
    for split in ("custom", "official"):
        assert not load("fashion-mnist", shared("fashion-mnist"), split=split).notes
        assert "by their checksum" in load("fashion-mnist", tmp_path, split=split, download=False).notes[0]


def everything(top):
    return sorted((str(path), path.stat().st_mtime_ns) for path in top.rglob("*"))


def dry(capsys, *words):
    code = cli.train_main(["--dry-run", "--device", "cpu", "--data.train_images", "null",
                           "--data.test_images", "null", *words])  # fmt: skip
    said = capsys.readouterr()
    return code, said.out, said.err


def test_dry_run_packs_nothing_and_says_what_it_sees(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = making.write_tree(tmp_path / "in", {**layouts.files("train", "val"), **layouts.JUNK})
    words = ["--recipe", "quickstart", "--data", "folder",
             "--data-dir", str(source), "--data.image_px", "16", "--data.num_classes", "2",
             "--batch-size", "2"]  # fmt: skip
    before = everything(tmp_path)
    code, out, err = dry(capsys, *words)
    assert (code, err) == (0, "")
    assert "class folders, 6 train, 6 test, 2 classes; training packs it once into" in out
    assert f"note         {layouts.JUNK_LEFT}" in out
    assert everything(tmp_path) == before
    for wrong, said in ((["--data.num_classes", "3"], "num_classes is 3 for data set folder; allowed 2"),
                        (["--data.train_images", "7"], "train_images is 7; allowed 1..6")):  # fmt: skip
        code, _, err = dry(capsys, *words, *wrong)
        assert code == 2
        assert said in err
    (source / "val" / "cow").mkdir()
    (source / "val" / "cow" / "1.jpg").write_bytes(making.picture(1))
    code, _, err = dry(capsys, *words)
    assert code == 65
    assert "class folder cow is not in train" in err


def test_dry_run_downloads_nothing_and_says_how_much_it_would(server, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = dry(capsys, "--recipe", "fashion-mnist/wrn28_10", "--data.image_px", "28")
    assert code == 0
    assert "a download would be 30.9 MB" in out
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(AbsentError):
        load("tiny-imagenet", tmp_path / "nowhere", look=True)


def test_a_test_set_beside_val_is_judged_in_the_end(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = making.write_tree(tmp_path / "in", layouts.files("train", "val") | layouts.files("test", count=5))
    words = ["--recipe", "quickstart", "--model", "wrn10_1", "--data", "folder", "--data-dir", str(source),
             "--data.image_px", "16", "--data.num_classes", "2", "--batch-size", "2", "--epochs", "1",
             "--device", "cpu", "--threads", "1", "--out", str(tmp_path / "run")]  # fmt: skip
    assert cli.train_main(words) == 0
    out = capsys.readouterr().out
    assert "folder: 6 train, 6 test images" in out
    sizes = "6 train, 6 test (its validation set), 10 final (its test set)"
    assert sizes.replace("test (", "test images (") in out
    assert f"images             {sizes}\n" in out
    assert f"{sizes}, 2 classes" in dry(capsys, *words)[1]
    run, figures = load_run(tmp_path / "run"), json.loads((tmp_path / "run" / "evaluation.json").read_text())
    judged = run.evaluate(split="final", device_name="cpu")
    assert (judged.num_images, figures["num_images"]) == (10, 6)
    assert run.info["data"]["judged_on"] == "validation set"
    assert figures["final"] == judged.figures()
    assert run.info["final"] == judged.figures() | {"epoch": 1, "judged": 1}
    told = f"{100 * judged.top1:.2f} % (judged once at the end, 10 images)"
    assert f"top-1, test set    {told}" in out
    assert "selected on the validation set" in out
    assert told in run.report.read_text()
    assert "selected on the test set" not in run.report.read_text()
    assert cli.train_main(words) == 0  # the run is complete and not evaluated again
    assert load_run(tmp_path / "run").info["final"]["judged"] == 1
    assert cli.train_main([*words, "--epochs", "2", "--allow-change"]) == 0
    assert "judged 2 time(s), last at epoch 2" in capsys.readouterr().out
    assert cli.eval_main([str(tmp_path / "run")]) == 0
    out = capsys.readouterr().out
    assert "images     6\n" in out
    assert "on 10 images that the run did not look at" in out


def test_what_would_be_refused_after_packing_is_refused_before(tmp_path, capfd):
    source = making.write_tree(tmp_path / "in", making.class_files())
    with pytest.raises(DataError, match=r"no test or val part with labels here"):
        load("folder", source, image_px=8)
    making.write_tree(source, making.class_files("val", 1))
    for wrong, said in (({"num_classes": 4}, "num_classes is 4"), ({"test_images": 9}, r"allowed 1\.\.3"),
                        ({"channels": 1}, "channels is 1")):  # fmt: skip
        with pytest.raises(UsageError, match=said):
            load("folder", source, image_px=8, **wrong)
    with pytest.raises(Unpacked):
        load("folder", source, image_px=8, look=True)
    assert "packing" not in capfd.readouterr().err
    assert not (tmp_path / "cache").exists()
    assert len(load("folder", source, image_px=8).train) == 12


def test_any_other_answer_of_a_lock_is_an_io_failure(monkeypatch, tmp_path):
    from imnet.data.files import locked

    def flock(*_):
        raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(IOFailure, match="cannot lock"), locked(tmp_path / "lock"):
        pass
