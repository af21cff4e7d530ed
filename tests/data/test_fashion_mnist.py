"""Fashion-MNIST: which image is in which split, where its files are searched, and the one line if there are none."""

import gzip
import shutil
from dataclasses import replace

import numpy as np
import pytest

from imnet.data import load
from imnet.data.readers import recognise
from imnet.data.readers.idx import read_idx
from imnet.data.sets import fashion_mnist
from imnet.data.sets.fashion_mnist import FASHION_MNIST
from imnet.data.store.pack import Options, pack
from imnet.errors import DataError, UsageError
from tests.data import making

TRAIN_COUNTS = [2945, 3015, 2989, 3017, 2960, 3030, 3081, 3021, 2972, 2970]
TEST_COUNTS = [4055, 3985, 4011, 3983, 4040, 3970, 3919, 3979, 4028, 4030]


@pytest.fixture
def small(tmp_path):
    """The four files with 40 training and 10 test images, some gzipped and some not."""
    folder = tmp_path / "data" / "fashion-mnist"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part, count in (("train", 40), ("t10k", 10)):
        making.write_idx(rng.integers(0, 256, (count, 28, 28), dtype=np.uint8), folder / f"{part}-images-idx3-ubyte")
        making.write_idx(np.arange(count, dtype=np.uint8) % 10, folder / f"{part}-labels-idx1-ubyte.gz")
    return folder


def test_custom_split_is_the_published_one(shared):
    data = load("fashion-mnist", shared("fashion-mnist"))
    assert (len(data.train), len(data.test)) == (30_000, 40_000)
    assert np.bincount(data.train.labels).tolist() == TRAIN_COUNTS
    assert np.bincount(data.test.labels).tolist() == TEST_COUNTS
    official = load("fashion-mnist", shared("fashion-mnist").parent, split="official", train_images=60_000)
    assert np.array_equal(data.test.images[:10_000], official.test.images)
    assert np.array_equal(data.test.images[10_000:], official.train.images[30_000:])
    assert np.array_equal(data.train.images, official.train.images[:30_000])
    assert data.fingerprint == FINGERPRINT_CUSTOM != official.fingerprint


FINGERPRINT_CUSTOM = "ea6ecd8224be703826dd8c280bf2b349b4bb0fef85a3ebb00cf1265e0ecbfac8"


def test_official_split_sizes_and_names(shared):
    data = load("fashion-mnist", shared("fashion-mnist"), split="official")
    assert np.bincount(data.train.labels).tolist() == [6000] * 10
    assert np.bincount(data.test.labels).tolist() == [1000] * 10
    assert data.class_names[9] == "Ankle boot"


@pytest.mark.parametrize("where", ["folder", "parent", "environment", "home", "cache", "home's cache", "torchvision"])
def test_found_in_every_place(small, where, tmp_path, monkeypatch):
    data_dir = {"folder": small, "parent": small.parent}.get(where)
    monkeypatch.setenv("HOME", str(tmp_path))
    if where in ("environment", "home"):
        monkeypatch.setenv("IMNET_DATA", str(small.parent) if where == "environment" else "~/data")
    if where in ("cache", "home's cache"):
        shutil.move(small.parent, tmp_path / "cache" / "imnet")
    if where == "home's cache":
        monkeypatch.setenv("XDG_CACHE_HOME", "~/cache")
    if where == "torchvision":
        shutil.move(small, tmp_path / "tv" / "FashionMNIST" / "raw")
        data_dir = tmp_path / "tv"
    data = load("fashion-mnist", data_dir, split="official", download=False)
    assert (len(data.train), len(data.test)) == (40, 10)


def test_thinned_keeps_all_classes_and_has_its_own_fingerprint(small):
    whole = load("fashion-mnist", small, split="official")
    thin = load("fashion-mnist", small, split="official", train_images=20, test_images=10)
    assert len(thin.train) == 20
    assert thin.fingerprint != whole.fingerprint
    with pytest.raises(UsageError, match=r"allowed 1\.\.40"):
        load("fashion-mnist", small, split="official", train_images=41)


def test_missing_is_one_line_with_everything_in_it(tmp_path, monkeypatch):
    monkeypatch.setenv("IMNET_DATA", str(tmp_path / "env"))
    with pytest.raises(DataError) as caught:
        load("fashion-mnist", tmp_path, download=False)
    line = str(caught.value)
    assert "\n" not in line
    for part in (str(tmp_path), str(tmp_path / "env"), "train-images-idx3-ubyte", "http://", "--data shapes"):
        assert part in line
    assert caught.value.exit_code == 65


def test_failed_download_is_the_same_line(tmp_path, monkeypatch, server):
    monkeypatch.setattr(fashion_mnist, "FASHION_MNIST", replace(FASHION_MNIST, base_url=server.url))
    with pytest.raises(DataError, match=r"Not Found.*--data shapes"):
        load("fashion-mnist", tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        load("fashion-mnist", tmp_path / "typo")
    assert not (tmp_path / "typo").exists()


def test_downloaded_from_a_server(shared, server, tmp_path):
    for name in FASHION_MNIST.files:
        server.files[name] = (shared("fashion-mnist") / name).read_bytes()
    FASHION_MNIST.download(tmp_path / "fashion-mnist", server.url)
    data = load("fashion-mnist", tmp_path, download=False)
    assert data.fingerprint == FINGERPRINT_CUSTOM


def test_packed_form_serves_both_splits(shared, tmp_path):
    pack(recognise(shared("fashion-mnist")), tmp_path, Options(quiet=True))
    assert load(f"packed:{tmp_path}", split="custom").fingerprint == FINGERPRINT_CUSTOM
    assert len(load(f"packed:{tmp_path}").train) == 60_000


def test_custom_split_needs_enough_images(small):
    with pytest.raises(DataError, match="needs more than 30000"):
        load("fashion-mnist", small)


@pytest.mark.parametrize("bad", [{"split": "ofical"}, {"image_px": 32}, {"num_classes": 100}, {"channels": 3}])
def test_wrong_options(small, bad):
    with pytest.raises(UsageError) as caught:
        load("fashion-mnist", small, **bad)
    assert "\n" not in str(caught.value)


def test_label_out_of_range_and_wrong_size(small):
    labels = np.zeros(40, dtype=np.uint8)
    labels[17] = 10
    making.write_idx(labels, small / "train-labels-idx1-ubyte.gz")
    with pytest.raises(DataError, match=r"byte 25.*label 10 of image 17"):
        load("fashion-mnist", small, split="official")
    making.write_idx(np.zeros((40, 28, 27), dtype=np.uint8), small / "train-images-idx3-ubyte")
    with pytest.raises(DataError, match="28 x 27, expected 28 x 28"):
        load("fashion-mnist", small, split="official")


def test_gz_and_raw_read_the_same(shared, tmp_path):
    source = shared("fashion-mnist") / "t10k-labels-idx1-ubyte.gz"
    (tmp_path / "raw").write_bytes(gzip.decompress(source.read_bytes()))
    assert np.array_equal(read_idx(source, 1), read_idx(tmp_path / "raw", 1))
