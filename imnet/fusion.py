"""Fuses the networks of an ensemble by a weighted sum of their LOGITS, before any softmax.

geometric: networks are ranked by accuracy, and the one of rank i (from 0) has weight p (1 - p)^i; average: all weights
are equal; fitted: the weights that minimise the cross-entropy of the sum. All but the fitted weights are normalised to
sum 1. Source: YangletLiu/Tensor_Layer_Neural_Networks (document 004), whose default p is 0.3; the fit is our own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

DEFAULT_P = 0.3
GRID = tuple(i / 10 for i in range(1, 10))
"""Values of p that ``choose`` tries."""
RIDGE = 1e-3
"""How strongly ``fit`` pulls to the average. Without it, networks that make no mistake would have no optimal weights:
larger ones would always give a smaller loss."""


@dataclass(frozen=True)
class Score:
    """Accuracies as fractions, and the mean cross-entropy."""

    top1: float
    top5: float
    loss: float
    num_images: int


@dataclass(frozen=True)
class Choice:
    """The chosen networks by rank, and the p of their geometric weights."""

    ranked: tuple[int, ...]
    p: float

    def weights(self, num: int) -> Tensor:
        """fp64 (num,) weights; 0 for networks that were left out."""
        weights = torch.zeros(num, dtype=torch.float64)
        weights[list(self.ranked)] = geometric(len(self.ranked), self.p)
        return weights


def geometric(num: int, p: float) -> Tensor:
    """fp64 (num,) weights p (1 - p)^rank, normalised; ValueError unless 0 < p < 1."""
    if not 0 < p < 1:
        raise ValueError(f"got p = {p:g}; allowed: between 0 and 1; 0.3 is the document's")
    weights = p * (1 - p) ** torch.arange(num, dtype=torch.float64)
    return weights / weights.sum()


def fuse(logits: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum, fp64 (N, C), of logits (K, N, C) with weights (K,); one network at a time to save memory."""
    total = torch.zeros(logits.shape[1:], dtype=torch.float64)
    for one, weight in zip(logits, weights.tolist(), strict=True):
        if weight:
            total.add_(one, alpha=weight)
    return total


def score(logits: Tensor, labels: Tensor) -> Score:
    """The score of logits (N, C) for labels (N,); NaN never counts as a hit."""
    best = logits.topk(min(5, logits.shape[1]))
    hits = (best.indices == labels[:, None]) & ~best.values.isnan()  # topk ranks NaN above every number
    loss = F.cross_entropy(logits.double(), labels).item()
    return Score(hits[:, 0].double().mean().item(), hits.any(1).double().mean().item(), loss, len(labels))


def rank(logits: Tensor, labels: Tensor) -> tuple[int, ...]:
    """Indices of the networks by falling accuracy of their logits (K, N, C); ties keep their order."""
    top1 = [score(one, labels).top1 for one in logits]
    return tuple(sorted(range(len(top1)), key=lambda k: -top1[k]))


def choose(logits: Tensor, labels: Tensor) -> Choice:
    """Choose how many of the best networks to use, and p from GRID: the pair whose fused logits (K, N, C) have the best
    accuracy, and of equal ones the least loss."""
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
    """fp64 (K,) weights of logits (K, N, C) that minimise the cross-entropy plus RIDGE times the weights' squared
    distance from the average. The problem is strictly convex, so there is one answer."""
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
