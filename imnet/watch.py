"""Detects signals, and a loss or gradient that is not finite, which end a run early. Flags are read one step late, so
that no step waits for the device."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from imnet_kernels import tier
from torch import Tensor, nn

from imnet.errors import DataError
from imnet.launch import World

if TYPE_CHECKING:
    from imnet.step import TrainStep

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)


class Signals:
    """The signal that asked the run to stop, by ``name``; ``note`` is the handler of SIGNALS.

    SIGTERM, SIGINT, SIGUSR1 and SIGHUP (the terminal was closed) set ``name`` to theirs; SIGUSR2, as which imnet.ranks
    passes on a Ctrl-C, sets it to SIGINT.

    A second SIGINT ends the process at once if it is ``alone``. One of several ranks may get two for a single Ctrl-C,
    from the terminal and from its launcher, and must not lose its work for that.
    """

    def __init__(self, alone: bool) -> None:
        self.name: str | None = None
        self.alone = alone

    def note(self, number: int, _frame: object) -> None:
        if number == signal.SIGINT and self.name == "SIGINT" and self.alone:
            os._exit(130)
        self.name = "SIGINT" if number == signal.SIGUSR2 else signal.Signals(number).name


class Flags:
    """Brings each step's flags (not finite, stop requested), combined over all ranks, to the host one step late."""

    def __init__(self, world: World, device: torch.device, signals: Signals):
        self.world, self.signals, self.device = world, signals, device
        pin = device.type == "cuda"
        self._host = torch.zeros(2, pin_memory=pin)
        self._event = torch.cuda.Event() if pin else None
        self._pending: int | None = None

    @property
    def asked_alone(self) -> bool:
        """Whether this rank was asked to stop and is the only one: it need not wait for others to agree."""
        return self.world.size == 1 and self.signals.name is not None

    def push(self, step: int, bad: Tensor) -> tuple[int | None, bool]:
        """Hand in this step's flag; returns (the previous step if it was bad, else None; whether to stop now)."""
        earlier = self.drain()
        if self.world.size > 1:
            asked = torch.full((), float(self.signals.name is not None), device=self.device)
            flags = self.world.all_reduce(torch.stack([bad, asked]), torch.distributed.ReduceOp.MAX)
            self._host.copy_(flags, non_blocking=True)
        else:
            self._host[0].copy_(bad, non_blocking=True)
        if self._event is not None:
            self._event.record()
        self._pending = step
        return earlier

    def drain(self) -> tuple[int | None, bool]:
        """The flags of the step that was handed in last, as ``push`` returns them; waits for the device."""
        if self._pending is None:
            return None, self.asked_alone
        if self._event is not None:
            self._event.synchronize()
        bad, stop = self._host.tolist()
        step, self._pending = self._pending, None
        return (step if bad else None), bool(stop) or self.asked_alone


def not_finite(step_fn: TrainStep, batches: list[tuple[Tensor, Tensor]], step: int) -> DataError:
    """The error that stops a run after a bad optimiser step ``step``, which is computed again to find the first value
    that is not finite."""
    step_fn.reseed(step)
    what = f"loss or gradient not finite at step {step}"
    hint = "lower --optim.lr, set --grad-clip, or --on-nonfinite skip:N"
    if step_fn.recipe.comm.sync_bn and step_fn.world.size > 1:
        # A forward pass needs all ranks, and some of them may not come here.
        return DataError(f"{what} (--sync-bn: the layer is not looked for)", hint=hint)
    where = first_bad_layer(step_fn.net, batches, step_fn.loss)
    if where is None and step_fn.compiled:
        what += ", but finite in eager: the compiled step is wrong"
        return DataError(what, hint="run with --no-compile, and report this")
    where = where or "no number of this rank (it does not recur)"
    return DataError(f"{what}, first in {where}; nothing of that step was kept", hint=hint)


def first_bad_layer(net: nn.Module, batches: list[tuple[Tensor, Tensor]], loss: Callable[..., Tensor]) -> str | None:
    """Name the first value that is not finite: a parameter, else the input, else a layer's output, else a gradient.

    ``loss(net, images, labels)`` is computed eagerly on each of this rank's ``batches``, without imnet's own kernels.
    None if everything is finite.
    """
    for name, param in net.named_parameters():
        if not torch.isfinite(param).all():
            return f"parameter {name}"
    if not all(bool(torch.isfinite(images).all()) for images, _ in batches):
        return "the input images"
    before = [b.clone() for b in net.buffers()]
    try:
        with tier.using("reference"):
            return _first_bad_number(net, batches, loss)
    finally:
        # Not earlier: the backward pass needs the running statistics unchanged since its forward pass.
        with torch.no_grad():
            for buffer, old in zip(net.buffers(), before, strict=True):
                buffer.copy_(old)
        net.zero_grad()


def _first_bad_number(net: nn.Module, batches: list[tuple[Tensor, Tensor]], loss: Callable[..., Tensor]) -> str | None:
    for images, labels in batches:
        found: list[str] = []
        hooks = [m.register_forward_hook(_note_bad(found, name)) for name, m in net.named_modules() if name]
        try:
            value = loss(net, images, labels)
        finally:
            for hook in hooks:
                hook.remove()
        if found:
            return f"output of {found[0]}"
        if not torch.isfinite(value):
            return "the loss"
        value.backward()
    bad = [name for name, p in net.named_parameters() if p.grad is not None and not torch.isfinite(p.grad).all()]
    return f"gradient of {bad[-1]}" if bad else None


def _note_bad(found: list[str], name: str):
    def hook(_module: nn.Module, _args: object, output: object) -> None:
        results = output if isinstance(output, tuple) else (output,)
        if not all(bool(torch.isfinite(result).all()) for result in results if isinstance(result, Tensor)):
            found.append(name)

    return hook
