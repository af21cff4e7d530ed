"""A source that changes between its listing and the end of packing gives one line and no store of two states."""

import gzip
import os
import shutil

import numpy as np
import pytest

from imnet.data.readers import recognise
from imnet.data.readers.picture import ResizeRule
from imnet.data.store import is_store
from imnet.data.store.pack import Options, pack
from imnet.data.store.write import Writer
from imnet.errors import DataError, IOFailure
from tests.data import making
from tests.recipes.conftest import _MAKERS

SIDE = 16
COUNTS = (("train", 150), ("val", 10))


def picture(i):
    return making.picture(i % 7, SIDE, SIDE, form="BMP")


def files():
    return {f"{part}/{c}/{i:03}.bmp": picture(i) for part, count in COUNTS for c in "ab" for i in range(count)}


def tgz(folder):
    (folder / "in.tar.gz").write_bytes(gzip.compress(making.tar_bytes(files()), 1))
    return folder / "in.tar.gz"


def shards(folder):
    for part, count in COUNTS:
        members = [{f"{i}.bmp": picture(i), f"{i}.cls": str(i % 2).encode()} for i in range(count)]
        data = making.tar_bytes({name: data for member in members for name, data in member.items()})
        making.write_tree(folder, {f"in/{part}-0.tar": data})
    return folder / "in"


def parquet(folder):
    from tests.data.damage_parquet import table, write

    (folder / "in").mkdir()
    for part, count in COUNTS:
        rows = table([picture(i) for i in range(count)], [i % 3 for i in range(count)])
        write(folder / "in" / f"{part}.parquet", rows, 30)
    return folder / "in"


def idx(folder):
    (folder / "in").mkdir()
    for part, count in (("train", 150), ("t10k", 10)):
        making.write_idx(np.zeros((count, SIDE, SIDE), np.uint8), folder / "in" / f"{part}-images-idx3-ubyte.gz")
        making.write_idx(np.arange(count, dtype=np.uint8) % 10, folder / "in" / f"{part}-labels-idx1-ubyte")
    return folder / "in"


def zipped_batches(folder):
    made = making.imagenet64_folder(folder / "made")
    (folder / "in").mkdir()
    for part in ("train", "val"):
        batches = {path.name: path.read_bytes() for path in sorted(made.glob(f"{part}*"))}
        making.write_zip(folder / "in" / f"Imagenet16_{part}.zip", batches)
    return folder / "in"


FORMS = {
    "folder": lambda folder: making.write_tree(folder / "in", files()),
    "zip": lambda folder: making.write_zip(folder / "in.zip", files()),
    "tar.gz": tgz,
    "shards": shards,
    "parquet": parquet,
    "idx": idx,
    "cifar": lambda folder: _MAKERS["cifar10"](folder),
    "batches": lambda folder: making.imagenet64_folder(folder / "in"),
    "npz": lambda folder: making.imagenet64_folder(folder / "in", make=making.npz_bytes, suffix=".npz"),
    "zipped batches": zipped_batches,
}
CHANGES = {
    "removed": lambda file: file.unlink(),
    "emptied": lambda file: os.truncate(file, 0),
    "cut": lambda file: os.truncate(file, file.stat().st_size * 2 // 3),
    "zeros": lambda file: file.write_bytes(bytes(file.stat().st_size)),
}


def change_all(source, how):
    for file in [source] if source.is_file() else [path for path in source.rglob("*") if path.is_file()]:
        CHANGES[how](file)


@pytest.mark.parametrize("when", ["before", "during"])
@pytest.mark.parametrize("how", CHANGES)
@pytest.mark.parametrize("form", FORMS)
def test_it_ends_with_one_line_and_leaves_no_store(tmp_path, monkeypatch, form, how, when):
    if form == "parquet":
        pytest.importorskip("pyarrow")
    source, written = FORMS[form](tmp_path), []
    found = recognise(source)
    if when == "before":
        change_all(source, how)

    def put(self, body, put=Writer._put):
        put(self, body)
        if when == "during" and not written:
            change_all(source, how)
        written.append(len(body))

    monkeypatch.setattr(Writer, "_put", put)
    has_pixels = form in ("idx", "cifar", "batches", "npz", "zipped batches")
    options = Options(None if has_pixels else ResizeRule(SIDE), workers=1, quiet=True)
    gone = "cannot read: No such file or directory"
    said = gone if how == "removed" else r"\.bmp.*: pictures? is" if form == "folder" else "changed while it was read"
    said = "not a picture" if form == "folder" and how == "zeros" else said
    with pytest.raises(IOFailure if how == "removed" else DataError, match=said):
        pack(found, tmp_path / "out", options)
    assert not is_store(tmp_path / "out")
    assert form == "folder" or not list(tmp_path.glob("out/*.imnet"))


def test_a_batch_replaced_by_one_of_another_size(tmp_path, monkeypatch):
    form = {"make": making.npz_bytes, "suffix": ".npz"}
    source = making.imagenet64_folder(tmp_path / "in", SIDE, **form)
    found = recognise(source)
    del found.splits["test"]

    def put(self, body, put=Writer._put):
        put(self, body)
        making.imagenet64_folder(source, 8, **form)

    monkeypatch.setattr(Writer, "_put", put)
    with pytest.raises(DataError, match="changed while it was read"):
        pack(found, tmp_path / "out", Options(workers=1, quiet=True))
    assert not list(tmp_path.glob("out/train.imnet"))


def test_labels_of_one_state_and_pictures_of_another_are_no_set(tmp_path):
    """A shard is rewritten between listing and packing, with every picture at the same offset but other labels."""
    source = shards(tmp_path)
    found = recognise(source)
    other = making.tar_bytes({f"{i}.{kind}": data for i in range(150) for kind, data in
                              (("bmp", picture(i)), ("cls", str((i + 1) % 2).encode()))})  # fmt: skip
    assert len(other) == (source / "train-0.tar").stat().st_size
    shutil.copystat(source / "train-0.tar", tmp_path)
    (source / "train-0.tar").write_bytes(other)
    shutil.copystat(tmp_path, source / "train-0.tar")
    with pytest.raises(DataError, match=r"train-0\.tar: changed while it was read"):
        pack(found, tmp_path / "out", Options(ResizeRule(SIDE), workers=1, quiet=True))


@pytest.mark.parametrize("form", ["zip", "tar.gz", "shards", "parquet"])
def test_a_picture_of_an_archive_that_was_written_anew_is_not_read(tmp_path, form):
    """Without packing, as in evaluation, a listed offset may hold another picture in the rewritten archive."""
    if form == "parquet":
        pytest.importorskip("pyarrow")
    source = FORMS[form](tmp_path)
    items = recognise(source).splits["train"]
    assert items.read(0)
    for file in [source] if source.is_file() else source.iterdir():
        data = file.read_bytes()
        file.unlink()
        file.write_bytes(data)
    for i in (0, 1):
        with pytest.raises(DataError, match="changed while it was read"):
            items.read(i)
