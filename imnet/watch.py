"""What can end a run early: signals, and numbers that are not finite. Read one step late, so that no step waits."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from imnet_kernels import tier
from torch import Tensor, nn

from imnet.errors import DataError
from imnet.launch import World, heard

if TYPE_CHECKING:
    from imnet.step import TrainStep

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)


class Signals:
    """SIGTERM, SIGINT, SIGUSR1 and SIGHUP (a terminal that went away) set ``name``, and so does SIGUSR2, as which
    imnet.ranks passes a Ctrl-C on.

    A second SIGINT ends a process that is ``alone`` at once. One of several ranks may get one from the terminal and
    one from whoever started it, for a single Ctrl-C, and must not lose its work for that.
    """

    def __init__(self, alone: bool = True) -> None:
        self.name: str | None = None
        self.alone = alone
        self._old: dict[int, object] = {}

    def __enter__(self) -> Signals:
        for number in heard(SIGNALS):
            try:
                self._old[number] = signal.signal(number, self._note)
            except ValueError:  # not the main thread: whoever runs us there handles signals
                break
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]

    def _note(self, number: int, _frame: object) -> None:
        if number == signal.SIGINT and self.name == "SIGINT" and self.alone:
            os._exit(130)
        self.name = "SIGINT" if number == signal.SIGUSR2 else signal.Signals(number).name


class Flags:
    """Carries (not finite, stop asked) of every step to the host, agreed by all ranks, one step late."""

    def __init__(self, world: World, device: torch.device, signals: Signals):
        self.world, self.signals, self.device = world, signals, device
        pin = device.type == "cuda"
        self._host = torch.zeros(2, pin_memory=pin)
        self._event = torch.cuda.Event() if pin else None
        self._pending: int | None = None

    def push(self, step: int, bad: Tensor) -> tuple[int | None, bool]:
        """Hand in this step's flag; returns (the bad step before it, or None; whether to stop now)."""
        result = self.drain()
        if self.world.size > 1:
            asked = torch.full((), float(self.signals.name is not None), device=self.device)
            flags = self.world.all_reduce(torch.stack([bad, asked]), torch.distributed.ReduceOp.MAX)
            self._host.copy_(flags, non_blocking=True)
        else:
            self._host[0].copy_(bad, non_blocking=True)
        if self._event is not None:
            self._event.record()
        self._pending = step
        # One rank sees its own signal without asking anyone.
        return result[0], result[1] or (self.world.size == 1 and self.signals.name is not None)

    def drain(self) -> tuple[int | None, bool]:
        """What the last step handed in."""
        if self._pending is None:
            return None, False
        if self._event is not None:
            self._event.synchronize()
        bad, stop = self._host.tolist()
        step, self._pending = self._pending, None
        return (step if bad else None), bool(stop)


def not_finite(step_fn: TrainStep, batches: list[tuple[Tensor, Tensor]], step: int) -> DataError:
    """What stops a run: where loss or gradient of optimiser step ``step`` stopped being finite, computed again."""
    step_fn.reseed(step)
    if step_fn.recipe.comm.sync_bn and step_fn.world.size > 1:
        # A pass needs all ranks, and not all of them may have a reason to look.
        what = f"loss or gradient not finite at step {step} (--sync-bn: the layer is not looked for)"
        return DataError(what, hint="lower --optim.lr, set --grad-clip, or --on-nonfinite skip:N")
    where = first_bad_layer(step_fn.net, batches, step_fn.loss)
    if where is None and step_fn.compiled:
        what = f"loss or gradient not finite at step {step}, but finite in eager: the compiled step is wrong"
        return DataError(what, hint="run with --no-compile, and report this")
    where = where or "no number of this rank (it does not recur)"
    what = f"loss or gradient not finite at step {step}, first in {where}; nothing of that step was kept"
    return DataError(what, hint="lower --optim.lr, set --grad-clip, or --on-nonfinite skip:N")


def first_bad_layer(net: nn.Module, batches: list[tuple[Tensor, Tensor]], loss: Callable[..., Tensor]) -> str | None:
    """Where a number stops being finite: the first parameter, else input, else layer output, else gradient.

    ``loss(net, images, labels)`` is computed eagerly on each of this rank's ``batches``, layer by layer, without our
    own kernels. None where all is finite.
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
        # Only now: a backward reads the running statistics' versions that its forward left.
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
