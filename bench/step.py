"""The training step against that of timm's training script, on the same network and batch, timed alternately.

timm's script is not part of its package, so its step is assembled here from timm's own parts (create_optimizer_v2,
AverageMeter) in the order in which the script calls them: forward, loss, backward, step, zero_grad, loss.item().
``defaults`` are the script's defaults (fp32, NCHW, eager); ``flags`` are --channels-last --amp --amp-dtype bfloat16
(and --torchcompile with ``--compile``), as our step runs. If timm is not installed, our step is timed alone.

Before anything is timed, a gate checks that both make the same update in fp32.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from imnet.device import Place
from imnet.errors import UsageError
from imnet.from_recipe import build_step
from imnet.launch import World
from imnet.models import build
from imnet.recipe import SGD, replace
from imnet.step import TrainStep

from .case import plain
from .clock import Call, interleaved
from .peers import has

# name, image size in pixels, channels, batch
CASES = [
    ("speednet", 28, 1, 256),
    ("resnet18_64", 64, 3, 32),
    ("wrn28_10", 28, 1, 16),
    ("timm:resnet18", 64, 3, 64),
    ("timm:resnet50", 64, 3, 32),
]
RECIPE = replace(
    plain("timm", 64, 3, 10, 64), optim=SGD(lr=0.05, momentum=0.9, nesterov=True, weight_decay=2e-5, decay_norms=False)
)


class TimmStep:
    """One training step as in timm's train_one_epoch."""

    def __init__(self, net: nn.Module, *, channels_last: bool, bf16: bool, compile: bool):
        self.net = net.to(memory_format=torch.channels_last) if channels_last else net
        self.channels_last, self.bf16 = channels_last, bf16
        from timm.optim import create_optimizer_v2
        from timm.utils import AverageMeter

        self.optimizer = create_optimizer_v2(self.net, opt="sgd", lr=0.05, momentum=0.9, weight_decay=2e-5)
        self.loss_fn = nn.CrossEntropyLoss()
        self.forward: Any = torch.compile(self.net) if compile else self.net
        self.losses = AverageMeter()

    def __call__(self, images: Tensor, labels: Tensor) -> float:
        self.net.train()
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.bf16):
            loss = self.loss_fn(self.forward(images), labels)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.losses.update(loss.item(), images.size(0))
        return loss.item()


def our_step(net: nn.Module, *, bf16: bool, compile: bool) -> TrainStep:
    place = Place(torch.device("cpu"), "bf16" if bf16 else "fp32", "benchmark")
    net = net.to(memory_format=torch.channels_last)
    return build_step(RECIPE, net, place, World(), compile=compile, graphs=False)


def gate(name: str, px: int, channels: int) -> None:
    """One fp32 step of both on a small batch; SystemExit if their updates differ by 1 % or more (relative 2-norm)."""
    net = build(name, 10, channels)
    before = [p.detach().clone() for p in net.parameters()]
    theirs = TimmStep(copy.deepcopy(net), channels_last=False, bf16=False, compile=False)
    ours = our_step(net, bf16=False, compile=False)
    images, labels = torch.randn(8, channels, px, px), torch.randint(0, 10, (8,))
    theirs(images, labels)
    ours([(images.contiguous(memory_format=torch.channels_last), labels)], 8, 0, 0.05)
    pairs = list(zip(theirs.net.parameters(), ours.net.parameters(), before, strict=True))
    error = sum(float((a - b).detach().square().sum()) for a, b, _ in pairs)
    ratio = (error / sum(float((a - old).detach().square().sum()) for a, _, old in pairs)) ** 0.5
    if not ratio < 1e-2:
        raise SystemExit(f"gate: {name}: updates differ by {ratio:.2e} (relative); nothing was timed")


def measure(name: str, px: int, channels: int, batch: int, rounds: int, compile: bool) -> dict[str, Any]:
    """One row: the times of every side, and the best time of each of timm's steps over our best."""
    torch.manual_seed(0)
    net = build(name, 10, channels)
    images, labels = torch.randn(batch, channels, px, px), torch.randint(0, 10, (batch,))
    ours_images = images.contiguous(memory_format=torch.channels_last).bfloat16()
    calls: dict[str, Call] = {}
    if has("timm"):
        default = TimmStep(copy.deepcopy(net), channels_last=False, bf16=False, compile=False)
        flags = TimmStep(copy.deepcopy(net), channels_last=True, bf16=True, compile=compile)
        calls |= {"timm defaults": lambda: default(images, labels), "timm flags": lambda: flags(images, labels)}
    ours = our_step(net, bf16=True, compile=compile)
    calls["imnet"] = lambda: ours([(ours_images, labels)], batch, 0, 0.05)[0].item()
    times = interleaved(calls, rounds)
    row = {"network": name, "image_px": px, "batch_images": batch, "times": {k: v.as_dict() for k, v in times.items()}}
    for key, peer in (("ratio_to_defaults", "timm defaults"), ("ratio_to_flags", "timm flags")):
        row[key] = times[peer].best_s / times["imnet"].best_s if peer in times else None
    return row


def rows(only: str | None = None, rounds: int = 12, compile: bool = False) -> Iterator[dict[str, Any]]:
    """A row per network, after its gate; raises UsageError for a network that is not in CASES."""
    cases = [case for case in CASES if only in (None, case[0])]
    if not cases:
        hint = f"allowed: {', '.join(case[0] for case in CASES)}"
        raise UsageError(f"got --only {only!r}, a network that the table has not", hint=hint)
    for name, px, channels, batch in cases:
        if has("timm"):
            gate(name, px, channels)
        if has("timm") or not name.startswith("timm:"):
            yield measure(name, px, channels, batch, rounds, compile)
