"""The contract's rows for the Triton tier on CPU tensors; run by test_triton.py with TRITON_INTERPRET=1."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from imnet_kernels import add_batch_norm, batch_norm, tier
from imnet_kernels.family import families

NORMS = "batch_norm=triton,add_batch_norm=triton"
ROWS = [
    pytest.param(family, case, dtype, id=f"{family.name}-{case.name}-{dtype}")
    for family in families()
    for case in family.contract
    if not case.real  # the interpreter runs element loops in numpy
    for dtype in family.tolerance
]


@pytest.fixture(autouse=True)
def to_nearest(monkeypatch):
    """fp32 becomes bf16 as on hardware, by rounding to nearest, where the interpreter cuts: a chain of layers would be
    off by more than a wrong one is."""
    import triton.language as tl
    from triton.runtime import interpreter

    cut = interpreter._convert_float

    def convert(value, source, target, mode):
        if (source, target) != (tl.float32, tl.bfloat16):
            return cut(value, source, target, mode)
        exact = torch.from_numpy(np.array(value).view(np.float32))
        return exact.bfloat16().view(torch.int16).numpy().view(np.uint16)

    monkeypatch.setattr(interpreter, "_convert_float", convert)


@pytest.mark.parametrize(("family", "case", "dtype"), ROWS)
def test_triton_agrees_with_the_reference(family, case, dtype):
    assert tier.missing("triton", "cpu") is None
    family.check(case, dtype, "triton")


def test_an_id_out_of_range_reads_nothing(monkeypatch):
    from imnet_kernels import augment as public
    from imnet_kernels.augment import _triton
    from imnet_kernels.augment.reference import Spec

    store = torch.ones(2, 4, 4, 3, dtype=torch.uint8)
    ones, ids = torch.ones(3), torch.tensor([1, 2, -1])
    out = _triton.augment(store, ids, ids, ones, ones, Spec(0, 0), torch.float32)
    assert out[0].isfinite().all()
    assert out[1:].isnan().all()
    with pytest.raises(ValueError, match="ids span"):
        public(store, ids, seed=0, epoch=0, mean=0.0, std=1.0)


def test_no_large_mean_cancels_in_a_variance():
    """Deviation 1 about a mean of 1,000: a sum of squares in fp32 would keep two digits of it."""
    from imnet_kernels.batch_norm import _triton

    x = torch.randn(40, 16, 9, 9, generator=torch.Generator().manual_seed(0)) + 1000.0
    x = x.contiguous(memory_format=torch.channels_last)
    ones, zeros = torch.ones(16), torch.zeros(16)
    _, mean, inverse, _ = _triton.forward(x, ones, zeros, zeros.clone(), ones.clone(), None, 0.1, 0.0, False)
    exact = x.double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(mean.double(), exact.mean(1), rtol=1e-6, atol=0.0)
    torch.testing.assert_close(inverse.double(), 1 / exact.std(1, correction=0), rtol=2e-5, atol=0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("channels", [7, 24, 80])
def test_a_sum_is_normed_as_if_it_had_been_added_before(dtype, channels):
    """To the bit: statistics, result and gradient are those of the sum that is returned, rounded to its dtype."""
    drawn = torch.randn(2, 9, channels, 13, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    x, addend = (m.contiguous(memory_format=torch.channels_last).requires_grad_() for m in drawn)
    weight, bias = (torch.linspace(-1, 2, channels).requires_grad_() for _ in range(2))
    running = [[torch.zeros(channels), torch.ones(channels)] for _ in range(2)]
    with tier.using(NORMS):
        total, y = add_batch_norm(x, addend, weight, bias, *running[0], relu=True)
        plain = total.detach().requires_grad_()
        want = batch_norm(plain, weight, bias, *running[1], relu=True)
        assert torch.equal(y, want)
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(*running, strict=True))
        grad, leaves = want.detach().flip(0).contiguous(memory_format=torch.channels_last), (weight, bias)
        theirs = torch.autograd.grad(want, (plain, *leaves), grad)
        mine = torch.autograd.grad(y, (x, addend, *leaves), grad, retain_graph=True)
        kept = torch.autograd.grad((y, total), (x, addend), (grad, 100 * grad), retain_graph=True)
        alone = torch.autograd.grad(total, (x, addend, *leaves), grad)
    assert all(torch.equal(m, t) for m, t in zip(mine, (theirs[0], *theirs), strict=True))
    assert torch.equal(kept[0], kept[1])
    both = theirs[0].double() + 100 * grad.double()
    assert (kept[0].double() - both).abs().max() <= 2 * torch.finfo(dtype).eps * both.abs().max()
    assert torch.equal(alone[0], grad)
    assert torch.equal(alone[1], grad)
    assert not any(t.any() for t in alone[2:])


@pytest.mark.parametrize("kept", [False, True])
def test_a_sum_that_only_the_norm_reads_has_no_zeros_for_a_gradient(kept, monkeypatch):
    from imnet_kernels.batch_norm import _triton

    backward, seen = _triton.backward, []
    monkeypatch.setattr(_triton, "backward", lambda *a: seen.append(a[-1]) or backward(*a))
    x, four = torch.randn(2, 4, 3, 3).contiguous(memory_format=torch.channels_last), [torch.ones(4) for _ in range(4)]
    with tier.using(NORMS):
        total, y = add_batch_norm(x.requires_grad_(), x.detach(), *four)
        (y.sum() + total.sum() if kept else y.sum()).backward()
    assert [grad is not None for grad in seen] == [kept]


@pytest.mark.parametrize("other", [torch.zeros(2, 4, 3, 2), torch.zeros(2, 4, 3, 3, dtype=torch.float16)])
@pytest.mark.parametrize("spec", ["reference", NORMS])
def test_what_cannot_be_added_is_refused(other, spec):
    four = [torch.ones(4) for _ in range(4)]
    with tier.using(spec), pytest.raises(ValueError, match=r"addend is .*; allowed torch.float32 \(2, 4, 3, 3\)"):
        add_batch_norm(torch.zeros(2, 4, 3, 3), other, *four)


def _blocks():
    """Every way in which networks call it: pre-activation, branches without ReLU, residuals, projections."""
    from torchvision.models import resnet

    from imnet.models.fused_resnet import fuse_norms
    from imnet.models.shake_shake import ShakeBlock
    from imnet.models.wrn import PreActBlock

    class Shake(ShakeBlock):
        def forward(self, x):
            return super().forward(x, (torch.tensor([0.3]), torch.tensor([0.6])))

    theirs = torch.nn.Sequential(
        resnet.BasicBlock(8, 16, 2, torch.nn.Sequential(resnet.conv1x1(8, 16, 2), torch.nn.BatchNorm2d(16))),
        resnet.Bottleneck(16, 4),
    )
    fuse_norms(theirs)
    return [PreActBlock(8, 16, 2), Shake(8, 16, 2), theirs]


@pytest.mark.parametrize("index", range(3), ids=("pre-activation", "shake-shake", "torchvision"))
def test_blocks_give_the_same_gradients_with_it(index):
    torch.manual_seed(0)
    net = _blocks()[index].to(memory_format=torch.channels_last).train()
    images = torch.randn(4, 8, 8, 8).contiguous(memory_format=torch.channels_last)
    start, found = copy.deepcopy(net.state_dict()), {}
    for spec in ("reference", NORMS):
        net.load_state_dict(start)
        with tier.using(spec):
            grads = torch.autograd.grad((net(images) + 1).square().sum(), list(net.parameters()))
        found[spec] = [*grads, *(b.clone().float() for b in net.buffers())]
    for got, want in zip(found[NORMS], found["reference"], strict=True):
        assert (got - want).norm() <= 2e-5 * want.norm() + 1e-7
    norms = [m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert all(int(norm.num_batches_tracked) == 1 for norm in norms)


def _networks():
    from imnet.models.wrn import LasagneWideResNet, WideResNet

    # Skips that are the sum itself and projections of what was activated, and projections of the sum.
    return {"wrn": lambda: WideResNet(12, 1, 5, groups=2), "lasagne": lambda: LasagneWideResNet(12, 1, 5)}


@pytest.fixture
def additions(monkeypatch):
    """How many additions the norms of networks did."""
    from imnet.models import layers

    calls = []
    monkeypatch.setattr(layers, "add_batch_norm", lambda *a, **k: calls.append(0) or add_batch_norm(*a, **k))
    return calls


def _step(net, precision="fp32"):
    """The trainer's step and a batch."""
    from imnet.device import Place
    from imnet.launch import World
    from imnet.recipe import SGD, Constant, Data, Recipe
    from imnet.step import TrainStep

    data = Data(name="synthetic", image_px=16, num_classes=5, batch_images=6)
    recipe = Recipe(name="t", model="wrn10_1", data=data, optim=SGD(lr=0.1), schedule=Constant(), epochs=1)
    place = Place(torch.device("cpu"), precision, "test")
    step = TrainStep(net, recipe, place, World(), compile=False, graphs=False, backend="torch")
    images = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(1)).to(place.dtype)
    return step, (images.contiguous(memory_format=torch.channels_last), torch.arange(6) % 5)


@pytest.mark.parametrize("name", _networks())
def test_a_step_of_a_network_that_leaves_its_additions_to_its_norms_is_the_step(name, additions):
    found = {}
    for spec in ("reference", NORMS):
        torch.manual_seed(0)
        net = _networks()[name]().to(memory_format=torch.channels_last)
        step, batch = _step(net)
        with tier.using(spec):
            losses = [float(step([batch], 6, i, 0.1)[0]) for i in range(2)]
            logits = net.eval()(batch[0])
        assert len(additions) == (0 if spec == "reference" else 2 * len(net.blocks))
        found[spec] = [torch.tensor(losses), logits.detach(), *(t.clone().float() for t in net.state_dict().values())]
    for got, want in zip(*found.values(), strict=True):
        assert (got - want).norm() <= 2e-4 * want.norm() + 1e-6


@pytest.mark.parametrize("name", _networks())
def test_such_a_network_in_bf16_is_as_near_to_fp32_as_the_reference(name, additions):
    torch.manual_seed(0)
    net, grads = _networks()[name]().to(memory_format=torch.channels_last), {}
    for precision, spec in (("fp32", "reference"), ("bf16", "reference"), ("bf16", NORMS)):
        step, (images, labels) = _step(net, precision)
        with tier.using(spec):
            loss = step.loss(net, images, labels)
            found = torch.autograd.grad(loss, list(net.parameters()))
        grads[precision, spec] = torch.cat([g.flatten().double() for g in found])
    assert len(additions) == len(net.blocks)
    exact, eager, ours = grads.values()
    # The interpreter cuts where the hardware rounds, which doubles an error.
    assert (ours - exact).norm() <= 3 * (eager - exact).norm()


def test_such_a_network_compiles_as_one_graph(additions):
    torch._dynamo.reset()
    torch.manual_seed(0)
    net = _networks()["wrn"]().to(memory_format=torch.channels_last).train()
    images, found = _step(net)[1][0], []
    start = copy.deepcopy(net.state_dict())
    with tier.using(NORMS):
        for forward in (net, torch.compile(net, fullgraph=True, backend="aot_eager")):
            net.load_state_dict(start)
            found.append(torch.autograd.grad(forward(images).square().sum(), list(net.parameters())))
    assert len(additions) == 2 * len(net.blocks)
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("number", [1, 3])
def test_a_sum_that_is_not_finite_is_named_where_it_arises(number):
    """Both of its parts are finite; it is the addition that overflows."""
    from imnet.watch import first_bad_layer

    net = _networks()["wrn"]().to(memory_format=torch.channels_last)
    step, batch = _step(net)
    huge = torch.finfo(torch.float32).max * 0.9

    def one_huge(tensor):
        return torch.where(torch.arange(tensor.numel()).view_as(tensor) == 0, huge, tensor)

    assert net.blocks[number].projection is None
    net.blocks[number].register_forward_pre_hook(lambda m, args: one_huge(args[0]))
    net.blocks[number].conv2.register_forward_hook(lambda m, i, o: one_huge(o))
    with tier.using(NORMS):
        assert first_bad_layer(net, [batch], step.loss) == f"output of blocks.{number}"


DENSE = "dense_stage=triton"


def _dense_step(spec, precision, batch=3):
    """The network after a step of the trainer, and the loss; features are 24 channels wide at first, 72 at last."""
    from imnet.device import Place
    from imnet.launch import World
    from imnet.models.densenet import DenseNetBC
    from imnet.recipe import SGD, Constant, Data, Recipe
    from imnet.step import TrainStep

    data = Data(name="synthetic", image_px=8, num_classes=5, batch_images=batch)
    recipe = Recipe(
        name="dense", model="densenet_bc100_12", data=data, optim=SGD(lr=0.1), schedule=Constant(), epochs=1
    )
    torch.manual_seed(0)
    net = DenseNetBC(16, 12, 5).to(memory_format=torch.channels_last)
    place = Place(torch.device("cpu"), precision, "test")
    step = TrainStep(net, recipe, place, World(), compile=False, graphs=False, backend="torch")
    images = torch.randn(batch, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    with tier.using(spec):
        loss = step([(images, torch.arange(batch))], batch, 0, 0.1)[0]
    return net.state_dict() | {"loss": loss}


def test_a_densenets_step_is_the_same_with_it(monkeypatch):
    """In fp32. In bf16 both are off by the rounding of every layer, and ours by no more than torch's."""
    from imnet_kernels.dense_stage import _triton

    calls, forward = [], _triton.forward
    monkeypatch.setattr(_triton, "forward", lambda *given: calls.append(given) or forward(*given))
    exact, ours = _dense_step("reference", "fp32"), _dense_step(DENSE, "fp32")
    assert ours.keys() == exact.keys()
    for name, theirs in exact.items():
        assert (ours[name] - theirs).float().norm() <= 1e-5 * theirs.float().norm() + 1e-7, name
    half, rounded = _dense_step(DENSE, "bf16"), _dense_step("reference", "bf16")
    for name, theirs in exact.items():
        off = (rounded[name] - theirs).float().norm()
        assert (half[name] - theirs).float().norm() <= 1.5 * off + 1e-3 * theirs.float().norm(), name
    assert [given[0].dtype for given in calls] == 3 * [torch.float32] + 3 * [torch.bfloat16]


def test_few_programs_take_many_rows_each(monkeypatch):
    """As where a map has more tiles than partial results may be."""
    from imnet_kernels.batch_norm import _triton
    from imnet_kernels.dense_stage.cases import FAMILY

    monkeypatch.setattr(_triton, "MOST_PARTS", 2)
    FAMILY.check(next(c for c in FAMILY.cases if c.name == "several tiles a program"), torch.float32, "triton")


def test_a_dense_stage_gives_the_same_bits_twice():
    from imnet_kernels.dense_stage.cases import FAMILY
    from imnet_kernels.family import outputs

    case = next(c for c in FAMILY.cases if c.name == "several tiles a program")
    with tier.using(DENSE):
        runs = [outputs(FAMILY.make(case, torch.bfloat16, "cpu")) for _ in range(2)]
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))


@pytest.mark.parametrize("form", ["weights in NCHW", "no gradient of x", "frozen weights", "one pixel a map"])
def test_a_stage_alone_gives_the_same_gradients(form):
    """What is chosen when the backward runs does not matter: it belongs to the forward."""
    from imnet.models.densenet import DenseStage

    torch.manual_seed(0)
    stage = DenseStage(9, 6, 2, 0.0)
    if form != "weights in NCHW":
        stage.to(memory_format=torch.channels_last)
    if form == "frozen weights":
        stage.layers[1].conv1.weight.requires_grad_(False)
        stage.layers[0].bn2.bias.requires_grad_(False)
    x = torch.randn(7, 9, 1, 1) if form == "one pixel a map" else torch.randn(3, 9, 5, 7)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_(form != "no gradient of x")
    leaves = [t for t in (x, *stage.parameters()) if t.requires_grad]
    start, found = copy.deepcopy(stage.state_dict()), []
    for spec in ("reference", DENSE):
        stage.load_state_dict(start)
        with tier.using(spec):
            y = stage(x)
        grads = torch.autograd.grad((y + 1).square().sum(), leaves)
        found.append([y, *grads, *(b.clone().float() for b in stage.buffers())])
    assert "DenseStage" in type(y.grad_fn).__name__
    for want, got in zip(*found, strict=True):
        assert (got - want).norm() <= 1e-5 * want.norm() + 1e-6


def _dense(change=lambda net: net):
    from imnet.models.densenet import DenseNetBC

    return change(DenseNetBC(10, 4, 5).to(memory_format=torch.channels_last).train())


def _other_momentum(net):
    for stage in net.stages[::2]:
        stage.layers[0].bn2.momentum = 0.3
    return net


def _no_running_statistics(net):
    for stage in net.stages[::2]:
        stage.layers[0].bn1.track_running_stats = False
    return net


def _counted(net):
    from torch.utils.flop_counter import FlopCounterMode

    def run(images):
        with FlopCounterMode(display=False):
            return net(images)

    return run


@pytest.mark.parametrize(
    "form", ["eval", "planar", "double", "odd momentum", "no running", "dropout", "flops", "compile"]
)
def test_everything_else_is_torchs_own(form, monkeypatch):
    from imnet_kernels.dense_stage import _triton

    from imnet.models.densenet import DenseNetBC

    monkeypatch.setattr(_triton, "forward", lambda *given: pytest.fail("the kernels ran"))
    images = torch.randn(2, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    run = {
        "eval": lambda: _dense().eval(),
        "planar": lambda: DenseNetBC(10, 4, 5),
        "double": lambda: _dense().double(),
        "odd momentum": lambda: _dense(_other_momentum),
        "no running": lambda: _dense(_no_running_statistics),
        "dropout": lambda: DenseNetBC(10, 4, 5, drop_rate=0.2).to(memory_format=torch.channels_last),
        "flops": lambda: _counted(_dense()),
        "compile": lambda: torch.compile(_dense(), backend="aot_eager", fullgraph=True),
    }[form]()
    images = images.double() if form == "double" else images.contiguous() if form == "planar" else images
    with tier.using(DENSE):
        run(images)
