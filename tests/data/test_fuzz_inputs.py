"""Random damage to every format gives a DataError or valid data, never another exception or a large allocation.

The seeds are fixed; ``IMNET_FUZZ_TIMES`` multiplies the rounds (20 for the promised numbers).
"""

import gzip
import os
import pickle
import random
import resource

import numpy as np
import pytest

from imnet.data.readers import recognise
from imnet.data.readers.idx import read_idx
from imnet.data.readers.items import Items
from imnet.data.readers.pickles import RefusedError, read_batch
from imnet.data.readers.picture import BadPictureError, ResizeRule, decode
from imnet.data.store import open_store
from imnet.errors import DataError
from tests.data import making
from tests.data.test_store import write

TIMES = int(os.environ.get("IMNET_FUZZ_TIMES", "1"))
INTERESTING = (0, 1, 0x7F, 0x80, 0xFF)


def mutated(raw, rng):
    """Returns ``raw`` with 1 to 8 random changes: a byte set, or a stretch removed, doubled or filled."""
    out = bytearray(raw)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 8))):
        at = rng.randrange(len(out)) if rng.random() < 0.5 else rng.randrange(min(len(out), 64))
        kind = rng.randrange(6)
        if kind < 3:
            out[at] = rng.choice(INTERESTING) if kind == 0 else rng.randrange(256)
        elif kind == 3:
            del out[at : at + rng.randrange(1, 40)]
        elif kind == 4:
            out[at:at] = out[at : at + rng.randrange(1, 40)]
        else:
            out[at : at + 8] = bytes([rng.choice(INTERESTING)]) * 8
        if not out:
            out = bytearray(b"\0")
    return bytes(out)


def fuzz(raws, attempt, rounds, seed, allowed=(DataError,)):
    """Runs ``attempt`` on mutations and returns how many were refused; the process may grow by at most 256 MiB."""
    rng, refused = random.Random(seed), 0
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(rounds * TIMES):
        raw = rng.choice(raws)
        changed = mutated(raw, rng)
        if changed == raw:
            continue
        try:
            attempt(changed)
        except allowed:
            refused += 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 256 << 10
    return refused


def test_idx(tmp_path):
    path = tmp_path / "x"
    making.write_idx(np.arange(5 * 7 * 7, dtype=np.uint8).reshape(5, 7, 7), path)
    raws = [path.read_bytes(), gzip.compress(path.read_bytes())]

    def attempt(raw):
        path.write_bytes(raw)
        assert read_idx(path, 3).ndim == 3

    assert fuzz(raws, attempt, 1500, 1) > 500


def test_store(tmp_path):
    rng = np.random.default_rng(0)
    pixels = write(tmp_path / "a", rng.integers(0, 256, (20, 4, 4, 3), dtype=np.uint8), np.arange(20) % 3)
    encoded = write(tmp_path / "b", [b"x" * n for n in range(20)], np.arange(20) % 3)
    path = tmp_path / "fuzzed.imnet"

    def attempt(raw):
        path.write_bytes(raw)
        open_store(path).verify()
        pytest.fail("a changed byte went unseen")

    assert fuzz([pixels.read_bytes(), encoded.read_bytes()], attempt, 1000, 2) > 800


def test_pickle_opcodes(tmp_path):
    path = tmp_path / "batch"
    raws = [making.batch_bytes(3, 8, protocol=protocol) for protocol in (1, 2, 3, 4, 5)]
    raws += [pickle.dumps({"data": 1, "labels": [1, [2, (3, {"a": None, "b": (True, b"x")})]]}, protocol=4)]

    def attempt(raw):
        path.write_bytes(raw)
        assert set(read_batch(path)) <= {"data", "labels", "mean"}

    assert fuzz(raws, attempt, 1500, 3, (RefusedError,)) > 500


def test_random_opcodes(tmp_path):
    """The restricted unpickler refuses every random stream of allowed and other opcodes, without another exception."""
    path, rng = tmp_path / "batch", random.Random(4)
    opcodes = [b"(", b"]", b"}", b")", b"N", b"K\x01", b"X\x01\0\0\0a", b"e", b"a", b"s", b"u", b"t", b"\x85", b"\x86",
               b"R", b"b", b"q\0", b"h\0", b"\x94", b"cnumpy\ndtype\n", b"cnumpy.core.multiarray\n_reconstruct\n",
               b"C\x01x", b"l", b"d", b"\x93", b"0", b"2", b"1", b"i", b"o", b"\x81"]  # fmt: skip
    for _ in range(2000 * TIMES):
        path.write_bytes(b"\x80\x04" + b"".join(rng.choices(opcodes, k=rng.randrange(1, 25))) + b".")
        with pytest.raises(RefusedError):
            read_batch(path)


@pytest.mark.parametrize("kind", ["zip", "tar", "npz"])
def test_archives(tmp_path, kind):
    files = {f"{i}.{end}": raw for i in range(3) for end, raw in (("jpg", making.picture(i)), ("cls", b"1"))}
    path = tmp_path / {"zip": "in.zip", "tar": "shard.tar", "npz": "train_data_batch_1.npz"}[kind]
    raw = {
        "zip": lambda: making.write_zip(path, {f"train/a/{name}": data for name, data in files.items()}).read_bytes(),
        "tar": lambda: making.tar_bytes(files),
        "npz": lambda: making.npz_bytes(4, 8),
    }[kind]()

    def attempt(changed):
        path.write_bytes(changed)
        content = recognise(path).splits["train"]
        if isinstance(content, Items):
            for i in range(len(content)):
                content.read(i)
        else:
            list(content.stream())

    assert fuzz([raw], attempt, 800, 5) > 100


def test_pictures():
    kinds = (("RGB", "JPEG"), ("CMYK", "JPEG"), ("L", "JPEG"), ("RGB", "PNG"), ("P", "GIF"), ("RGB", "BMP"))
    raws = [making.picture(1, mode=mode, form=form) for mode, form in kinds]
    rule = ResizeRule(8)

    def attempt(raw):
        assert decode(raw, rule).shape == (8, 8, 3)

    assert fuzz(raws, attempt, 1500, 6, (BadPictureError,)) > 100
