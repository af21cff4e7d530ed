"""Small stand-ins for the recipes' data sets in their official layouts, each made and packed once per test run."""

import gzip
import io
import pickle
import struct
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from imnet.data import tool

# A few classes, so that the sets are made in a moment; head_outputs keeps the recipes' heads as large as they are.
NUM_CLASSES = {"tiny-imagenet": 10, "imagenet": 10, "packed": 1}


@pytest.fixture(autouse=True)
def keep_threads():
    """Restores torch's number of threads after each test, because a run sets it for its process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory):
    """Returns a function of a data set's name that makes a small set in its official layout and returns its folder."""
    root = tmp_path_factory.mktemp("data")
    made = {}

    def folder(name):
        if name not in made:
            made[name] = _MAKERS[name](root / name)
        return made[name]

    return folder


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path_factory):
    """Puts packed stores into one folder of the test run, so that each set is packed once. $XDG_CACHE_HOME is left as
    it is, because with another one matplotlib would search the machine for fonts again."""
    monkeypatch.setattr("imnet.data.sets.packed.cache_dir", lambda: tmp_path_factory.getbasetemp() / "cache")
    monkeypatch.delenv("IMNET_DATA", raising=False)


def _jpeg(seed, side=64):
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC).save(out, "JPEG")
    return out.getvalue()


def _write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _tiny_imagenet(root):
    """10 classes of two training images, and 8 validation images."""
    base = root / "tiny-imagenet-200"
    wnids = [f"n{i:08d}" for i in range(NUM_CLASSES["tiny-imagenet"])]
    _write(base / "wnids.txt", "\n".join(wnids).encode())
    _write(base / "words.txt", "".join(f"{w}\tthing {w}\n" for w in wnids).encode())
    for i, wnid in enumerate(wnids):
        for j in range(2):
            _write(base / "train" / wnid / "images" / f"{wnid}_{j}.JPEG", _jpeg(10 * i + j))
    for i in range(8):
        _write(base / "val" / "images" / f"val_{i}.JPEG", _jpeg(1000 + i))
    lines = "".join(f"val_{i}.JPEG\t{wnids[i]}\t0\t0\t62\t62\n" for i in range(8))
    _write(base / "val" / "val_annotations.txt", lines.encode())
    return root


def _imagenet(root):
    """10 class folders of one training image and one validation image each."""
    for i in range(NUM_CLASSES["imagenet"]):
        for part in ("train", "val"):
            _write(root / "imagenet" / part / f"n{i:08d}" / f"{part}_{i}.JPEG", _jpeg(i + 50 * len(part), 80))
    return root


def _imagenet64(root):
    """Two pickled training batches and the validation batch, a few rows each."""
    generator = np.random.default_rng(0)
    for name, rows in (("train_data_batch_1", 10), ("train_data_batch_2", 6), ("val_data", 5)):
        data = generator.integers(0, 256, (rows, 3 * 64 * 64), dtype=np.uint8)
        batch = {"data": data, "labels": generator.integers(1, 1001, rows).tolist()}
        if name != "val_data":
            batch["mean"] = data.mean(axis=0)
        _write(root / "imagenet64" / name, pickle.dumps(batch, protocol=3))
    return root


def _fashion_mnist(root):
    """The four gzipped IDX files, with the official sizes (the custom split needs them) and few different images."""
    generator = np.random.default_rng(0)
    base = root / "fashion-mnist"
    for prefix, count in (("train", 60_000), ("t10k", 10_000)):
        pixels = np.tile(generator.integers(0, 256, (100, 28, 28), dtype=np.uint8), (count // 100, 1, 1))
        labels = np.arange(count, dtype=np.uint8) % 10
        images = struct.pack(">IIII", 2051, count, 28, 28) + pixels.tobytes()
        _write(base / f"{prefix}-images-idx3-ubyte.gz", gzip.compress(images, 0))  # more takes a second
        marks = struct.pack(">II", 2049, count) + labels.tobytes()
        _write(base / f"{prefix}-labels-idx1-ubyte.gz", gzip.compress(marks, 1))
    return root


def _cifar10(root):
    """The six binary files, a few records each."""
    generator = np.random.default_rng(0)
    for name in (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"):
        records = generator.integers(0, 256, (4, 3073), dtype=np.uint8)
        records[:, 0] %= 10
        _write(root / "cifar-10-batches-bin" / name, records.tobytes())
    return root


def _imagenet21k(root):
    """A store packed as the recipe says from two class tars, but of few pictures: the class of 7 is kept, that of 6 is
    not."""
    tars, store = root / "tars", root / "store"
    tars.mkdir(parents=True)
    picture = _jpeg(0, 48)
    for number, count in enumerate((6, 7)):
        with tarfile.open(tars / f"n{number:08d}.tar", "w") as tar:
            for i in range(count):
                member = tarfile.TarInfo(f"n{number:08d}_{i}.JPEG")
                member.size = len(picture)
                tar.addfile(member, io.BytesIO(picture))
    picture_options = ["--size", "336", "--shorter", "384", "--filter", "bilinear"]
    class_options = ["--min-images", "7", "--hold-out", "2"]
    assert tool.main(["pack", str(tars), str(store), *picture_options, *class_options]) == 0
    return store


_MAKERS = {
    "cifar10": _cifar10,
    "packed": _imagenet21k,
    "tiny-imagenet": _tiny_imagenet,
    "imagenet": _imagenet,
    "imagenet64": _imagenet64,
    "fashion-mnist": _fashion_mnist,
    "shapes": lambda root: root,
}
