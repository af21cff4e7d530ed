"""The data path on one core: batches from packed pixels, JPEG packing, store reads, reading IDX.

Processor time, all threads and workers included, one thread; the sides alternate. Every peer first has to give our
pixels (the gate), or nothing is timed. A ratio is the peer's time over ours in one round: median, quartile distance,
and the ratio of the best times. What is not installed here is "not measured".

JSON: {"benchmark": "data", "fingerprint": {...}, "rows": [{"row", "peer", "images", "ours": Timing, "theirs": Timing or
null, "ratio_median", "ratio_iqr", "ratio_best", "n", "why": reason where not measured}]}, times in seconds a call.
"""

from __future__ import annotations

import io
import pickle
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from imnet import device
from imnet.augmentation import Augment
from imnet.data.base import Split
from imnet.data.pipelines import Setting, build
from imnet.data.readers import recognise
from imnet.data.readers.picture import ResizeRule
from imnet.data.sets.fashion_mnist import read_official
from imnet.data.store import open_store, split_path
from imnet.data.store.pack import Options, pack
from imnet.run_options import RunOptions

from . import peers
from .clock import Timing, cpu_seconds, ratios
from .fingerprint import fingerprint

ROUNDS, QUICK_ROUNDS = 12, 6
_STORE_IMAGES, _SIDE = 8192, 64
_READ_BATCHES = 40
Clock = Callable[[], float]


@dataclass(frozen=True)
class Row:
    """One line of the table; ``theirs`` and the ratios are None where the peer was not measured."""

    row: str
    peer: str
    images: int
    ours: Timing | None
    theirs: Timing | None = None
    ratio_median: float | None = None
    ratio_iqr: float | None = None
    ratio_best: float | None = None
    n: int = 0
    why: str = ""

    def __str__(self) -> str:
        if self.ours is None or self.theirs is None or self.ratio_median is None:
            return f"{self.row:<30} {self.peer:<34} not measured: {self.why}"
        rates = f"{self.images / self.ours.median_s:>12,.0f} {self.images / self.theirs.median_s:>12,.0f}"
        ratios = f"{self.ratio_median:7.2f}x {self.ratio_iqr:6.2f} {self.ratio_best:7.2f}x"
        return f"{self.row:<30} {self.peer:<34} {rates} {ratios} {self.n:3}"


def timed(call: Callable[[], object], children: bool = False) -> Clock:
    """A clock: processor seconds of one call, of its ended workers too with ``children``."""

    def clock() -> float:
        began = cpu_seconds(children)
        call()
        return cpu_seconds(children) - began

    return clock


def compared(row: str, images: int, ours: Clock, others: Mapping[str, Clock], rounds: int) -> list[Row]:
    """Ours and all peers in turn, ``rounds`` times after one uncounted round."""
    clocks = {"": ours, **others}
    taken: dict[str, list[float]] = {name: [] for name in clocks}
    for i in range(rounds + 1):
        for name, clock in clocks.items():
            seconds = clock()
            if i:
                taken[name].append(seconds)
    mine = taken.pop("")
    rows = []
    for name, values in taken.items():
        ratio = ratios(mine, values)
        figures = ratio["ratio_median"], ratio["ratio_iqr"], ratio["ratio_best"]
        rows.append(Row(row, name, images, Timing.of(mine), Timing.of(values), *figures, rounds))
    return rows


def store_of(pixels: np.ndarray, folder: Path) -> Path:
    """A packed store of uint8 (N, 64, 64, 3), by way of an ImageNet-64 batch."""
    source = folder / "batches"
    source.mkdir()
    planar = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)).reshape(len(pixels), -1)
    batch = {"data": planar, "labels": [1 + i % 1000 for i in range(len(pixels))]}
    (source / "train_data_batch_1").write_bytes(pickle.dumps(batch, protocol=4))
    pack(recognise(source), folder / "store", Options(quiet=True, workers=1))
    (source / "train_data_batch_1").unlink()
    return folder / "store"


def batches_of(split: Split, kind: str) -> Clock:
    """Once through the split by a pipeline, as training runs it: pad 4, flip, cutout 16, normalise, bf16."""
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

    return timed(call)


def batches(folder: Path, rounds: int) -> list[Row]:
    """Packed 64 px -> batches by the host pipeline, against every peer that is here; eager code, whose images lie in
    memory, also against the resident pipeline."""
    pixels = np.random.default_rng(0).integers(0, 256, (_STORE_IMAGES, _SIDE, _SIDE, 3), dtype=np.uint8)
    store = open_store(split_path(store_of(pixels, folder), "train"))
    split = Split(store.images(), store.labels)
    row, count = "packed 64 px -> batch", len(pixels)
    ours = batches_of(split, "host")
    quick: dict[str, Clock] = {"eager, batched": timed(peers.eager(pixels))}
    absent = []
    if peers.has("nvidia.dali"):
        quick["DALI CPU"] = timed(peers.dali(pixels))
    else:
        absent.append(Row(row, "DALI CPU", count, None, why="pip install nvidia-dali-cuda130"))
    rows = compared(row, count, ours, quick, rounds)
    resident = batches_of(Split(pixels, store.labels), "resident")
    rows += compared("64 px in memory -> batch", count, resident, {"eager, batched": quick["eager, batched"]}, rounds)
    slow = {"torchvision v2, 2 workers": timed(peers.torchvision(pixels), children=True)}
    return [*rows, *absent, *compared(row, count, ours, slow, max(3, rounds // 3))]


def small_batches(rounds: int) -> list[Row]:
    """28 px, one channel, as Fashion-MNIST (resident: it fits), against torchvision v2 one by one in this process."""
    pixels = np.random.default_rng(0).integers(0, 256, (_STORE_IMAGES, 28, 28, 1), dtype=np.uint8)
    split = Split(pixels, np.zeros(len(pixels), np.int64))
    theirs = {"torchvision v2, one by one": timed(peers.torchvision(pixels, workers=0))}
    return compared("28 px -> batch", len(pixels), batches_of(split, "resident"), theirs, max(3, rounds // 2))


def store_reads(folder: Path, rounds: int) -> list[Row]:
    """Random batches from a mapped store (in the page cache) against copying as many bytes, in one piece or as rows."""
    images = open_store(split_path(folder / "store", "train")).images()
    rng = np.random.default_rng(0)
    orders = [rng.permutation(len(images))[: peers.BATCH] for _ in range(_READ_BATCHES)]
    # The peer reads different bytes each time too: the same ones would come from the processor's cache.
    starts = rng.integers(0, len(images) - peers.BATCH, len(orders)).tolist()
    out, in_memory = np.empty((peers.BATCH, *images.shape[1:]), np.uint8), np.array(images)

    def rows_of(source: np.ndarray) -> Clock:
        return timed(lambda: [np.take(source, order, axis=0, out=out, mode="clip") for order in orders])

    pieces = timed(lambda: [np.copyto(out, in_memory[at : at + peers.BATCH]) for at in starts])
    theirs = {"memcpy, in one piece": pieces, "the same rows, in memory": rows_of(in_memory)}
    return compared("store, random 64 px rows", peers.BATCH * len(orders), rows_of(images), theirs, rounds)


def packing(folder: Path, jpegs: Path, rounds: int) -> list[Row]:
    """JPEG -> 64 px store with one worker, against the loop everybody writes: open, convert, BOX, append, pickle."""
    found = recognise(jpegs)
    count, runs = len(found.splits["train"]), iter(range(10**6))

    def ours() -> Path:
        target = folder / f"out{next(runs)}"
        pack(found, target, Options(ResizeRule(_SIDE), workers=1, quiet=True))
        return target

    def pictures():
        with zipfile.ZipFile(jpegs) as archive:
            for name in sorted(archive.namelist()):
                image = Image.open(io.BytesIO(archive.read(name)))
                yield image if image.mode == "RGB" else image.convert("RGB")

    def script() -> np.ndarray:
        box = Image.Resampling.BOX
        data = np.stack([np.array(image.resize((_SIDE, _SIDE), box)) for image in pictures()])
        (folder / "script.pickle").write_bytes(pickle.dumps({"data": data}, protocol=4))
        return data

    def drafts() -> list[np.ndarray]:
        """Decoded at 1/2 to 1/8 by the DCT, other pixels: what an inexact packer would gain."""
        rows = []
        with zipfile.ZipFile(jpegs) as archive:
            for name in sorted(archive.namelist()):
                image = Image.open(io.BytesIO(archive.read(name)))
                image.draft("RGB", (_SIDE, _SIDE))
                rows.append(np.array(image.convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.BOX)))
        return rows

    if not np.array_equal(open_store(split_path(ours(), "train")).images(), script()):
        raise SystemExit("gate: packed pixels are not those of Pillow's BOX; no time is reported")
    theirs = {
        "Pillow's script": timed(script),
        "Pillow, decoding alone": timed(lambda: [image.load() for image in pictures()]),
        "Pillow, DCT-scaled (not exact)": timed(drafts),
    }
    return compared("JPEG -> packed 64 px", count, timed(ours), theirs, rounds)


def idx(folder: Path, rounds: int) -> list[Row]:
    """The four Fashion-MNIST files, against gzip and numpy without any check."""
    import gzip

    def ours() -> tuple[np.ndarray, np.ndarray]:
        train, test = read_official(folder)
        return train.images, test.images

    def plain() -> list[np.ndarray]:
        names = [f"{part}-images-idx3-ubyte.gz" for part in ("train", "t10k")]
        raws = [gzip.decompress((folder / name).read_bytes()) for name in names]
        return [np.frombuffer(raw, np.uint8, offset=16).reshape(-1, 28, 28, 1) for raw in raws]

    if not all(np.array_equal(a, b) for a, b in zip(ours(), plain(), strict=True)):
        raise SystemExit("gate: the IDX images differ from plain gzip and numpy; no time is reported")
    return compared("Fashion-MNIST gz -> memory", 70_000, timed(ours), {"gzip + numpy": timed(plain)}, rounds // 2)


def report(rounds: int = ROUNDS, jpegs: Path | None = None, folder_of_idx: Path | None = None) -> dict[str, Any]:
    """The JSON of ``imnet-bench data``, printed row by row: under three minutes on one CPU core.

    ``jpegs`` is a zip of JPEG class folders, ``folder_of_idx`` holds Fashion-MNIST's four files.
    """
    print(f"{'row':<30} {'peer':<34} {'ours img/s':>12} {'theirs':>12} {'ratio':>8} {'iqr':>6} {'best':>8}   n")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name, device.threads(RunOptions(threads=1)):
        folder = Path(name)
        parts: list[Callable[[], list[Row]]] = [
            lambda: batches(folder, rounds),
            lambda: small_batches(rounds),
            lambda: store_reads(folder, rounds),
        ]
        if jpegs is not None:
            parts.append(lambda: packing(folder, jpegs, rounds))
        if folder_of_idx is not None:
            parts.append(lambda: idx(folder_of_idx, rounds))
        for part in parts:
            found = part()
            print("\n".join(map(str, found)), flush=True)
            rows += found
        machine = fingerprint("bf16", rounds)
    return {"benchmark": "data", "fingerprint": machine, "rows": [asdict(row) for row in rows]}


def scores(found: dict[str, Any]) -> dict[str, float]:
    """``<row> / <peer>``: the peer's time over ours, the median of neighbours in time."""
    return {f"{row['row']} / {row['peer']}": row["ratio_median"] for row in found["rows"] if row["ratio_median"]}
