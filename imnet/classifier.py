"""A trained network with everything needed to classify pictures: their preprocessing and the names of the classes.

    model = imnet.load("model.safetensors")      # what imnet-export wrote; or run.classifier()
    model.predict(["cat.jpg", "dog.png"])        # [{"name": ..., "top": [("cat", 0.93), ...]}, ...]

Pictures are preprocessed by the same code that evaluated the run.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from imnet import device, models
from imnet.data.pipelines.batches import Batches
from imnet.data.readers.items import MAX_IMAGE_BYTES
from imnet.data.readers.picture import BadPictureError, ResizeRule, decode
from imnet.errors import DataError, UsageError
from imnet.fields import COUNT, Range, about, at_least_one, check, check_ranges
from imnet.files import exists, in_utf8, is_dir
from imnet.recipe import Augment
from imnet.recipe_json import build_value, to_dict

Picture = str | os.PathLike[str] | bytes | Image.Image | np.ndarray
KEY = "imnet"
"""The metadata key of the card in an exported file."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """Everything about a network except its weights; stored as JSON. Raises ValueError for wrong types and ranges."""

    model: str
    num_outputs: int = field(metadata=about("of the network, which may have more than there are classes", COUNT))
    channels: int = field(metadata=about("of the images", COUNT))
    image_px: int = field(metadata=about("side of the images", Range(low=1, high=65_536)))
    """Side to which pictures are resized, with the BOX filter and without keeping the aspect ratio, before the
    evaluation part of ``augment``."""
    whole: bool
    """Whether crops are cut from the original pictures: then the resizing of the shorter side and the crop of
    ``augment`` replace ``image_px``."""
    augment: Augment
    class_names: tuple[str, ...]
    model_options: dict[str, Any]
    top1: float | None = None
    """Top-1 on the test images of ``data`` after the last epoch."""
    data: str = ""
    recipe: str = ""
    licence: str | None = None
    """Licence of the weights that training started from; None if they were initialised randomly."""

    def __post_init__(self) -> None:
        check_ranges(self)
        known = models.known(str(self.model))
        check(known, f"model = {self.model!r}", "a network of imnet-train --list models", "name one")
        num, most = len(self.class_names), self.num_outputs
        check(1 <= num <= most, f"{num} class_names", f"1 to {most}, its num_outputs", "name each output once")
        self.augment.check_fits(self.image_px, self.channels)

    def dumps(self) -> str:
        return json.dumps(to_dict(self))

    @classmethod
    def loads(cls, text: str) -> Card:
        return build_value(cls, json.loads(text), "card")

    @property
    def rule(self) -> ResizeRule:
        """How an encoded picture is decoded and resized."""
        a = self.augment
        if self.whole and a.crop_scale is not None and a.resize_eval_px is not None:
            assert a.crop_px is not None
            return ResizeRule(a.crop_px, "bilinear", shorter_px=a.resize_eval_px)
        return ResizeRule(self.image_px, channels=self.channels)

    @property
    def then(self) -> Augment:
        """What is done to the pixels that ``rule`` makes: if these are cropped already, they are only normalised."""
        return self.augment if self.rule.shorter_px is None else self.augment.of_cut_images

    @property
    def input_px(self) -> int:
        """Side of the network's input."""
        return self.then.output_px(self.rule.size_px)


class Classifier:
    """A network with ``predict`` and ``logits``. It computes in fp32, on the CPU until ``to`` moves it."""

    def __init__(self, network: nn.Module, card: Card, mean: Tensor | None = None, bands: tuple[int, ...] = ()):
        """``mean`` is the mean image (H, W, C) of x/255, for recipes that subtract one. ``bands`` are the K spectral
        bands that an ensemble sees of each image; its input is then (B, K, C, h, w)."""
        self.network, self.card, self.mean, self.bands = network.eval(), card, mean, bands
        self.device = torch.device("cpu")
        if card.augment.mean == "image" and mean is None:
            raise UsageError("the network needs the mean image of its training set", hint="use the run, not a file")

    def to(self, device: str | torch.device) -> Classifier:
        self.device = torch.device(device)
        self.network.to(self.device).to(memory_format=torch.channels_last)
        return self

    def pixels(self, picture: Picture) -> np.ndarray:
        """Return uint8 (side, side, C) for a path, encoded bytes, a PIL picture or a uint8 array. Raises
        BadPictureError if it cannot be decoded, OSError if it cannot be read."""
        if isinstance(picture, np.ndarray):
            grey = picture.ndim == 3 and picture.shape[2] == 1
            if picture.dtype != np.uint8 or not (picture.ndim == 2 or grey or picture.shape[2:] in ((3,), (4,))):
                what = f"got an array {picture.dtype} {picture.shape} for a picture; allowed uint8 (H, W), (H, W, C)"
                raise UsageError(what, hint="values are 0..255, channels last")
            if picture.shape == (self.card.rule.size_px,) * 2 + (self.card.channels,) and not self.card.rule.shorter_px:
                return picture  # resizing would change nothing
            picture = Image.fromarray(picture.squeeze(2) if grey else picture)
        if isinstance(picture, Image.Image):
            if 0 in picture.size:  # as a crop beyond the border is
                raise BadPictureError("picture is {} x {} pixels; allowed 1 x 1 or more".format(*picture.size))
            buffer = io.BytesIO()
            (picture.convert("RGB") if picture.mode in ("CMYK", "YCbCr") else picture).save(buffer, "PNG")
            picture = buffer.getvalue()
        return decode(picture if isinstance(picture, bytes) else _contents(picture), self.card.rule)

    def images(self, pixels: np.ndarray, dtype: torch.dtype = torch.float32) -> Tensor:
        """Turn uint8 pixels (B, side, side, C) into the network's input, (B, C, h, w) channels_last on its device."""
        store = torch.from_numpy(np.array(pixels)).to(self.device)
        made = Batches(store, self.card.then, seed=0, dtype=dtype, mean=self.mean, bands=self.bands)
        return made.batch(torch.arange(len(store)), 0, False)[0]

    @device.undisturbed()
    @torch.no_grad()
    def logits(self, pixels: np.ndarray) -> Tensor:
        """Return fp32 logits (B, classes), without outputs beyond the classes, on the CPU for uint8 pixels
        (B, side, side, C)."""
        return self.network(self.images(pixels))[:, : len(self.card.class_names)].float().cpu()

    def predict(self, pictures: Iterable[Picture], top: int = 5, batch: int = 64) -> list[dict[str, Any]]:
        """Return one dictionary per picture, as described for ``stream``."""
        return list(self.stream(pictures, top, batch))

    def stream(self, pictures: Iterable[Picture], top: int = 5, batch: int = 64) -> Iterator[dict[str, Any]]:
        """Yield, in the order of ``pictures``, {"name": path or number, "top": [(class, probability), ...]} with the
        likeliest class first, {"name", "error"} for a picture that cannot be read, or {"name", "top": [], "error"} if
        the network's scores are NaN, of which no class is the likeliest."""
        at_least_one(top=top, batch=batch)
        one = isinstance(pictures, str | bytes | os.PathLike | Image.Image)
        if one or (isinstance(pictures, np.ndarray) and pictures.ndim < 4):  # iterating would yield its letters or rows
            raise UsageError("got one picture; allowed: several, in a list", hint="write [picture]")
        waiting: list[dict[str, Any]] = []
        for number, picture in enumerate(pictures):
            name = _name(number, picture)
            try:
                waiting.append({"name": name, "pixels": self.pixels(picture)})
            except (BadPictureError, OSError) as error:
                why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
                waiting.append({"name": name, "error": why})
            if sum("pixels" in row for row in waiting) == batch:
                yield from self._judged(waiting, top)
                waiting = []
        yield from self._judged(waiting, top)

    def _judged(self, rows: list[dict[str, Any]], top: int) -> Iterator[dict[str, Any]]:
        good = [row.pop("pixels") for row in rows if "pixels" in row]
        shares = iter(self.logits(np.stack(good)).softmax(1) if good else ())
        names = self.card.class_names
        for row in rows:
            share = None if "error" in row else next(shares)
            if share is not None and share.isnan().any():
                told = "the network's answer is not a number (NaN): its weights have diverged or are damaged"
                row |= {"top": [], "error": told}
            elif share is not None:
                values, ids = share.topk(min(top, len(names)))
                row["top"] = [(names[i], float(v)) for v, i in zip(values.tolist(), ids.tolist(), strict=True)]
            yield row


def _contents(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a file; BadPictureError if they are more than a picture has, as those of an archive or a device."""
    with open(path, "rb") as file:
        data = file.read(MAX_IMAGE_BYTES + 1)
    if len(data) > MAX_IMAGE_BYTES:
        raise BadPictureError(f"file has more than {MAX_IMAGE_BYTES} bytes, the most of a picture")
    return data


def _name(number: int, picture: Picture) -> str:
    """The name of a picture in its prediction: its path, or its number if it has none."""
    if isinstance(picture, bytes | Image.Image | np.ndarray):
        return str(number)
    if isinstance(picture, str | os.PathLike):
        return os.fspath(picture)
    what = f"got a {type(picture).__name__} for a picture; allowed: a path, bytes, a PIL picture, a uint8 array"
    raise UsageError(what, hint="an array is (H, W, C), values are 0..255")


def load(path: str | os.PathLike[str]) -> Classifier:
    """Load a file that ``imnet-export --to safetensors`` wrote. Raises DataError for any other file."""
    file, head = Path(os.path.expanduser(path)), {}
    if is_dir(file):
        raise UsageError("got a folder for a file", file=file, hint="of a run: imnet.load_run(FOLDER).classifier()")
    if not exists(file):
        hint = "give a run folder, or a file of imnet-export RUN --to safetensors"
        raise DataError("No such file or folder", file=file, hint=hint)
    try:
        with in_utf8(file) as name:
            with safe_open(name, "pt") as opened:
                head = opened.metadata() or {}
            tensors = load_file(name)
    except (OSError, SafetensorError) as error:
        raise DataError(f"no safetensors file: {error}", file=file, hint="imnet-export RUN --to safetensors") from error
    if KEY not in head:
        hint = "imnet-export writes one; other weights start a training: imnet-train --weights FILE"
        raise DataError("no card of a classifier in it", file=file, hint=hint)
    try:
        card = Card.loads(head[KEY])
        network = models.build(card.model, card.num_outputs, card.channels, **card.model_options)
        network.load_state_dict(tensors)
    except (ValueError, RuntimeError, UsageError) as error:  # torch's, if the weights are another network's
        what = f"its card cannot be read, or is not that of its weights: {error}"
        raise DataError(what, file=file, hint="write it again: imnet-export RUN --to safetensors") from error
    return Classifier(network, card)


def pictures_in(paths: Sequence[Path]) -> Iterator[Path]:
    """Yield the files among ``paths``, and every picture in the folders among them, sorted. Links are followed and junk
    is left out, as in training. Broken links are yielded too, so that they are reported as errors."""
    from imnet.data.readers.rule import is_picture
    from imnet.data.readers.tree import FolderTree, in_order

    for path in paths:
        if not is_dir(path):
            yield path
            continue
        tree = FolderTree(path)
        tree.walk()
        yield from (path / name for name in in_order([*tree.names, *tree.absent]) if is_picture(name))
