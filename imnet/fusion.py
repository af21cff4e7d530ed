"""How the networks of an ensemble become one: their LOGITS, weighted and summed, before any softmax.

geometric: networks are ranked by accuracy, and that of rank i (counted from 0) weighs p (1 - p)^i; average: all the
same; fitted: the weights that minimise the cross-entropy of the sum. Weights are normalised to the sum 1, but for the
fitted ones. Source: YangletLiu/Tensor_Layer_Neural_Networks (document 004), whose default p is 0.3; the fit is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

DEFAULT_P = 0.3
GRID = tuple(i / 10 for i in range(1, 10))
"""Values of p that ``choose`` tries."""
RIDGE = 1e-3
"""Pull of ``fit`` to the average: without it the weights of networks that make no mistake have no smallest loss."""


@dataclass(frozen=True)
class Score:
    """Accuracies as fractions, and the mean cross-entropy."""

    top1: float
    top5: float
    loss: float
    num_images: int


@dataclass(frozen=True)
class Choice:
    """Networks by rank, with p of their weights."""

    ranked: tuple[int, ...]
    p: float

    def weights(self, num: int) -> Tensor:
        """fp64 (num,), 0 for networks that were left out."""
        return spread(self.ranked, geometric(len(self.ranked), self.p), num)


def geometric(num: int, p: float) -> Tensor:
    """fp64 (num,) p (1 - p)^rank, normalised; ValueError unless 0 < p < 1."""
    if not 0 < p < 1:
        raise ValueError(f"got p = {p:g}; allowed: between 0 and 1; 0.3 is the document's")
    weights = p * (1 - p) ** torch.arange(num, dtype=torch.float64)
    return weights / weights.sum()


def spread(ranked: Sequence[int], weights: Tensor, num: int) -> Tensor:
    """fp64 (num,): ``weights`` by rank, each at the place of its network."""
    out = torch.zeros(num, dtype=torch.float64)
    out[list(ranked)] = weights.double()
    return out


def fuse(logits: Tensor, weights: Tensor) -> Tensor:
    """logits (K, N, C), weights (K,) -> their weighted sum, fp64 (N, C); network by network, to spare memory."""
    total = torch.zeros(logits.shape[1:], dtype=torch.float64)
    for one, weight in zip(logits, weights.tolist(), strict=True):
        if weight:
            total.add_(one, alpha=weight)
    return total


def score(logits: Tensor, labels: Tensor) -> Score:
    """Of logits (N, C) and labels (N,); no NaN is right."""
    best = logits.topk(min(5, logits.shape[1]))
    hits = (best.indices == labels[:, None]) & ~best.values.isnan()  # to topk NaN is the largest number
    loss = F.cross_entropy(logits.double(), labels).item()
    return Score(hits[:, 0].double().mean().item(), hits.any(1).double().mean().item(), loss, len(labels))


def rank(logits: Tensor, labels: Tensor) -> tuple[int, ...]:
    """Networks by falling accuracy of their logits (K, N, C); of equal ones the first comes first."""
    top1 = [score(one, labels).top1 for one in logits]
    return tuple(sorted(range(len(top1)), key=lambda k: -top1[k]))


def choose(logits: Tensor, labels: Tensor) -> Choice:
    """Ranking, how many of the best networks and p of GRID: of the best accuracy of their logits (K, N, C), then of the
    least loss."""
    ranked = rank(logits, labels)
    found: list[tuple[float, float, Choice]] = []
    for p in GRID:
        total, weight, sum_of_weights = torch.zeros(logits.shape[1:], dtype=torch.float64), p, 0.0
        for num, network in enumerate(ranked, 1):
            total.add_(logits[network], alpha=weight)
            sum_of_weights += weight
            got = score(total / sum_of_weights, labels)
            found.append((got.top1, -got.loss, Choice(ranked[:num], p)))
            weight *= 1 - p
    return max(found, key=lambda row: row[:2])[2]


def fit(logits: Tensor, labels: Tensor) -> Tensor:
    """fp64 (K,) weights of logits (K, N, C) of least cross-entropy, plus RIDGE times their squared distance from the
    average: a convex problem, so there is one answer."""
    count = len(logits)
    average = torch.full((count,), 1 / count, dtype=torch.float64)
    weights, each = average.clone().requires_grad_(), logits.double()
    solver = torch.optim.LBFGS(
        [weights], max_iter=200, tolerance_grad=1e-9, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def loss() -> float:
        solver.zero_grad()
        value = F.cross_entropy(torch.tensordot(weights, each, 1), labels) + RIDGE * (weights - average).square().sum()
        value.backward()
        return value.item()

    solver.step(loss)
    return weights.detach()
