"""The host module: every instruction set, random shapes against guard pages, forks, threads and a sanitizer build."""

from __future__ import annotations

import ctypes
import mmap
import multiprocessing
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from imnet_kernels import augment, sgd_ema_, shake_shake, spectral, tier
from imnet_kernels.augment.reference import Spec, choices
from imnet_kernels.family import error_ratio

from tests.kernels.tiers import both

host = pytest.importorskip("imnet_kernels._host", reason="the host module is not built")
PAGE = mmap.PAGESIZE
FUZZ = settings(max_examples=60, deadline=None, derandomize=True)
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2e-3, torch.float16: 3e-4}
_kept: list[mmap.mmap] = []


def guarded(values: torch.Tensor) -> torch.Tensor:
    """Returns a copy whose last byte is followed by a page without access rights: reading past the end crashes."""
    size = max(values.numel() * values.element_size(), 1)
    pages = -(-size // PAGE) * PAGE
    region = mmap.mmap(-1, pages + PAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(region))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mprotect(ctypes.c_void_p(start + pages), PAGE, 0) == 0
    _kept.append(region)  # never unmapped: a tensor may outlive its test
    if values.numel() == 0:
        return values
    offset = pages - values.numel() * values.element_size()
    flat = torch.frombuffer(region, dtype=values.dtype, count=values.numel(), offset=offset)
    return flat.view(values.shape).copy_(values)


def test_unknown_isa_is_an_error():
    with pytest.raises(ValueError, match="isa 'mmx'"):
        host.force_isa("mmx")


@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(1, 5)),
    batch=st.integers(1, 4),
    pad=st.integers(0, 39),
    mode=st.sampled_from(["zero", "reflect"]),
    flip=st.sampled_from(["none", "random", "alternating"]),
    cutout=st.integers(0, 40),
    inside=st.booleans(),
    per_pixel=st.booleans(),
    dtype=DTYPES,
    seed=st.integers(0, 2**64 - 1),
)
@FUZZ
def _fuzz_augment(size, batch, pad, mode, flip, cutout, inside, per_pixel, dtype, seed):
    limit = min(size[:2])
    pad, cutout = min(pad, limit - 1), min(cutout, limit)
    store = guarded(torch.randint(0, 256, (3, *size), dtype=torch.uint8))
    mean = guarded(torch.rand(size)) if per_pixel else [0.1 * c for c in range(size[2])]
    std = [0.2 + 0.1 * c for c in range(size[2])]
    ids = torch.randint(0, 3, (batch,))
    keys = {"pad_px": pad, "pad_mode": mode, "hflip": flip, "cutout_px": cutout, "cutout_inside": inside}
    out = guarded(torch.full((batch, *size), float("nan")).to(dtype)).permute(0, 3, 1, 2)
    call = {"seed": seed, "epoch": 9, "mean": mean, "std": std, "dtype": dtype, **keys}
    with tier.using("reference"):
        want = augment(store, ids, **call)
    with tier.using("host"):
        assert augment(store, ids, out=out, **call) is out
    assert torch.equal(out, want)


def test_fuzzed_augment_is_the_reference(isa):
    _fuzz_augment()


@given(
    r=st.sampled_from([2, 4, 6]),
    shape=st.tuples(st.integers(1, 2), st.integers(1, 5), st.integers(1, 4), st.integers(1, 30)),
    last=st.booleans(),
    from_u8=st.booleans(),
    normalise=st.booleans(),
    dtype=DTYPES,
    data=st.data(),
)
@FUZZ
def _fuzz_spectral(r, shape, last, from_u8, normalise, dtype, data):
    batch, channels, h, w = shape
    bands = data.draw(st.lists(st.integers(0, r * r - 1), min_size=1, max_size=r * r + 2))
    sizes = (batch, h * r, w * r, channels) if last else (batch, channels, h * r, w * r)
    values = torch.randint(0, 256, sizes, dtype=torch.uint8)
    images = guarded(values if from_u8 else (values / 255).to(dtype))
    images = images.permute(0, 3, 1, 2) if last else images
    keys = (
        {"mean": torch.rand(len(bands), channels), "std": torch.rand(len(bands), channels) + 0.5} if normalise else {}
    )
    got, want = both(lambda: spectral(images, r, bands, dtype=dtype, **keys))
    assert got.stride() == want.stride()
    # The bands of a flat image are 0 up to rounding, so the error is compared with the input's magnitude as well.
    scale = float(images.double().square().mean().sqrt()) * 2 * r
    error = float((got.double() - want.double()).abs().max())
    assert error <= TOLERANCE[dtype] * 4 * max(scale * (3 if normalise else 1), float(want.double().abs().max()))


def test_fuzzed_spectral_is_the_reference(isa):
    _fuzz_spectral()


@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 40), st.integers(1, 6), st.integers(1, 6)),
    last=st.booleans(),
    per_batch=st.booleans(),
    dtype=DTYPES,
)
@FUZZ
def _fuzz_shake(shape, last, per_batch, dtype):
    order = (0, 2, 3, 1) if last else (0, 1, 2, 3)
    sizes = [shape[i] for i in order]
    tensors = [guarded(torch.randn(sizes).to(dtype)) for _ in range(3)]
    tensors = [(t.permute(0, 3, 1, 2) if last else t).requires_grad_() for t in tensors]
    alpha, beta = torch.rand(1 if per_batch else shape[0]), torch.rand(1 if per_batch else shape[0])
    grad = guarded(torch.randn(sizes).to(dtype))
    grad = grad.permute(0, 3, 1, 2) if last else grad

    def everything():
        y = shake_shake(*tensors, alpha, beta)
        return [y, *torch.autograd.grad(y, tensors, grad)]

    # A sum of few elements may cancel, so the error is compared with the inputs' magnitude as well.
    size = float(torch.cat([t.detach().double().flatten() for t in (*tensors, grad)]).square().mean().sqrt())
    for index, (g, w) in enumerate(zip(*both(everything), strict=True)):
        error, own = (float(t.detach().square().mean().sqrt()) for t in (g.double() - w.double(), w.double()))
        assert error <= TOLERANCE[dtype] * max(size, own), index


def test_fuzzed_shake_is_the_reference(isa):
    _fuzz_shake()


@pytest.mark.parametrize("count", [1, 3, 15, 16, 17, 40000])
def test_sgd_ema_lengths(isa, count):
    def weights():
        torch.manual_seed(count)
        lists = [[guarded(torch.randn(count))] for _ in range(4)]
        sgd_ema_(*lists, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-2, ema_decay=0.9, grad_scale=0.5)
        return lists[0] + lists[2] + lists[3]

    for got, want in zip(*both(weights), strict=True):
        assert error_ratio(got, want) <= 2e-7


def test_the_shared_header_draws_what_the_reference_draws():
    for sample in (0, 1, 7, 2**31, 2**40 + 3, 2**63 - 1):
        for seed, epoch in ((0, 0), (5, 2**32 - 1), (2**64 - 1, 3)):
            spec = Spec(seed, epoch, 4, "zero", "random", 0.3, 9, False)
            drawn = choices(torch.tensor([sample]), 32, 28, spec)
            assert host.choices(sample, **spec.arguments(32, 28)) == [int(v) for v in drawn]


def test_special_values_survive_rounding(isa):
    special = torch.tensor(
        [float("nan"), float("inf"), -float("inf"), 3.4e38, 65519.9, 65520.0, 6e-8, 2e-8, 1e-40, -0.0, 1.0]
    )
    values = special.repeat(3)[:32].view(1, 1, 1, 32)
    for dtype in (torch.bfloat16, torch.float16):
        x = values.to(dtype)
        got, want = both(lambda x=x: shake_shake(x, x, torch.zeros_like(x), 1.0, 1.0))
        torch.testing.assert_close(got, want, equal_nan=True, rtol=0, atol=0)


def test_a_forked_child_gets_its_own_threads():
    """Otherwise forked loader workers would hang: this module's threads work in the child, torch's pool is lost."""
    store, ids = torch.full((64, 64, 64, 3), 255, dtype=torch.uint8), torch.arange(64)
    out = torch.empty(64, 64, 64, 3).permute(0, 3, 1, 2)
    before = torch.get_num_threads()
    torch.set_num_threads(2)

    def run():
        augment(store, ids, seed=0, epoch=0, mean=0.0, std=1.0, out=out)

    def in_child():
        torch.set_num_threads(2)
        run()
        os._exit(0 if out[63, 2, 63, 63].item() == 1.0 else 3)

    try:
        run()
        child = multiprocessing.get_context("fork").Process(target=in_child)
        child.start()
        child.join(20)
        child.kill()
        assert child.exitcode == 0
    finally:
        torch.set_num_threads(before)


def test_calls_from_several_threads_agree():
    store, ids = torch.randint(0, 256, (64, 32, 32, 3), dtype=torch.uint8), torch.arange(64).repeat(8)
    want = augment(store, ids, seed=1, epoch=1, pad_px=4, mean=0.4, std=0.2)
    results: list[bool] = []

    def work():
        for _ in range(10):
            results.append(torch.equal(augment(store, ids, seed=1, epoch=1, pad_px=4, mean=0.4, std=0.2), want))

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert results == [True] * 40


def test_the_module_refuses_bad_sizes():
    numbers = {"lr": 0.1, "grad_scale": 1.0, "momentum": 0.9, "weight_decay": 0.0, "ema_weight": 0.1, "nesterov": False}
    step = {"params": [1], "grads": [], "momenta": [], "emas": [], "sizes": [4], **numbers, "num_threads": 1}
    with pytest.raises(ValueError, match="lists differ"):
        host.sgd_ema(**step)
    with pytest.raises(TypeError, match="does not take"):
        host.sgd_ema(**step, decay=0.1)
    del step["lr"]
    with pytest.raises(TypeError, match="argument lr is missing"):
        host.sgd_ema(**step)
    sizes = {"batch": 0, "channels": 3, "height": 8, "width": 8, "r": 2, "in_dtype": 3, "out_dtype": 0}
    images = {"images": 0, "out": 0, **sizes, "channels_last": False, "scale": [], "shift": [], "num_threads": 1}
    with pytest.raises(ValueError, match="sizes out of range"):
        host.spectral(**images | {"batch": 1, "height": 7}, bands=[0])
    with pytest.raises(ValueError, match="bands out of range"):
        host.spectral(**images, bands=[4])


@pytest.mark.slow
def test_sanitizers_find_nothing(tmp_path):
    """Runs ASan and UBSan over random shapes on exactly sized heap blocks, in a process without torch."""
    from imnet_kernels import build

    library = subprocess.run(
        ["gcc", "-print-file-name=libasan.so"], text=True, capture_output=True, check=False
    ).stdout.strip()
    if not os.path.isabs(library):
        pytest.skip("gcc has no libasan here")
    build.build_host(tmp_path, tuple(build.SANITIZE_FLAGS))
    env = {
        **os.environ,
        "LD_PRELOAD": library,
        "ASAN_OPTIONS": "detect_leaks=0",
        "PYTHONPATH": str(tmp_path),
        "PYTHONMALLOC": "malloc",
    }
    child = [sys.executable, str(Path(__file__).parent / "sanitized.py")]
    done = subprocess.run(child, env=env, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "calls without a finding" in done.stdout
