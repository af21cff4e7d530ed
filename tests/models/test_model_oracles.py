"""Logits and all gradients equal those of the second implementations in plain_networks.py: fp64, training and eval."""

import plain_networks as plain
import pytest
import torch

from imnet.models import build
from imnet.models.densenet import DenseNetBC
from imnet.models.dpn import DualPathNet
from imnet.models.shake_shake import ShakeShake26
from imnet.models.wrn import LasagneWideResNet

WIDTHS = (6, 8, 10)
CASES = {
    "wrn, three groups": (lambda: build("wrn16_1", 5), lambda *a: plain.wrn(*a[:2], 2, a[2]), 8),
    "wrn, four groups": (lambda: build("wrn20_1", 5), lambda *a: plain.wrn(*a[:2], 2, a[2]), 8),
    "wrn, odd map": (lambda: build("wrn10_2", 5), lambda *a: plain.wrn(*a[:2], 1, a[2]), 7),
    "wrn, lasagne": (lambda: LasagneWideResNet(20, 1, 5), lambda *a: plain.wrn_lasagne(*a[:2], 2, a[2]), 8),
    "densenet": (lambda: DenseNetBC(16, 4, 5), lambda *a: plain.densenet(*a[:2], 2, a[2]), 8),
    "dpn": (lambda: DualPathNet(WIDTHS, (2, 3, 4), 3, 5), lambda *a: plain.dpn(*a[:2], WIDTHS, 3, a[2]), 8),
    "shake-shake, evaluation": (lambda: ShakeShake26(4, 4, 5), lambda *a: plain.shake_shake(*a), 8),
    "shake-shake, stem 16": (lambda: ShakeShake26(4, 16, 5), lambda *a: plain.shake_shake(*a), 7),
}


def randomised(network):
    """Returns the network in fp64 with norms and biases away from 1 and 0, so that a swapped or missing one shows."""
    generator = torch.Generator().manual_seed(1)
    network = network.double()
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point() and tensor.dim() == 1:
                noise = torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype)
                tensor.copy_(noise + (0.5 if name.endswith(("weight", "var")) else -0.5))
    return network


def weights_of(network):
    return {name: t.detach().clone().requires_grad_(t.is_floating_point()) for name, t in network.state_dict().items()}


def images_of(px, batch=3, channels=3):
    return torch.randn(batch, channels, px, px, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def check_gradients(network, weights, loss, plain_loss):
    loss.backward()
    plain_loss.backward()
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter.grad, weights[name].grad, rtol=1e-8, atol=1e-10, msg=name)


# Without Shake-Shake's training, which draws coefficients: see test_shake_shake_with_fixed_coefficients.
MODES = [(case, train) for case in CASES for train in (False, True) if not (train and "shake" in case)]


@pytest.mark.parametrize(("case", "train"), MODES)
def test_logits_and_gradients(case, train):
    make, second, px = CASES[case]
    network = randomised(make()).train(train)
    weights, images = weights_of(network), images_of(px)
    logits, expected = network(images), second(weights, images, train)
    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-10)
    check_gradients(network, weights, logits.square().sum(), expected.square().sum())


DROPPED = {
    "wrn, three groups": (lambda r: build("wrn16_2", 5, drop_rate=r), lambda *a: plain.wrn(*a[:2], 2, *a[2:])),
    "wrn, four groups": (lambda r: build("wrn12_1", 5, drop_rate=r), lambda *a: plain.wrn(*a[:2], 1, *a[2:])),
    "densenet": (lambda r: DenseNetBC(16, 4, 5, drop_rate=r), lambda *a: plain.densenet(*a[:2], 2, *a[2:])),
}


@pytest.mark.parametrize("rate", [0.2, 0.5])
@pytest.mark.parametrize("case", DROPPED)
def test_dropout_is_where_the_papers_have_it(case, rate):
    """This concerns training; an evaluation equals that of a network without dropout."""
    make, second = DROPPED[case]
    network, images = randomised(make(rate)).train(), images_of(8)
    weights = weights_of(network)
    torch.manual_seed(4)
    logits = network(images)
    torch.manual_seed(4)
    expected = second(weights, images, True, rate)
    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-10)
    check_gradients(network, weights, logits.square().sum(), expected.square().sum())
    evaluated = second(weights_of(network), images, False)
    torch.testing.assert_close(network.eval()(images), evaluated, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("level", ["image", "batch"])
@pytest.mark.parametrize("stem_width", [4, 16])
def test_shake_shake_with_fixed_coefficients(stem_width, level, monkeypatch):
    """The forward pass mixes by alpha, the backward pass by an independent beta; the formula is checked through the
    whole network."""
    network = randomised(ShakeShake26(4, stem_width, 5, shake_level=level)).train()
    images = images_of(8)
    generator = torch.Generator().manual_seed(3)
    drawn = torch.rand(2, 12, 3 if level == "image" else 1, generator=generator, dtype=torch.float64)
    monkeypatch.setattr(network, "coefficients", lambda _: list(zip(drawn[0], drawn[1], strict=True)))
    weights = weights_of(network)
    logits = network(images)
    expected = plain.shake_shake(weights, images, True, drawn[0], drawn[1])
    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-10)
    check_gradients(network, weights, logits.square().sum(), expected.square().sum())


def test_the_oracle_sees_a_wrong_coefficient():
    """Negative control: with beta = alpha, the formula gives other gradients than with beta = 1 - alpha."""
    network = randomised(ShakeShake26(4, 4, 5)).train()
    images = images_of(8)
    alpha = torch.full((12, 3), 0.9, dtype=torch.float64)
    grads = []
    for beta in (alpha, 1 - alpha):
        weights = weights_of(network)
        plain.shake_shake(weights, images, True, alpha, beta).square().sum().backward()
        grads.append(weights["blocks.3.branch1.conv1.weight"].grad)
    assert (grads[0] - grads[1]).norm() > 0.1 * grads[0].norm()


@pytest.mark.parametrize("name", ["wrn16_4", "densenet_bc100_12", "shake_shake26_2x32d"])
def test_he_initialisation_by_fan_out(name):
    torch.manual_seed(0)
    network = build(name, 10)
    for path, module in network.named_modules():
        if isinstance(module, torch.nn.Conv2d) and module.weight.numel() > 2000:
            fan_out = module.out_channels * module.kernel_size[0] ** 2
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1), path
    assert not network.head.bias.any()


def test_a_dual_path_nets_head_is_initialised_by_its_fan_in():
    """The heads of the other networks keep torch's initialisation."""
    torch.manual_seed(0)
    weight = DualPathNet((16, 32, 64), (4, 8, 16), 1, 100).head.weight
    assert weight.std().item() == pytest.approx((2 / weight.shape[1]) ** 0.5, rel=0.05)
