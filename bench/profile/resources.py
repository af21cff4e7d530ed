"""The resources of a family's GPU kernels as compiled, without a GPU: registers, shared memory, spills, threads per
block, counts from the machine code, and the number of warps that a multiprocessor can hold.

The limits are those of NVIDIA's CUDA C++ programming guide, "Technical Specifications per Compute Capability". Shared
memory is the amount that a multiprocessor can give to blocks; the driver takes 1 KiB of it for each block.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import math
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imnet_kernels import build, implementations

from . import sass

_ENTRY = re.compile(r"Compiling entry function '(\w+)' for 'sm_(\d+)a?'")
_USED = re.compile(r"Used (\d+) registers(?:.*?(\d+) bytes smem)?")
_SPILL = re.compile(r"(\d+) bytes spill (?:stores|loads)")


WARP_THREADS = 32
_REGISTERS = 65536
_REGISTER_UNIT = 256
"""Registers are allocated to a warp in units of this many."""
_WARPS_TOGETHER = 4
"""The number of warps that registers allow is rounded down to a multiple of this, one warp for each scheduler."""
_SHARED_UNIT_BYTES = 128
_SYSTEM_SHARED_BYTES = 1024
MAX_WARPS = 64
_MAX_BLOCKS = 32
_SHARED_BYTES = {80: 164 * 1024, 90: 228 * 1024}
ARCHITECTURES = tuple(_SHARED_BYTES)


@dataclass(frozen=True)
class Occupancy:
    """Resident blocks and warps of one multiprocessor, and the limiting resource: warps, blocks, registers or shared
    memory."""

    blocks: int
    active_warps: int
    limit: str

    @property
    def share(self) -> float:
        return self.active_warps / MAX_WARPS


def occupancy(registers: int, shared_bytes: int, threads: int, architecture: int) -> Occupancy:
    """The occupancy of a kernel with ``registers`` per thread and ``shared_bytes`` per block of ``threads``, on
    sm_<architecture>. It is an upper limit: what fits, not what a launch fills. Raises ValueError outside the device's
    limits.
    """
    if architecture not in _SHARED_BYTES:
        raise ValueError(f"got sm_{architecture}; allowed: {', '.join(f'sm_{a}' for a in ARCHITECTURES)}")
    if not (1 <= threads <= 1024 and 0 <= registers <= 255 and shared_bytes >= 0):
        got = f"got {threads} threads, {registers} registers, {shared_bytes} bytes"
        raise ValueError(f"{got}; allowed: 1..1024 threads, at most 255 registers, bytes from 0")
    warps = math.ceil(threads / WARP_THREADS)
    allowed = {
        "warps": MAX_WARPS // warps,
        "blocks": _MAX_BLOCKS,
        "registers": _blocks_by_registers(registers, warps),
        "shared memory": _SHARED_BYTES[architecture] // _shared_per_block(shared_bytes),
    }
    limit = min(allowed, key=lambda name: allowed[name])
    return Occupancy(allowed[limit], allowed[limit] * warps, limit)


def _blocks_by_registers(registers: int, warps: int) -> int:
    if registers == 0:
        return _MAX_BLOCKS
    per_warp = math.ceil(registers * WARP_THREADS / _REGISTER_UNIT) * _REGISTER_UNIT
    warps_held = _REGISTERS // per_warp // _WARPS_TOGETHER * _WARPS_TOGETHER
    return warps_held // warps


def _shared_per_block(shared_bytes: int) -> int:
    return math.ceil((shared_bytes + _SYSTEM_SHARED_BYTES) / _SHARED_UNIT_BYTES) * _SHARED_UNIT_BYTES


@dataclass(frozen=True)
class Resources:
    """One kernel on one architecture; ``spill_bytes`` counts stores and loads, ``threads`` is per block."""

    name: str
    tier: str
    architecture: int
    registers: int
    shared_bytes: int
    spill_bytes: int
    threads: int
    code: sass.Counts | None = None

    @property
    def occupancy(self) -> Occupancy:
        return occupancy(self.registers, self.shared_bytes, self.threads, self.architecture)

    def as_dict(self) -> dict[str, Any]:
        found = self.occupancy
        row = {**vars(self), "active_warps": found.active_warps, "occupancy": found.share, "limit": found.limit}
        code = row.pop("code")
        return row | (vars(code) if code else {})


def of_family(family: str, dtype: str | None = None) -> tuple[list[Resources], list[str]]:
    """The kernels of the Triton and the CUDA tier, and a message for each tier that cannot be compiled here.

    With ``dtype`` (fp32 | bf16 | fp16), Triton kernels whose names contain another dtype are left out.
    """
    found, missing = [], []
    if importlib.util.find_spec("triton") is None:
        missing.append("triton is not installed: no registers of the Triton kernels (pip install triton)")
    elif os.environ.get("TRITON_INTERPRET") == "1":
        missing.append("TRITON_INTERPRET=1: interpreted kernels cannot be compiled; unset it")
    else:
        found += triton_kernels(family, dtype)
    if "cuda" not in implementations.tiers_of(family):
        return found, missing
    if build.nvcc() is None:
        missing.append("no nvcc in $CUDA_HOME, on the path or in /usr/local/cuda: no registers of the CUDA kernels")
    else:
        found += cuda_kernels(family)
    return found, missing


def triton_kernels(
    family: str, dtype: str | None, architectures: Sequence[int] = ARCHITECTURES
) -> list[Resources]:  # fmt: skip
    """The kernels of ``builds()``, compiled with an empty cache: for a cached kernel ptxas would report nothing."""
    builds = implementations.module(family, "triton").builds()
    named = [b for b in builds if dtype is None or f"*{dtype}" in b.name or not re.search(r"\*\w*\d", b.name)]
    with _triton_cache():
        return [_triton_kernel(b, architecture) for architecture in architectures for b in named]


@contextlib.contextmanager
def _triton_cache() -> Iterator[None]:
    knobs: Any = importlib.import_module("triton.knobs")
    with tempfile.TemporaryDirectory() as folder, knobs.cache.scope():
        knobs.cache.dir = folder
        yield


def _triton_kernel(variant: Any, architecture: int) -> Resources:
    from imnet_kernels.tritonlib import compiled

    cubin, report = compiled(variant, architecture)
    (used,) = parse_ptxas(report)
    threads = cubin.metadata.num_warps * WARP_THREADS
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin.asm["cubin"])
        file.flush()
        (code,) = sass.disassembled(Path(file.name)).values()
    counted = sass.counts(code, sass.itemsize(variant.name))
    return Resources(variant.name, "triton", architecture, used[2], cubin.metadata.shared, used[4], threads, counted)


def cuda_kernels(family: str, architectures: Sequence[int] = ARCHITECTURES) -> list[Resources]:
    """Every kernel of csrc/cuda/<family>.cu, from the report of ptxas and, if Triton's cuobjdump is installed, from the
    machine code."""
    source = build.csrc() / "cuda" / f"{family}.cu"
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "kernels.o"
        report = build.compile_cuda(source, target, tuple(map(str, architectures)))
        readable = importlib.util.find_spec("triton") is not None
        code = {a: sass.disassembled(target, a) if readable else {} for a in architectures}
    threads = launch_bounds(source.read_text())
    entries = parse_ptxas(report)
    names = demangled([entry[0] for entry in entries])
    found = []
    for (symbol, architecture, registers, shared, spills), name in zip(entries, names, strict=True):
        bound = next((n for kernel, n in threads.items() if re.search(rf"\d{kernel}[IE]", symbol)), 1024)
        lines = code[architecture].get(symbol)
        counted = None if lines is None else sass.counts(lines, sass.itemsize(name))
        found.append(Resources(name, "cuda", architecture, registers, shared, spills, bound, counted))
    return found


def parse_ptxas(report: str) -> list[tuple[str, int, int, int, int]]:
    """(kernel, architecture, registers, shared bytes, spilled bytes) of each entry in the output of ptxas -v."""
    entries = list(_ENTRY.finditer(report))
    found = []
    for i, entry in enumerate(entries):
        end = entries[i + 1].start() if i + 1 < len(entries) else len(report)
        part = report[entry.end() : end]
        used = _USED.search(part)
        if used is None:
            raise RuntimeError(f"ptxas said nothing about the registers of {entry[1]}: {part!r}")
        spilled = sum(int(n) for n in _SPILL.findall(part))
        found.append((entry[1], int(entry[2]), int(used[1]), int(used[2] or 0), spilled))
    return found


def launch_bounds(source: str) -> dict[str, int]:
    """{kernel: threads per block} from __launch_bounds__ in a .cu file, whose constants are constexpr int."""
    lines = re.findall(r"constexpr int ([^;]+);", source)
    constants = {name: int(value) for line in lines for name, value in re.findall(r"(\w+) = (\d+)", line)}
    found = {}
    for words, kernel in re.findall(r"__launch_bounds__\(([^)]*)\)\s+(\w+)\(", source):
        factors = (int(word) if word.isdigit() else constants[word] for word in re.findall(r"\w+", words))
        found[kernel] = math.prod(factors)
    return found


def demangled(symbols: Sequence[str]) -> list[str]:
    """C++ names without namespaces and arguments; unchanged if there is no c++filt."""
    tool = shutil.which("cu++filt") or shutil.which("c++filt")
    if tool is None or not symbols:
        return list(symbols)
    done = subprocess.run([tool, "-p"], input="\n".join(symbols), text=True, capture_output=True, check=True)
    # With -p: void imnet::(anonymous namespace)::kernel<float, 3>
    return [
        re.sub(r"^void |\(anonymous namespace\)::|\b(imnet|_GLOBAL__N_\w*)::", "", n) for n in done.stdout.splitlines()
    ]
