"""A store never serves outdated pixels: changes of its source are found, reported and packed anew."""

import os
import shutil
import zipfile

import numpy as np
import pytest

from imnet.data import load
from imnet.data.store import open_store
from imnet.data.tool import main
from tests.data import making


def pack(source, target, *more):
    return main(["pack", str(source), str(target), "--size", "8", "--workers", "1", *more])


@pytest.fixture
def source(tmp_path):
    return making.write_tree(tmp_path / "in", {**making.class_files(), **making.class_files("val", 2, 70)})


def images(target):
    return np.asarray(open_store(target / "train.imnet").images())


def replaced(path, seed=900):
    """Overwrites ``path`` with other pixels of the same size, keeps its modification time, returns the new bytes."""
    status, data = os.stat(path), making.picture(seed, form="BMP")
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    return data


NAME = "train/n01440764/n01440764_0.JPEG"


def test_added_removed_and_replaced_are_named(source, tmp_path, capsys):
    assert pack(source, tmp_path / "out") == 0
    (source / NAME).write_bytes(making.picture(900))
    (source / "train/n01530575/new.JPEG").write_bytes(making.picture(901))
    (source / "train/n01601694/n01601694_3.JPEG").unlink()
    capsys.readouterr()
    assert pack(source, tmp_path / "out") == 0
    assert (
        "packing it anew: 1 added, 1 removed, 1 replaced, the first train/n01530575/new.JPEG" in capsys.readouterr().err
    )
    assert np.array_equal(images(tmp_path / "out")[0], making.expected(making.picture(900), 8))
    fresh = tmp_path / "fresh"
    assert pack(source, fresh) == 0
    assert np.array_equal(images(tmp_path / "out"), images(fresh))


def test_same_size_and_time_do_not_hide_other_pixels(source, tmp_path):
    """A copy that preserves times may replace a file by one of the same size; only the content differs."""
    (source / NAME).write_bytes(making.picture(1, form="BMP"))
    assert pack(source, tmp_path / "out") == 0
    data = replaced(source / NAME)
    assert pack(source, tmp_path / "out") == 0
    assert np.array_equal(images(tmp_path / "out")[0], making.expected(data, 8))


def test_touched_or_moved_files_are_the_same_files(source, tmp_path, capsys):
    assert pack(source, tmp_path / "out") == 0
    before = os.stat(tmp_path / "out" / "train.imnet").st_mtime_ns
    os.utime(source / NAME)
    shutil.copytree(source, tmp_path / "copy")
    for again in (source, source, tmp_path / "copy"):
        assert pack(again, tmp_path / "out") == 0
    assert os.stat(tmp_path / "out" / "train.imnet").st_mtime_ns == before
    assert "anew" not in capsys.readouterr().err


def test_another_source_is_refused(source, tmp_path, capsys):
    assert pack(source, tmp_path / "out") == 0
    other = making.write_tree(tmp_path / "other", making.class_files(seed=5))
    assert pack(other, tmp_path / "out") == 74
    assert f"already packed from another source or with another rule ({source})" in capsys.readouterr().err


def test_a_damaged_list_of_a_source_that_changed(source, tmp_path, capsys):
    assert pack(source, tmp_path / "out") == 0
    (source / NAME).write_bytes(making.picture(900))
    listed = tmp_path / "out" / "train.source.npz"
    whole = listed.read_bytes()
    for damaged in (b"", whole[:200], whole.replace(b"size.npy", b"side.npy"), b"html"):
        listed.write_bytes(damaged)
        assert pack(source, tmp_path / "out") == 74
    lines = capsys.readouterr().err.splitlines()[2:]
    assert len(lines) == 4
    assert all("already packed, and the list of its source is missing or damaged" in line for line in lines)


@pytest.mark.parametrize("form", ["zip", "tar"])
def test_a_member_replaced_in_an_archive(tmp_path, form):
    path = tmp_path / f"in.{form}"

    def write(files):
        if form == "zip":
            making.write_zip(path, files, zipfile.ZIP_STORED)
        else:
            path.write_bytes(making.tar_bytes(files))

    files = making.class_files() | {NAME: making.picture(1, form="BMP")}
    write(files)
    assert pack(path, tmp_path / "out") == 0
    status = os.stat(path)
    write(files | {NAME: making.picture(2, form="BMP")})
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert os.stat(path).st_size == status.st_size
    assert pack(path, tmp_path / "out") == 0
    assert np.array_equal(images(tmp_path / "out")[0], making.expected(making.picture(2, form="BMP"), 8))


def test_pixels_replaced_in_a_batch(tmp_path):
    making.imagenet64_folder(tmp_path / "in")
    assert main(["pack", str(tmp_path / "in"), str(tmp_path / "out")]) == 0
    batch = tmp_path / "in" / "train_data_batch_1"
    status = os.stat(batch)
    batch.write_bytes(making.batch_bytes(30, 16, 77)[: status.st_size])
    os.utime(batch, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert main(["pack", str(tmp_path / "in"), str(tmp_path / "out")]) == 0
    first = making.rows(30, 16, 77)[0].reshape(-1, 3, 16, 16)[0].transpose(1, 2, 0)
    assert np.array_equal(images(tmp_path / "out")[0], first)


def test_the_cache_of_a_set_that_grows(tmp_path, capfd):
    """A first run while the set is still being copied must not leave later runs with a part of it."""
    making.write_tree(tmp_path / "imagenet", {**making.class_files(count=2), **making.class_files("val", 1)})
    assert len(load("imagenet", tmp_path, image_px=8).train) == 6
    making.write_tree(tmp_path / "imagenet", making.class_files(count=5))
    assert len(load("imagenet", tmp_path, image_px=8).train) == 15
    assert "9 added" in capfd.readouterr().err
    assert len(load("imagenet", tmp_path, image_px=8).train) == 15
    assert "packing" not in capfd.readouterr().err


def test_a_part_that_went_is_not_served(source, tmp_path, capsys):
    assert pack(source, tmp_path / "out") == 0
    shutil.rmtree(source / "val")
    assert pack(source, tmp_path / "out") == 0
    assert "no such part any more" in capsys.readouterr().err
    assert sorted(os.listdir(tmp_path / "out")) == ["source.json", "train.imnet", "train.source.npz"]


def test_a_skipped_picture_that_was_mended(tmp_path, capsys):
    """One bad picture may be skipped even in a small set; without the option it stops, and once mended it is packed."""
    files = making.class_files() | {NAME: making.picture(0)[:-300]}
    source = making.write_tree(tmp_path / "in", files)
    assert pack(source, tmp_path / "out", "--on-bad-image", "skip") == 0
    assert len(images(tmp_path / "out")) == 11
    assert pack(source, tmp_path / "out") == 65
    (source / NAME).write_bytes(making.picture(0))
    assert pack(source, tmp_path / "out") == 0
    assert len(images(tmp_path / "out")) == 12
    (source / NAME).write_bytes(b"")
    (source / "train/n01530575/n01530575_0.JPEG").write_bytes(b"")
    assert pack(source, tmp_path / "out", "--on-bad-image", "skip") == 65
    assert "2 bad pictures, allowed 1 (0.1 %); mend them, or imnet-data pack --max-bad 2" in capsys.readouterr().err
    assert pack(source, tmp_path / "other", "--on-bad-image", "skip", "--max-bad", "2") == 0


def test_an_explicit_store_needs_no_source(source, tmp_path):
    assert pack(source, tmp_path / "out") == 0
    shutil.rmtree(source)
    assert len(load(f"packed:{tmp_path / 'out'}").train) == 12
    assert main(["verify", str(tmp_path / "out")]) == 0
