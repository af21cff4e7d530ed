"""The data path on one core: batches from packed pixels, JPEG packing, store reads.

Times are processor time of all threads and workers, with one torch thread; the sides alternate. Before it is timed,
every peer must produce the same pixels as ours (the gate). A ratio is the peer's time over ours in one round, given as
median, IQR, and ratio of the best times. Peers that are not installed are "not measured", with the reason in ``why``.
"""

from __future__ import annotations

import io
import pickle
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from imnet.augmentation import Augment
from imnet.data.base import Split
from imnet.data.pipelines import Setting, build
from imnet.data.readers import recognise
from imnet.data.readers.picture import ResizeRule
from imnet.data.store import open_store, split_path
from imnet.data.store.pack import Options, pack

from . import peers
from .clock import Call, Timing, ratios, samples
from .form import Row

ROUNDS, QUICK_ROUNDS = 12, 6
_STORE_IMAGES, _SIDE = 8192, 64
_READ_BATCHES = 40


def compared(row: str, images: int, ours: Call, others: Mapping[str, Call], rounds: int, **how: Any) -> Iterator[Row]:
    """A row per peer; ours and all peers are timed alternately. ``how`` is passed to ``clock.samples``."""
    taken = samples({"": ours, **others}, rounds, on_gpu=False, **how)
    mine = taken.pop("")
    for name, values in taken.items():
        sides = {"ours": Timing.of(mine).as_dict(), "theirs": Timing.of(values).as_dict()}
        yield {"row": row, "peer": name, "images": images, **sides, **ratios(mine, values), "n": rounds, "why": ""}


def absent(row: str, peer: str, why: str) -> Row:
    """The row of a peer that is not installed."""
    figures = dict.fromkeys(("ours", "theirs", "ratio_median", "ratio_iqr", "ratio_best"))
    return {"row": row, "peer": peer, **figures, "why": why}


def store_of(pixels: np.ndarray, folder: Path) -> Path:
    """Pack uint8 pixels (N, 64, 64, 3) into a store, by way of a file in ImageNet-64's format; returns its folder."""
    source = folder / "batches"
    source.mkdir()
    planar = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)).reshape(len(pixels), -1)
    batch = {"data": planar, "labels": [1 + i % 1000 for i in range(len(pixels))]}
    (source / "train_data_batch_1").write_bytes(pickle.dumps(batch, protocol=4))
    pack(recognise(source), folder / "store", Options(quiet=True, workers=1))
    (source / "train_data_batch_1").unlink()
    return folder / "store"


def batches_of(split: Split, kind: str) -> Call:
    """A call that goes once through the split with a pipeline, as in training: pad 4, flip, cutout 16, bf16."""
    augment = Augment(crop_pad_px=peers.PAD_PX, hflip="random", cutout_px=peers.CUTOUT_PX, mean=(peers.MEAN,),
                      std=(peers.STD,))  # fmt: skip
    setting = Setting(augment=augment, seed=0, device=torch.device("cpu"), dtype=torch.bfloat16)
    pipeline = build(kind, split, setting)
    plain, _ = next(pipeline.stream([torch.arange(8)], 0, train=False))
    peers.check(f"the {kind} pipeline", plain, split.images)
    epochs = iter(range(10**9))

    def call() -> None:
        for images, _ in pipeline.stream(torch.randperm(len(split)).split(peers.BATCH), next(epochs), train=True):
            assert images.dtype == torch.bfloat16

    return call


def batches(folder: Path, rounds: int) -> Iterator[Row]:
    """Packed 64 px images to batches by the host pipeline, against every installed peer. Eager code, which has its
    images in memory, is also compared with the resident pipeline."""
    pixels = np.random.default_rng(0).integers(0, 256, (_STORE_IMAGES, _SIDE, _SIDE, 3), dtype=np.uint8)
    store = open_store(split_path(store_of(pixels, folder), "train"))
    row, count, slow_rounds = "packed 64 px -> batch", len(pixels), max(3, rounds // 3)
    ours = batches_of(Split(store.images(), store.labels), "host")
    eager = {"eager, batched": peers.eager(pixels)}
    if peers.has("nvidia.dali"):
        yield from compared(row, count, ours, eager | {"DALI CPU": peers.dali(pixels)}, rounds)
    else:
        yield from compared(row, count, ours, eager, rounds)
        yield absent(row, "DALI CPU", "pip install nvidia-dali-cuda130")
    resident = batches_of(Split(pixels, store.labels), "resident")
    yield from compared("64 px in memory -> batch", count, resident, eager, rounds)
    slow = {"torchvision v2, 2 workers": peers.torchvision(pixels)}
    yield from compared(row, count, ours, slow, slow_rounds, children=True)


def small_batches(rounds: int) -> Iterator[Row]:
    """28 px images of one channel, like Fashion-MNIST, by the resident pipeline, against torchvision v2 image by image
    in this process."""
    pixels = np.random.default_rng(0).integers(0, 256, (_STORE_IMAGES, 28, 28, 1), dtype=np.uint8)
    split = Split(pixels, np.zeros(len(pixels), np.int64))
    theirs = {"torchvision v2, one by one": peers.torchvision(pixels, workers=0)}
    yield from compared("28 px -> batch", len(pixels), batches_of(split, "resident"), theirs, max(3, rounds // 2))


def store_reads(folder: Path, rounds: int) -> Iterator[Row]:
    """Random batches from a mapped store (in the page cache), against copying as many bytes from memory, in one piece
    or row by row."""
    images = open_store(split_path(folder / "store", "train")).images()
    rng = np.random.default_rng(0)
    orders = [rng.permutation(len(images))[: peers.BATCH] for _ in range(_READ_BATCHES)]
    # The peer also reads different bytes each time, since the same ones would come from the processor's cache.
    starts = rng.integers(0, len(images) - peers.BATCH, len(orders)).tolist()
    out, in_memory = np.empty((peers.BATCH, *images.shape[1:]), np.uint8), np.array(images)

    def rows_of(source: np.ndarray) -> Call:
        return lambda: [np.take(source, order, axis=0, out=out, mode="clip") for order in orders]

    def pieces() -> None:
        for at in starts:
            np.copyto(out, in_memory[at : at + peers.BATCH])

    theirs = {"memcpy, in one piece": pieces, "the same rows, in memory": rows_of(in_memory)}
    yield from compared("store, random 64 px rows", peers.BATCH * len(orders), rows_of(images), theirs, rounds)


def packing(folder: Path, jpegs: Path, rounds: int) -> Iterator[Row]:
    """JPEG files to a 64 px store with one worker, against the usual script: open, convert, resize (BOX), pickle."""
    found = recognise(jpegs)
    count, runs = len(found.splits["train"]), iter(range(10**6))

    def ours() -> Path:
        target = folder / f"out{next(runs)}"
        pack(found, target, Options(ResizeRule(_SIDE), workers=1, quiet=True))
        return target

    def pictures() -> Iterator[Image.Image]:
        with zipfile.ZipFile(jpegs) as archive:
            for name in sorted(archive.namelist()):
                yield Image.open(io.BytesIO(archive.read(name))).convert("RGB")

    def script() -> np.ndarray:
        box = Image.Resampling.BOX
        data = np.stack([np.array(image.resize((_SIDE, _SIDE), box)) for image in pictures()])
        (folder / "script.pickle").write_bytes(pickle.dumps({"data": data}, protocol=4))
        return data

    if not np.array_equal(open_store(split_path(ours(), "train")).images(), script()):
        raise SystemExit("gate: packed pixels are not those of Pillow's BOX; no time is reported")
    theirs = {"Pillow's script": script, "Pillow, decoding alone": lambda: sum(1 for _ in pictures())}
    yield from compared("JPEG -> packed 64 px", count, ours, theirs, rounds)


def rows(rounds: int = ROUNDS, jpegs: Path | None = None) -> Iterator[Row]:
    """The rows of ``imnet-bench data``: under three minutes on one CPU core. ``jpegs``: a zip of JPEG class folders."""
    if jpegs is not None:
        recognise(jpegs)  # reports an invalid zip now, not after three minutes
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        yield from batches(folder, rounds)
        yield from small_batches(rounds)
        yield from store_reads(folder, rounds)
        if jpegs is not None:
            yield from packing(folder, jpegs, rounds)


def scores(row: Row) -> dict[str, float]:
    """{``<row> / <peer>``: the median over rounds of the peer's time over ours}; empty if not measured."""
    return {f"{row['row']} / {row['peer']}": row["ratio_median"]} if row["ratio_median"] else {}
