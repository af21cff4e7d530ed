"""Evaluation, sharded exactly: every test image counts once at any number of ranks, without padded duplicates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from imnet import scores
from imnet.data.order import shard
from imnet.data.pipelines import Pipeline
from imnet.device import Place
from imnet.launch import World

NUM_WORST = 16


def evaluation_batch(batch_images: int) -> int:
    """Images per evaluation batch, for a run that trains on batches of ``batch_images``."""
    return min(1000, max(batch_images, 256))


@dataclass(frozen=True)
class Predictions:
    """The prediction for every image, in the order of the split: (N,) tensors on the CPU."""

    labels: Tensor
    """-1 if the picture could not be decoded."""
    predicted: Tensor
    probability: Tensor
    """Probability of the predicted class."""
    loss: Tensor


@dataclass(frozen=True)
class Evaluation:
    """Counts over a whole split; accuracies are fractions, ``loss`` is the mean cross-entropy."""

    num_images: int
    top1: float
    top5: float
    loss: float
    confusion: scores.Confusion
    support: list[int]
    """Number of images of each class."""
    bins: list[list[float]]
    """Bins of the reliability diagram, each [images, sum of their probabilities, hits]; see ``imnet.scores``."""
    worst: list[dict[str, Any]] = field(default_factory=list)
    """The images of highest loss: index, label, predicted, loss, probability (of the true class)."""
    predictions: Predictions | None = field(default=None, repr=False)
    """On every rank, if ``evaluate`` was called with ``each``."""

    @property
    def per_class(self) -> list[scores.ClassScore]:
        return scores.per_class(self.confusion, self.support)

    @property
    def balanced_accuracy(self) -> float:
        return scores.balanced_accuracy(self.per_class)

    @property
    def macro_f1(self) -> float:
        return scores.macro_f1(self.per_class)

    @property
    def ece(self) -> float:
        """Expected calibration error."""
        return scores.calibration_error(self.bins)

    def figures(self) -> dict[str, Any]:
        """The figures that are single numbers, by name."""
        names = ("num_images", "top1", "top5", "loss", "balanced_accuracy", "macro_f1", "ece")
        return {name: getattr(self, name) for name in names}

    def as_dict(self, class_names: Sequence[str]) -> dict[str, Any]:
        """Everything except ``predictions``, as values for JSON."""
        classes = [{"name": n} | s._asdict() for n, s in zip(class_names, self.per_class, strict=True)]
        lists = {name: getattr(self, name) for name in ("bins", "support", "worst")}
        lists["confusion"] = self.confusion._asdict()
        return self.figures() | {"classes": classes, "class_names": list(class_names)} | lists


@torch.no_grad()
def evaluate(
    net: nn.Module,
    data: Pipeline,
    place: Place,
    world: World,
    num_classes: int,
    batch_images: int,
    *,
    flip: bool = False,
    each: bool = False,
) -> Evaluation:
    """Evaluate ``net`` on all of ``data``. ``flip`` averages the probabilities with those of the mirrored image;
    ``each`` keeps the prediction for every image.

    The head may have more outputs than the set has classes (Tiny ImageNet with 1000 outputs): a prediction beyond the
    classes counts as wrong and is left out of the confusion matrix. An image with label -1 could not be decoded and
    does not count.
    """
    net.eval()
    device = place.device
    mine = shard(torch.arange(len(data)), world.rank, world.size)
    counts = _Counts(num_classes, len(mine), device)
    # A rank without images gets no batch: torch would split an empty tensor into one empty piece.
    pieces = mine.split(batch_images) if len(mine) else ()
    for start, (images, labels) in zip(range(0, len(mine), batch_images), data.stream(pieces, 0, False), strict=True):
        counts.add(start, _log_probabilities(net, images, place, flip), labels)
    for tensor in (counts.sums, counts.support, counts.bins):
        world.all_reduce(tensor)
    loss, top1, top5, total = counts.sums.tolist()
    return Evaluation(
        num_images=int(total),
        top1=top1 / total,
        top5=top5 / total,
        loss=loss / total,
        confusion=counts.confusion(mine, len(data), world),
        support=counts.support.tolist(),
        bins=counts.bins.T.tolist(),
        worst=_worst(counts, mine, world),
        predictions=counts.predictions(mine, len(data), world) if each else None,
    )


class _Counts:
    """One rank's sums over its ``num_images``, kept on the device, so that the host waits only once, at the end."""

    def __init__(self, num_classes: int, num_images: int, device: torch.device):
        self.num_classes = num_classes
        self.sums = torch.zeros(4, dtype=torch.float64, device=device)
        """(4,): sum of losses, top-1 hits, top-5 hits, images."""
        self.support = torch.zeros(num_classes, dtype=torch.int64, device=device)
        self.bins = torch.zeros(3, scores.BINS, dtype=torch.float64, device=device)
        self.losses, self.probability = torch.zeros(2, num_images, device=device)
        self.labels, self.predicted = torch.zeros(2, num_images, dtype=torch.int64, device=device)

    def add(self, start: int, log_p: Tensor, labels: Tensor) -> None:
        """Add a batch: log-probabilities (B, outputs) and labels (B,) of this rank's images from ``start`` on."""
        rows = slice(start, start + len(labels))
        seen = labels >= 0
        loss = F.nll_loss(log_p, labels, reduction="none", ignore_index=-1)
        best = log_p.topk(min(5, log_p.shape[1]))
        probability = best.values[:, 0].exp()
        # topk ranks NaN above every number. An image with NaN scores gets the index after the last output: a miss.
        known = ~probability.isnan()
        top = torch.where(known, best.indices[:, 0], log_p.shape[1])
        hit = (best.indices == labels[:, None]) & known[:, None]
        right = hit[:, 0].double()
        self.sums += torch.stack([loss.double().sum(), right.sum(), hit.sum().double(), seen.double().sum()])
        self.support += torch.bincount(labels + 1, minlength=self.num_classes + 1)[1:]
        self.bins += _binned(probability.double(), right, seen)
        self.losses[rows], self.probability[rows] = loss, probability
        self.labels[rows], self.predicted[rows] = labels, top

    def confusion(self, ids: Tensor, num_images: int, world: World) -> scores.Confusion:
        """Confusion matrix over all ranks; this rank has seen the images ``ids`` out of ``num_images``."""
        n = self.num_classes
        cell = torch.where((self.labels >= 0) & (self.predicted < n), self.labels * n + self.predicted, -1)
        cells, images = _of_all(cell, ids, num_images, world).unique(return_counts=True)
        real = cells >= 0
        columns = (cells[real] // n, cells[real] % n, images[real])
        return scores.Confusion(*(column.tolist() for column in columns))

    def predictions(self, ids: Tensor, num_images: int, world: World) -> Predictions:
        """Predictions of all ranks; the arguments are those of ``confusion``."""
        mine = (self.labels, self.predicted, self.probability, self.losses)
        return Predictions(*(_of_all(column, ids, num_images, world).cpu() for column in mine))


def _of_all(mine: Tensor, ids: Tensor, num_images: int, world: World) -> Tensor:
    """Combine every rank's values ``mine`` for its images ``ids`` into one tensor (num_images,)."""
    whole = mine.new_zeros(num_images)
    whole[ids.to(whole.device)] = mine
    world.all_reduce(whole)  # a sum: this rank's tensor is zero at the other ranks' images
    return whole


def _binned(probability: Tensor, right: Tensor, seen: Tensor) -> Tensor:
    """Return (3, bins): for each bin the images, the sum of ``probability`` (B,) and the hits ``right`` (B,), over the
    images that are ``seen`` (B,)."""
    number = (probability * scores.BINS).ceil().clamp(1, scores.BINS) - 1
    # Sums over masks rather than a weighted bincount, which adds in no fixed order on a GPU.
    inside = (number[:, None] == torch.arange(scores.BINS, device=number.device)).double()
    weights = torch.stack([torch.ones_like(right), probability, right]) * seen
    return (weights[:, :, None] * inside).sum(1)


def _log_probabilities(net: nn.Module, images: Tensor, place: Place, flip: bool) -> Tensor:
    with place.autocast:
        logits = net(images)
        mirrored = net(images.flip(3)) if flip else None
    plain = logits.float().log_softmax(1)
    if mirrored is None:
        return plain
    return torch.stack([plain, mirrored.float().log_softmax(1)]).logsumexp(0) - torch.tensor(2.0).log()


def _worst(counts: _Counts, ids: Tensor, world: World) -> list[dict[str, Any]]:
    order = counts.losses.argsort(descending=True, stable=True)
    order = order[counts.labels[order] >= 0][:NUM_WORST].cpu()
    rows = [
        {
            "index": int(ids[i]),
            "label": int(counts.labels[i]),
            "predicted": int(counts.predicted[i]),
            "loss": float(counts.losses[i]),
            "probability": float((-counts.losses[i]).exp()),
        }
        for i in order.tolist()
    ]
    if world.size > 1:
        gathered: list[Any] = [None] * world.size
        dist.all_gather_object(gathered, rows, group=world.group)
        rows = [row for part in gathered for row in part]
    # A NaN loss counts as the worst; NaN itself cannot be sorted.
    return sorted(rows, key=lambda r: (-math.inf if math.isnan(r["loss"]) else -r["loss"], r["index"]))[:NUM_WORST]
