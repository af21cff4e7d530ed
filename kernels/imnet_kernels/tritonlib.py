"""Helpers of the Triton tiers: int32 arguments, the Philox generator, the device of a launch, and compiling kernels
without a GPU."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, NamedTuple, ParamSpec, TypeVar

import torch
import triton
import triton.language as tl


def signed32(value: int) -> int:
    """The low 32 bits of ``value`` as an int32. Triton would otherwise pass large values as int64 and compile again."""
    value &= 0xFFFFFFFF
    return value - (1 << 32) if value >> 31 else value


@triton.jit
def philox_round(c0, c1, c2, c3, k0, k1):
    p0 = c0.to(tl.uint64) * 0xD2511F53
    p1 = c2.to(tl.uint64) * 0xCD9E8D57
    n0 = (p1 >> 32).to(tl.uint32) ^ c1 ^ k0
    n2 = (p0 >> 32).to(tl.uint32) ^ c3 ^ k1
    return n0, (p1 & 0xFFFFFFFF).to(tl.uint32), n2, (p0 & 0xFFFFFFFF).to(tl.uint32)


@triton.jit
def philox(sample, seed_low, seed_high, epoch, stream: tl.constexpr):
    """Four uint32 words per sample id (int64); the seed's halves and the epoch are passed as int32 bit patterns."""
    c0 = (sample & 0xFFFFFFFF).to(tl.uint32)
    c1 = ((sample >> 32) & 0xFFFFFFFF).to(tl.uint32)
    c2 = epoch.to(tl.uint32)
    c3 = tl.full((), stream, tl.uint32)
    k0 = seed_low.to(tl.uint32)
    k1 = seed_high.to(tl.uint32)
    for _ in tl.static_range(10):
        c0, c1, c2, c3 = philox_round(c0, c1, c2, c3, k0, k1)
        k0 = (k0.to(tl.uint64) + 0x9E3779B9).to(tl.uint32)
        k1 = (k1.to(tl.uint64) + 0xBB67AE85).to(tl.uint32)
    return c0, c1, c2, c3


@triton.jit
def below(word, n: tl.constexpr):
    """A uint32 word -> an int32 in 0 .. n - 1 by multiply-high."""
    return ((word.to(tl.uint64) * n) >> 32).to(tl.int32)


Given = ParamSpec("Given")
Made = TypeVar("Made")


def on_own_device(launch: Callable[Given, Made]) -> Callable[Given, Made]:
    """Let ``launch`` start its kernels on the device of its first tensor, and on the current stream of that device, as
    torch's operators do. Triton itself takes the current device, whatever device the tensors are on."""

    @wraps(launch)
    def guarded(*given: Given.args, **named: Given.kwargs) -> Made:
        with torch.cuda.device_of(next(tensor for tensor in given if isinstance(tensor, torch.Tensor))):
            return launch(*given, **named)

    return guarded


class Build(NamedTuple):
    """A kernel, the types of its runtime arguments and its constants, as needed to compile it without a GPU."""

    name: str
    kernel: triton.JITFunction
    signature: Mapping[str, str]
    constants: Mapping[str, object]
    num_warps: int = 4
    fp_fusion: bool = True


class Usage(NamedTuple):
    """What ptxas reports for one kernel."""

    registers: int
    spill_bytes: int


def compiled(build: Build, architecture: int) -> tuple[Any, str]:
    """Compile for sm_<architecture>; returns Triton's compiled kernel (cubin and metadata) and ptxas -v's report."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = build.kernel.arg_names
    signature = {n: build.signature.get(n, "constexpr") for n in names}
    constants = {(names.index(n),): v for n, v in build.constants.items()}
    # As in a launch on tensors that torch allocated, whose addresses are multiples of 16. Without this attribute the
    # compiler would not use 16-byte accesses.
    aligned = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if signature[n].startswith("*")}
    source = ASTSource(fn=build.kernel, signature=signature, constexprs=constants, attrs=aligned)
    options = {"num_warps": build.num_warps, "enable_fp_fusion": build.fp_fusion}
    report = io.StringIO()
    with triton.knobs.nvidia.scope(), contextlib.redirect_stdout(report):
        triton.knobs.nvidia.dump_ptxas_log = True
        cubin = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    return cubin, report.getvalue()


def compile_for(build: Build, architecture: int) -> Usage:
    """Compile a kernel for sm_<architecture> and return its registers per thread and spilled bytes."""
    _, report = compiled(build, architecture)
    if "registers" not in report:
        raise RuntimeError(f"ptxas reported nothing: {report!r}; compile with an empty TRITON_CACHE_DIR")
    registers = re.findall(r"Used (\d+) registers", report)[-1]
    spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", report)[-2:]
    return Usage(int(registers), sum(int(n) for n in spills))
