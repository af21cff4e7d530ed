"""Ranks of one machine share decoding: each picture is decoded once, crops stay the same, no rank needs another."""

import io
import threading
import time
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from imnet.augmentation import Augment
from imnet.data.base import EncodedSplit
from imnet.data.pipelines import node
from imnet.data.pipelines.encoded import Decoder
from imnet.data.pipelines.node import Shelf

AUGMENT = Augment(crop_scale=(0.3, 1.0), crop_px=12, hflip="random", mean=(0.5,))
COUNT = 40


def split(reads=None, bad=()):
    """A split of COUNT noise pictures of several sizes; ``reads`` counts the reads of each picture."""
    rng = np.random.default_rng(0)
    files = []
    for i in range(COUNT):
        out = io.BytesIO()
        pixels = rng.integers(0, 256, (20 + i % 5, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(out, "PNG")
        files.append(b"no picture" if i in bad else out.getvalue())

    def read(i):
        if reads is not None:
            reads[i] += 1
        return files[i]

    return EncodedSplit(read, np.arange(COUNT, dtype=np.int64) % 4, 16, "pictures", np.array([*map(len, files)]))


def batches(epoch):
    return torch.randperm(COUNT, generator=torch.Generator().manual_seed(epoch)).split(11)


def of_rank(decoder, out, epochs=(0, 1), pause_s=0.0):
    for epoch in epochs:
        for ids in batches(epoch):
            time.sleep(pause_s)
            out.append(decoder.images(ids, epoch, True))


def in_threads(decoders, **more):
    """Runs all ranks at the same time, one thread each, and returns the images that each of them got."""
    found = [[] for _ in decoders]
    threads = [
        threading.Thread(target=of_rank, args=(d, out), kwargs=more) for d, out in zip(decoders, found, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return found


def ranks(folder, count, reads=None, bad=(), on_bad="stop"):
    decoders = [Decoder(split(reads, bad), AUGMENT, 3, on_bad) for _ in range(count)]
    for number, decoder in enumerate(decoders):
        decoder.shelf = Shelf(folder, number, count)
    return decoders


def same(found, expected):
    return len(found) == len(expected) and all(
        np.array_equal(a, b) and np.array_equal(c, d) for (a, c), (b, d) in zip(found, expected, strict=True)
    )


@pytest.fixture
def alone():
    found = []
    of_rank(Decoder(split(), AUGMENT, 3), found)
    return found


@pytest.mark.parametrize("count", [2, 3])
def test_every_picture_is_decoded_once_and_the_crops_are_those_of_one_rank(alone, tmp_path, monkeypatch, count):
    monkeypatch.setattr(node, "PATIENCE_S", 30)
    reads = Counter()
    decoders = ranks(tmp_path / "shelf", count, reads)
    for found in in_threads(decoders):
        assert same(found, alone)
    assert reads == dict.fromkeys(range(COUNT), 2)  # once per epoch, by either rank
    for decoder in decoders:
        decoder.shelf.close()
    assert not (tmp_path / "shelf").exists()


def test_who_is_alone_waits_once(alone, tmp_path, monkeypatch):
    monkeypatch.setattr(node, "PATIENCE_S", 0.2)
    (decoder, _) = ranks(tmp_path, 2)
    began, found = time.monotonic(), []
    of_rank(decoder, found)
    assert same(found, alone)
    assert time.monotonic() - began < 0.2 + 1.5
    assert len(list(tmp_path.iterdir())) <= decoder.shelf.kept


def test_ranks_at_different_batches_get_the_same_crops(alone, tmp_path, monkeypatch):
    """One rank is slower; the other begins in the middle, as a rank does that resumes from another step."""
    monkeypatch.setattr(node, "PATIENCE_S", 0.02)
    first, second = ranks(tmp_path, 2)
    found = [[], []]
    slow = threading.Thread(target=of_rank, args=(first, found[0]), kwargs={"pause_s": 0.03})
    late = threading.Thread(target=of_rank, args=(second, found[1]), kwargs={"epochs": (1,)})
    slow.start(), late.start()
    slow.join(60), late.join(60)
    assert same(found[0], alone)
    assert same(found[1], alone[len(alone) // 2 :])


@pytest.mark.parametrize("what", ["torn", "no room"])
def test_what_cannot_be_read_or_written_is_made_by_oneself(alone, tmp_path, monkeypatch, what):
    monkeypatch.setattr(node, "PATIENCE_S", 0.1)
    decoder = ranks(tmp_path / "shelf", 2)[0]
    if what == "torn":
        monkeypatch.setattr(decoder.shelf, "_path", lambda key, number: tmp_path / f"torn-{number}.npy")
        (tmp_path / "torn-1.npy").write_bytes(b"\x93NUMPY")
    else:
        (tmp_path / "shelf").write_text("a file where the folder should be")
    found = []
    of_rank(decoder, found)
    assert same(found, alone)


def test_what_a_killed_rank_left_is_taken_away(tmp_path):
    (decoder, _) = ranks(tmp_path, 2)
    decoder.shelf._put("key", (np.zeros((1, 2, 2, 3), np.uint8), np.zeros(1, np.int64)))
    (tmp_path / "key-1.npy").write_bytes(b"of another rank")
    assert len(list(tmp_path.iterdir())) == 2
    Shelf(tmp_path, 0, 2)
    assert [p.name for p in tmp_path.iterdir()] == ["key-1.npy"]


def test_bad_pictures_count_at_every_rank(tmp_path, monkeypatch):
    monkeypatch.setattr(node, "PATIENCE_S", 30)
    decoders = ranks(tmp_path, 2, bad=(7,), on_bad="skip")
    one = Decoder(split(bad=(7,)), AUGMENT, 3, "skip")
    expected = []
    of_rank(one, expected)
    for found in in_threads(decoders):
        assert same(found, expected)
    assert [sorted(decoder.bad) for decoder in decoders] == [[7], [7]] == [sorted(one.bad)] * 2
