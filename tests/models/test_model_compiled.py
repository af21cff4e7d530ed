"""Compiled networks keep finite gradients: no backward may look for the elements that equal a maximum.

Inductor recomputes a backward's inputs in fp32. If autocast had rounded them to bf16, no recomputed element equals the
maximum any more, and the gradient of ``amax``, of ``max`` and ``median`` over a whole tensor, or of an infinity norm
becomes 0 / 0. This does not happen on a CPU, but the graph that Inductor receives shows the comparison.
"""

import pytest
import torch
from test_model_properties import SMALL, gradients, small
from torch import nn

from imnet.models import build, names
from imnet.models.catalog import CATALOG

ORDER_STATISTICS = ("amax", "amin", "aminmax", "max", "min", "median", "nanmedian", "kthvalue", "mode", "topk", "sort")


def joint_graph(network, images):
    """Returns forward and backward of a training network as the one graph that is split and passed to Inductor, which
    takes seconds to import."""
    import torch._inductor.compile_fx
    import torch._inductor.lowering
    from functorch.compile import default_partition, make_boxed_func
    from torch._dynamo.backends.common import aot_autograd
    from torch._inductor.decomposition import select_decomp_table

    kept = []

    def keep(module, inputs, **options):
        kept.append(module.graph)
        return default_partition(module, inputs, **options)

    backend = aot_autograd(
        fw_compiler=lambda module, _: make_boxed_func(module.forward),
        partition_fn=keep,
        decompositions=select_decomp_table(),
    )
    torch._dynamo.reset()
    torch.compile(network.train(), backend=backend, fullgraph=True)(images)
    return kept[0]


def equalities_with_a_maximum(graph):
    """Returns the tests of tensors for (in)equality in which one side is computed only from an order statistic."""
    from_maximum, found = set(), []
    for node in graph.nodes:
        name = str(node.target)
        inputs = [n for n in node.all_input_nodes if n.op == "call_function"]
        if name.split(".")[1:2] and name.split(".")[1] in ORDER_STATISTICS:
            from_maximum.add(node)
        elif name in ("aten.eq.Tensor", "aten.ne.Tensor"):
            found += [node] if from_maximum & set(inputs) else []
        elif len(inputs) == 1 and inputs[0] in from_maximum:
            from_maximum.add(node)  # a view, a cast, an expansion
    return found


class Head(nn.Module):
    """A convolution and one way to reduce its map."""

    def __init__(self, reduce):
        super().__init__()
        self.conv, self.reduce = nn.Conv2d(3, 4, 3), reduce

    def forward(self, x):
        return self.reduce(self.conv(x))


@pytest.mark.parametrize("reduce", [
    lambda x: x.amax((2, 3)), lambda x: x.amin(3), lambda x: x.max(), lambda x: x.median(),
    lambda x: torch.linalg.vector_norm(x, float("inf"), (2, 3)),
], ids=["amax", "amin", "max", "median", "infinity norm"])  # fmt: skip
def test_the_search_finds_what_it_is_for(reduce):
    assert equalities_with_a_maximum(joint_graph(Head(reduce), torch.randn(2, 3, 8, 8)))


def test_the_search_passes_what_looks_positions_up():
    def reduce(x):
        return torch.nn.functional.max_pool2d(x, 2).flatten(2).max(2).values

    assert not equalities_with_a_maximum(joint_graph(Head(reduce), torch.randn(2, 3, 8, 8)))


# speednet is the network that once failed; the graphs of most others take seconds each, so they are slow tests.
@pytest.mark.parametrize("name", [n if n == "speednet" else pytest.param(n, marks=pytest.mark.slow) for n in SMALL])
def test_no_gradient_compares_with_a_maximum(name):
    network, images = small(name)
    graph = joint_graph(network, images)
    assert any("convolution_backward" in str(node.target) for node in graph.nodes)
    assert not equalities_with_a_maximum(graph)


@pytest.mark.slow
@pytest.mark.parametrize("name", names())
def test_no_gradient_of_any_network_compares_with_a_maximum(name):
    entry = CATALOG[name]
    with torch.device("meta"):
        network = build(name, entry.num_classes, entry.in_channels)
        images = torch.empty(2, entry.in_channels, entry.image_px, entry.image_px)
    assert not equalities_with_a_maximum(joint_graph(network, images))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", SMALL)
def test_compiled_gradients_on_a_gpu_are_finite_and_eagers(name):
    """In bf16, eager and compiled gradients differ from fp32 by rounding, and from each other by at most twice that."""
    torch._dynamo.reset()
    network, images = small(name)
    network = network.cuda().to(memory_format=torch.channels_last).train()
    images = images.cuda().contiguous(memory_format=torch.channels_last)
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # eager and compiled code draw different masks

    def backward(function, precision):
        network.zero_grad()
        with (
            torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"),
            torch._inductor.config.patch(fallback_random=True),
        ):
            loss_on_gpu(function, images).backward()
        return torch.cat([g.flatten() for g in gradients(network).values()])

    exact, eager = backward(network, "fp32"), backward(network, "bf16")
    compiled = backward(torch.compile(network), "bf16")
    assert compiled.isfinite().all()
    allowed = 2 * (eager - exact).norm() + 1e-3 * exact.norm()
    assert (compiled - eager).norm() <= allowed


def loss_on_gpu(network, images):
    labels = torch.arange(len(images), device="cuda") % 5
    torch.manual_seed(1)
    return nn.functional.cross_entropy(network(images).float(), labels)
