"""From the profiler's events to one row an operator: time, calls, bytes, FLOPs, share of the roof.

Every microsecond of the steps is in exactly one row. An operator that reached the device (see ``ops``) takes
what it called along; what is left over (autograd's own work, Python between operators) stands under its own name.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from .ops import OpCall

STEP = "imnet:step"
_CACHE_LINE_BYTES = 64
_GENERATED = re.compile(r"GeneratedBackwardFor_([^_]+)_(\w+)_default(Backward)?")
PHASES = ("imnet:data", "imnet:forward", "imnet:backward", "imnet:update")


@dataclass(frozen=True)
class Roofs:
    """What the device was measured to do: bytes/s of a copy, FLOP/s of a matrix product by dtype."""

    bytes_per_s: float
    flops_per_s: dict[torch.dtype, float]

    def least_s(self, num_bytes: int | None, flops: int | None, dtype: torch.dtype | None) -> float | None:
        """The shortest time that bytes and FLOPs allow; None where neither is known."""
        peak = self.flops_per_s.get(dtype) if dtype is not None else None
        times = [num_bytes / self.bytes_per_s] if num_bytes else []
        times += [flops / peak] if flops and peak else []
        return max(times, default=None)


@dataclass
class Row:
    """Totals over all profiled steps. ``bytes_moved`` and ``flops`` are None unless known for every call."""

    name: str
    shapes: tuple[tuple[int, ...], ...] = ()
    calls: int = 0
    seconds: float = 0.0
    bytes_moved: int | None = None
    flops: int | None = None
    dtype: torch.dtype | None = None
    _known: int = field(default=0, repr=False)

    def add(self, seconds: float, call: OpCall | None) -> None:
        self.calls += 1
        self.seconds += seconds
        if call is None:
            return
        self._known += 1
        self.bytes_moved = (self.bytes_moved or 0) + call.bytes_moved
        self.flops = None if call.flops is None else (self.flops or 0) + call.flops
        self.dtype = call.dtype

    def close(self) -> Row:
        """Figures that only some of the calls have would be wrong for the row."""
        if self._known != self.calls:
            self.bytes_moved, self.flops, self.dtype = None, None, None
        return self

    def as_dict(self, total_s: float, roofs: Roofs) -> dict[str, Any]:
        """The row as JSON: seconds, share of ``total_s``, GB/s and the share of the roof (1.0 = at the roof)."""
        least = roofs.least_s(self.bytes_moved, self.flops, self.dtype)
        found: dict[str, Any] = {"name": self.name, "shapes": [list(s) for s in self.shapes], "calls": self.calls}
        found |= {"seconds": self.seconds, "share": self.seconds / total_s if total_s else 0.0}
        found |= {"bytes": self.bytes_moved, "flops": self.flops, "dtype": str(self.dtype).removeprefix("torch.")}
        rate = self.bytes_moved / self.seconds if self.bytes_moved and self.seconds else None
        found["bytes_per_s"] = rate
        found["of_roof"] = least / self.seconds if least is not None and self.seconds else None
        return found


def rows(
    events: Iterable[Any], calls: Sequence[OpCall], *, steps: int, on_gpu: bool = False, by_shape: bool = False
) -> list[Row]:
    """The slowest first. ``calls`` are those of one step; ``events`` the profiler's of ``steps`` equal ones.

    Time is what the operator kept its thread busy (CPU), or its kernels the device (GPU).
    """
    names = {call.name for call in calls}
    claimed: dict[str, list[Any]] = defaultdict(list)
    table: dict[tuple[str, Any], Row] = {}
    for event in _roots(events):
        for inner, operator in _partition(event, names):
            if operator is not None:
                claimed[operator].append(inner)
            else:
                seconds = _own_s(inner, on_gpu)
                table.setdefault((inner.name, ()), Row(inner.name)).add(seconds, None)
    for name, found in claimed.items():
        found.sort(key=lambda e: e.time_range.start)
        known = _matched(name, found, calls, steps)
        for event, call in zip(found, known, strict=True):
            shapes = call.shapes if by_shape and call is not None else ()
            table.setdefault((name, shapes), Row(name, shapes)).add(_whole_s(event, on_gpu), call)
    return sorted((row.close() for row in table.values()), key=lambda row: -row.seconds)


def kernels(events: Iterable[Any]) -> list[Row]:
    """What ran on the GPU, by the kernel's own name (copies and fills included), the slowest first."""
    table: dict[str, Row] = {}
    for event in events:
        if _is_kernel(event):
            table.setdefault(event.name, Row(event.name)).add(event.time_range.elapsed_us() * 1e-6, None)
    return sorted(table.values(), key=lambda row: -row.seconds)


def phases(events: Iterable[Any]) -> dict[str, float]:
    """{phase: seconds} of the ranges that the step marks, and of the whole steps, on the launching thread."""
    found: dict[str, float] = dict.fromkeys((*PHASES, STEP), 0.0)
    for event in events:
        if event.name in found and not _on_device(event):
            found[event.name] += event.time_range.elapsed_us() * 1e-6
    return found


def _on_device(event: Any) -> bool:
    return event.device_type != torch.autograd.DeviceType.CPU


def _is_kernel(event: Any) -> bool:
    return _on_device(event) and not event.is_user_annotation and event.name not in (*PHASES, STEP)


def _roots(events: Iterable[Any]) -> list[Any]:
    """Events of the steps that nothing encloses; autograd's threads have roots of their own on a GPU."""
    return [e for e in events if e.cpu_parent is None and not _on_device(e) and not e.is_async]


def _partition(event: Any, names: set[str]) -> Iterable[tuple[Any, str | None]]:
    """(event, the operator that it is and that takes all below it along)."""
    stack = [event]
    while stack:
        inner = stack.pop()
        operator = _operator(inner.name, names)
        yield inner, operator
        if operator is None:
            stack.extend(inner.cpu_children)


def _operator(name: str, names: set[str]) -> str | None:
    """The operator behind an event. One of torch.library with a gradient shows up as the autograd.Function made for
    it, whose backward is called <operator>_backward in this project."""
    generated = _GENERATED.fullmatch(name)
    if generated is not None:
        name = f"{generated[1]}::{generated[2]}{'_backward' if generated[3] else ''}"
    return name if name in names else None


def _own_s(event: Any, on_gpu: bool) -> float:
    if on_gpu:
        # A range that a program marks comes back as a kernel of its own name, as long as all kernels inside it.
        return sum(kernel.duration for kernel in event.kernels if kernel.name != event.name) * 1e-6
    return event.self_cpu_time_total * 1e-6


def _whole_s(event: Any, on_gpu: bool) -> float:
    if not on_gpu:
        return event.cpu_time_total * 1e-6
    return _own_s(event, on_gpu) + sum(_whole_s(child, on_gpu) for child in event.cpu_children)


def _matched(name: str, events: Sequence[Any], calls: Sequence[OpCall], steps: int) -> list[OpCall | None]:
    """Each event's call, by order within a step; by shapes where the counts say that the two runs differ."""
    same = [c for c in calls if c.name == name]
    if len(events) == steps * len(same):
        found = [same[i % len(same)] for i in range(len(events))]
        if all(_alike(event, call) for event, call in zip(events, found, strict=True)):
            return list(found)
    # Autograd adds gradients in place, but not while a dispatch mode looks on: x.add_(y) and x + y move as much.
    base = name.rstrip("_")
    known: dict[Any, list[OpCall]] = defaultdict(list)
    for call in calls:
        if call.name.rstrip("_") == base:
            known[_shapes(call.shapes)].append(call)
    return [_only(known.get(_shapes(event.input_shapes), [])) for event in events]


def _only(calls: Sequence[OpCall]) -> OpCall | None:
    """The call, where all move and compute the same, or next to nothing: one cache line."""
    distinct = {(c.bytes_moved, c.flops, c.dtype) for c in calls}
    negligible = all(c.bytes_moved <= _CACHE_LINE_BYTES and not c.flops for c in calls)
    return max(calls, key=lambda c: c.bytes_moved, default=None) if len(distinct) == 1 or negligible else None


def _alike(event: Any, call: OpCall) -> bool:
    """Whether the first shape that the profiler noted is the call's first."""
    return _shapes(event.input_shapes)[:1] in (_shapes(call.shapes)[:1], ())


def _shapes(shapes: Iterable[Any]) -> tuple[tuple[int, ...], ...]:
    """Without scalars, and without lists of tensors, which the profiler notes in no one way."""
    return tuple(tuple(s) for s in shapes or () if s and not isinstance(s[0], (list, tuple)))
