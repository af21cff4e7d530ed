"""What every network guarantees: one graph, bf16 autocast, export, training, residual branches that start at zero, and
parameter groups without weight decay."""

import re

import pytest
import torch
import torch.nn.functional as F

from imnet.errors import UsageError
from imnet.models import build, names
from imnet.models.catalog import CATALOG
from imnet.models.densenet import DenseNetBC
from imnet.models.dpn import DualPathNet
from imnet.models.shake_shake import ShakeShake26
from imnet.models.wrn import LasagneWideResNet
from imnet.optim import no_decay, param_groups
from imnet.recipe import SGD

# One network per model file, small enough for the default test run: (builder, image size in pixels).
SMALL = {
    "wrn": (lambda **o: build("wrn10_1", 5, **o), 8),
    "wrn_lasagne": (lambda: LasagneWideResNet(12, 1, 5), 8),
    "densenet": (lambda: DenseNetBC(10, 4, 5), 8),
    "dpn": (lambda **o: DualPathNet((8, 16, 32), (2, 4, 8), 2, 5, **o), 8),
    "shake_shake": (lambda **o: ShakeShake26(4, 8, 5, **o), 8),
    "speednet": (lambda **o: build("speednet", 5, width=8, **o), 28),
    "speednet_deep": (lambda: build("speednet", 5, width=4, num_stages=4, last_residuals=1, pool_stem=True), 32),
    "resnet": (lambda **o: build("resnet18_64", 5, **o), 16),
    "alexnet": (lambda: build("alexnet_56", 5), 56),
    "vgg": (lambda: build("vgg16_bn_56", 5), 56),
    "davit": (lambda: build("davit_tiny", 5), 32),
}
# Networks of other libraries take seconds to trace and are tested there, so here they are slow tests, as is a second
# form of a network of ours.
LATER = ("alexnet", "vgg", "davit", "resnet", "speednet_deep")
TRACED = [pytest.param(n, marks=pytest.mark.slow) if n in LATER else n for n in SMALL]
VGG_SLOW = [pytest.param(n, marks=pytest.mark.slow) if n == "vgg" else n for n in SMALL]
DAVIT_SLOW = [pytest.param(n, marks=pytest.mark.slow) if n in ("vgg", "davit") else n for n in SMALL]
RESIDUAL = ("wrn", "dpn", "shake_shake", "resnet")


def small(name, **options):
    torch.manual_seed(0)
    make, px = SMALL[name]
    return make(**options), torch.randn(4, 3, px, px)


def shorter(name):
    """Like ``small``, with fewer blocks of each kind: a compiler's time grows with each."""
    network, images = small(name)
    if name == "shake_shake":
        network.blocks = torch.nn.ModuleList(network.blocks[at] for at in (0, 1, 4, 8))
    if name == "dpn":
        del network.stages[2]
        width = network.stages[1].out_channels
        network.bn, network.head = torch.nn.BatchNorm2d(width), torch.nn.Linear(width, 5)
    if name == "resnet":
        network.layer3 = network.layer4 = torch.nn.Identity()
        network.fc = torch.nn.Linear(128, 5)
    return network, images


def gradients(network):
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


def loss_of(network, images):
    torch.manual_seed(1)  # dropout and shake coefficients
    return F.cross_entropy(network(images).float(), torch.arange(len(images)) % 5)


@pytest.mark.parametrize("name", TRACED)
def test_compiles_in_one_graph_with_equal_gradients(name):
    torch._dynamo.reset()
    network, images = shorter(name)
    network.train()
    loss_of(network, images).backward()
    expected = gradients(network)
    network.zero_grad()
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    loss_of(compiled, images).backward()
    for parameter, grad in gradients(network).items():
        torch.testing.assert_close(grad, expected[parameter], rtol=1e-3, atol=1e-5, msg=parameter)


@pytest.mark.parametrize("name", DAVIT_SLOW)
def test_bf16_autocast_trains_fp32_weights(name):
    network, images = small(name)
    with torch.autocast("cpu", torch.bfloat16):
        assert network(images).dtype == torch.bfloat16
        loss = loss_of(network, images)
    loss.backward()
    assert torch.isfinite(loss)
    for parameter, grad in gradients(network).items():
        assert grad.dtype == torch.float32
        assert torch.isfinite(grad).all(), parameter


@pytest.mark.parametrize("name", TRACED)
def test_exports_with_any_batch_size(name):
    network, images = shorter(name)
    network.eval()
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(network, (images,), dynamic_shapes=({0: batch},))
    assert "imnet_kernels" not in str(program.graph)
    other = torch.randn(7, *images.shape[1:])
    torch.testing.assert_close(program.module()(other), network(other), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", RESIDUAL)
def test_zero_start_is_the_skips_alone_and_still_learns(name):
    network, images = small(name, zero_init_last_bn=True)
    network.train()
    zeroed = [n for n, p in network.named_parameters() if n.endswith("weight") and not p.any()]
    loss_of(network, images).backward()
    reached = {n for n, p in network.named_parameters() if p.grad.any()}
    if name == "dpn":
        half = [m.conv2.weight[: m.width] for m in network.modules() if hasattr(m, "growth")]
        assert half
        assert not any(w.any() for w in half)
    assert len(zeroed) >= 3
    assert reached >= set(zeroed)
    if name != "dpn":  # DPN's appended features pass the gradient on
        inner = [n for n, _ in network.named_parameters() if re.search(r"(blocks|layer).*conv1.weight", n)]
        assert inner
        assert not reached & set(inner)


@pytest.mark.parametrize("name", VGG_SLOW)
def test_two_steps_lower_the_loss(name):
    network, images = small(name)
    check_two_steps(network, images)


def check_two_steps(network, images, lr=0.01):
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=lr)
    losses = []
    for _ in range(3):
        loss = loss_of(network, images)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[2] < losses[1] < losses[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", names())
def test_two_steps_of_every_network_at_its_own_size(name):
    entry = CATALOG[name]
    torch.manual_seed(0)
    network = build(name, entry.num_classes, entry.in_channels)
    # At a learning rate of 0.01, the second step of the deep ResNets would overshoot on two images.
    check_two_steps(network, torch.randn(2, entry.in_channels, entry.image_px, entry.image_px), lr=0.001)


@pytest.mark.slow
@pytest.mark.parametrize("name", names())
def test_every_network_traces_as_one_graph_and_exports(name):
    """Uses the meta device, on which tracing needs no arithmetic."""
    torch._dynamo.reset()
    entry = CATALOG[name]
    with torch.device("meta"):
        network = build(name, entry.num_classes, entry.in_channels)
        images = torch.empty(2, entry.in_channels, entry.image_px, entry.image_px)
    logits = torch.compile(network, fullgraph=True, backend="eager")(images)
    assert logits.shape == (2, entry.num_classes)
    program = torch.export.export(network.eval(), (images,))
    assert program.graph_signature.user_outputs


@pytest.mark.slow
def test_inductor_agrees_with_eager():
    torch._dynamo.reset()
    network, images = small("shake_shake")
    loss = loss_of(network.train(), images)
    compiled = torch.compile(network, fullgraph=True)
    with torch._inductor.config.patch(fallback_random=True):
        torch.testing.assert_close(loss_of(compiled, images), loss, rtol=1e-4, atol=1e-5)


def test_no_decay_is_norms_and_biases():
    network = build("wrn10_1", 5)
    skip = no_decay(network)
    batch_norms = [n for n, m in network.named_modules() if isinstance(m, torch.nn.BatchNorm2d)]
    norms = {f"{n}.{p}" for n in batch_norms for p in ("weight", "bias")}
    assert skip == norms | {"head.bias"}
    groups = param_groups(network, SGD(lr=0.1, weight_decay=5e-4, decay_norms=False))
    assert [group["weight_decay"] for group in groups] == [5e-4, 0.0]
    assert all(p.dim() > 1 for p in groups[0]["params"])
    assert sum(len(group["params"]) for group in groups) == len(list(network.parameters()))
    (everything,) = param_groups(network, SGD(lr=0.1, weight_decay=5e-4))
    assert len(everything["params"]) == len(list(network.parameters()))


TIMMS = (
    "vit_tiny_patch16_224",  # tables
    "davit_tiny",
    "beit_base_patch16_224",  # biases by other names, scales of layers
    "mobilenetv5_300m",  # root mean square norms of timm's own, with an activation and without
    "aimv2_large_patch14_224",
    "xcit_nano_12_p8_224",  # tables named by a pattern
    "swinv2_cr_tiny_ns_224",  # numbers
    "caformer_s18",
    "sequencer2d_s",
)


@pytest.mark.parametrize("name", TIMMS)
def test_what_is_spared_of_timms_networks_is_what_timm_spares(name):
    groups = pytest.importorskip("timm.optim").param_groups_weight_decay
    with torch.device("meta"):
        network = build(f"timm:{name}", 5)
    theirs, _ = groups(network, 0.1, no_weight_decay_list=getattr(network, "no_weight_decay", set)())
    names = {id(p): n for n, p in network.named_parameters()}
    assert theirs["weight_decay"] == 0
    assert no_decay(network) == {names[id(p)] for p in theirs["params"]}


def test_norms_of_more_dimensions_are_spared_and_matrices_are_not():
    network = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 1, bias=False), torch.nn.LayerNorm((3, 4, 4)))
    network.append(torch.nn.Bilinear(4, 4, 5))
    assert no_decay(network) == {"1.weight", "1.bias", "2.bias"}


def test_too_small_images_are_refused_where_the_classifier_is_sized():
    for name in ("alexnet", "vgg16"):
        with pytest.raises(UsageError, match="image_px=16"):
            build(name, 5, image_px=16)


def test_frozen_parameters_are_left_out():
    network = build("wrn10_1", 5)
    network.stem.weight.requires_grad_(False)
    left = [p for group in param_groups(network, SGD(lr=0.1)) for p in group["params"]]
    assert not any(p is network.stem.weight for p in left)
