"""A store that is modified while it is read gives one line, never a crashed process or silently different images."""

import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from imnet.augmentation import Augment
from imnet.data import load
from imnet.data.held import file_of
from imnet.data.order import Order
from imnet.data.pipelines import Setting, build
from imnet.data.store import PAGE, open_store
from imnet.data.tool import main
from imnet.errors import DataError
from tests.data import making

SIDE, COUNT = 32, 300
PICTURES = [making.picture(i, SIDE, SIDE, form="BMP") for i in range(5)]  # of equal size, so that stores are too


def store(folder, form, first):
    """Packs a store whose pictures begin with number ``first``; returns the file of its training part.

    The files of all ``first`` have the same size."""
    files = {f"{part}/c/{i:03}.bmp": PICTURES[(first + i) % 5] for part, n in (("train", COUNT), ("val", 2))
             for i in range(n)}  # fmt: skip
    source = making.write_tree(folder / f"in{first}", files)
    options = ["--size", str(SIDE)] if form == "pixels" else []
    assert main(["pack", str(source), str(folder / f"out{first}"), "--workers", "1", *options]) == 0
    return folder / f"out{first}" / "train.imnet"


def epochs(split, kind):
    """Yields the images of the batches of epoch 0, nine times over, prepared one at a time."""
    order = Order(len(split), 50, 0, drop_last=False)
    setting = Setting(augment=Augment(), seed=0, device=torch.device("cpu"), dtype=torch.float32,
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


PIPELINES = [("host", "pixels"), ("host", "encoded"), ("torch", "pixels"), ("dali", "pixels")]
CHANGES = {
    "emptied": lambda file, _: os.truncate(file, 0),
    "cut": lambda file, _: os.truncate(file, file.stat().st_size // 2),
    "another store copied over it": overwritten,
    "as a copy that stops half-way leaves it": lambda file, other: overwritten(file, other[: len(other) // 2]),
    "one byte": one_byte,
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(("kind", "form"), PIPELINES)
def test_a_store_that_is_written_to_ends_a_run_with_one_line(tmp_path, kind, form, change):
    file, other = store(tmp_path, form, 0), store(tmp_path, form, 1)
    assert file.stat().st_size == other.stat().st_size
    batches = epochs(load(f"packed:{file.parent}", image_px=SIDE).train, kind)
    next(batches)
    CHANGES[change](file, other.read_bytes())
    os.utime(file, ns=(1, 1))  # a change that even a coarse file system clock shows
    with pytest.raises(DataError, match=r"^\S+/out0/train\.imnet.*: changed while it was read: .*last checkpoint$"):
        list(batches)


@pytest.mark.parametrize("change", ["touched", "replaced", "removed", "written anew"])
@pytest.mark.parametrize("form", ["pixels", "encoded"])
def test_what_does_not_change_the_images_that_are_read_is_no_harm(tmp_path, form, change):
    """A run goes on with the file that it opened; a file that replaces it is read from the next run on."""
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
    monkeypatch.setattr("imnet.data.held.Held._now", lambda _: (size, 1))  # the size before the cut
    with pytest.raises(DataError, match="changed while it was read: it ends before byte"):
        open_store(file)


@pytest.mark.parametrize("part", ["whole", "half"])
def test_bytes_that_were_gone_while_they_were_read_are_never_taken_for_pixels(tmp_path, part):
    """The file is restored with its old time before the check; reading it meanwhile must not crash the process."""
    file = store(tmp_path, "pixels", 0)
    split, data = open_store(file).split(), file.read_bytes()
    held = file_of(split.images[3:])
    before, status = split.images[0].copy(), file.stat()
    held.check()
    os.truncate(file, 0 if part == "whole" else len(data) // 2)
    assert not split.images[-1].any()
    assert np.array_equal(split.images[0], before) == (part == "half")
    with open(file, "r+b") as out:
        out.write(data)
    os.utime(file, ns=(1, status.st_mtime_ns))
    with pytest.raises(DataError, match="or its disk failed"):
        held.check()
    assert file_of(np.asarray(split.images[[0]])) is None  # a copy in memory
    open_store(file).verify()


def test_a_fault_elsewhere_ends_the_process_as_before(tmp_path):
    file = store(tmp_path, "pixels", 0)
    code = f"""
import mmap, os, torch
from imnet.data.store import open_store
images = open_store({str(file)!r}).images()
with open({str(tmp_path / "other")!r}, "w+b") as other:
    other.truncate(9999)
    mapped = mmap.mmap(other.fileno(), 0)
    os.truncate(other.name, 0)
    mapped[5000]
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGBUS
