"""All pipelines prepare the same batch for the same (seed, epoch, step)."""

import itertools
import threading
import time
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from imnet_kernels.philox import STREAM_ORDER

from imnet.data import pipelines
from imnet.data.base import Split
from imnet.data.order import Order
from imnet.data.pipelines import Setting, erasing, recolor, transforms
from imnet.data.pipelines.batches import mean_image
from imnet.data.pipelines.draws import Key
from imnet.data.pipelines.host import ahead
from imnet.errors import DeviceError
from imnet.recipe import Augment

CPU = torch.device("cpu")
PLAIN = Augment(crop_pad_px=4, hflip="alternating", cutout_px=9, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
EVERYTHING = replace(
    PLAIN, crop_pad_mode="reflect", hflip="random", resize_px=44, crop_px=40, cutout_px=8,
    color_jitter=(0.2, 0.2, 0.2, 0.1), trivial_augment=True,
)  # fmt: skip
AUGMENTS = {
    "plain": PLAIN,
    "cutout inside": replace(PLAIN, cutout_inside=True, cutout_px=8, hflip="random"),
    "mean image": replace(PLAIN, mean="image"),
    "everything": EVERYTHING,
    "rand and erasing": replace(PLAIN, rand_augment_ops=2, random_erasing_p=0.7),
    "band": replace(EVERYTHING, cutout_px=0, spectral_r=4, spectral_band=5, spectral_std=(0.3,)),
}


def pictures(count=50, px=40, channels=3, seed=0):
    rng = np.random.default_rng(seed)
    return Split(rng.integers(0, 256, (count, px, px, channels), dtype=np.uint8), np.arange(count) % 5)


def setting(split, augment, dtype=torch.float32, **changes):
    mean = mean_image(split) if augment.mean == "image" else None
    order = Order(len(split), 16, 3, drop_last=False)
    return Setting(augment=augment, seed=3, device=CPU, dtype=dtype, mean=mean, order=order, **changes)


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("name", AUGMENTS)
@pytest.mark.parametrize("kind", ["host", "torch"])
def test_batches_are_those_of_the_resident_pipeline(kind, name, workers):
    split, augment = pictures(), AUGMENTS[name]
    options = setting(split, augment, workers=workers)
    # Torch's sums may round to the next level, a difference that a later operation may enlarge.
    share = 0.005 if kind == "torch" and name in ("everything", "band", "rand and erasing") else 0.0
    for epoch, start in ((0, 0), (1, 2)):
        want = list(pipelines.build("resident", split, options).epoch(epoch, start))
        got = list(pipelines.build(kind, split, options).epoch(epoch, start))
        assert [len(labels) for _, labels in got] == [16, 16, 16, 2][start:]
        for (x, labels), (y, wanted) in zip(got, want, strict=True):
            assert torch.equal(labels, wanted)
            assert x.is_contiguous(memory_format=torch.channels_last)
            assert ((x - y).abs() > 2e-6).float().mean() <= share
            assert kind == "torch" or torch.equal(x, y)


@pytest.mark.parametrize("kind", ["host", "torch"])
def test_one_channel_bf16_and_evaluation(kind):
    split = pictures(37, 28, channels=1)
    augment = Augment(crop_pad_px=4, hflip="random", cutout_px=16, mean=(0.286,), std=(0.353,))
    options = setting(split, augment, torch.bfloat16)
    for train in (True, False):
        pieces = torch.arange(37).split(10)
        got, want = (pipelines.build(k, split, options).stream(pieces, 4, train) for k in (kind, "resident"))
        for (x, labels), (y, wanted) in zip(got, want, strict=True):
            assert x.dtype == torch.bfloat16
            assert torch.equal(labels, wanted)
            torch.testing.assert_close(x, y, rtol=0.008, atol=1e-3)


@pytest.mark.parametrize("kind", ["resident", "host", "torch"])
@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4, 7, 20])  # some of seven ranks get no image of a last batch of five
def test_every_image_once_an_epoch_at_any_world_size_and_number_of_workers(kind, num_ranks):
    """Each image's pixels are its number; the images of all ranks together must be in the epoch's order."""
    count = 53
    numbered = np.zeros((count, 4, 4, 1), dtype=np.uint8) + np.arange(count, dtype=np.uint8)[:, None, None, None]
    split = Split(numbered, np.arange(count))
    augment = Augment(mean=(0.0,), std=(1 / 255,))
    for workers, epoch in itertools.product((1, 2, 3), (0, 5)):
        seen = [[] for _ in range(4)]
        for rank in range(num_ranks):
            options = setting(split, augment, rank=rank, num_ranks=num_ranks, workers=workers)
            for step, (x, labels) in enumerate(pipelines.build(kind, split, options).epoch(epoch)):
                assert torch.equal(x[:, 0, 0, 0].round().long(), labels)
                seen[step] += labels.tolist()
        order = Order(count, 16, 3, drop_last=False)
        assert [n for step in seen for n in step] == order.epoch(epoch).tolist()


def test_auto_says_why(monkeypatch):
    split = pictures(4)
    assert pipelines.choose("auto", [split, split], CPU) == ("resident", "0.00 GiB fit cpu")
    monkeypatch.setattr("imnet.data.pipelines.free_bytes", lambda device: 2**10)
    kind, reason = pipelines.choose("auto", [split], CPU)
    assert kind == "host"
    assert "do not fit" in reason
    with pytest.raises(DeviceError, match="--pipeline host"):
        pipelines.build("resident", split, setting(split, PLAIN))


def test_an_iterator_left_in_the_middle_ends_its_threads():
    before = threading.active_count()
    split = pictures()
    batches = pipelines.build("host", split, setting(split, PLAIN, workers=3)).epoch(0)
    next(batches)
    assert threading.active_count() > before
    batches.close()
    assert threading.active_count() == before


def test_ahead_keeps_the_order_bounds_what_is_ready_and_passes_errors_on():
    started = []

    def work(n):
        started.append(n)
        time.sleep(0.02 * (n % 3))
        if n == 7:
            raise ValueError("seven")
        return n

    results = ahead(work, iter(range(100)), 2, 3)
    assert [next(results) for _ in range(7)] == list(range(7))
    assert max(started) <= 7 + 3
    with pytest.raises(ValueError, match="seven"):
        next(results)
    assert len(started) < 20


@pytest.mark.parametrize("kind", ["resident", "host", "torch"])
def test_an_epoch_entered_in_the_middle_is_the_rest_of_it(kind):
    split = pictures()
    options = setting(split, AUGMENTS["rand and erasing"])
    whole = list(pipelines.build(kind, split, options).epoch(2))
    for (x, labels), (y, wanted) in zip(pipelines.build(kind, split, options).epoch(2, 2), whole[2:], strict=True):
        assert torch.equal(x, y)
        assert torch.equal(labels, wanted)
    plain = setting(split, replace(AUGMENTS["rand and erasing"], random_erasing_p=0.0))
    assert not all(
        torch.equal(x, y) for (x, _), (y, _) in zip(whole, pipelines.build(kind, split, plain).epoch(2), strict=True)
    )


@dataclass(frozen=True)
class Watched(Key):
    """A key that records the numbers of the random streams that are read from it."""

    streams: list[int] = field(default_factory=list)

    def words(self, stream):
        self.streams.extend([stream] if isinstance(stream, int) else stream)
        return super().words(stream)


def test_no_two_choices_read_the_same_stream():
    """Two choices from one stream would be equal draws: a crop's position would determine its brightness."""
    key = Watched(torch.arange(500), 1, 2)
    sizes = torch.full((500,), 64)
    transforms.draw_crop(40, 40, 32, key)
    transforms.draw_resized_crop(sizes, sizes, (0.08, 1.0), key)
    recolor.draw_jitter((0.1,) * 4, key)
    recolor.draw_trivial(key)
    recolor.rounds(Augment(rand_augment_ops=16), (40, 40), key)
    erasing.draw_boxes(64, 3, 1.0, key)  # boxes so narrow that all attempts are used
    assert len(key.streams) == 1 + 10 + 2 + 1 + 16 + 11
    assert len(set(key.streams)) == len(key.streams)
    assert min(key.streams) > STREAM_ORDER


@pytest.mark.parametrize("r", [2, 4])
def test_the_kernels_make_a_band_the_same_beside_any_other(r):
    images = torch.randint(0, 256, (3, 3, 24, 24), dtype=torch.uint8)
    augment = Augment(mean=(0.4, 0.5, 0.6), spectral_r=r, spectral_std=(0.3,))
    wanted = (r * r - 1, 0, 2)
    made = transforms.band(images, augment, *transforms.band_statistics(augment, 3, wanted), torch.float32, wanted)
    for i, band in enumerate(wanted):
        one = replace(augment, spectral_band=band)
        alone = transforms.band(images, one, *transforms.band_statistics(one, 3), torch.float32)
        assert torch.equal(made[:, i], alone)
        assert made[:, i].is_contiguous(memory_format=torch.channels_last)
