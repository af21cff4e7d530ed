"""The augment reference against a per-pixel loop written from the definition, and the statistics of its draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from imnet_kernels import augment
from imnet_kernels.augment.reference import Spec, choices

MEAN, STD = (0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821)
PLAIN = {"seed": 0, "epoch": 0, "mean": 0.0, "std": 1 / 255}


def make_store(n=7, height=9, width=12, channels=3):
    generator = torch.Generator().manual_seed(5)
    return torch.randint(1, 256, (n, height, width, channels), dtype=torch.uint8, generator=generator)


def _source(index, size, mode):
    if 0 <= index < size:
        return index
    if mode == "zero":
        return None
    return -index if index < 0 else 2 * (size - 1) - index


def _loop(store, ids, spec, mean, std):
    """Returns the augmented images, (B, H, W, C) float64, computed pixel by pixel."""
    _, height, width, channels = store.shape
    drawn = choices(ids, height, width, spec)
    out = np.zeros((len(ids), height, width, channels))
    for b, sample in enumerate(ids.tolist()):
        dy, dx, flip, y0, x0 = (int(v[b]) for v in drawn)
        for y, x in np.ndindex(height, width):
            if spec.cutout_px and y0 <= y < y0 + spec.cutout_px and x0 <= x < x0 + spec.cutout_px:
                continue
            sy = _source(y + dy - spec.pad_px, height, spec.pad_mode)
            sx = _source((width - 1 - x if flip else x) + dx - spec.pad_px, width, spec.pad_mode)
            inside = sy is not None and sx is not None
            pixel = store[sample, sy, sx].numpy() if inside else np.zeros(channels)
            centre = np.asarray(mean) if np.ndim(mean) < 3 else (mean[sy, sx] if inside else np.zeros(channels))
            out[b, y, x] = (pixel / 255.0 - centre) / np.asarray(std)
    return out


@pytest.mark.parametrize("per_pixel", [False, True])
@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"pad_px": 4, "hflip": "random"},
        {"pad_px": 3, "pad_mode": "reflect", "hflip": "alternating"},
        {"pad_px": 8, "pad_mode": "reflect"},
        {"cutout_px": 4, "pad_px": 2, "hflip": "random", "hflip_p": 0.3},
        {"cutout_px": 5, "cutout_inside": True},
        {"cutout_px": 9, "cutout_inside": True, "hflip": "alternating"},
    ],
)
def test_against_a_loop(kwargs, per_pixel):
    store = make_store()
    ids = torch.tensor([3, 0, 6, 6, 1, 2, 5, 4])
    image = torch.rand(store.shape[1:], generator=torch.Generator().manual_seed(1)) if per_pixel else MEAN
    got = augment(store, ids, seed=11, epoch=3, mean=image, std=STD, **kwargs)
    want = _loop(store, ids, Spec(11, 3, **kwargs), image.numpy() if per_pixel else image, STD)
    assert got.shape == (8, 3, 9, 12)
    assert got.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(got.permute(0, 2, 3, 1).double().numpy(), want, rtol=2e-6, atol=2e-6)


def test_raw_pixels_are_exact():
    store = make_store(channels=1)
    got = augment(store, torch.arange(7), **PLAIN)
    assert torch.equal(got, store.permute(0, 3, 1, 2).float())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dtypes_round_once(dtype):
    store, ids = make_store(), torch.arange(7)
    keys = {"seed": 1, "epoch": 2, "pad_px": 4, "cutout_px": 4, "mean": MEAN, "std": STD}
    assert torch.equal(augment(store, ids, dtype=dtype, **keys), augment(store, ids, **keys).to(dtype))


def test_pure_function_of_sample():
    store, keys = make_store(), {"seed": 1, "epoch": 2, "pad_px": 4, "hflip": "random", "mean": MEAN, "std": STD}
    whole = augment(store, torch.arange(7), **keys)
    parts = torch.cat([augment(store, torch.tensor([i]), **keys) for i in range(7)])
    shard = augment(store[4:].contiguous(), torch.arange(3), sample_ids=torch.arange(4, 7), **keys)
    assert torch.equal(whole, parts)
    assert torch.equal(whole[4:], shard)


def test_alternating_flips_every_second_epoch():
    ids = torch.arange(1000)
    first, second, third = (choices(ids, 8, 8, Spec(4, e, hflip="alternating")).flip for e in (6, 7, 8))
    assert torch.equal(first, 1 - second)
    assert torch.equal(first, third)
    assert 420 < int(first.sum()) < 580


@pytest.mark.parametrize(("size", "cutout", "inside"), [(28, 16, False), (28, 16, True), (9, 5, False), (9, 5, True)])
def test_cutout_positions_cover_the_documented_range(size, cutout, inside):
    from scipy import stats

    drawn = choices(torch.arange(20000), size, size, Spec(1, 2, cutout_px=cutout, cutout_inside=inside))
    low = 0 if inside else -(cutout // 2)
    last = size - cutout if inside else (size if cutout % 2 == 0 else size - 1) - cutout // 2
    for start in (drawn.y0, drawn.x0):
        assert (int(start.min()), int(start.max())) == (low, last)
        assert stats.chisquare(torch.bincount(start - low).numpy()).pvalue > 1e-4


def test_choice_statistics():
    from scipy import stats

    drawn = choices(torch.arange(40000), 32, 32, Spec(7, 1, pad_px=4, hflip="random", hflip_p=0.2, cutout_px=8))
    for offset in (drawn.dy, drawn.dx):
        assert stats.chisquare(torch.bincount(offset, minlength=9).numpy()).pvalue > 1e-4
    assert stats.binomtest(int(drawn.flip.sum()), 40000, 0.2).pvalue > 1e-4
    table = torch.corrcoef(torch.stack([v.double() for v in drawn]))
    assert float((table - torch.eye(5)).abs().max()) < 0.03


def test_flip_probability_edges():
    ids = torch.arange(500)
    assert int(choices(ids, 8, 8, Spec(1, 1, hflip="random", hflip_p=0.0)).flip.sum()) == 0
    assert int(choices(ids, 8, 8, Spec(1, 1, hflip="random", hflip_p=1.0)).flip.sum()) == 500


def test_empty_batch():
    assert augment(make_store(), torch.empty(0, dtype=torch.int64), **PLAIN).shape == (0, 3, 9, 12)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"store": torch.zeros(2, 9, 9, 3)}, TypeError, "uint8"),
        ({"store": torch.zeros(2, 3, 9, 9, dtype=torch.uint8).permute(0, 2, 3, 1)}, TypeError, "contiguous"),
        ({"ids": torch.tensor([0, 7])}, ValueError, "ids span"),
        ({"ids": torch.tensor([-1])}, ValueError, "ids span"),
        ({"ids": torch.tensor([1], dtype=torch.int32)}, TypeError, "int64"),
        ({"ids": torch.tensor([[1]])}, TypeError, "int64"),
        ({"sample_ids": torch.tensor([1, 2, 3])}, ValueError, "sample_ids"),
        ({"seed": -1}, ValueError, "seed"),
        ({"epoch": 1 << 32}, ValueError, "epoch"),
        ({"pad_px": 9}, ValueError, "pad_px"),
        ({"pad_px": -1}, ValueError, "pad_px"),
        ({"pad_mode": "edge"}, ValueError, "pad_mode"),
        ({"hflip": "yes"}, ValueError, "hflip"),
        ({"hflip_p": 1.5}, ValueError, "hflip_p"),
        ({"cutout_px": 10}, ValueError, "cutout_px"),
        ({"mean": (0.1, 0.2)}, ValueError, "mean"),
        ({"mean": torch.zeros(4, 4, 3)}, TypeError, "mean"),
        ({"std": 0.0}, ValueError, "std"),
        ({"dtype": torch.float64}, TypeError, "dtype"),
    ],
)
def test_bad_input_is_named(change, error, match):
    call = {"store": make_store(), "ids": torch.tensor([0, 1]), **PLAIN, **change}
    with pytest.raises(error, match=match):
        augment(call.pop("store"), call.pop("ids"), **call)
