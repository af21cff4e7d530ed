"""Communication options on two gloo ranks: equal weights, bytes sent, number of all-reduces, and when they start.

All cases run in one pair of processes and record what a step sent: /proc/self/io counts the bytes that a rank writes
to its sockets, torch's profiler counts the all-reduces, and DistributedDataParallel reports its buckets.
"""

import dataclasses
import datetime
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from imnet.data.order import micro_batches, shard
from imnet.device import Place
from imnet.errors import UsageError
from imnet.launch import World
from imnet.recipe import SGD, Comm, Constant, Data, Recipe
from imnet.step import TrainStep

from .conftest import finished, start_ranks

STEPS, IMAGES = 4, 9  # shards of 4 and 5
KIB = 1 / 1024
RECIPE = Recipe(
    name="comm",
    model="made here",
    data=Data(name="synthetic", image_px=4, num_classes=10, batch_images=IMAGES),
    optim=SGD(lr=0.05, momentum=0.9, weight_decay=1e-3),
    schedule=Constant(),
    epochs=1,
)


class Plain(nn.Sequential):
    """Four layers without batch statistics, so that the number of ranks changes only rounding."""

    def __init__(self):
        layers = [nn.Linear(48, 128), nn.Linear(128, 128), nn.Linear(128, 128), nn.Linear(128, 10)]
        super().__init__(nn.Flatten(), *(m for layer in layers for m in (layer, nn.Tanh())))


class Unused(nn.Module):
    """A network with one layer that never runs."""

    def __init__(self):
        super().__init__()
        self.used, self.idle = Plain(), nn.Linear(7, 7)

    def forward(self, x):
        return self.used(x)


class Normed(nn.Module):
    """A network that records the running mean at the beginning of every forward pass."""

    def __init__(self):
        super().__init__()
        self.norm, self.rest, self.found = nn.BatchNorm2d(3), Plain(), []

    def forward(self, x):
        self.found.append(self.norm.running_mean.clone())
        return self.rest(self.norm(x))


class BatchNormed(nn.Sequential):
    """A network with batch norm over feature maps and over vectors."""

    def __init__(self):
        first = (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten())
        super().__init__(*first, nn.Linear(32, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10))


@dataclasses.dataclass(frozen=True)
class Case:
    comm: Comm = dataclasses.field(default_factory=Comm)
    net: type = Plain
    micro: int | None = None


CASES = {
    "default": Case(),
    "small buckets": Case(Comm(bucket_mb=60 * KIB, first_bucket_mb=4 * KIB)),
    "bf16": Case(Comm(bucket_mb=60 * KIB, first_bucket_mb=4 * KIB, gradient_dtype="bf16")),
    "no views": Case(Comm(bucket_mb=60 * KIB, gradient_as_bucket_view=False)),
    "static": Case(Comm(static_graph=True)),
    # At most 4 images per pass: the first rank makes one pass, the second two.
    "accumulated": Case(Comm(bucket_mb=60 * KIB), micro=4),
    "accumulated more": Case(Comm(bucket_mb=60 * KIB), micro=2),
    "static, accumulated": Case(Comm(static_graph=True), micro=2),
    "unused": Case(net=Unused),
    "static, unused": Case(Comm(static_graph=True), net=Unused),
    "own buffers": Case(net=Normed),
    "own norms": Case(net=BatchNormed),
    "synced norms": Case(Comm(sync_bn=True), net=BatchNormed),
    "broadcast buffers": Case(Comm(broadcast_buffers=True), net=Normed),
}


def batch(number, ids):
    g = torch.Generator().manual_seed(number)
    return torch.randn(IMAGES, 3, 4, 4, generator=g)[ids], torch.randint(0, 10, (IMAGES,), generator=g)[ids]


def run_case(case, world):
    """Trains STEPS steps; returns what the last one sent, and the weights and buffers."""
    torch.manual_seed(0)
    net = case.net()
    recipe = dataclasses.replace(RECIPE, comm=case.comm)
    place = Place(torch.device("cpu"), "fp32", "test")
    step = TrainStep(net, recipe, place, world, compile=False, graphs=False, backend="auto")
    mine = micro_batches(shard(torch.arange(IMAGES), world.rank, world.size), case.micro)
    try:
        step.warm_up([batch(0, ids) for ids in mine], IMAGES)
    except UsageError as error:
        return {"error": str(error)}
    for number in range(STEPS - 1):
        step([batch(number, ids) for ids in mine], IMAGES, number, 0.05)
    sent = written()
    with torch.profiler.profile() as profile:
        step([batch(STEPS, ids) for ids in mine], IMAGES, STEPS, 0.05)
    found = {"wire": written() - sent, "weights": {k: v.clone() for k, v in net.named_parameters()}}
    found["buffers"] = {k: v.clone() for k, v in net.named_buffers()}
    found["events"] = events(profile)
    found["means"] = [m.clone() for m in getattr(net, "found", [])]
    if world.size > 1:
        found["ddp"] = {k: str(v) for k, v in step.parallel._get_ddp_logging_data().items()}
    return found


def infinite(world):
    """Takes a step with finite gradients whose loss is infinite on rank 1 only; returns what each rank found."""
    torch.manual_seed(0)
    net = nn.Sequential(*list(Plain())[:-1])
    with torch.no_grad():
        net[-1].bias[0] = -torch.inf  # class 0, the label of one image, gets probability 0
    place = Place(torch.device("cpu"), "fp32", "test")
    step = TrainStep(net, RECIPE, place, world, compile=False, graphs=False, backend="auto")
    before = [p.clone() for p in net.parameters()]
    images, labels = batch(0, shard(torch.arange(IMAGES), world.rank, world.size))
    labels = torch.where(torch.arange(len(labels)) == 0, 0 if world.rank else 1, 1)
    total, bad = step([(images, labels)], IMAGES, 0, 0.05)
    kept = all(torch.equal(p, old) for p, old in zip(net.parameters(), before, strict=True))
    return {"total": float(total), "bad": float(bad), "kept": kept}


def written():
    """Returns the number of bytes that this process has passed to write calls, sockets included."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["wchar"])


def events(profile):
    """Returns "backward" for each linear layer's backward and "all-reduce" for each all-reduce, by start time."""
    wanted = {"c10d::allreduce_": "all-reduce", "AddmmBackward0": "backward"}
    found = sorted((e.time_range.start, wanted[e.name]) for e in profile.events() if e.name in wanted)
    return [name for _, name in found]


def rank_main(rank, folder):
    torch.set_num_threads(1)
    timeout = datetime.timedelta(seconds=60)
    store = dist.FileStore(str(folder / "store"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timeout)
    found = {}
    for name, case in CASES.items():
        found[name] = run_case(case, World(rank, 2, rank))
        dist.barrier()
    found["infinite"] = infinite(World(rank, 2, rank))
    torch.save(found, folder / f"rank{rank}.pt")
    dist.destroy_process_group()
    return 0


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """The results of both ranks, [rank][case]."""
    if not Path("/proc/self/io").exists():
        pytest.skip("no /proc/self/io to count bytes with")
    folder = tmp_path_factory.mktemp("ranks")
    assert finished(start_ranks(rank_main, (0, folder), (1, folder))) == [0, 0]
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


@pytest.fixture(scope="module")
def alone():
    return {net: run_case(Case(net=net), World()) for net in (Plain, Unused, BatchNormed)}


TRAINED = [name for name, case in CASES.items() if case.net not in (Normed, BatchNormed) and name != "unused"]
NUM_BYTES = 4 * sum(p.numel() for p in Plain().parameters())


@pytest.mark.parametrize("name", TRAINED)
def test_weights_are_those_of_one_rank(ranks, alone, name):
    wanted = alone[CASES[name].net]["weights"]
    rtol, atol = (2e-2, 2e-4) if name == "bf16" else (1e-4, 1e-6)
    for rank in ranks:
        assert rank[name]["weights"].keys() == wanted.keys()
        for key, value in wanted.items():
            torch.testing.assert_close(rank[name]["weights"][key], value, rtol=rtol, atol=atol, msg=key)
    for key, value in ranks[0][name]["weights"].items():
        assert torch.equal(value, ranks[1][name]["weights"][key]), key


def test_bf16_rounds_what_it_sends(ranks, alone):
    """The option has an effect: bf16 weights differ from one rank's by more than fp32's would."""
    wanted, found = alone[Plain]["weights"], ranks[0]["bf16"]["weights"]
    assert any(not torch.allclose(found[k], v, rtol=1e-6, atol=1e-8) for k, v in wanted.items())


@pytest.mark.parametrize("name", [n for n in TRAINED if "unused" not in n])
def test_bytes_on_the_wire(ranks, name):
    """Each of two ranks in a ring sends every gradient once, in bf16 half the bytes; accumulation sends no more."""
    expected = NUM_BYTES / 2 if name == "bf16" else NUM_BYTES
    for rank in ranks:
        assert expected <= rank[name]["wire"] <= 1.03 * expected + 4000


@pytest.mark.parametrize("name", TRAINED)
def test_one_all_reduce_a_bucket(ranks, name):
    for rank in ranks:
        buckets = rank[name]["ddp"]["rebuilt_bucket_sizes"].split(", ")
        assert rank[name]["events"].count("all-reduce") == len(buckets)
        sent = sum(map(int, buckets))
        assert sent == NUM_BYTES or CASES[name].net is Unused


def test_bucket_sizes_follow_the_options(ranks):
    """A bucket is closed by the parameter that fills it, so it may exceed its size by that parameter."""
    one, several = (ranks[0][name]["ddp"]["rebuilt_bucket_sizes"].split(", ") for name in ("default", "small buckets"))
    assert len(one) == 1
    sizes = [int(s) for s in several]
    assert len(sizes) > 2
    largest = 4 * 128 * 128
    assert sizes[0] <= 4 * 1024 + 4 * 10 * 128
    assert all(s <= 60 * 1024 + largest for s in sizes[1:])
    plain = [int(s) for s in ranks[0]["no views"]["ddp"]["rebuilt_bucket_sizes"].split(", ")]
    assert sizes[0] < plain[0]


def test_buckets_hold_the_last_layers_first(ranks):
    order = ranks[0]["small buckets"]["ddp"]["rebuilt_per_bucket_param_indices"].replace(",", " ").split()
    assert [int(i) for i in order] == list(range(len(order)))[::-1]


def test_all_reduces_start_while_the_backward_runs(ranks):
    """Several buckets are sent before the backward pass has reached the first layer."""
    names = ranks[0]["small buckets"]["events"]
    assert names.count("backward") == 4
    last_backward = len(names) - 1 - names[::-1].index("backward")
    assert 2 <= names[:last_backward].count("all-reduce") < names.count("all-reduce")
    whole = ranks[0]["default"]["events"]
    assert whole.index("all-reduce") > len(whole) - 1 - whole[::-1].index("backward")


def test_accumulation_reduces_once_a_step(ranks):
    """The first rank makes one or two passes, the second two or three; only the last pass of each reduces."""
    for name in ("accumulated", "accumulated more", "static, accumulated"):
        for rank in ranks:
            first = rank[name]["events"].index("all-reduce")
            passes = rank[name]["events"].count("backward") // 4
            assert rank[name]["events"][:first].count("backward") > 4 * (passes - 1)
    assert [r["accumulated"]["events"].count("backward") for r in ranks] == [4, 8]


def test_a_loss_that_is_not_finite_at_one_rank_is_left_out_by_all(ranks):
    """Ranks exchange only gradients, so the rank with the bad loss must make its finite gradients non-finite."""
    assert [rank["infinite"]["total"] == torch.inf for rank in ranks] == [False, True]
    assert [rank["infinite"]["bad"] for rank in ranks] == [1.0, 1.0]
    assert [rank["infinite"]["kept"] for rank in ranks] == [True, True]


def test_unused_parameters_are_one_clear_error(ranks):
    for rank in ranks:
        assert "got 2 parameters without a gradient on several ranks, e.g. idle.weight" in rank["unused"]["error"]
        assert "--comm.static_graph true" in rank["unused"]["error"]


def test_buffers_are_a_ranks_own_unless_broadcast(ranks):
    own, sent = ([rank[name]["means"] for rank in ranks] for name in ("own buffers", "broadcast buffers"))
    assert len(own[0]) == len(own[1]) == STEPS + 1
    assert torch.equal(own[0][0], own[1][0])
    assert not any(torch.equal(a, b) for a, b in zip(own[0][2:], own[1][2:], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(sent[0], sent[1], strict=True))
    assert not torch.equal(sent[0][1], sent[0][-1])


def test_sync_bn_is_the_batch_norm_of_one_rank(ranks, alone):
    """Two shards of 4 and 5 images end with the weights and running statistics of one rank with all 9."""
    wanted = alone[BatchNormed]
    for kind in ("weights", "buffers"):
        for rank in ranks:
            assert rank["synced norms"][kind].keys() == wanted[kind].keys()
            for key, value in wanted[kind].items():
                torch.testing.assert_close(rank["synced norms"][kind][key], value, rtol=1e-4, atol=1e-6, msg=key)
    own = ranks[0]["own norms"]
    assert not all(torch.allclose(own["weights"][k], v, rtol=1e-2, atol=1e-4) for k, v in wanted["weights"].items())
