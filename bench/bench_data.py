"""Data path on one core: store reads against memcpy, packing against Pillow's own script, drawing, reading IDX.

``python bench/bench_data.py [--jpegs ZIP] [--idx FOLDER]``: one line a row: ours, peer, ratio. Processor time of this
process, interleaved A/B, minimum of ``ROUNDS`` after a warm-up; every pair first has to give equal bytes (the gate), or
nothing is timed.
"""

from __future__ import annotations

import argparse
import io
import pickle
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from imnet.data.fashion_mnist import read_official
from imnet.data.pack import Options, pack
from imnet.data.readers import recognise
from imnet.data.readers.picture import ResizeRule
from imnet.data.shapes import render
from imnet.data.store import open_store, split_path

ROUNDS = 12
_STORE_IMAGES, _BATCH_IMAGES, _SIDE = 20_000, 256, 64


def interleaved(ours: Callable[[], object], peer: Callable[[], object], rounds: int = ROUNDS) -> tuple[float, float]:
    """(ours, peer) in processor seconds: minimum of ``rounds``, taken in turn."""
    best = [float("inf"), float("inf")]
    for turn in range(rounds + 1):
        for which, call in enumerate((ours, peer)):
            began = time.process_time()
            call()
            spent = time.process_time() - began
            if turn:
                best[which] = min(best[which], spent)
    return best[0], best[1]


def row(name: str, ours_s: float, peer_s: float, peer: str, images: int) -> None:
    rates = f"{images / ours_s:>12,.0f} images/s  {peer}: {images / peer_s:>12,.0f}"
    print(f"{name:<28} {rates}  ratio {peer_s / ours_s:5.2f}")


def store_reads(folder: Path) -> None:
    """Random batches from a mapped store (in the page cache) against copying as many bytes in one piece."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (_STORE_IMAGES, 3 * _SIDE * _SIDE), dtype=np.uint8)
    batch = {"data": pixels, "labels": rng.integers(1, 1001, _STORE_IMAGES).tolist()}
    (folder / "train_data_batch_1").write_bytes(pickle.dumps(batch, protocol=4))
    pack(recognise(folder), folder / "store", Options(quiet=True))
    images = open_store(split_path(folder / "store", "train")).images()
    planar = pixels.reshape(-1, 3, _SIDE, _SIDE)
    assert np.array_equal(images[::97], planar[::97].transpose(0, 2, 3, 1)), "gate"
    orders = [rng.permutation(_STORE_IMAGES)[:_BATCH_IMAGES] for _ in range(40)]
    out = np.empty((_BATCH_IMAGES, _SIDE, _SIDE, 3), np.uint8)
    # The peer reads different bytes each time too: the same ones would come from the processor's cache.
    starts = rng.integers(0, _STORE_IMAGES - _BATCH_IMAGES, len(orders)).tolist()

    def ours() -> None:
        for order in orders:
            np.take(images, order, axis=0, out=out, mode="clip")

    def memcpy() -> None:
        for start in starts:
            np.copyto(out, images[start : start + _BATCH_IMAGES])

    in_memory = np.array(images)

    def random_rows() -> None:
        for order in orders:
            np.take(in_memory, order, axis=0, out=out, mode="clip")

    count = _BATCH_IMAGES * len(orders)
    row("store random batch 64 px", *interleaved(ours, memcpy), "memcpy", count)
    row("the same", *interleaved(ours, random_rows), "same rows, in memory", count)


def packing(folder: Path, jpegs: Path) -> None:
    """JPEG -> 64 px store with one worker, against the loop everybody writes: open, convert, BOX, append, pickle."""
    found = recognise(jpegs)
    count, runs = len(found.splits["train"]), iter(range(10**6))

    def ours() -> Path:
        target = folder / f"out{next(runs)}"
        pack(found, target, Options(ResizeRule(_SIDE), workers=1, quiet=True))
        return target

    def script() -> np.ndarray:
        rows = []
        with zipfile.ZipFile(jpegs) as archive:
            for name in sorted(archive.namelist()):
                image = Image.open(io.BytesIO(archive.read(name)))
                image = image if image.mode == "RGB" else image.convert("RGB")
                rows.append(np.array(image.resize((_SIDE, _SIDE), Image.Resampling.BOX)))
        data = np.stack(rows)
        (folder / "script.pickle").write_bytes(pickle.dumps({"data": data}, protocol=4))
        return data

    assert np.array_equal(open_store(split_path(ours(), "train")).images(), script()), "gate"
    row("JPEG -> packed 64 px", *interleaved(ours, script, 6), "Pillow script", count)


def idx(folder: Path) -> None:
    """The four Fashion-MNIST files, against gzip and numpy without any check."""
    import gzip

    def ours() -> tuple[np.ndarray, np.ndarray]:
        train, test = read_official(folder)
        return train.images, test.images

    def plain() -> list[np.ndarray]:
        names = [f"{part}-images-idx3-ubyte.gz" for part in ("train", "t10k")]
        raws = [gzip.decompress((folder / name).read_bytes()) for name in names]
        return [np.frombuffer(raw, np.uint8, offset=16).reshape(-1, 28, 28, 1) for raw in raws]

    assert all(np.array_equal(a, b) for a, b in zip(ours(), plain(), strict=True)), "gate"
    row("Fashion-MNIST gz -> memory", *interleaved(ours, plain, 6), "gzip + numpy", 70_000)


def drawing() -> None:
    spent = []
    for _ in range(4):
        began = time.process_time()
        render(10_000, 32, 10, 0, 0)
        spent.append(time.process_time() - began)
    print(f"{'draw shapes 32 px':<28} {10_000 / min(spent):>12,.0f} images/s  (no peer)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jpegs", type=Path, help="a zip of JPEG class folders")
    parser.add_argument("--idx", type=Path, help="the folder of the four Fashion-MNIST files")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "batches").mkdir()
        store_reads(Path(folder) / "batches")
        if arguments.jpegs:
            packing(Path(folder), arguments.jpegs)
    if arguments.idx:
        idx(arguments.idx)
    drawing()


if __name__ == "__main__":
    main()
