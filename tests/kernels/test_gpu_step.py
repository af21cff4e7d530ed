"""What only a GPU can show of a training step: captured graphs, draws inside them, stores beyond 2^31 bytes, precision.

It needs only torch, pytest and this checkout, so it also runs on a bare machine (`python -m bench.gpu --part tests`).
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from imnet_kernels import augment, tier
from imnet_kernels.family import families

from imnet import models
from imnet.device import Place, resolve, undisturbed
from imnet.launch import World
from imnet.recipe import SGD, AdamCPR, AdamW, Constant, Data, Lamb, Lion, Muon, Recipe
from imnet.run_options import RunOptions
from imnet.step import TrainStep

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
RECIPE = Recipe(
    name="gpu",
    model="wrn10_1",
    data=Data(name="synthetic", image_px=16, num_classes=10, batch_images=32),
    optim=SGD(lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4),
    schedule=Constant(),
    epochs=1,
    grad_clip=5.0,
)
SHAKE = dataclasses.replace(RECIPE, model="shake_shake26_2x32d")


def make_step(recipe, *, graphs, compile=False, precision="fp32", average=True, backend="auto"):
    torch.manual_seed(0)
    place = Place(torch.device("cuda", 0), precision, "test")
    nets = [models.build(recipe.model, 10).cuda().to(memory_format=torch.channels_last) for _ in range(2)]
    step = TrainStep(nets[0], recipe, place, World(), compile=compile, graphs=graphs, backend=backend)
    if average:
        nets[1].load_state_dict(nets[0].state_dict())
        step.add_ema(nets[1], 0.9)
    return step


def batch(seed, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    images = torch.randn(32, 3, 16, 16, generator=g).to(dtype).cuda().contiguous(memory_format=torch.channels_last)
    return images, torch.randint(0, 10, (32,), generator=g).cuda()


def train(step, steps=5, dtype=torch.float32):
    step.warm_up([batch(0, dtype)], 32)
    return torch.stack([step([batch(i, dtype)], 32, i, 0.1 / (i + 1))[0] for i in range(steps)]).cpu()


@pytest.fixture(autouse=True)
def exact():
    """Makes convolutions deterministic and full fp32, because the tests compare two runs."""
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
    torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32 = True, False
    torch.backends.cudnn.benchmark = False
    yield
    torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = before


@pytest.mark.parametrize("recipe", [RECIPE, SHAKE, dataclasses.replace(RECIPE, optim=AdamW(lr=1e-3)),
                                    dataclasses.replace(RECIPE, optim=AdamCPR(lr=1e-3, warm_start_steps=2))],
                         ids=["sgd", "shake", "adamw", "adamcpr"])  # fmt: skip
@pytest.mark.parametrize("compile", [False, True], ids=["eager", "compiled"])
def test_a_captured_step_is_the_step(recipe, compile):
    plain, captured = make_step(recipe, graphs=False, compile=compile), make_step(recipe, graphs=True, compile=compile)
    losses = train(plain), train(captured)
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-4, atol=1e-4)
    assert losses[0].unique().numel() == 5
    for mine, theirs in zip(captured.net.state_dict().values(), plain.net.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=2e-3, atol=2e-4)
    averages = [s.ema.averaged.state_dict().values() for s in (captured, plain)]
    for mine, theirs in zip(*averages, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("kernels", ["reference", "triton"])
def test_the_merged_optimiser_is_captured_too(kernels):
    if tier.missing(kernels, "cuda"):
        pytest.skip(tier.missing(kernels, "cuda"))
    recipe = dataclasses.replace(RECIPE, grad_clip=None)
    plain = make_step(recipe, graphs=False, backend="torch")
    with tier.using(f"sgd_ema={kernels}"):
        captured = make_step(recipe, graphs=True, backend="imnet")
        losses = train(plain), train(captured)
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-4, atol=1e-4)
    averages = [s.ema.averaged.state_dict().values() for s in (captured, plain)]
    for mine, theirs in zip(*averages, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("kernels", ["auto", "shake_batch_norm=triton"])
def test_branches_in_flight_change_no_bit(kernels, monkeypatch):
    """The branches run on two streams: memory that one overwrites while the other needs it would change the weights
    within a few steps on wide maps."""
    from imnet.models import shake_shake

    g = torch.Generator().manual_seed(0)
    images = torch.randn(64, 3, 28, 28, generator=g).cuda().contiguous(memory_format=torch.channels_last)
    labels, losses, asked = torch.randint(0, 10, (64,), generator=g).cuda(), [], []
    together = shake_shake.in_flight
    for apart in (True, False):
        rule = (lambda x: asked.append(together(x)) or asked[-1]) if apart else (lambda x: False)
        monkeypatch.setattr(shake_shake, "in_flight", rule)
        step = make_step(dataclasses.replace(SHAKE, model="shake_shake26_2x64d"), graphs=True, precision="bf16")
        with tier.using(kernels, captured=True):  # with our norms, as in a run
            step.warm_up([(images, labels)], 64)
            losses.append(torch.stack([step([(images, labels)], 64, i, 0.05)[0] for i in range(12)]))
        losses[-1] = torch.cat([losses[-1], *(p.detach().flatten() for p in step.net.parameters())])
    assert any(asked)
    assert torch.equal(losses[0], losses[1])
    assert losses[0].isfinite().all()


@pytest.mark.parametrize(
    ("family", "model"), [("dense_stage", "densenet_bc100_12"), ("shake_batch_norm", "shake_shake26_2x32d")]
)
def test_kernels_of_several_layers_are_captured_and_agree_with_torchs(family, model):
    """Only the first loss agrees closely. On an H200, three steps turned a difference of a millionth in the weights
    into 0.001 (0.003 with TF32), which is as much as these kernels differ from torch's."""
    if tier.missing("triton", "cuda"):
        pytest.skip(tier.missing("triton", "cuda"))
    recipe, found = dataclasses.replace(RECIPE, model=model), []
    for kernels, graphs in (("reference", False), ("triton", False), ("triton", True)):
        with tier.using(f"{family}={kernels}"):
            step = make_step(recipe, graphs=graphs, average=False)
            found.append((train(step, 3), torch.cat([v.float().flatten() for v in step.net.state_dict().values()])))
    for losses, weights in found[1:]:
        torch.testing.assert_close(losses[0], found[0][0][0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(losses, found[0][0], rtol=1e-2, atol=1e-2)
        assert (weights - found[0][1]).norm() <= 1e-2 * found[0][1].norm()


@pytest.mark.parametrize("optim", [Lamb(lr=1e-3), Lion(lr=1e-4), Muon(lr=1e-3)], ids=lambda o: o.kind)
def test_the_foreach_optimisers_are_captured_and_skip_a_bad_step(optim):
    recipe = dataclasses.replace(RECIPE, optim=optim)
    found = []
    for graphs in (False, True):
        step = make_step(recipe, graphs=graphs)
        step.warm_up([batch(0)], 32)
        for i in range(4):
            images, labels = batch(i)
            step([(images * float("inf") if i == 2 else images, labels)], 32, i, optim.lr / (i + 1))
        found.append([p.detach().clone() for p in step.params])
        assert all(torch.isfinite(p).all() for p in step.params)
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("recipe", [RECIPE, dataclasses.replace(RECIPE, optim=Muon(lr=1e-3))], ids=["sgd", "muon"])
def test_capturing_leaves_no_trace(recipe):
    step = make_step(recipe, graphs=True)
    before = {k: v.clone() for k, v in step.net.state_dict().items()}
    step.warm_up([batch(0)], 32)
    for name, value in step.net.state_dict().items():
        assert torch.equal(value, before[name]), name
    for name, value in step.tensors()["state"].items():
        assert not value.any(), name


def test_capturing_leaves_the_loss_scale_where_it_was():
    step = make_step(RECIPE, graphs=True, precision="fp16")
    step.scaler.load_state_dict({**step.scaler.state_dict(), "scale": 1024.0, "_growth_tracker": 7})
    step.warm_up([batch(0, torch.float16)], 32)
    assert step.scaler.state_dict()["scale"] == 1024.0
    assert step.scaler.state_dict()["_growth_tracker"] == 7
    step([batch(1, torch.float16)], 32, 0, 0.1)
    assert step.scaler.state_dict()["_growth_tracker"] == 8


def test_replays_draw_anew_and_repeat_with_the_step_number():
    """With one batch and learning rate 0, the loss changes only with Shake-Shake's coefficients."""
    step = make_step(SHAKE, graphs=True, average=False)
    step.warm_up([batch(0)], 32)
    buffers = [b.clone() for b in step.net.buffers()]
    losses = []
    for number in (0, 1, 2, 1):
        for buffer, old in zip(step.net.buffers(), buffers, strict=True):
            buffer.copy_(old)
        losses.append(float(step([batch(0)], 32, number, 0.0)[0]))
    assert len(set(losses[:3])) == 3
    assert losses[3] == losses[1]


@pytest.mark.parametrize("graphs", [False, True])
def test_a_step_that_is_not_finite_changes_nothing(graphs):
    step = make_step(RECIPE, graphs=graphs, average=False)
    train(step, 2)
    before = {k: v.clone() for k, v in step.net.named_parameters()}
    images, labels = batch(9)
    _, bad = step([(images.fill_(float("nan")), labels)], 32, 2, 0.1)
    assert bool(bad)
    for name, value in step.net.named_parameters():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
@pytest.mark.parametrize("graphs", [False, True])
def test_half_precision_learns_a_batch(precision, dtype, graphs):
    step = make_step(dataclasses.replace(RECIPE, grad_clip=None), graphs=graphs, precision=precision)
    one = batch(3, dtype)
    step.warm_up([one], 32)
    losses = [float(step([one], 32, i, 0.05)[0]) / 32 for i in range(30)]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("name", ["reference", "triton", "cuda"])
def test_a_store_beyond_two_to_the_31_bytes_is_read_at_its_end(name):
    if tier.missing(name, "cuda"):
        pytest.skip(tier.missing(name, "cuda"))
    count = (1 << 32) // (64 * 64 * 3) + 3
    if torch.cuda.mem_get_info()[0] < 6 << 30:
        pytest.skip("less than 6 GiB of free device memory")
    store = torch.zeros((count, 64, 64, 3), dtype=torch.uint8, device="cuda")
    last = torch.randint(0, 256, (64, 64, 3), dtype=torch.uint8, device="cuda")
    store[-1] = last
    with tier.using(name):
        ids = torch.tensor([count - 1, 0], device="cuda")
        got = augment(store, ids, seed=0, epoch=0, mean=0.0, std=1 / 255, dtype=torch.float32)
    torch.testing.assert_close(got[0], last.permute(2, 0, 1).float())
    assert not got[1].any()


@pytest.mark.parametrize("name", ["triton", "cuda"])
def test_a_bad_id_gives_nan_and_reads_nothing(name):
    if tier.missing(name, "cuda"):
        pytest.skip(tier.missing(name, "cuda"))
    store = torch.ones((4, 8, 8, 3), dtype=torch.uint8, device="cuda")
    with tier.using(name):
        got = augment(store, torch.tensor([0, 4, -1], device="cuda"), seed=0, epoch=0, mean=0.0, std=1.0)
    assert got[0].isfinite().all()
    assert got[1:].isnan().all()


def test_views_that_start_at_odd_addresses():
    """A slice can be contiguous and yet lack the 16-byte alignment that vector loads need."""
    from imnet_kernels import shake_shake

    if tier.missing("triton", "cuda"):
        pytest.skip(tier.missing("triton", "cuda"))
    x = [torch.randn(5, 3, 3, 3, device="cuda")[1:] for _ in range(3)]
    alpha = torch.rand(4, device="cuda")
    want = x[2] + alpha.view(-1, 1, 1, 1) * x[0] + (1 - alpha.view(-1, 1, 1, 1)) * x[1]
    big = [torch.randn(1 + 4 * 64, device="cuda")[1:].view(4, 4, 4, 4) for _ in range(3)]
    wide = big[2] + alpha.view(-1, 1, 1, 1) * big[0] + (1 - alpha.view(-1, 1, 1, 1)) * big[1]
    with tier.using("triton"):
        torch.testing.assert_close(shake_shake(*x, alpha, alpha), want)
        torch.testing.assert_close(shake_shake(*big, alpha, alpha), wide)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("family", families(), ids=lambda family: family.name)
def test_tensors_of_another_device_than_the_current_one(family):
    assert torch.cuda.current_device() == 0
    for name in family.tiers("cuda"):
        family.check(family.contract[0], torch.float32, name, "cuda:1")
    assert torch.cuda.current_device() == 0


@pytest.mark.parametrize(("asked", "fast"), [({}, False), ({"tf32": True}, True), ({"precision": "bf16"}, True)])
def test_fp32_is_fp32_unless_tf32_is_asked_for(asked, fast):
    resolve(RunOptions(**({"precision": "fp32"} | asked)))
    assert torch.backends.cuda.matmul.allow_tf32 == fast
    assert torch.backends.cudnn.allow_tf32 == fast


def test_a_notebook_gets_its_own_settings_back():
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
    try:
        for own in (False, True):
            matmul.allow_tf32 = cudnn.allow_tf32 = cudnn.benchmark = own
            for options in (RunOptions(precision="bf16"), RunOptions(precision="fp32")):
                with undisturbed(resolve(options)):
                    assert matmul.allow_tf32 == (options.precision == "bf16")
                assert (matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark) == (own,) * 3
    finally:
        matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before
