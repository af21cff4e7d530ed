"""Mixup and CutMix: images and targets are mixed with the same share, which is the same again after a resume."""

from dataclasses import replace

import pytest
import torch

from imnet.mixing import Mixing
from imnet.recipes import by_name

BASE = by_name("quickstart")


def batch(count=16, px=12, num_classes=7):
    torch.manual_seed(0)
    labels = torch.arange(count) % num_classes
    # Every pixel of an image is the image's number, so that a mixture shows its parts.
    images = torch.arange(1.0, count + 1)[:, None, None, None].expand(count, 3, px, px)
    return images.contiguous(memory_format=torch.channels_last), labels


def recipe(**changes):
    return replace(BASE, head_outputs=10, data=replace(BASE.data, num_classes=7), **changes)


@pytest.mark.parametrize("kind", ["mixup_alpha", "cutmix_alpha"])
def test_images_and_targets_are_mixed_alike(kind):
    images, labels = batch()
    mixed, targets = Mixing(recipe(**{kind: 1.0}), 0)(images, labels, 3)
    assert mixed.is_contiguous(memory_format=torch.channels_last)
    assert targets.shape == (16, 10)
    torch.testing.assert_close(targets.sum(1), torch.ones(16))
    other = labels.roll(1)
    share = targets[0, labels[0]]
    assert 0 < share < 1
    for i in range(16):
        assert targets[i, labels[i]] == pytest.approx(float(share), abs=1e-6)
        assert targets[i, other[i]] == pytest.approx(1 - float(share), abs=1e-6)
    mean = mixed.mean((1, 2, 3))
    want = share * images[:, 0, 0, 0] + (1 - share) * images.roll(1, 0)[:, 0, 0, 0]
    torch.testing.assert_close(mean, want, rtol=1e-5, atol=1e-4)
    if kind == "cutmix_alpha":
        assert set(mixed[5].unique().tolist()) <= {5.0, 6.0}


def test_it_depends_on_seed_step_and_rank_only_and_leaves_the_generators_alone():
    images, labels = batch()
    both = recipe(mixup_alpha=0.2, cutmix_alpha=1.0)
    first = Mixing(both, 0)(images, labels, 5)[1]
    torch.manual_seed(99)
    before = torch.get_rng_state()
    assert torch.equal(Mixing(both, 0)(images, labels, 5)[1], first)
    assert torch.equal(torch.get_rng_state(), before)
    others = [Mixing(both, 1)(images, labels, 5), Mixing(both, 0)(images, labels, 6)]
    others.append(Mixing(replace(both, seed=1), 0)(images, labels, 5))
    assert not any(torch.equal(targets, first) for _, targets in others)
    boxes = [bool((Mixing(both, 0)(images, labels, s)[0] % 1 == 0).all()) for s in range(60)]
    assert 15 < sum(boxes) < 45  # CutMix keeps the pixels whole numbers, mixup does not


@pytest.mark.parametrize("seed", [20261127, 2**33 + 1, 2**63 - 1])
def test_every_seed_that_a_recipe_takes_mixes_its_own_way(seed):
    """Dates and hashes are used as seeds, but torch's generators take only 64 bits."""
    images, labels = batch()
    both, last = recipe(mixup_alpha=0.2, cutmix_alpha=1.0, seed=seed), 2**20
    found = [Mixing(both, rank)(images, labels, step)[0] for step in (0, 1, last) for rank in (0, 7)]
    found.append(Mixing(replace(both, seed=seed - 1), 0)(images, labels, 0)[0])
    assert not any(torch.equal(a, b) for i, a in enumerate(found) for b in found[:i])
    assert torch.equal(Mixing(both, 0)(images, labels, 0)[0], found[0])


def test_nothing_is_mixed_by_default():
    images, labels = batch()
    assert Mixing(BASE, 0)(images, labels, 0) == (images, labels)


@pytest.mark.parametrize("kind", ["mixup_alpha", "cutmix_alpha"])
def test_a_rank_without_images_has_targets_too(kind):
    """An incomplete last batch may have fewer images than there are ranks."""
    images, labels = batch()
    none, targets = Mixing(recipe(**{kind: 1.0}), 2)(images[:0], labels[:0], 3)
    assert len(none) == 0
    assert targets.shape == (0, 10)
    assert targets.dtype == torch.float32


def test_shares_follow_the_beta_distribution():
    images, labels = batch()
    for alpha, variance in ((1.0, 1 / 12), (0.2, 0.25 / 1.4)):
        mixing = Mixing(recipe(mixup_alpha=alpha), 0)
        shares = torch.stack([mixing(images, labels, s)[1][0, 0] for s in range(1500)])
        assert abs(float(shares.mean()) - 0.5) < 0.05
        assert abs(float(shares.var()) - variance) < 0.02
