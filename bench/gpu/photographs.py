"""JPEG files to batches on the device, without a network: the limit of a training on a folder of photographs.

The pictures are generated, in the size of ImageNet's (500 x 375, about 100 kB each). DALI decodes on the device
("mixed"), the host pipeline with Pillow in as many threads as there are cores. As a trial, random crops are also cut
from pictures that DALI has decoded completely, because the decoder has a separate engine for whole pictures.
"""

from __future__ import annotations

import contextlib
import functools
import io
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image

from imnet.augmentation import Augment
from imnet.data import pipelines
from imnet.data.base import EncodedSplit
from imnet.resources import num_cores

from .. import peers
from .plan import Figures, Row, Setting, UnavailableError

NUM_PICTURES, BATCH, CROP_PX = 48, 64, 224
MOST_BATCHES, SECONDS = 1000, 5.0
WHOLE = "dali, decoded whole"
AUGMENT = Augment(crop_px=CROP_PX, crop_scale=(0.08, 1.0), hflip="random", resize_eval_px=256)


def photograph_rows(setting: Setting) -> Iterator[Row]:
    for kind, train in (("dali", True), ("dali", False), (WHOLE, True), ("host", True), ("host", False)):
        what = "random resized crops" if train else "resized, cut in the middle"
        work = functools.partial(_measure, kind, train, setting)
        yield Row("photographs", f"JPEG to {CROP_PX} px, {what}", kind, 9.0, work)


def _cut_from_whole() -> contextlib.AbstractContextManager[object]:
    from imnet.data.pipelines import dali_graph

    def whole(p: Mapping[str, Any], rgb: Mapping[str, Any]) -> Any:
        picture = dali_graph.fn.decoders.image(p["image"], **rgb)
        return dali_graph.fn.slice(picture, start=p["box_at"], shape=p["box_size"], axes=[0, 1])

    return mock.patch.object(dali_graph, "decoded_box", whole)


def _measure(kind: str, train: bool, setting: Setting, limit_s: float) -> Figures:
    """Images per second after a warm-up of two batches per thread, and the mean bytes of a picture.

    The rate is over all batches: threads that start together finish together, so times between batches mean nothing.
    """
    if kind != "host" and not peers.has("nvidia.dali"):
        raise UnavailableError("nvidia-dali is not installed")
    with _cut_from_whole() if kind == WHOLE else contextlib.nullcontext():
        return _timed(kind.split(",")[0], train, setting)


def _timed(kind: str, train: bool, setting: Setting) -> Figures:
    batch, threads = setting.few(BATCH // 8) * 8, num_cores()
    pictures = [_photograph(i) for i in range(setting.few(NUM_PICTURES))]
    warm_up = 2 * threads
    count = batch * (setting.few(MOST_BATCHES) + warm_up)
    sizes = np.array([len(picture) for picture in pictures])
    split = EncodedSplit(lambda i: pictures[i], np.zeros(len(pictures), np.int64), CROP_PX, Path("made"), sizes)
    device = torch.device(setting.device)
    options = pipelines.Setting(augment=AUGMENT, seed=0, device=device, dtype=torch.bfloat16, workers=threads)
    number = begun = now = 0
    for number, (images, _) in enumerate(
        pipelines.build(kind, split, options).stream(torch.arange(count).split(batch), 0, train), 1
    ):
        assert images.shape == (batch, 3, CROP_PX, CROP_PX)
        if device.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        if number == warm_up:
            begun = now
        if number > warm_up and now - begun > SECONDS:
            break
    timed = number - warm_up
    figures = {"images_per_s": round(timed * batch / (now - begun), 1), "n": timed, "threads": threads}
    return figures | {"bytes": round(split.num_bytes / len(pictures))}


def _photograph(number: int) -> bytes:
    """A JPEG file of smooth random shapes with some grain."""
    random = np.random.default_rng(number)
    shapes = Image.fromarray(random.integers(0, 256, (24, 32, 3), dtype=np.uint8)).resize(
        (500, 375), Image.Resampling.BICUBIC
    )
    grain = random.normal(0, 13, (375, 500, 3))
    pixels = np.clip(np.asarray(shapes) + grain, 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=92)
    return file.getvalue()
