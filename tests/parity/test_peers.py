"""The plain trainers ("peers") and imnet agree in parameters, steps, learning rates and images, without a full run."""

import ast
import importlib
import math
import random
from pathlib import Path

import pytest
import torch

from imnet import device, options
from imnet.from_recipe import build_network, build_step, load_sources
from imnet.launch import World
from imnet.models.shake_shake import ShakeShake26
from imnet.recipe import replace

from . import narrow, networks, plain
from .cases import CASES, lay_out

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
STEPS, IMAGES = 4, 6


def request_of(case, data=None):
    words = [*case.words.split(), "--device", "cpu", "--precision", "fp32"]
    return options.parse([*words, *([] if data is None else ["--data-dir", str(data)])])


def peer_of(case):
    return importlib.import_module(f"tests.parity.{case.peer}")


def net_option(case):
    return {key: case.options[key] for key in ("net",) if key in case.options}


def made(case, **changes):
    """Returns the peer's network and optimiser."""
    peer, net = peer_of(case), net_option(case)
    model = peer.NETWORKS[net["net"]]() if net else peer.network(10)
    return model, peer.optimiser(model, **net, **changes)


@pytest.fixture(params=CASES)
def case(request):
    assert narrow.shake_shake26_2x8d  # registered
    return CASES[request.param]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is not on this machine")
    place = tmp_path_factory.mktemp("parity")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(place / "cache"))
        yield lay_out(SHARED, place)


@pytest.mark.parametrize("name", ["plain", "networks", "imagenet64", "fashion_mnist", "tiny_imagenet", "spectral"])
def test_a_peer_imports_nothing_of_imnet(name):
    tree = ast.parse((Path(__file__).parent / f"{name}.py").read_text())
    found = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    found |= {alias.name for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names}
    ours = {module for module in found if not module.startswith(("torch", "tests.parity."))}
    assert ours <= {"gzip", "json", "numpy", "pathlib", "PIL", "random", "sys", "time"}
    assert {m for m in found if m.startswith("tests.")} <= {"tests.parity.networks", "tests.parity.plain"}


@pytest.mark.parametrize(
    ("make", "parameters"),
    [
        (lambda: networks.WideResNet(3, 4, 10, channels=1, classes=10), 36_478_906),
        (lambda: networks.ShakeShake(96, channels=1, classes=10), 26_330_026),
        (lambda: networks.ShakeShake(64, channels=1, classes=10), 11_708_362),
        (lambda: networks.WideResNet(4, 4, 5, channels=3, classes=1000), 37_633_464),
        (lambda: networks.ResNet((2, 2, 2, 2), classes=1000), 11_689_512),
        (lambda: networks.ResNet((3, 4, 6, 3), classes=1000), 21_797_672),
    ],
)
def test_the_peers_networks_have_the_parameters_of_the_documents(make, parameters):
    with torch.device("meta"):
        assert sum(p.numel() for p in make().parameters()) == parameters


def test_weights_begin_alike(case):
    """Mean and standard deviation of every tensor agree, within what chance allows."""
    torch.manual_seed(1)
    ours, theirs = build_network(request_of(case).recipe), made(case)[0]
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert a.shape == b.shape
        (mean, std), (their_mean, their_std) = ((x.mean().item(), x.std(correction=0).item()) for x in (a, b))
        allowed = 6 / math.sqrt(a.numel())
        assert std == pytest.approx(their_std, rel=allowed, abs=1e-12)
        assert mean == pytest.approx(their_mean, abs=1.5 * allowed * std + 1e-12)


def apart(case, monkeypatch, **changes):
    """Train both sides from the same weights on the same batches, in fp64. Returns the final distance between the sides
    as a fraction of the way that ours went, for weights and for running statistics; and the losses of both."""
    torch.manual_seed(0)
    request = request_of(case)
    place = device.resolve(request.options, 0)
    # As many epochs as steps, so that the changes of the learning rate between epochs are tested too.
    recipe = replace(request.recipe, epochs=STEPS, schedule=scaled(request.recipe))
    net = build_network(recipe, place).double()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    theirs, optimizer = made(case, **changes)
    theirs.double().load_state_dict(dict(zip(theirs.state_dict(), before.values(), strict=True)))
    scheduler = peer_of(case).schedule(optimizer, STEPS, STEPS, **net_option(case))
    step = build_step(recipe, net, place, World(), compile=False, graphs=False)
    share_coefficients(monkeypatch)
    losses = []
    for i in range(STEPS):
        images = torch.randn(IMAGES, recipe.data.channels, recipe.input_px, recipe.input_px, dtype=torch.float64)
        labels = torch.randint(10, (IMAGES,))
        loss, bad = step(
            [(images.contiguous(memory_format=torch.channels_last), labels)], IMAGES, i, recipe.lr_at(i, 1)
        )
        losses.append((loss.item() / IMAGES, plain.step(theirs.train(), optimizer, images, labels)))
        scheduler.step()
        assert not bad
    after = zip(net.state_dict().items(), theirs.state_dict().values(), before.values(), strict=True)
    after = [("running" in name, a, b, c) for (name, a), b, c in after if a.is_floating_point()]
    parts = ([three for kind, *three in after if kind == which] for which in (False, True))
    return [share(*zip(*part, strict=True)) for part in parts], losses


def share(ours, theirs, before):
    away, gone = (sum((a - b).square().sum().item() for a, b in zip(ours, x, strict=True)) for x in (theirs, before))
    return math.sqrt(away / gone)


def scaled(recipe):
    """Returns the recipe's schedule with drops where the peer has them in a run of STEPS epochs."""
    changes = {"step": {"every_epochs": STEPS // 4}, "multistep": {"milestones_epochs": (1, 2, 3)}}
    return replace(recipe.schedule, **changes.get(recipe.schedule.kind, {}))


def share_coefficients(monkeypatch):
    """Gives Shake-Shake the same coefficients on both sides, for every block's forward and backward pass."""
    generator = torch.Generator().manual_seed(5)
    drawn = [[torch.rand(2, IMAGES, generator=generator) for _ in range(12)] for _ in range(STEPS)]
    mine, theirs = iter(drawn), (one.view(IMAGES, 1, 1, 1) for step in drawn for pair in step for one in pair)
    monkeypatch.setattr(ShakeShake26, "coefficients", lambda self, images: [tuple(pair) for pair in next(mine)])
    monkeypatch.setattr(networks, "uniform", lambda images: next(theirs))


def test_steps_from_the_same_weights_end_in_the_same_weights(case, monkeypatch):
    distances, losses = apart(case, monkeypatch)
    assert max(distances) < 1e-8
    for ours, theirs in losses:
        assert ours == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        pytest.param("imagenet64", {"decay": 5e-4}, marks=pytest.mark.slow),
        ("wrn", {"nesterov": False}),
        ("wrn", {"weight_decay": 0.0}),
        ("shake", {"weight_decay": 5e-4}),
        pytest.param("spectral", {"momentum": 0.85}, marks=pytest.mark.slow),
    ],
)
def test_another_optimiser_ends_elsewhere(name, changes, monkeypatch):
    """Negative control: the test above must notice even small differences."""
    assert apart(CASES[name], monkeypatch, **changes)[0][0] > 5e-3


def test_the_same_learning_rates(case):
    """Compares every step of a run as long as the measured one."""
    recipe, per_epoch = request_of(case).recipe, 7
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], recipe.optim.lr)
    scheduler = peer_of(case).schedule(optimizer, recipe.epochs, recipe.epochs * per_epoch, **net_option(case))
    for i in range(recipe.epochs * per_epoch):
        assert recipe.lr_at(i, per_epoch) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-6, abs=1e-9)
        optimizer.step()
        if case.options.get("net") == "shake" or (i + 1) % per_epoch == 0:
            scheduler.step()


def images_of(case, folders):
    """Returns imnet's data sources, then what the peer's ``data`` returns: batches and labels of training and test."""
    request = request_of(case, folders[case.data])
    recipe = request.recipe
    sources = load_sources(recipe, request.options, device.resolve(request.options, 0), World())
    sizes = {"imagenet64": (recipe.data.train_images,), "tiny_imagenet": (), "spectral": (1,)}
    counts = recipe.data.train_images, recipe.data.test_images, case.options.get("net")
    return sources, *peer_of(case).data(folders[case.data], *sizes.get(case.peer, counts))


@pytest.fixture(scope="module")
def loaded(folders):
    """Returns ``images_of`` as a function of the case that reads each case's images once."""
    kept = {}

    def load(case):
        if case.what not in kept:
            kept[case.what] = images_of(case, folders)
        return kept[case.what]

    return load


def test_the_same_images(case, loaded):
    """Labels are equal, and test images up to rounding."""
    sources, _, labels, test_batch, test_labels = loaded(case)
    assert torch.equal(sources.train.labels, labels)
    assert torch.equal(sources.test.labels, test_labels)
    ids = torch.arange(0, len(test_labels), len(test_labels) // 50)
    found, _ = next(sources.test.stream([ids], 0, train=False))
    # For Tiny ImageNet, one side resizes in integers and the other in fp32: at most one level apart.
    torch.testing.assert_close(
        found, test_batch(ids), rtol=1e-4, atol=1.01 / 255 if case.peer == "tiny_imagenet" else 1e-5
    )


DRAWS, ALIKE = 250, 1.5
IDS = torch.tensor([3, 250, 471, 602])


def moments(draw):
    """Returns mean and variance of each pixel and of its square over DRAWS random draws, (2, B, C, H, W) each."""
    drawn = torch.stack([draw(i).double() for i in range(DRAWS)])
    drawn = torch.stack([drawn, drawn.square()], 1)
    return drawn.mean(0), drawn.var(0)


def surprise(ours, theirs):
    """Returns the mean of z^2 for the difference of two means, near 1 if both sides draw alike: the larger one of those
    for pixels and for their squares."""
    (a, var_a), (b, var_b) = ours, theirs
    return ((a - b).square() / ((var_a + var_b) / DRAWS + 1e-6)).mean((1, 2, 3, 4)).max()


def test_the_same_random_choices(case, loaded):
    """Crops, mirroring, boxes and colours have the same distribution: averages over many draws agree."""
    sources, batch, *_ = loaded(case)
    torch.manual_seed(0)
    random.seed(0)
    ours = moments(lambda i: next(sources.train.stream([IDS], i, train=True))[0])
    theirs = moments(lambda i: batch(IDS))
    assert surprise(ours, theirs) < ALIKE
    # Negative control: the test must notice images that are shifted right by one pixel.
    shifted = [moment.roll(1, -1) for moment in theirs]
    assert surprise(ours, shifted) > ALIKE
