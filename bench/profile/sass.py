"""Counts from a kernel's machine code, without a GPU: instructions per output element, bytes per memory access.

cuobjdump is part of Triton's wheel and reads both Triton's cubins and nvcc's objects.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

_FUNCTION = re.compile(r"^\s*Function : (\S+)", re.MULTILINE)
_LINE = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z]\S*)\s*(.*?)\s*;", re.MULTILINE)
_WIDTHS = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}


class Instruction(NamedTuple):
    """One line of SASS; ``target`` is the index of the instruction that a branch goes to."""

    name: str
    predicated: bool
    target: int | None

    @property
    def kind(self) -> str:
        return self.name.partition(".")[0]

    @property
    def width(self) -> int:
        """Bytes per thread of a memory instruction."""
        return next((_WIDTHS[word] for word in self.name.split(".")[1:] if word in _WIDTHS), 4)


@dataclass(frozen=True)
class Counts:
    """Counts of one kernel. Its main path is the shortest path through a store of the widest kind: inside the innermost
    loop with such a store if there is one, else through the kernel.

    ``per_element`` is the main path's length over the number of elements that it stores. ``store_bytes`` and
    ``load_bytes`` are the widths of the widest store and load, 0 if there is none.
    """

    instructions: int
    per_element: float
    store_bytes: int
    load_bytes: int
    local: int
    byte_loads: int
    byte_stores: int


def disassembled(binary: Path, architecture: int | None = None) -> dict[str, list[Instruction]]:
    """{kernel: instructions} of a cubin, or of an object's code for ``architecture``."""
    chosen = [] if architecture is None else ["-arch", f"sm_{architecture}"]
    done = subprocess.run([cuobjdump(), "-sass", *chosen, str(binary)], text=True, capture_output=True, check=True)
    parts = _FUNCTION.split(done.stdout)[1:]
    return {name: parsed(text) for name, text in zip(parts[::2], parts[1::2], strict=True)}


def cuobjdump() -> str:
    """The path of cuobjdump; raises RuntimeError if Triton is not installed."""
    spec = importlib.util.find_spec("triton")
    if spec is None or spec.origin is None:
        raise RuntimeError("cuobjdump is in Triton's wheel, which is not installed; pip install triton")
    return str(Path(spec.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump")


def itemsize(kernel: str) -> int:
    """Bytes of an output element, from the last floating type in a kernel's name; 4 if there is none."""
    types = re.findall(r"\*fp32|\*bf16|\*fp16|\bfloat\b|__nv_bfloat16|__half", kernel)
    return 4 if not types or types[-1] in ("*fp32", "float") else 2


def parsed(text: str) -> list[Instruction]:
    """The instructions of one function's listing, without the padding at its end."""
    lines = [m for m in _LINE.finditer(text) if m[3] != "NOP"]
    at = {int(m[1], 16): i for i, m in enumerate(lines)}
    found = []
    for line in lines:
        goal = re.search(r"0x([0-9a-f]+)$", line[4]) if line[3].startswith("BRA") else None
        target = at.get(int(goal[1], 16)) if goal else None
        # A branch on a register (BRA UP0) without a predicate in front may fall through, too.
        predicated = bool(line[2]) or (line[3].startswith("BRA") and "P" in line[4].partition("0x")[0])
        found.append(Instruction(line[3], predicated, target))
    return found


def counts(code: Sequence[Instruction], itemsize: int) -> Counts:
    """The Counts of a kernel; ``itemsize`` is the number of bytes of an output element."""
    widest = max((i.width for i in code if i.kind == "STG"), default=0)
    paths = [_path(code, *limits, widest) for limits in _loops(code, widest) or [(0, _ends(code))]]
    lengths = [(len(p) * itemsize / _stored(code, p), p) for p in paths if p]
    per_element, path = max(lengths, default=(0.0, list(range(len(code)))))
    loads = [code[i] for i in path if code[i].kind in ("LDG", "LDGSTS")]
    return Counts(
        instructions=len(code),
        per_element=round(per_element, 2),
        store_bytes=widest,
        load_bytes=max((i.width for i in code if i.kind in ("LDG", "LDGSTS")), default=0),
        local=sum(i.kind in ("LDL", "STL") for i in code),
        byte_loads=sum(i.width == 1 for i in loads),
        byte_stores=sum(code[i].kind == "STG" and code[i].width == 1 for i in path),
    )


def _stored(code: Sequence[Instruction], path: Iterable[int]) -> int:
    return sum(code[i].width for i in path if code[i].kind == "STG")


def _ends(code: Sequence[Instruction]) -> list[int]:
    return [i for i, x in enumerate(code) if x.kind == "EXIT" and not x.predicated]


def _loops(code: Sequence[Instruction], widest: int) -> list[tuple[int, list[int]]]:
    """(first, [last]) of the innermost loops that contain a store of the widest kind."""
    backward = [(x.target, i) for i, x in enumerate(code) if x.target is not None and x.target < i]
    inner = [(a, b) for a, b in backward if not any((a, b) != (c, d) and a <= c and d <= b for c, d in backward)]
    return [(a, [b]) for a, b in inner if any(x.kind == "STG" and x.width == widest for x in code[a : b + 1])]


def _path(code: Sequence[Instruction], first: int, last: list[int], widest: int) -> list[int]:
    """The shortest path from ``first`` to one of ``last`` through a store of the widest kind."""
    outward = _steps(code, first, max(last))
    found: list[list[int]] = []
    for goal in (i for i in outward if code[i].kind == "STG" and code[i].width == widest):
        onward = _steps(code, goal, max(last), first)
        found += [_walk(outward, goal) + _walk(onward, end)[1:] for end in last if end in onward]
    # Several stores of straight code lie on one path: take the path that stores the most for its length.
    return max(found, key=lambda p: _stored(code, p) / len(p), default=[])


def _steps(code: Sequence[Instruction], start: int, stop: int, first: int | None = None) -> dict[int, int]:
    """{instruction: its predecessor} of the shortest paths from ``start`` within ``first`` .. ``stop``."""
    low, came = start if first is None else first, {start: start}
    waiting = deque([start])
    while waiting:
        i = waiting.popleft()
        x = code[i]
        falls = x.predicated or not (x.target is not None or x.kind in ("EXIT", "RET"))
        for j in [*([i + 1] if falls else []), *([x.target] if x.target is not None else [])]:
            if low <= j <= stop and j not in came and j < len(code):
                came[j] = i
                waiting.append(j)
    return came


def _walk(came: dict[int, int], end: int) -> list[int]:
    way = [end]
    while came[way[-1]] != way[-1]:
        way.append(came[way[-1]])
    return way[::-1]
