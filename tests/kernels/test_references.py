"""The references against independent implementations: scipy's DCT, torch.optim.SGD, AveragedModel, gradcheck."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import scipy.fft
import torch
from imnet_kernels import augment, sgd_ema_, shake_shake, spectral
from imnet_kernels.spectral import inverse


@pytest.mark.parametrize("r", [2, 4, 6])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float64])
def test_spectral_is_scipys_dct_over_the_phases(r, dtype):
    generator = torch.Generator().manual_seed(r)
    images = torch.randint(0, 256, (3, 2, 4 * r, 5 * r), dtype=torch.uint8, generator=generator).to(dtype)
    stack = np.stack([images[:, :, row::r, col::r].double().numpy() for row in range(r) for col in range(r)], axis=1)
    want = scipy.fft.dct(stack, type=2, norm=None, axis=1)
    got = spectral(images, r, dtype=torch.float64 if dtype == torch.float64 else None)
    np.testing.assert_allclose(got.double().numpy(), want, atol=1e-9 if dtype == torch.float64 else 5e-2, rtol=1e-5)
    pooled = torch.nn.functional.avg_pool2d(images.double(), r) * 2 * r * r
    np.testing.assert_allclose(got[:, 0].double().numpy(), pooled.numpy(), rtol=1e-5)
    torch.testing.assert_close(inverse(got.double(), r), images.double(), atol=1e-3, rtol=0)


def test_spectral_bands_normalisation_and_layout():
    images = torch.rand(2, 3, 8, 12).to(memory_format=torch.channels_last)
    every = spectral(images, 2)
    mean, std = torch.rand(2, 3), torch.rand(2, 3) + 0.5
    some = spectral(images, 2, [3, 0], mean=mean, std=std)
    want = (every[:, [3, 0]] - mean[:, :, None, None]) / std[:, :, None, None]
    torch.testing.assert_close(some, want)
    assert some[:, 1].is_contiguous(memory_format=torch.channels_last)
    assert spectral(images.contiguous(), 2)[:, 3].is_contiguous()
    torch.testing.assert_close(spectral(images.contiguous(), 2), every)


@pytest.mark.parametrize("level", ["image", "batch"])
def test_shake_shake_forward_and_backward_are_independent(level):
    x1, x2, residual = (torch.randn(4, 3, 5, 7, dtype=torch.float64, requires_grad=True) for _ in range(3))
    shape = (4, 1, 1, 1) if level == "image" else (1,)
    alpha, beta = torch.rand(shape), torch.rand(shape)
    y = shake_shake(x1, x2, residual, alpha, beta)
    a, b = alpha.double().view(-1, 1, 1, 1), beta.double().view(-1, 1, 1, 1)
    torch.testing.assert_close(y, residual + a * x1 + (1 - a) * x2)
    grad = torch.randn_like(y)
    y.backward(grad)
    torch.testing.assert_close(x1.grad, b * grad)
    torch.testing.assert_close(x2.grad, (1 - b) * grad)
    torch.testing.assert_close(residual.grad, grad)


def test_shake_gradcheck_where_both_coefficients_agree():
    inputs = [torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    alpha = torch.rand(2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda *t: shake_shake(*t, alpha, alpha), inputs)


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_sgd_ema_is_torch_sgd_and_averaged_model(momentum, nesterov):
    torch.manual_seed(0)
    peer = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Linear(7, 3))
    optimizer = torch.optim.SGD(peer.parameters(), lr=0.1, momentum=momentum, nesterov=nesterov, weight_decay=5e-2)
    average = torch.optim.swa_utils.AveragedModel(
        copy.deepcopy(peer), multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
    )
    average.n_averaged.fill_(1)
    params = [p.detach().clone() for p in peer.parameters()]
    emas = [p.clone() for p in params]
    momenta = [torch.zeros_like(p) for p in params] if momentum else []
    for step in range(4):
        for p in peer.parameters():
            p.grad = torch.randn_like(p)
        grads = [p.grad * 8 for p in peer.parameters()]
        optimizer.param_groups[0]["lr"] = lr = 0.1 / (step + 1)
        optimizer.step()
        average.update_parameters(peer)
        keys = {"momentum": momentum, "nesterov": nesterov, "weight_decay": 5e-2, "ema_decay": 0.9}
        sgd_ema_(params, grads, momenta, emas, lr=torch.tensor(lr) if step % 2 else lr, grad_scale=0.125, **keys)
    torch.testing.assert_close(params, [p.detach() for p in peer.parameters()])
    torch.testing.assert_close(emas, [p.detach() for p in average.module.parameters()])


def test_sgd_ema_skips_a_bad_step():
    params, grads = [torch.ones(3)], [torch.full((3,), float("nan"))]
    momenta, emas = [torch.full((3,), 2.0)], [torch.full((3,), 3.0)]
    sgd_ema_(params, grads, momenta, emas, lr=0.1, ema_decay=0.5, skip=torch.tensor(1.0))
    assert params[0].tolist() == [1.0] * 3
    assert momenta[0].tolist() == [2.0] * 3
    assert emas[0].tolist() == [3.0] * 3


def test_bad_input_is_named():
    x = torch.randn(2, 3, 4, 4)
    with pytest.raises(ValueError, match="x2"):
        shake_shake(x, x[:1], x, 0.5, 0.5)
    with pytest.raises(ValueError, match="alpha"):
        shake_shake(x, x, x, torch.rand(3), 0.5)
    with pytest.raises(ValueError, match="r = 3"):
        spectral(x, 3)
    with pytest.raises(ValueError, match="px"):
        spectral(x, 6)
    with pytest.raises(ValueError, match="bands"):
        spectral(x, 2, [4])
    with pytest.raises(ValueError, match="mean"):
        spectral(x, 2, mean=[1.0, 2.0])
    with pytest.raises(TypeError, match="dtype"):
        spectral(x, 2, dtype=torch.uint8)
    with pytest.raises(ValueError, match="grads"):
        sgd_ema_([x], [], [], [], lr=0.1)
    with pytest.raises(ValueError, match=r"emas\[0\]"):
        sgd_ema_([x], [x], [x], [x[:1]], lr=0.1)
    with pytest.raises(ValueError, match="nesterov"):
        sgd_ema_([x], [x], [], [], lr=0.1, nesterov=True)
    with pytest.raises(ValueError, match=r"emas\[0\] is torch\.bfloat16; allowed torch\.float32"):
        sgd_ema_([x], [x], [x], [x.bfloat16()], lr=0.1, ema_decay=0.5)


NAN, INF = float("nan"), float("inf")
STORE, IDS = torch.zeros(3, 8, 8, 2, dtype=torch.uint8), torch.arange(3)


@pytest.mark.parametrize(
    "values", [{"std": 0.0}, {"std": [1.0, -1.0]}, {"std": NAN}, {"std": INF}, {"mean": NAN}, {"mean": [0.0, -INF]}]
)
def test_a_normalisation_that_makes_nan_or_infinity_is_refused(values):
    (name,) = values
    given: dict[str, Any] = {"mean": 0.5, "std": 0.2} | values
    with pytest.raises(ValueError, match=f"^{name} = "):
        spectral(torch.zeros(1, 2, 4, 4), 2, [0, 1], **values)
    if name == "mean":
        with pytest.raises(ValueError, match=r"^mean = "):
            spectral(torch.zeros(1, 2, 4, 4), 2, [0, 1], mean=torch.tensor(values[name]))
    with pytest.raises(ValueError, match=f"^{name} = "):
        augment(STORE, IDS, seed=0, epoch=0, **given)


@pytest.mark.parametrize("name", ["seed", "epoch", "pad_px", "cutout_px"])
def test_whole_numbers_are_not_rounded(name):
    """Of 1.7 the kernels would use 1, without a word."""
    options: dict[str, Any] = {"seed": 1, "epoch": 1, "pad_px": 1, "cutout_px": 1}
    with pytest.raises(ValueError, match=f"^{name} = 1.7; allowed whole numbers"):
        augment(STORE, IDS, mean=0.5, std=0.2, **{**options, name: 1.7})
    whole = augment(STORE, IDS, mean=np.float32(0.5), std=0.2, **{**options, name: np.float64(1)})
    assert torch.equal(whole, augment(STORE, IDS, mean=0.5, std=0.2, **options))


def test_bands_are_not_rounded():
    x = torch.rand(2, 3, 4, 4)
    with pytest.raises(ValueError, match=r"bands = \(0, 1\.7\); allowed one or more of 0 \.\. 3"):
        spectral(x, 2, [0, 1.7])  # pyright: ignore[reportArgumentType]
    again: Any = (2.0, np.array([1, 2]))
    assert torch.equal(spectral(x, *again), spectral(x, 2, [1, 2]))
