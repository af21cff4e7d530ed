"""Training-step time of our networks against timm's and torchvision's own, with equal flags.

    python -m bench.bench_models --json OUT             the pairs of the suite, under 3 minutes on one CPU core
    python -m bench.bench_models --all                  every pair, and the networks that have no peer
    python -m bench.bench_models --only densenet --batch 64 --bf16 --compile

A pair is timed only after its gate: equal parameter count, and equal logits once their weights are loaded into ours
(by name, or in order where the two name them differently). The step is forward, cross-entropy, backward, on
channels_last unless ``--nchw``. The two sides alternate; in half of the rounds ours goes first, in half the peer.
A ratio is the peer's time over ours: the median over the rounds, each of which has one time of both sides, its
quartile distance, and the ratio of the best times. ``control`` is torchvision's ResNet-50 against itself: what it
strays from 1 is the noise of all the others. ``same`` says that both sides print as the same modules.

JSON: {"benchmark": "models", "fingerprint": {...}, "rows": [{"model", "px", "batch", "peer", "same", "ours": {...},
"theirs": {...} or null, "ratio_median", "ratio_iqr", "ratio_best", "n"}]}, times in seconds (see timing.Timing).
"""

from __future__ import annotations

import argparse
import json
import statistics
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

from .fingerprint import fingerprint, text
from .timing import Timing, windows


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


@dataclass(frozen=True)
class Pair:
    """Two builders of one network, ``batch`` images of ``px`` pixels a step; ``suite``: part of the short run."""

    model: str
    px: int
    peer: str
    theirs: Callable[[], nn.Module] | None = None
    ours: Callable[[], nn.Module] | None = None
    batch: int = 8
    suite: bool = False


PAIRS = [
    Pair("densenet_bc100_12", 28, "torchvision DenseNet class", _torchvision_densenet, batch=16, suite=True),
    Pair("resnet50", 64, "control", torchvision.models.resnet50, torchvision.models.resnet50, suite=True),
    Pair("resnet50", 64, "torchvision", torchvision.models.resnet50, suite=True),
    Pair("resnet50", 64, "timm", lambda: timm.create_model("resnet50", num_classes=1000), suite=True),
    Pair("wide_resnet50_2_imagenet64", 64, "timm", _timm_wide_resnet, batch=2, suite=True),
    Pair("davit_tiny", 64, "timm", lambda: timm.create_model("davit_tiny", num_classes=1000), suite=True),
    Pair("resnet18", 64, "torchvision", torchvision.models.resnet18),
    Pair("resnet18", 64, "timm", lambda: timm.create_model("resnet18", num_classes=1000)),
    Pair("vgg16_bn", 224, "torchvision", torchvision.models.vgg16_bn, batch=2),
    Pair("alexnet", 224, "torchvision", torchvision.models.alexnet),
    Pair("wrn28_10", 28, "none"),
    Pair("wrn36_2", 64, "none"),
    Pair("dpn28_10", 28, "none"),
    Pair("shake_shake26_2x32d", 32, "none"),
]


@dataclass(frozen=True)
class Row:
    """One line of the table; ``theirs`` and the ratios are None where there is no peer."""

    model: str
    px: int
    batch: int
    peer: str
    same: bool
    ours: Timing
    theirs: Timing | None
    ratio_median: float | None
    ratio_iqr: float | None
    ratio_best: float | None
    n: int

    def __str__(self) -> str:
        line = f"{self.model:28} {self.px:4} {self.batch:6} {self.batch / self.ours.best_s:10.1f}"
        if self.ratio_median is None:
            return f"{line} {'-':>8} {'-':>7} {'-':>7} {self.n:4}  {self.peer}"
        same = ", same modules" if self.same else ""
        ratios = f"{self.ratio_median:7.3f}x {self.ratio_iqr:7.3f} {self.ratio_best:6.3f}x"
        return f"{line} {ratios} {self.n:4}  {self.peer}{same}"


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


def step_of(network: nn.Module, images: torch.Tensor, labels: torch.Tensor, bf16: bool) -> Callable[[], None]:
    """A function that runs one training step without the optimiser."""

    def step() -> None:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
            loss = F.cross_entropy(network(images).float(), labels)
        loss.backward()
        for parameter in network.parameters():
            parameter.grad = None

    return step


def times_of(steps: dict[str, Callable[[], None]], rounds: int, budget_s: float) -> dict[str, list[float]]:
    """Seconds of each step, round by round; who goes first changes at half time, as the first finds a colder cache."""
    found: dict[str, list[float]] = {name: [] for name in steps}
    for order in (list(steps), list(steps)[::-1]):
        taken = windows({name: steps[name] for name in order}, rounds // 2, budget_s=budget_s / 2)
        for name in steps:
            found[name] += [window.seconds for window in taken[name]]
    return found


def measure(pair: Pair, args: argparse.Namespace) -> Row:
    """The gate and the times of one pair."""
    entry, device = CATALOG[pair.model], torch.device("cuda" if torch.cuda.is_available() else "cpu")
    batch = args.batch or pair.batch
    torch.manual_seed(0)
    images = torch.randn(batch, entry.in_channels, pair.px, pair.px, device=device)
    labels = torch.arange(batch, device=device) % entry.num_classes
    ours = pair.ours() if pair.ours else build(pair.model, entry.num_classes, entry.in_channels)
    networks = {"ours": ours.to(device)}
    if pair.theirs is not None:
        networks["theirs"] = pair.theirs().to(device)
        gate(networks["ours"], networks["theirs"], images)
    same = len({repr(network) for network in networks.values()}) < len(networks)
    if not args.nchw:
        images = images.to(memory_format=torch.channels_last)
    steps = {}
    for name, network in networks.items():
        network.to(memory_format=torch.contiguous_format if args.nchw else torch.channels_last).train()
        if args.compile:
            network.compile(fullgraph=True)
        steps[name] = step_of(network, images, labels, args.bf16)
    return row_of(pair, batch, same, times_of(steps, args.rounds, args.seconds))


def row_of(pair: Pair, batch: int, same: bool, times: dict[str, list[float]]) -> Row:
    """Times of both sides, and of their ratio in every round."""
    ours = Timing.of(times["ours"])
    values = (pair.model, pair.px, batch, pair.peer, same, ours)
    if "theirs" not in times:
        return Row(*values, None, None, None, None, ours.n)
    theirs = Timing.of(times["theirs"])
    ratios = [b / a for a, b in zip(times["ours"], times["theirs"], strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4)
    return Row(*values, theirs, statistics.median(ratios), high - low, theirs.best_s / ours.best_s, ours.n)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=None, help="names that contain this, of all pairs")
    parser.add_argument("--all", action="store_true", help="every pair, not the suite alone")
    parser.add_argument("--batch", type=int, default=None, help="images per step; default: the pair's own")
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--seconds", type=float, default=24.0, help="end a pair after this long, if it has 6 rounds")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bf16", action="store_true", help="autocast")
    parser.add_argument("--nchw", action="store_true", help="contiguous instead of channels_last")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    args = parser.parse_args(argv)
    if args.rounds < 6:
        parser.error(f"--rounds is {args.rounds}; allowed 6 or more")
    return args


def run(args: argparse.Namespace) -> dict[str, Any]:
    """All rows as the JSON has them; prints each when it is there."""
    torch.set_num_threads(args.threads)
    flags = {name: getattr(args, name) for name in ("nchw", "compile")}
    found = fingerprint("bf16" if args.bf16 else "fp32") | {"flags": flags}
    print(f"{text(found)}; timm {timm.__version__}; ratio = the peer's time over ours")
    print(f"{'model':28} {'px':>4} {'batch':>6} {'images/s':>10} {'median':>8} {'IQR':>7} {'best':>7} {'n':>4}  peer")
    rows = []
    for pair in PAIRS:
        if (pair.suite or args.all) if args.only is None else args.only in pair.model:
            rows.append(measure(pair, args))
            print(rows[-1], flush=True)
    return {"benchmark": "models", "fingerprint": found, "rows": [asdict(row) for row in rows]}


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    result = run(args)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
