"""How an ensemble's logits are fused, against plain NumPy and SciPy."""

from itertools import product

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import log_softmax

from imnet import fusion


def case(num=5, images=400, classes=7, seed=0):
    """Returns logits (num, images, classes) of networks that differ in accuracy, and labels (images,)."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=images)
    noise = rng.normal(size=(num, images, classes)).astype(np.float32)
    hints = np.eye(classes, dtype=np.float32)[labels] * rng.permutation(num)[:, None, None] * 0.3
    return torch.from_numpy(noise + hints), torch.from_numpy(labels)


def top1(logits, labels):
    return np.mean(np.argmax(logits, 1) == labels)


def cross_entropy(logits, labels):
    return -log_softmax(logits, 1)[np.arange(len(labels)), labels].mean()


def by_hand(logits, ranked, p):
    """sum_i p (1 - p)^i logits[ranked[i]] / sum_i p (1 - p)^i."""
    weights = [p * (1 - p) ** i for i in range(len(ranked))]
    return sum(w * logits[k].astype(np.float64) for w, k in zip(weights, ranked, strict=True)) / sum(weights)


@pytest.mark.parametrize("p", [0.3, 0.8])
def test_geometric_weights_are_the_documents(p):
    logits, labels = case()
    plain, truth = logits.numpy(), labels.numpy()
    ranked = sorted(range(5), key=lambda k: -top1(plain[k], truth))
    assert list(fusion.rank(logits, labels)) == ranked
    fused = fusion.fuse(logits, fusion.Choice(tuple(ranked), p).weights(5))
    np.testing.assert_allclose(fused.numpy(), by_hand(plain, ranked, p), rtol=1e-12)
    got = fusion.score(fused, labels)
    assert got.top1 == top1(by_hand(plain, ranked, p), truth)
    fives = np.argsort(-by_hand(plain, ranked, p), 1)[:, :5]
    assert got.top5 == np.mean((fives == truth[:, None]).any(1))
    assert got.loss == pytest.approx(cross_entropy(by_hand(plain, ranked, p), truth), rel=1e-12)


def test_the_average_is_the_mean():
    logits, _ = case()
    weights = torch.full((5,), 0.2, dtype=torch.float64)
    np.testing.assert_allclose(
        fusion.fuse(logits, weights).numpy(), logits.numpy().mean(0, dtype=np.float64), 1e-9, 1e-9
    )


@pytest.mark.parametrize("seed", range(12))
def test_the_choice_is_the_best_of_all_that_are_tried(seed):
    logits, labels = case(images=60, seed=seed)  # few, so that accuracies are often equal
    plain, truth = logits.numpy(), labels.numpy()
    ranked = sorted(range(5), key=lambda k: -top1(plain[k], truth))
    tenths = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    tried = [by_hand(plain, ranked[:num], p) for num, p in product(range(1, 6), tenths)]
    chosen = fusion.choose(logits, labels)
    assert chosen.p in tenths
    assert list(chosen.ranked) == ranked[: len(chosen.ranked)]

    def goodness(fused):  # the lowest loss decides between equal accuracies
        return top1(fused, truth), -cross_entropy(fused, truth)

    best, got = max(map(goodness, tried)), goodness(by_hand(plain, chosen.ranked, chosen.p))
    assert got == pytest.approx(best, rel=1e-9)


def test_the_document_weighs_the_best_by_three_tenths():
    assert fusion.DEFAULT_P == 0.3


def test_fitted_weights_are_scipys():
    logits, labels = case()
    plain, truth = logits.numpy().astype(np.float64), labels.numpy()

    def loss(w):
        return cross_entropy(np.tensordot(w, plain, 1), truth) + 0.001 * np.sum((w - 1 / 5) ** 2)

    best = minimize(loss, np.zeros(5), method="BFGS", options={"gtol": 1e-7})
    np.testing.assert_allclose(fusion.fit(logits, labels).numpy(), best.x, atol=2e-5)


def test_networks_without_a_mistake_have_weights_too():
    labels = case()[1]
    sure = torch.nn.functional.one_hot(labels, 7).float().expand(3, -1, -1) * 50
    assert torch.isfinite(fusion.fit(sure, labels)).all()


@pytest.mark.parametrize("p", [0.0, 1.0, -0.1, 2.0])
def test_p_is_a_share(p):
    with pytest.raises(ValueError, match="between 0 and 1"):
        fusion.geometric(4, p)
