"""The protocol of the four pipelines, ``for images, labels in pipeline.epoch(e, start_step)``, and the choice of one.

All give the same batches for the same (seed, epoch, step), up to rounding: order and augmentation are pure functions of
(seed, epoch, sample id), so a pipeline holds no state to save and starts anywhere at once.
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
from imnet.errors import DeviceError, UsageError
from imnet.resources import free_memory_bytes

KINDS = ("resident", "host", "dali", "torch")
# Share of the free device memory that the images may take; the rest is for the step.
MEMORY_SHARE = 0.6

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What every pipeline is made from, beside its split.

    ``mean`` is the mean image (H, W, C) of x/255 where the recipe subtracts one; ``order`` (needed by ``epoch`` only)
    with ``rank`` and ``num_ranks`` says which images this process sees when; ``workers`` is the threads that prepare
    batches (where the pipeline has any), ``ahead`` how many batches lie ready, ``on_bad`` (stop | skip) what becomes of
    pictures that cannot be decoded. With ``bands`` a batch is made of those spectral bands of each image instead of the
    recipe's one: (B, K, C, h, w), stored band by band.
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
        """What of it ``batches.Finish`` is made from."""
        return {"seed": self.seed, "dtype": self.dtype, "mean": self.mean, "bands": self.bands}


class Pipeline(ABC):
    """Batches of one split on a device: images (B, C, H, W) channels_last in ``dtype``, labels (B,) int64."""

    kind: ClassVar[str]
    decoder: Decoder | None = None
    """What decodes pictures kept encoded; it knows which were bad."""

    def __init__(self, split: AnySplit, setting: Setting):
        self.split, self.setting = split, setting
        self.cpu_labels = as_tensor(split.labels)
        self.labels = self.cpu_labels.to(setting.device)
        self._file = file_of(split.images) if isinstance(split, Split) else None

    def __len__(self) -> int:
        return len(self.split)

    def of_bands(self, bands: tuple[int, ...]) -> Pipeline:
        """The same images, which are not copied, as other spectral ``bands``; see ``Setting``."""
        other = copy.copy(self)
        other.setting = replace(self.setting, bands=bands)
        batches = getattr(self, "batches", None)
        if batches is not None:
            vars(other)["batches"] = batches.of_bands(bands)
        return other

    def check_file(self) -> None:
        """DataError where the packed file of pixels is no longer what it was: after every batch that was read of it."""
        if self._file is not None:
            self._file.check()

    def labels_of_taken(self, taken: Tensor, asked: Tensor, train: bool) -> Tensor:
        """Labels (B,), on the CPU, of the ids that were ``taken``. In evaluation a picture that was left out, in whose
        place another stands, has -1, so that it counts nothing: the other one is judged at its own place."""
        labels = self.cpu_labels[taken % len(self)]
        return labels if train else labels.where(taken == asked.cpu(), -1)

    @property
    def where(self) -> str:
        """Where the images lie, in words, for the header of a run."""
        return "memory"

    def epoch(self, epoch: int, start_step: int = 0) -> Generator[Batch, None, None]:
        """This rank's share of every global batch of the epoch, from ``start_step`` on."""
        order, s = self.setting.order, self.setting
        if order is None:
            raise ValueError("got a pipeline without an order; allowed: Setting(order=...); or call stream")
        ids = order.epoch(epoch)
        pieces = [shard(order.batch(ids, i), s.rank, s.num_ranks) for i in range(start_step, order.steps_per_epoch)]
        batches = self._trained(pieces, epoch)
        return self._erased(batches, pieces, epoch) if s.augment.random_erasing_p else batches

    def _trained(self, pieces: list[Tensor], epoch: int) -> Generator[Batch, None, None]:
        """A batch a piece; an empty one where this rank has no image of a global batch, which DALI could not make."""
        filled = [ids for ids in pieces if len(ids)]
        with contextlib.closing(self.stream(iter(filled), epoch, train=True)) as batches:
            batch = None
            for ids in pieces:
                batch = next(batches) if len(ids) else self._none(epoch) if batch is None else _none_of(batch)
                yield batch
            next(batches, None)  # to its end, where DALI keeps its graph for the next epoch

    def _none(self, epoch: int) -> Batch:
        """A batch of no image, by way of one of one."""
        with contextlib.closing(self.stream(iter([torch.zeros(1, dtype=torch.int64)]), epoch, train=True)) as batches:
            return _none_of(next(batches))

    def _erased(
        self, batches: Generator[Batch, None, None], pieces: list[Tensor], epoch: int
    ) -> Generator[Batch, None, None]:
        """The last thing that is done to a training image, on its device, whichever pipeline made it."""
        s = self.setting
        with contextlib.closing(batches):
            for (images, labels), ids in zip(batches, pieces, strict=True):
                key = Key(ids.cpu(), s.seed, epoch)
                boxes = draw_boxes(images.shape[2], images.shape[3], s.augment.random_erasing_p, key)
                yield erase(images, boxes), labels

    @abstractmethod
    def stream(self, pieces: Iterable[Tensor], epoch: int, train: bool) -> Generator[Batch, None, None]:
        """A batch for each piece, draws (B,) int64 on the CPU, in order. Without ``train`` nothing is random, and a
        label of -1 says that the picture could not be decoded and was left out."""


def _none_of(batch: Batch) -> Batch:
    images, labels = batch
    return images[:0], labels[:0]


def has_dali() -> bool:
    """Whether NVIDIA DALI is installed; it is not imported."""
    return importlib.util.find_spec("nvidia") is not None and importlib.util.find_spec("nvidia.dali") is not None


def choose(kind: str, splits: Sequence[AnySplit], device: torch.device) -> tuple[str, str]:
    """(pipeline, why) for the splits of a run together; ``kind`` is one of KINDS, or auto."""
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
    """None, or why ``num_bytes`` of images should not be kept on ``device``."""
    free = free_bytes(device)
    if num_bytes <= MEMORY_SHARE * free:
        return None
    where = "the device" if device.type == "cuda" else "memory"
    return f"{num_bytes / 2**30:.1f} GiB of images do not fit {where} ({free / 2**30:.1f} GiB free)"


def free_bytes(device: torch.device) -> int:
    """Free memory of a GPU, or of this machine."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return free_memory_bytes()


def build(kind: str, split: AnySplit, setting: Setting) -> Pipeline:
    """The pipeline of that kind; importing it only now spares the others' dependencies."""
    if kind == "resident":
        from imnet.data.pipelines.resident import Resident

        return Resident(split, setting)
    if kind == "host":
        from imnet.data.pipelines.host import Host

        return Host(split, setting)
    if kind == "torch":
        from imnet.data.pipelines.plain import Plain

        return Plain(split, setting)
    if kind == "dali":
        try:
            from imnet.data.pipelines.dali import Dali
        except ImportError as error:
            raise DeviceError(f"NVIDIA DALI does not load: {error}", hint="pip install -U 'imnet[dali]'") from error
        return Dali(split, setting)
    raise UsageError(f"got --pipeline {kind}; allowed: auto, {', '.join(KINDS)}")
