"""Training-step throughput of our networks against timm's and torchvision's own, with equal flags.

    python bench/bench_models.py                        every pair, channels_last, fp32
    python bench/bench_models.py --only densenet --batch 64 --bf16 --compile --json out.json

A pair is timed only after its gate: equal parameter count, and equal logits once their weights are loaded into ours
(by name, or in order where the two name them differently). The step is forward, cross-entropy, backward; the two sides
alternate, the first two rounds are not counted, the best round is reported. On a CPU the time is CPU time, so that
other work on the machine counts for little; on a GPU it is that of CUDA events. Peers of WRN, DPN and Shake-Shake:
none, timm and torchvision have no such networks; their step is printed alone.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from imnet.models import build
from imnet.models.catalog import CATALOG
from imnet.models.count import num_params


def _torchvision_densenet() -> nn.Module:
    """torchvision's DenseNet class in the small-image form: 3x3 stem, no pool, 10 classes, 1 channel."""
    stages: Any = (16, 16, 16)  # annotated as four, any number works
    network = torchvision.models.DenseNet(12, stages, 24, bn_size=4, num_classes=10)
    network.features.conv0 = nn.Conv2d(1, 24, 3, 1, 1, bias=False)
    for name in ("norm0", "relu0", "pool0"):
        setattr(network.features, name, nn.Identity())
    return network


def _timm_wide_resnet() -> nn.Module:
    network = timm.create_model("wide_resnet50_2", num_classes=1000)
    network.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    return network


Pair = tuple[str, int, str, Callable[[], nn.Module] | None]
PAIRS: list[Pair] = [  # our name, image size in pixels, peer, its builder
    ("densenet_bc100_12", 28, "torchvision DenseNet class", _torchvision_densenet),
    ("resnet18", 64, "torchvision", torchvision.models.resnet18),
    ("resnet18", 64, "timm", lambda: timm.create_model("resnet18", num_classes=1000)),
    ("resnet50", 64, "torchvision", torchvision.models.resnet50),
    ("resnet50", 64, "timm", lambda: timm.create_model("resnet50", num_classes=1000)),
    ("wide_resnet50_2_imagenet64", 64, "timm", _timm_wide_resnet),
    ("davit_tiny", 64, "timm", lambda: timm.create_model("davit_tiny", num_classes=1000)),
    ("vgg16_bn", 224, "torchvision", torchvision.models.vgg16_bn),
    ("alexnet", 224, "torchvision", torchvision.models.alexnet),
    ("wrn28_10", 28, "none", None),
    ("wrn36_2", 64, "none", None),
    ("dpn28_10", 28, "none", None),
    ("shake_shake26_2x32d", 32, "none", None),
]


@dataclass(frozen=True)
class Row:
    """One line of the table: best seconds per step of both sides."""

    model: str
    px: int
    peer: str
    ours_s: float
    peer_s: float | None
    images_per_s: float

    def __str__(self) -> str:
        ratio = "-" if self.peer_s is None else f"{self.peer_s / self.ours_s:.2f}x"
        return f"{self.model:28} {self.px:4} {self.images_per_s:10.1f} {ratio:>7}  {self.peer}"


def copy_weights(ours: nn.Module, theirs: nn.Module) -> None:
    """Their weights into ours: by name where the names agree, else in order, refusing unequal shapes."""
    mine, other = ours.state_dict(), theirs.state_dict()
    if mine.keys() != other.keys():
        if [v.shape for v in mine.values()] != [v.shape for v in other.values()]:
            raise SystemExit("gate: the two networks list different tensors; no time is reported")
        other = dict(zip(mine, other.values(), strict=True))
    ours.load_state_dict(other)


def gate(ours: nn.Module, theirs: nn.Module, images: torch.Tensor) -> None:
    """Raises SystemExit unless both compute the same function of the same weights."""
    if num_params(ours) != num_params(theirs):
        raise SystemExit(f"gate: {num_params(ours)} parameters against {num_params(theirs)}; no time is reported")
    copy_weights(ours, theirs)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(images), theirs.eval()(images), rtol=1e-3, atol=1e-4)


def step_of(network: nn.Module, images: torch.Tensor, labels: torch.Tensor, bf16: bool) -> Callable[[], float]:
    """A function that runs one step and returns its seconds."""

    def step() -> None:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
            loss = F.cross_entropy(network(images).float(), labels)
        loss.backward()
        for parameter in network.parameters():
            parameter.grad = None

    def on_cpu() -> float:
        start = time.process_time()
        step()
        return time.process_time() - start

    def on_cuda() -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        step()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    return on_cuda if images.is_cuda else on_cpu


def best_of(steps: list[Callable[[], float]], rounds: int) -> list[float]:
    """Best seconds of each step; who goes first alternates, because the first finds the colder cache."""
    times: list[list[float]] = [[] for _ in steps]
    for i in range(2 + rounds):
        for which in range(len(steps))[:: -1 if i % 2 else 1]:
            times[which].append(steps[which]())
    return [min(seconds[2:]) for seconds in times]


def measure(pair: Pair, args: argparse.Namespace) -> Row:
    name, px, peer, make_peer = pair
    entry, device = CATALOG[name], torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    images = torch.randn(args.batch, entry.in_channels, px, px, device=device)
    labels = torch.arange(args.batch, device=device) % entry.num_classes
    networks = [build(name, entry.num_classes, entry.in_channels).to(device)]
    if make_peer is not None:
        networks.append(make_peer().to(device))
        gate(networks[0], networks[1], images)
    if not args.nchw:
        images = images.to(memory_format=torch.channels_last)
        networks = [network.to(memory_format=torch.channels_last) for network in networks]
    for network in networks:
        network.train()
        if args.compile:
            network.compile(fullgraph=True)
    steps = [step_of(network, images, labels, args.bf16) for network in networks]
    best = best_of(steps, args.rounds)
    return Row(name, px, peer, best[0], best[1] if make_peer else None, args.batch / best[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="names that contain this")
    parser.add_argument("--batch", type=int, default=8, help="images per step")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bf16", action="store_true", help="autocast")
    parser.add_argument("--nchw", action="store_true", help="contiguous instead of channels_last")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()}, CPU time"
    print(f"torch {torch.__version__}, {where}, {args.threads} threads, batch {args.batch}, best of {args.rounds}")
    print(f"{'model':28} {'px':>4} {'images/s':>10} {'ratio':>7}  peer")
    rows = []
    for pair in PAIRS:
        if args.only in pair[0]:
            rows.append(measure(pair, args))
            print(rows[-1], flush=True)
    if args.json:
        args.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
