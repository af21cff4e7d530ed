"""The protocol of the four pipelines: ``for images, labels in pipeline.epoch(e, start_step)``.

All give the same batches for the same (seed, epoch, step), up to rounding: order and augmentation are pure functions of
(seed, epoch, sample id), so a pipeline holds no state to save and starts anywhere at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from imnet.augmentation import Augment
from imnet.data.base import AnySplit
from imnet.data.batches import as_tensor
from imnet.data.encoded import Decoder
from imnet.data.order import Order, shard

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What every pipeline is made from, beside its split.

    ``mean`` is the mean image (H, W, C) of x/255 where the recipe subtracts one; ``order`` (needed by ``epoch`` only)
    with ``rank`` and ``num_ranks`` says which images this process sees when; ``workers`` is the threads that prepare
    batches (where the pipeline has any), ``ahead`` how many batches lie ready, ``on_bad`` (stop | skip) what becomes of
    pictures that cannot be decoded.
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


class Pipeline(ABC):
    """Batches of one split on a device: images (B, C, H, W) channels_last in ``dtype``, labels (B,) int64."""

    kind: ClassVar[str]
    decoder: Decoder | None = None
    """What decodes pictures kept encoded; it knows which were bad."""

    def __init__(self, split: AnySplit, setting: Setting):
        self.split, self.setting = split, setting
        self.labels = as_tensor(split.labels).to(setting.device)

    def __len__(self) -> int:
        return len(self.split)

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
        steps = range(start_step, order.steps_per_epoch)
        return self.stream((shard(order.batch(ids, i), s.rank, s.num_ranks) for i in steps), epoch, train=True)

    @abstractmethod
    def stream(self, pieces: Iterable[Tensor], epoch: int, train: bool) -> Generator[Batch, None, None]:
        """A batch for each piece, ids (B,) int64 on the CPU, in order. Without ``train`` nothing is random."""
