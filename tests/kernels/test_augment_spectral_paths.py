"""Paths that only some calls of augment and spectral take: all bands at once, odd values in a mean, dispatch modes."""

from __future__ import annotations

import pytest
import torch
from imnet_kernels import augment, calls, spectral, tier
from imnet_kernels.family import error_ratio
from torch.utils._python_dispatch import TorchDispatchMode

from tests.kernels.tiers import both

host = pytest.importorskip("imnet_kernels._host", reason="the host module is not built")


@pytest.mark.parametrize("r", [2, 4, 6])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("last", [True, False])
def test_every_band_at_once(isa, r, channels, last):
    """Widths of 5 to 23 pixels a band: rows shorter than a vector, with a tail, and at each channel phase."""
    # Seeded, because over so few pixels a single fp16 value that rounds the other way can exceed the tolerance.
    torch.manual_seed(100 * r + 10 * channels + last)
    for width in (5, 16, 23):
        images = torch.randint(0, 256, (2, channels, 2 * r, width * r), dtype=torch.uint8)
        images = images.contiguous(memory_format=torch.channels_last) if last else images
        keys = {"mean": torch.rand(r * r, channels) * 9, "std": torch.rand(r * r, channels) + 0.5}
        for dtype, allowed in ((torch.float32, 1e-6), (torch.bfloat16, 5e-4), (torch.float16, 1e-4)):
            got, want = both(lambda i=images, d=dtype: spectral(i, r, dtype=d))
            assert error_ratio(got, want) <= allowed
            got, want = both(lambda i=images, d=dtype, k=keys: spectral(i, r, dtype=d, **k))
            assert error_ratio(got, want) <= allowed


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e-39, -0.0, 3e38])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_odd_numbers_in_a_mean_round_as_the_reference(isa, value, dtype):
    store = torch.randint(0, 2, (3, 9, 20, 3), dtype=torch.uint8)
    mean = torch.rand(9, 20, 3)
    mean[4, 7:12] = value
    keys = {"seed": 3, "epoch": 1, "pad_px": 2, "hflip": "random", "std": 1.0, "dtype": dtype}
    got, want = both(lambda: augment(store, torch.arange(3), mean=mean, **keys))
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


def test_a_dispatch_mode_sees_the_ops():
    """The shortcut past the dispatcher must not be taken under a dispatch mode, which would then not see the ops."""

    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    seen: list[str] = []
    store, images = torch.zeros(2, 8, 8, 3, dtype=torch.uint8), torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    with tier.using("host"), Names():
        augment(store, torch.arange(2), seed=0, epoch=0, mean=0.5, std=0.5)
        spectral(images, 2)
    assert "imnet.augment.default" in seen
    assert "imnet.spectral.default" in seen
    with tier.using("host"), pytest.raises(ValueError, match=r"ids span 0 \.\. 2; allowed 0 \.\. 1"):
        augment(store, torch.arange(3), seed=0, epoch=0, mean=0.5, std=0.5)


def test_statistics_are_made_once_until_they_are_written_to():
    images, mean = torch.randint(0, 256, (1, 3, 8, 8), dtype=torch.uint8), torch.rand(4)
    made: list[torch.Tensor] = []

    def negative(values):
        made.append(-values)
        return made[-1]

    assert calls.once(negative, mean) is calls.once(negative, mean)
    before = spectral(images, 2, mean=mean)
    mean.add_(1.0)
    calls.once(negative, mean)
    assert len(made) == 2
    torch.testing.assert_close(spectral(images, 2, mean=mean), before - 1.0)
    with torch.inference_mode():
        torch.testing.assert_close(spectral(images, 2, mean=torch.ones(4)), spectral(images, 2, mean=1.0))
