"""Turns the profiler's events into one row per operator: time, calls, bytes, FLOPs, share of the roof.

Every microsecond of the steps is in exactly one row. The time of an operator that reaches the device (see ``ops``)
includes everything that it calls; the rest (autograd's own work, Python between operators) has rows by event name.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
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
    """The measured limits of the device: bytes/s of a copy, FLOP/s of a matrix product by dtype."""

    bytes_per_s: float
    flops_per_s: dict[torch.dtype, float]

    def least_s(self, num_bytes: int | None, flops: int | None, dtype: torch.dtype | None) -> float | None:
        """The shortest time in which the bytes can be moved and the FLOPs computed; None if neither is known."""
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
        """Drop bytes and FLOPs unless they are known for all calls: partial sums would be wrong for the row."""
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
    """One row per operator (with ``by_shape`` per operator and shapes), the slowest first.

    ``calls`` are the calls of one step, ``events`` the profiler's events of ``steps`` equal steps. Time is that of the
    operator's thread (CPU) or of its kernels on the device (GPU).
    """
    claimed, rest = _claimed(events, {call.name for call in calls})
    table: dict[tuple[str, Any], Row] = {}
    for event in rest:
        table.setdefault((event.name, ()), Row(event.name)).add(_own_s(event, on_gpu), None)
    for name, found in claimed.items():
        known = _matched(name, found, calls, steps)
        for event, call in zip(found, known, strict=True):
            shapes = call.shapes if by_shape and call is not None else ()
            table.setdefault((name, shapes), Row(name, shapes)).add(_whole_s(event, on_gpu), call)
    return sorted((row.close() for row in table.values()), key=lambda row: -row.seconds)


def _claimed(events: Iterable[Any], names: set[str]) -> tuple[dict[str, list[Any]], list[Any]]:
    """({operator: its events in order of time}, the events outside all operators)."""
    claimed: dict[str, list[Any]] = defaultdict(list)
    rest: list[Any] = []
    for event in _roots(events):
        for inner, operator in _partition(event, names):
            (rest if operator is None else claimed[operator]).append(inner)
    for found in claimed.values():
        found.sort(key=lambda e: e.time_range.start)
    return claimed, rest


def kernel_costs(events: Iterable[Any], calls: Sequence[OpCall], *, steps: int) -> dict[str, Row]:
    """{kernel: its calls, bytes and FLOPs}: those of an operator are divided among the kernels that it launches in
    proportion to their time. Kernels of operators without known bytes are left out."""
    table: dict[str, Row] = {}
    claimed, _ = _claimed(events, {call.name for call in calls})
    for name, found in claimed.items():
        for event, call in zip(found, _matched(name, found, calls, steps), strict=True):
            launched = _kernels_of(event)
            total = sum(kernel.duration for kernel in launched)
            if call is None or not total:
                continue
            for kernel in launched:
                share, row = kernel.duration / total, table.setdefault(kernel.name, Row(kernel.name, dtype=call.dtype))
                row.calls += 1
                row.bytes_moved = (row.bytes_moved or 0) + round(share * call.bytes_moved)
                row.flops = (row.flops or 0) + round(share * (call.flops or 0))
    return table


def _kernels_of(event: Any) -> list[Any]:
    """The kernels that an event and its descendants launched."""
    return [*event.kernels, *(kernel for child in event.cpu_children for kernel in _kernels_of(child))]


def argument_costs(kineto_events: Iterable[Any]) -> dict[str, Row]:
    """As ``kernel_costs`` for the kernels that Inductor generated: the bytes of their tensor arguments, counted once.

    This is an estimate: a kernel may read only a part of an argument, or both read and write it.
    """
    table: dict[str, Row] = {}
    for event in kineto_events:
        if event.name().startswith("triton_") and (shapes := event.shapes()):
            sizes = zip(shapes, event.dtypes(), strict=False)
            row = table.setdefault(event.name(), Row(event.name(), bytes_moved=0))
            row.calls += 1
            row.bytes_moved = (row.bytes_moved or 0) + sum(_argument_bytes(*size) for size in sizes)
    return table


def _argument_bytes(shape: Any, dtype: str) -> int:
    """The bytes of one argument, whose dtype the profiler gives as a C++ type; 0 for scalars, which have no shape."""
    item = next((size for word, size in _BYTES_OF.items() if word in dtype), 0)
    return item * torch.Size(shape).numel() if shape and all(isinstance(n, int) for n in shape) else 0


_BYTES_OF = {"BFloat16": 2, "Half": 2, "float": 4, "double": 8, "long": 8, "unsigned char": 1, "bool": 1, "int": 4}


def kernels(events: Iterable[Any], costs: Mapping[str, Row] | None = None) -> list[Row]:
    """One row per GPU kernel name (including copies and fills), the slowest first. Kernels that are in ``costs`` get
    bytes and FLOPs from there, in proportion to their calls."""
    table: dict[str, Row] = {}
    for event in events:
        if _is_kernel(event):
            table.setdefault(event.name, Row(event.name)).add(event.time_range.elapsed_us() * 1e-6, None)
    for name, row in table.items():
        cost = (costs or {}).get(name)
        if cost is not None and cost.calls:
            row.dtype = cost.dtype
            row.bytes_moved = round((cost.bytes_moved or 0) * row.calls / cost.calls)
            row.flops = round(cost.flops * row.calls / cost.calls) if cost.flops else None
    return sorted(table.values(), key=lambda row: -row.seconds)


def phases(events: Iterable[Any]) -> dict[str, float]:
    """{phase: seconds} on the launching thread, of the ranges that the step marks and of the whole steps (STEP)."""
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
    """The CPU events without a parent; on a GPU autograd's threads have roots of their own."""
    return [e for e in events if e.cpu_parent is None and not _on_device(e) and not e.is_async]


def _partition(event: Any, names: set[str]) -> Iterable[tuple[Any, str | None]]:
    """(event, its operator or None) for an event and its descendants, without those inside an operator."""
    stack = [event]
    while stack:
        inner = stack.pop()
        operator = _operator(inner.name, names)
        yield inner, operator
        if operator is None:
            stack.extend(inner.cpu_children)


def _operator(name: str, names: set[str]) -> str | None:
    """The operator that an event's name stands for, or None. A custom op of torch.library with a gradient appears as
    the autograd.Function generated for it; its backward op is called <operator>_backward in this project."""
    generated = _GENERATED.fullmatch(name)
    if generated is not None:
        name = f"{generated[1]}::{generated[2]}{'_backward' if generated[3] else ''}"
    return name if name in names else None


def _own_s(event: Any, on_gpu: bool) -> float:
    if on_gpu:
        # A range that a program marks also appears as a kernel of its name, which lasts as long as the kernels inside.
        return sum(kernel.duration for kernel in event.kernels if kernel.name != event.name) * 1e-6
    return event.self_cpu_time_total * 1e-6


def _whole_s(event: Any, on_gpu: bool) -> float:
    if not on_gpu:
        return event.cpu_time_total * 1e-6
    return _own_s(event, on_gpu) + sum(_whole_s(child, on_gpu) for child in event.cpu_children)


def _matched(name: str, events: Sequence[Any], calls: Sequence[OpCall], steps: int) -> list[OpCall | None]:
    """The call that belongs to each event: by order within a step, or by shapes if the counts or shapes differ."""
    same = [c for c in calls if c.name == name]
    if len(events) == steps * len(same):
        found = [same[i % len(same)] for i in range(len(events))]
        if all(_alike(event, call) for event, call in zip(events, found, strict=True)):
            return list(found)
    # Autograd adds gradients in place, but out of place under a dispatch mode; x.add_(y) and x + y move equal bytes.
    base = name.rstrip("_")
    known: dict[Any, list[OpCall]] = defaultdict(list)
    for call in calls:
        if call.name.rstrip("_") == base:
            known[_shapes(call.shapes)].append(call)
    return [_only(known.get(_shapes(event.input_shapes), [])) for event in events]


def _only(calls: Sequence[OpCall]) -> OpCall | None:
    """A call for all of ``calls``, if they move and compute the same or at most a cache line of bytes; else None."""
    distinct = {(c.bytes_moved, c.flops, c.dtype) for c in calls}
    negligible = all(c.bytes_moved <= _CACHE_LINE_BYTES and not c.flops for c in calls)
    return max(calls, key=lambda c: c.bytes_moved, default=None) if len(distinct) == 1 or negligible else None


def _alike(event: Any, call: OpCall) -> bool:
    """Whether the first shape that the profiler recorded, if any, is the call's first shape."""
    return _shapes(event.input_shapes)[:1] in (_shapes(call.shapes)[:1], ())


def _shapes(shapes: Iterable[Any]) -> tuple[tuple[int, ...], ...]:
    """The shapes without those of scalars and of lists of tensors, which the profiler records inconsistently."""
    return tuple(tuple(s) for s in shapes or () if s and not isinstance(s[0], (list, tuple)))
