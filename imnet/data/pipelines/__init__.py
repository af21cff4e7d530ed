"""The interface of the four pipelines, ``for images, labels in pipeline.epoch(e, start_step)``, and the choice of one.

All give the same batches for the same (seed, epoch, step), up to rounding: order and augmentation are pure functions of
(seed, epoch, sample id), so that a pipeline has no state to save and can start at any step at once.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from imnet.augmentation import Augment
from imnet.data.base import AnySplit, EncodedSplit, Split
from imnet.data.held import file_of
from imnet.data.order import Order, shard
from imnet.data.pipelines.batches import as_tensor
from imnet.data.pipelines.draws import Key
from imnet.data.pipelines.encoded import Decoder
from imnet.data.pipelines.erasing import draw_boxes, erase
from imnet.errors import DeviceError
from imnet.resources import free_memory_bytes

KINDS = ("resident", "host", "dali", "torch")
# Share of the free device memory that the images may take; the rest is left to the step.
MEMORY_SHARE = 0.6

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The arguments of every pipeline, except its split.

    ``mean`` is the mean image (H, W, C) of x/255 if the recipe subtracts one. ``order`` (needed by ``epoch`` only),
    ``rank`` and ``num_ranks`` determine the images of each batch in this process. ``workers`` is the number of threads
    that prepare batches (if the pipeline has any), ``ahead`` the number of batches to prepare in advance, and
    ``on_bad`` (stop | skip) the treatment of pictures that cannot be decoded. With ``bands``, batches have those
    spectral bands of each image instead of the recipe's one: (B, K, C, h, w), stored band by band.
    """

    augment: Augment
    seed: int
    device: torch.device
    dtype: torch.dtype
    mean: Tensor | None = None
    order: Order | None = None
    rank: int = 0
    num_ranks: int = 1
    workers: int = 1
    ahead: int = 2
    on_bad: str = "stop"
    bands: tuple[int, ...] = ()

    @property
    def finish(self) -> dict[str, Any]:
        """The keyword arguments of ``batches.Finish``."""
        return {"seed": self.seed, "dtype": self.dtype, "mean": self.mean, "bands": self.bands}


class Pipeline(ABC):
    """Batches of one split on a device: images (B, C, H, W) channels_last in ``dtype``, labels (B,) int64."""

    kind: ClassVar[str]
    decoder: Decoder | None = None
    """Decodes the pictures of an ``EncodedSplit``, and keeps a record of bad ones."""

    def __init__(self, split: AnySplit, setting: Setting):
        self.split, self.setting = split, setting
        self.cpu_labels = as_tensor(split.labels)
        self.labels = self.cpu_labels.to(setting.device)
        self._file = file_of(split.images) if isinstance(split, Split) else None

    def __len__(self) -> int:
        return len(self.split)

    def of_bands(self, bands: tuple[int, ...]) -> Pipeline:
        """A pipeline of the same images (not copied) for other spectral ``bands``; see ``Setting``."""
        other = copy.copy(self)
        other.setting = replace(self.setting, bands=bands)
        batches = getattr(self, "batches", None)
        if batches is not None:
            vars(other)["batches"] = batches.of_bands(bands)
        return other

    def check_file(self) -> None:
        """Raise DataError if the packed file of pixels has changed; called after every batch that is read from it."""
        if self._file is not None:
            self._file.check()

    def labels_of_taken(self, taken: Tensor, asked: Tensor, train: bool) -> Tensor:
        """Labels (B,), on the CPU, of the ids that were ``taken`` where ``asked`` were wanted. In evaluation a bad
        picture, which another one replaces, gets -1 and is not counted: the other one is counted in its own place."""
        labels = self.cpu_labels[taken % len(self)]
        return labels if train else labels.where(taken == asked.cpu(), -1)

    @property
    def where(self) -> str:
        """A description of where the images are kept, for the header of a run."""
        return "memory"

    def epoch(self, epoch: int, start_step: int = 0) -> Generator[Batch, None, None]:
        """This rank's share of every global batch of the epoch, from ``start_step`` on."""
        order, s = self.setting.order, self.setting
        assert order is not None
        ids = order.epoch(epoch)
        pieces = [shard(order.batch(ids, i), s.rank, s.num_ranks) for i in range(start_step, order.steps_per_epoch)]
        batches = self._trained(pieces, epoch)
        return self._erased(batches, pieces, epoch) if s.augment.random_erasing_p else batches

    def _trained(self, pieces: list[Tensor], epoch: int) -> Generator[Batch, None, None]:
        """One batch per piece. A piece without images (this rank has none of a global batch) is not given to
        ``stream``, since DALI cannot make an empty batch."""
        filled = [ids for ids in pieces if len(ids)]
        with contextlib.closing(self.stream(iter(filled), epoch, train=True)) as batches:
            batch = None
            for ids in pieces:
                batch = next(batches) if len(ids) else self._none(epoch) if batch is None else _none_of(batch)
                yield batch
            next(batches, None)  # run the stream to its end, so that DALI keeps its graph for the next epoch

    def _none(self, epoch: int) -> Batch:
        """An empty batch, cut from a batch of one image."""
        with contextlib.closing(self.stream(iter([torch.zeros(1, dtype=torch.int64)]), epoch, train=True)) as batches:
            return _none_of(next(batches))

    def _erased(
        self, batches: Generator[Batch, None, None], pieces: list[Tensor], epoch: int
    ) -> Generator[Batch, None, None]:
        """The batches after random erasing, the last augmentation, which all pipelines do on the device."""
        s = self.setting
        with contextlib.closing(batches):
            for (images, labels), ids in zip(batches, pieces, strict=True):
                key = Key(ids.cpu(), s.seed, epoch)
                boxes = draw_boxes(images.shape[2], images.shape[3], s.augment.random_erasing_p, key)
                yield erase(images, boxes), labels

    @abstractmethod
    def stream(self, pieces: Iterable[Tensor], epoch: int, train: bool) -> Generator[Batch, None, None]:
        """One batch for each piece, ids (B,) int64 on the CPU, in order. Without ``train`` nothing is random, and the
        label of a picture that could not be decoded is -1."""


def _none_of(batch: Batch) -> Batch:
    images, labels = batch
    return images[:0], labels[:0]


def has_dali() -> bool:
    """Whether NVIDIA DALI is installed; does not import it."""
    return importlib.util.find_spec("nvidia") is not None and importlib.util.find_spec("nvidia.dali") is not None


def choose(kind: str, splits: Sequence[AnySplit], device: torch.device) -> tuple[str, str]:
    """Choose one pipeline for all splits of a run; returns (kind, reason). ``kind`` is one of KINDS, or auto."""
    if kind == "dali" and not has_dali():
        raise DeviceError("got --pipeline dali, but NVIDIA DALI is not installed", hint="pip install 'imnet[dali]'")
    if kind != "auto":
        return kind, "asked for"
    if any(isinstance(split, EncodedSplit) for split in splits):
        return "host", "pictures are kept encoded"
    num_bytes = sum(split.num_bytes for split in splits)
    problem = too_large(num_bytes, device)
    return ("host", problem) if problem else ("resident", f"{num_bytes / 2**30:.2f} GiB fit {device}")


def too_large(num_bytes: int, device: torch.device) -> str | None:
    """The reason why ``num_bytes`` of images should not be kept on ``device``, or None if they fit."""
    free = free_bytes(device)
    if num_bytes <= MEMORY_SHARE * free:
        return None
    where = "the device" if device.type == "cuda" else "memory"
    return f"{num_bytes / 2**30:.1f} GiB of images do not fit {where} ({free / 2**30:.1f} GiB free)"


def free_bytes(device: torch.device) -> int:
    """Free bytes in the memory of a GPU, with those that torch keeps there unused for this process, as after an earlier
    evaluation in a notebook; or free bytes of this machine."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    return free_memory_bytes()


def build(kind: str, split: AnySplit, setting: Setting) -> Pipeline:
    """Build the pipeline ``kind``, one of KINDS. Its module is imported here, so that no other's dependencies are
    needed."""
    if kind == "resident":
        from imnet.data.pipelines.resident import Resident

        return Resident(split, setting)
    if kind == "host":
        from imnet.data.pipelines.host import Host

        return Host(split, setting)
    if kind == "torch":
        from imnet.data.pipelines.plain import Plain

        return Plain(split, setting)
    try:
        from imnet.data.pipelines.dali import Dali
    except ImportError as error:
        raise DeviceError(f"NVIDIA DALI does not load: {error}", hint="pip install -U 'imnet[dali]'") from error
    return Dali(split, setting)
