"""A store that is written to while it is read: one line, never a dead process, never other images without a word."""

import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from imnet.augmentation import Augment
from imnet.data import load
from imnet.data.base import Split
from imnet.data.order import Order
from imnet.data.pipelines import Setting, build, has_dali
from imnet.data.store import PAGE, open_store
from imnet.data.tool import main
from imnet.errors import DataError
from tests.data import making

SIDE, COUNT = 32, 300
PICTURES = [making.picture(i, SIDE, SIDE, form="BMP") for i in range(5)]  # of one size, so that stores are too


def store(folder, form, first):
    """(its file of the training part, another file of as many bytes with other pictures)."""
    files = {f"{part}/c/{i:03}.bmp": PICTURES[(first + i) % 5] for part, n in (("train", COUNT), ("val", 2))
             for i in range(n)}  # fmt: skip
    source = making.write_tree(folder / f"in{first}", files)
    options = ["--size", str(SIDE)] if form == "pixels" else []
    assert main(["pack", str(source), str(folder / f"out{first}"), "--workers", "1", *options]) == 0
    return folder / f"out{first}" / "train.imnet"


def epochs(split, kind, augment=None):
    """The batches of one epoch after the other, made one at a time."""
    order = Order(len(split), 50, 0, drop_last=False)
    setting = Setting(augment=augment or Augment(), seed=0, device=torch.device("cpu"), dtype=torch.float32,
                      order=order, workers=1, ahead=1)  # fmt: skip
    pipeline = build(kind, split, setting)
    return (images.clone() for _ in range(9) for images, _ in pipeline.epoch(0))


def overwritten(file, data):
    with open(file, "r+b") as out:
        out.truncate(0)
        out.write(data)


def one_byte(file, _):
    with open(file, "r+b") as out:
        out.seek(PAGE + 99)
        out.write(b"\x01" if out.read(1) != b"\x01" else b"\x02")


CHANGES = {
    "emptied": lambda file, _: os.truncate(file, 0),
    "cut": lambda file, _: os.truncate(file, file.stat().st_size // 2),
    "another store copied over it": overwritten,
    "as a copy that stops half-way leaves it": lambda file, other: overwritten(file, other[: len(other) // 2]),
    "one byte": one_byte,
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(("kind", "form"), [("host", "pixels"), ("host", "encoded"), ("torch", "pixels")])
def test_a_store_that_is_written_to_ends_a_run_with_one_line(tmp_path, kind, form, change):
    file, other = store(tmp_path, form, 0), store(tmp_path, form, 1)
    assert file.stat().st_size == other.stat().st_size
    batches = epochs(load(f"packed:{file.parent}", image_px=SIDE).train, kind)
    next(batches)
    CHANGES[change](file, other.read_bytes())
    os.utime(file, ns=(1, 1))  # whatever the file system's clock
    with pytest.raises(DataError, match=r"^\S+/out0/train\.imnet.*: changed while it was read: .*last checkpoint$"):
        list(batches)


@pytest.mark.parametrize("change", ["touched", "replaced", "removed", "written anew"])
@pytest.mark.parametrize("form", ["pixels", "encoded"])
def test_what_does_not_change_the_images_that_are_read_is_no_harm(tmp_path, form, change):
    """A file that takes the place of another is read from the next run on."""
    file, other = store(tmp_path, form, 0), store(tmp_path, form, 1)
    split = load(f"packed:{file.parent}", image_px=SIDE).train
    batches = epochs(split, "host")
    first = next(batches)
    if change == "removed":
        shutil.rmtree(file.parent)
    elif change == "replaced":
        other.replace(file)
    else:
        if change == "written anew":
            with open(file, "r+b") as out:
                out.write(file.read_bytes())
        os.utime(file, ns=(1, 1))
    rest = list(batches)
    assert torch.equal(rest[COUNT // 50 - 1], first)
    assert len(rest) == 9 * COUNT // 50 - 1


@pytest.mark.parametrize("kind", ["resident", "host", "torch", *["dali"] * has_dali()])
@pytest.mark.parametrize("crop", [None, (0.3, 1.0)])
def test_images_in_a_file_are_those_in_memory(tmp_path, kind, crop):
    file = store(tmp_path, "pixels", 0)
    split, augment = open_store(file).split(), replace(Augment(), crop_pad_px=0 if crop else 4, hflip="random")
    augment = replace(augment, crop_scale=crop, crop_px=24 if crop else None)
    memory = Split(np.asarray(split.images), split.labels)
    for got, want in zip(epochs(split, kind, augment), epochs(memory, kind, augment), strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("at", ["open", "verify"])
def test_a_store_that_is_cut_while_it_is_opened_or_verified(tmp_path, at, monkeypatch):
    file = store(tmp_path, "pixels", 0)
    if at == "verify":
        opened = open_store(file)
        os.truncate(file, PAGE + 5)
        with pytest.raises(DataError, match="ends"):
            opened.verify()
        return
    size = file.stat().st_size
    os.truncate(file, PAGE * 2)
    monkeypatch.setattr("imnet.data.held.Held._now", lambda _: (size, 1))  # as it was a moment ago
    with pytest.raises(DataError, match="changed while it was read: it ends before byte"):
        open_store(file)
