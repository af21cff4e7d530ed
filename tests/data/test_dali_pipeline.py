"""DALI on sets of pixels: its batches equal the resident pipeline's to the bit; its threads end; graphs are reused."""

import gc
import os
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from imnet.data import pipelines
from imnet.data.base import Split
from imnet.data.order import Order
from imnet.recipe import Augment
from tests.data.test_pipeline import AUGMENTS, PLAIN, pictures, setting

pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed (extra: dali)")

RESIZED = replace(PLAIN, resize_px=30, crop_px=28)
CASES = AUGMENTS | {
    "reflect": replace(PLAIN, crop_pad_mode="reflect"),
    "shrink": RESIZED,
    "enlarge": replace(PLAIN, resize_px=44, resize_eval_px=48, crop_px=40),
    "resized crop": replace(PLAIN, crop_px=24, crop_scale=(0.1, 1.0)),
    "jitter": replace(PLAIN, color_jitter=(0.2, 0.3, 0.4, 0.0)),
    "hue": replace(PLAIN, color_jitter=(0.2, 0.2, 0.2, 0.1)),
    "trivial": replace(PLAIN, trivial_augment=True),
}


def dali_and_resident(split, options):
    return pipelines.build("dali", split, options), pipelines.build("resident", split, options)


def differences(got, want):
    """|difference| of every value, after asserting that labels, shapes, dtypes and memory layout agree."""
    assert len(got) == len(want)
    found = []
    for (x, labels), (y, wanted) in zip(got, want, strict=True):
        assert torch.equal(labels, wanted)
        assert (x.shape, x.dtype) == (y.shape, y.dtype)
        assert x.is_contiguous(memory_format=torch.channels_last)
        found.append((x.float() - y.float()).abs().flatten())
    return torch.cat(found)


@pytest.mark.parametrize("name", CASES)
def test_batches_are_those_of_the_resident_pipeline(name):
    split = pictures(130, 40)
    options = replace(setting(split, CASES[name], workers=2), order=Order(130, 64, 3, drop_last=False))
    dali, resident = dali_and_resident(split, options)
    for epoch, start in ((0, 0), (1, 1)):
        assert differences(list(dali.epoch(epoch, start)), list(resident.epoch(epoch, start))).max() == 0
    pieces = torch.arange(130).split(50)
    assert differences(*(list(p.stream(pieces, 0, False)) for p in (dali, resident))).max() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_one_channel_in_half_precision_and_evaluation(dtype):
    split = pictures(37, 28, channels=1)
    augment = Augment(crop_pad_px=4, hflip="random", cutout_px=16, mean=(0.286,), std=(0.353,))
    dali, resident = dali_and_resident(split, setting(split, augment, dtype))
    for train in (True, False):
        pieces = torch.arange(37).split(10)
        assert differences(*(list(p.stream(pieces, 4, train)) for p in (dali, resident))).max() == 0


def test_several_bands_at_once_are_those_of_the_resident_pipeline():
    split = pictures(30, 40)
    options = setting(split, AUGMENTS["band"], workers=2)
    dali, resident = (p.of_bands((0, 5)) for p in dali_and_resident(split, options))
    for (x, _), (y, _) in zip(dali.epoch(0), resident.epoch(0), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 20])  # some of twenty ranks get no image of any batch
def test_every_image_once_an_epoch_at_any_world_size(num_ranks):
    count = 53
    numbered = np.zeros((count, 4, 4, 1), dtype=np.uint8) + np.arange(count, dtype=np.uint8)[:, None, None, None]
    split = Split(numbered, np.arange(count))
    seen = [[] for _ in range(4)]
    for rank in range(num_ranks):
        options = setting(split, Augment(std=(1 / 255,)), rank=rank, num_ranks=num_ranks, workers=2)
        for step, (x, labels) in enumerate(pipelines.build("dali", split, options).epoch(5)):
            assert torch.equal(x[:, 0, 0, 0].round().long(), labels)
            seen[step] += labels.tolist()
    assert [n for step in seen for n in step] == Order(count, 16, 3, drop_last=False).epoch(5).tolist()


def num_threads():
    return len(os.listdir("/proc/self/task"))


def falls_to(most):
    """Whether at most ``most`` threads are left within 5 s: the kernel lists a thread briefly after its join."""
    until = time.monotonic() + 5
    while num_threads() > most and time.monotonic() < until:
        time.sleep(0.01)
    return num_threads() <= most


def test_a_graph_serves_every_epoch_and_ends_with_its_threads_when_left():
    split = pictures(60, 12)
    pipeline = pipelines.build("dali", split, setting(split, PLAIN, workers=8))
    gc.collect()
    before = num_threads() + 3  # the libraries start one or two threads that stay
    list(pipeline.epoch(0))
    first = pipeline._idle[True].graph
    kept = num_threads()
    assert kept >= before + 5
    want = [x.clone() for x, _ in pipeline.epoch(1)]
    assert pipeline._idle[True].graph is first
    assert falls_to(kept + 3)
    batches = pipeline.epoch(2)
    next(batches)
    del first
    batches.close()
    assert falls_to(before)
    assert all(torch.equal(x, y) for (x, _), y in zip(pipeline.epoch(1), want, strict=True))
    two = [pipeline.epoch(1), pipeline.epoch(1)]
    for (x, _), (y, _), z in zip(*two, want, strict=True):
        assert torch.equal(x, z)
        assert torch.equal(y, z)
    del pipeline, two
    gc.collect()
    assert falls_to(before)


def test_batches_may_grow_and_keep_their_values():
    split = pictures(60, 12)
    dali, resident = dali_and_resident(split, setting(split, PLAIN))
    pieces = torch.arange(60).split([3, 3, 20, 1, 33])
    assert differences(list(dali.stream(pieces, 0, True)), list(resident.stream(pieces, 0, True))).max() == 0


def test_an_error_in_making_a_feed_comes_out_at_its_place():
    split = pictures(60, 12)
    pipeline = pipelines.build("dali", split, setting(split, PLAIN))

    batches = pipeline.stream([*torch.arange(30).split(10), torch.zeros(1, 1, dtype=torch.int64)], 0, True)
    assert [len(next(batches)[1]) for _ in range(3)] == [10, 10, 10]
    with pytest.raises(IndexError):
        next(batches)
    assert len(list(pipeline.stream(torch.arange(60).split(30), 0, True))) == 2


def test_what_a_gpu_runs_in_place_of_pillow():
    from imnet.data.pipelines.dali_pictures import box_resize_on_device

    rng = np.random.default_rng(1)
    for height, width in ((40, 30), (24, 24), (17, 90), (10, 11)):
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        got = box_resize_on_device(torch.from_numpy(pixels), 24).int().numpy()
        want = np.asarray(Image.fromarray(pixels).resize((24, 24), Image.Resampling.BOX)).astype(int)
        assert np.abs(got - want).max() <= 1


_BESIDE = """
import torch
from torch.nn import functional as F
a = torch.randn(1, 1, 96, 96, generator=torch.Generator().manual_seed(0))

def state():
    loaded = [line.split("/")[-1] for line in open("/proc/self/maps") if " r-xp " in line]
    runtimes = sum(name.startswith(("libgomp", "libomp", "libiomp")) for name in loaded)
    return torch.get_num_threads(), runtimes, (a @ a).sum(), F.conv2d(a, a[:, :, :3, :3]).sum()

before = state()
import numpy as np
from nvidia.dali import fn, pipeline_def
@pipeline_def(batch_size=4, num_threads=2, device_id=None)
def graph():
    x = fn.external_source(lambda: np.zeros((4, 9, 9, 3), np.uint8), batch=True, layout="HWC")
    return fn.resize(x, size=[5, 5])
made = graph()
made.run()
assert before == state(), (before, state())
"""


def test_dali_beside_torch_brings_no_openmp_and_changes_no_numbers():
    done = subprocess.run([sys.executable, "-c", _BESIDE], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["plain", "mean image", "reflect", "shrink", "jitter", "trivial"])
def test_on_a_gpu_as_on_the_cpu(name):
    split = pictures(130, 40)
    options = setting(split, CASES[name])
    on_gpu, resident = dali_and_resident(split, replace(options, device=torch.device("cuda", 0)))
    assert differences(list(on_gpu.epoch(0)), list(resident.epoch(0))).max() == 0
    got = [(x.cpu(), y.cpu()) for x, y in on_gpu.epoch(1)]
    difference = differences(got, list(pipelines.build("resident", split, options).epoch(1)))
    # A value half-way between two levels may round differently on another device.
    assert difference.max() <= 1 / (255 * min(CASES[name].std)) + 1e-5
