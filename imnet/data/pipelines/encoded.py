"""Decodes, crops and resizes encoded pictures to uint8 images of one size with Pillow, one by one, in threads."""

from __future__ import annotations

import threading

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from imnet.augmentation import Augment
from imnet.data.base import EncodedSplit
from imnet.data.pipelines.draws import Key
from imnet.data.pipelines.node import Shelf
from imnet.data.pipelines.transforms import draw_resized_crop
from imnet.data.readers.picture import BadPictureError, ResizeRule, decode, rgb
from imnet.errors import DataError

_BAD_SHARE = 1000


class Decoder:
    """Decodes the pictures of a split to the size that a recipe needs, and records those that cannot be decoded."""

    shelf: Shelf | None = None
    """Set if ranks that train on the same batches share the decoding."""

    def __init__(self, split: EncodedSplit, augment: Augment, seed: int, on_bad: str = "stop"):
        """``on_bad`` is stop, or skip: the next good picture replaces a bad one, for at most one in 1000 of the split
        (but at least one). Training uses the replacement; evaluation does not count it (``Pipeline.labels_of_taken``).
        """
        self.split, self.augment, self.seed, self.on_bad = split, augment, seed, on_bad
        self.bad: dict[int, str] = {}
        self._lock = threading.Lock()

    def images(self, ids: Tensor, epoch: int, train: bool) -> tuple[np.ndarray, np.ndarray]:
        """Images, uint8 (B, side, side, 3), of ``ids`` (B,) int64, and the ids taken, which differ for bad pictures."""
        if self.shelf is None or not train:
            return self._images(ids, epoch, train)
        (pixels, taken), theirs = self.shelf.crops(lambda part: self._images(part, epoch, train), ids, epoch)
        for row in theirs:
            self._hear(int(ids[row]), int(taken[row]))
        return pixels, taken

    def _hear(self, asked: int, taken: int) -> None:
        """Record the pictures that another rank found bad: it was asked for number ``asked`` and took ``taken``."""
        while asked != taken:
            with self._lock:
                self.bad.setdefault(asked, "another rank could not decode it")
            asked = (asked + 1) % len(self.split)

    def _images(self, ids: Tensor, epoch: int, train: bool) -> tuple[np.ndarray, np.ndarray]:
        side = self.side_px(train)
        out, taken = np.empty((len(ids), side, side, 3), dtype=np.uint8), ids.numpy().copy()
        for at, i in enumerate(ids.tolist()):
            picture, taken[at] = self.picture(i, epoch, train)
            out[at] = picture
        return out, taken

    def side_px(self, train: bool) -> int:
        """Side of the images: the network's input size if crops come from the whole picture, else the split's."""
        if not self.sized(train):
            return self.split.image_px
        assert self.augment.crop_px is not None
        return self.augment.crop_px

    def sized(self, train: bool) -> bool:
        """Whether the decoded images already have the network's input size, with resizing and cropping done."""
        return self.augment.crop_scale is not None and (train or self.augment.resize_eval_px is not None)

    def picture(self, i: int, epoch: int, train: bool) -> tuple[np.ndarray, int]:
        """The image of id ``i``, uint8 (side, side, 3), and the id taken: that of the next good picture if i is bad."""
        n = len(self.split)
        for at in range(i % n, i % n + n):
            number = i - i % n + at % n
            try:
                return self._decoded(number, epoch, train), number
            except BadPictureError as error:
                self._note(at % n, error)
        raise DataError("no picture can be decoded", file=self.split.file)

    def _decoded(self, i: int, epoch: int, train: bool) -> np.ndarray:
        data, a = self.split.read(i % len(self.split)), self.augment
        if not self.sized(train):
            return decode(data, ResizeRule(self.split.image_px))
        assert a.crop_px is not None
        if not train:
            return decode(data, ResizeRule(a.crop_px, "bilinear", shorter_px=a.resize_eval_px))
        assert a.crop_scale is not None
        picture, key = rgb(data), Key(torch.tensor([i]), self.seed, epoch)
        size = (torch.tensor([picture.height]), torch.tensor([picture.width]))
        top, left, height, width = draw_resized_crop(*size, a.crop_scale, key)[0].tolist()
        crop = picture.crop((left, top, left + width, top + height))
        return np.asarray(crop.resize((a.crop_px, a.crop_px), Image.Resampling.BILINEAR))

    def _note(self, i: int, error: BadPictureError) -> None:
        with self._lock:
            self.bad[i] = str(error)
        if self.on_bad == "stop":
            hint = "--on-bad-image skip leaves up to one picture in 1000 out"
            raise DataError(f"picture {i}: {error}", file=self.split.file, hint=hint) from error
        if len(self.bad) > max(1, len(self.split) // _BAD_SHARE):
            what = f"{len(self.bad)} of {len(self.split)} pictures cannot be decoded, {i} last: {error}"
            raise DataError(f"{what}; allowed one in {_BAD_SHARE}", file=self.split.file, hint="pack the set again")
