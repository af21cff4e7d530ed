"""Trials: what might make the whole training step faster, timed and nothing more; predictions are in NEGATIVES.md.

Every trial is a process of its own, and so is the step as it is, which it is held to: cuDNN keeps what it once chose
for a shape. A dry run takes them all in one process, where each puts back what it set.
"""

from __future__ import annotations

import contextlib
import functools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from imnet.models import shake_shake, wrn
from imnet.step import Batch, TrainStep

from .plan import DEVICE, Figures, Row, Setting
from .processes import ERROR_CHARACTERS, ROOT, environment
from .steps import DRY_NETS, NETS, VARIANTS, Variant, as_it_is, in_tier, measure

OURS, COMPILED = (next(v for v in VARIANTS if v.name == n) for n in ("captured + our kernels", "compiled + captured"))


@dataclass(frozen=True)
class Trial:
    """What is set while a step is made and run, and what is changed of the step; ``cost_s`` is a guess."""

    name: str
    cost_s: float
    setting: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext
    change: Callable[[TrainStep, Batch], list[Batch]] = as_it_is
    variant: Variant = OURS
    models: tuple[str, ...] = ("wrn36_5", "wrn28_10")


@contextlib.contextmanager
def every_algorithm() -> Iterator[None]:
    """cuDNN times all it has for a convolution, not the first ten that its heuristic names."""
    before, torch.backends.cudnn.benchmark_limit = torch.backends.cudnn.benchmark_limit, 0
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark_limit = before


def tuned() -> contextlib.AbstractContextManager[object]:
    """Inductor times more configurations of the kernels that it writes."""
    import torch._inductor.config

    return torch._inductor.config.patch(coordinate_descent_tuning=True, max_autotune_pointwise=True)


@contextlib.contextmanager
def padded() -> Iterator[None]:
    """The first group a fifth wider: 96 channels where WRN-36-5 has 80."""
    plain = wrn._group_sizes

    def wider(depth: int, widen: int, groups: int | None) -> list[tuple[int, int]]:
        return [(w * 6 // 5 if w == 16 * widen else w, stride) for w, stride in plain(depth, widen, groups)]

    with mock.patch.object(wrn, "_group_sizes", wider):
        yield


def half_weights(step: TrainStep, batch: Batch) -> list[Batch]:
    """Convolutions' weights in the step's dtype, so that autocast casts none; the optimiser changes fp32 masters."""
    weights = [m.weight for m in step.net.modules() if isinstance(m, nn.Conv2d)]
    masters = [nn.Parameter(w.detach().clone()) for w in weights]
    master_of = dict(zip(weights, masters, strict=True))
    for weight, master in master_of.items():
        weight.data = weight.data.to(step.place.dtype)
        step.optimizer.state[master] = step.optimizer.state.pop(weight, {})
    for group in step.optimizer.param_groups:
        group["params"] = [master_of.get(p, p) for p in group["params"]]
    step.params = [master_of.get(p, p) for p in step.params]
    update = step._update

    @torch.no_grad()
    def update_masters(loss: Tensor) -> Tensor:
        grads = [torch.empty_like(m) for m in masters]
        torch._foreach_copy_(grads, [w.grad for w in weights if w.grad is not None])
        for weight, master, grad in zip(weights, masters, grads, strict=True):
            weight.grad, master.grad = None, grad
        bad = update(loss)
        torch._foreach_copy_([w.data for w in weights], [m.data for m in masters])
        return bad

    step._update = update_masters
    return [batch]


def two_in_flight(step: TrainStep, batch: Batch) -> list[Batch]:
    """Halves of the batch forward and backward on two streams at once; statistics are those of a half, and both move
    the running ones without waiting for each other, which only a trial may do."""
    on_gpu = step.place.device.type == "cuda"
    streams = [torch.cuda.Stream() if on_gpu else None for _ in range(2)]

    def compute(batches: list[Batch], num_images: int) -> tuple[Tensor, Tensor]:
        ((images, labels),) = batches
        main, losses, grads, rights = torch.cuda.current_stream() if on_gpu else None, [], [], []
        for stream, half, wanted in zip(streams, images.chunk(2), labels.chunk(2), strict=True):
            if main is not None and stream is not None:
                stream.wait_stream(main)
            with torch.cuda.stream(stream):
                step.right = torch.zeros((), device=step.place.device)
                loss = step._loss(half, wanted)
                grads.append(torch.autograd.grad(loss / num_images, step.params))
                losses.append(loss.detach())
                rights.append(step.right)
        for stream in streams:
            if main is not None and stream is not None:
                main.wait_stream(stream)
        for param, *both in zip(step.params, *grads, strict=True):
            param.grad = both[0]
        torch._foreach_add_([p.grad for p in step.params if p.grad is not None], list(grads[1]))
        total, step.right = losses[0] + losses[1], rights[0] + rights[1]
        return total, step._update(total)

    step.compute = compute
    return [batch]


def branches_in_flight(step: TrainStep, batch: Batch) -> list[Batch]:
    """Shake-Shake's first branches on a stream of their own, beside the second ones; autograd follows them there.

    A branch's memory is given back to its own stream, which waits for the other before it begins again.
    """
    side = torch.cuda.Stream() if step.place.device.type == "cuda" else None

    def apart_from_main(plain: Any) -> Any:
        def forward(activated: Tensor) -> Tensor:
            if side is not None:
                side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                return plain(activated)

        return forward

    def then_joined(plain: Any) -> Any:
        def forward(activated: Tensor) -> Tensor:
            found = plain(activated)
            if side is not None:
                torch.cuda.current_stream().wait_stream(side)
            return found

        return forward

    for block in (m for m in step.net.modules() if isinstance(m, shake_shake.ShakeBlock)):
        block.branch1.forward = apart_from_main(block.branch1.forward)
        block.branch2.forward = then_joined(block.branch2.forward)
    return [batch]


SHAKE = "shake_shake26_2x96d"
# In order of value, after the step that they are held to.
TRIALS = (
    Trial("as it is", 20.0, models=("wrn36_5", "wrn28_10", SHAKE)),
    Trial("additions in the norms", 25.0, variant=replace(OURS, kernels="add_batch_norm=triton")),
    Trial("every algorithm of cuDNN", 45.0, every_algorithm),
    Trial("bf16 weights, fp32 masters", 20.0, change=half_weights, models=("wrn36_5", "wrn28_10", SHAKE)),
    Trial("first group 96 wide", 20.0, padded, models=("wrn36_5",)),
    Trial("branches in flight", 25.0, change=branches_in_flight, models=(SHAKE,)),
    Trial("two halves in flight", 20.0, change=two_in_flight),
    Trial("compiled as it is", 70.0, variant=COMPILED, models=("wrn28_10",)),
    Trial("compiled, tuned", 120.0, tuned, variant=COMPILED, models=("wrn28_10",)),
)


def trial_rows(setting: Setting) -> Iterator[Row]:
    for trial in TRIALS:
        dry = DRY_NETS[SHAKE in trial.models :][:1]
        for net in dry if setting.dry else [net for net in NETS if net.model in trial.models]:
            work = functools.partial(take if setting.dry else apart, trial.name, net.label, setting)
            yield Row("trials", net.label, trial.name, trial.cost_s, work, DEVICE)


def take(name: str, label: str, setting: Setting, limit_s: float = 0.0) -> Figures:
    """The figures of a step, as bench.gpu.steps takes them, with what the trial changes."""
    trial = next(trial for trial in TRIALS if trial.name == name)
    net = next(net for net in (DRY_NETS if setting.dry else NETS) if net.label == label)
    with trial.setting():
        return in_tier(functools.partial(measure, change=trial.change), net, trial.variant, setting)


def apart(name: str, label: str, setting: Setting, limit_s: float) -> Figures:
    """The same in a process of its own; raises RuntimeError with its last line where it fails."""
    command = [sys.executable, "-m", f"{__package__}.trials", name, label, *(["--dry"] if setting.dry else [])]
    env = environment(setting.dry, setting.scratch)
    options = {"capture_output": True, "text": True, "stdin": subprocess.DEVNULL, "timeout": limit_s}
    done = subprocess.run(command, cwd=ROOT, env=env, check=False, **options)
    if done.returncode:
        raise RuntimeError(" ".join(done.stderr.strip().splitlines()[-1:])[:ERROR_CHARACTERS])
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    print(json.dumps(take(sys.argv[1], sys.argv[2], Setting(dry="--dry" in sys.argv, scratch=Path()))))
