"""Evaluation, sharded exactly: every test image counted once at any number of ranks, no padded duplicates."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from imnet.data.order import shard
from imnet.data.pipelines import Pipeline
from imnet.device import Place
from imnet.launch import World

NUM_WORST = 16


@dataclass(frozen=True)
class Evaluation:
    """Counts over a whole split; accuracies are fractions, ``loss`` is the mean cross-entropy."""

    num_images: int
    top1: float
    top5: float
    loss: float
    confusion: list[list[int]]
    """[true class][predicted class]"""
    worst: list[dict[str, Any]] = field(default_factory=list)
    """The images of highest loss: index, label, predicted, loss, probability (of the true class)."""


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
) -> Evaluation:
    """``net`` over all of ``data``; ``flip`` averages the probabilities with those of the mirror image.

    The head may be wider than the set (Tiny ImageNet with 1000 outputs): a prediction beyond the classes is counted as
    wrong, and left out of the confusion matrix.
    """
    net.eval()
    device = place.device
    mine = shard(torch.arange(len(data)), world.rank, world.size)
    sums = torch.zeros(4, dtype=torch.float64, device=device)
    confusion = torch.zeros(num_classes * num_classes, dtype=torch.int64, device=device)
    losses = torch.zeros(len(mine), device=device)
    predicted = torch.zeros(len(mine), dtype=torch.int64, device=device)
    # No piece for a rank that has no image: a split of nothing is one empty piece.
    pieces = mine.split(batch_images) if len(mine) else ()
    for start, (images, labels) in zip(range(0, len(mine), batch_images), data.stream(pieces, 0, False), strict=True):
        count = len(labels)
        scores = _log_probabilities(net, images, place, flip)
        loss = F.nll_loss(scores, labels, reduction="none")
        best = scores.topk(min(5, scores.shape[1])).indices
        hit = best == labels[:, None]
        batch = torch.stack([loss.double().sum(), hit[:, 0].sum().double(), hit.sum().double(), sums.new_tensor(count)])
        sums += batch
        top = best[:, 0]
        inside = top < num_classes
        confusion += torch.bincount((labels * num_classes + top)[inside], minlength=num_classes * num_classes)
        losses[start : start + count], predicted[start : start + count] = loss, top
    world.all_reduce(sums)
    world.all_reduce(confusion)
    loss, top1, top5, total = sums.tolist()
    table = confusion.view(num_classes, num_classes).tolist()
    worst = _worst(losses, predicted, mine, data.labels, world)
    return Evaluation(int(total), top1 / total, top5 / total, loss / total, table, worst)


def _log_probabilities(net: nn.Module, images: Tensor, place: Place, flip: bool) -> Tensor:
    with place.autocast:
        logits = net(images)
        mirrored = net(images.flip(3)) if flip else None
    scores = logits.float().log_softmax(1)
    if mirrored is None:
        return scores
    return torch.stack([scores, mirrored.float().log_softmax(1)]).logsumexp(0) - torch.tensor(2.0).log()


def _worst(losses: Tensor, predicted: Tensor, ids: Tensor, labels: Tensor, world: World) -> list[dict[str, Any]]:
    order = losses.argsort(descending=True, stable=True)[:NUM_WORST].cpu()
    rows = [
        {
            "index": int(ids[i]),
            "label": int(labels[ids[i]]),
            "predicted": int(predicted[i]),
            "loss": float(losses[i]),
            "probability": float((-losses[i]).exp()),
        }
        for i in order.tolist()
    ]
    if world.size > 1:
        gathered: list[Any] = [None] * world.size
        dist.all_gather_object(gathered, rows)
        rows = [row for part in gathered for row in part]
    return sorted(rows, key=lambda r: (-r["loss"], r["index"]))[:NUM_WORST]
