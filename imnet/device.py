"""The device of a run, its precision and its number of threads, and torch settings that hold only for a block."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from imnet.errors import DeviceError, UsageError
from imnet.launch import current_world, local_size
from imnet.resources import cpu_field, idle_cores, num_cores
from imnet.run_options import RunOptions

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class GpuSettings:
    """torch's settings that ``resolve`` changes on a GPU, for the whole process."""

    index: int
    """The current GPU."""
    benchmark: bool
    matmul_tf32: bool
    cudnn_tf32: bool

    @classmethod
    def now(cls) -> GpuSettings:
        """Today's settings. RuntimeError if they were made through ``fp32_precision``, which torch does not mix."""
        cudnn = torch.backends.cudnn
        index = torch.cuda.current_device() if torch.cuda.is_initialized() else 0
        return cls(index, bool(cudnn.benchmark), bool(torch.backends.cuda.matmul.allow_tf32), bool(cudnn.allow_tf32))

    def restore(self) -> None:
        if torch.cuda.is_initialized():
            torch.cuda.set_device(self.index)
        torch.backends.cudnn.benchmark = self.benchmark
        torch.backends.cuda.matmul.allow_tf32 = self.matmul_tf32
        torch.backends.cudnn.allow_tf32 = self.cudnn_tf32


@dataclass(frozen=True)
class Place:
    """A device and the precision of matrix products on it: the dtype of autocast, or fp32 for no autocast."""

    device: torch.device
    precision: str
    reason: str
    before: GpuSettings | None = None
    """The settings that were changed for this place and that ``undisturbed`` puts back."""

    @property
    def dtype(self) -> torch.dtype:
        return PRECISIONS[self.precision]

    @property
    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.precision != "fp32")


def num_gpus() -> int:
    """Number of GPUs that torch can use."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def kind_of(options: RunOptions) -> str:
    """The kind of device ("cpu" or "cuda") that a run with these options uses: "cuda" also if it asks for GPUs and this
    machine has none."""
    if options.gpus or options.device == "cuda":
        return "cuda"
    return "cpu" if options.device == "cpu" or options.procs or not num_gpus() else "cuda"


def check_gpus(wanted: int, asked: str | None = None) -> None:
    """Raise DeviceError unless there are ``wanted`` GPUs. ``asked`` is what asked for them, if it was not --gpus."""
    found = num_gpus()
    if wanted <= found:
        return
    if (asked or "").startswith("LOCAL_RANK"):
        do = "start one process for each GPU here; where every process sees one GPU of its own, LOCAL_RANK is 0"
    elif found == 0:
        do = "leave it out to train on the CPU (--device cpu --procs N for several processes)"
    else:
        do = f"use --gpus {found}; the batch size stays the recipe's"
    what = f"got {asked or f'--gpus {wanted}'}, found {found} usable GPU{'' if found == 1 else 's'}"
    raise DeviceError(what, hint=do)


def gpus_here(options: RunOptions) -> int:
    """The number of GPUs that this process has to find: within a launch, whose --gpus may be those of several machines,
    or of tasks that see one each, only its own."""
    return 1 if current_world().size > 1 else options.gpus or 1


def crowded(procs: int | None) -> list[str]:
    """A note if there are more processes than cores, which have to take turns; else an empty list."""
    cores = num_cores()
    told = f"{procs} processes take turns on {cores} core(s), each with its own memory; --procs {cores} uses them all"
    return [told] if (procs or 0) > cores else []


def contended(threads: int) -> list[str]:
    """A note if other programs leave this process, the only one of its run, fewer cores than it has ``threads``.

    torch's threads wait for each other at the end of every operator, so that one which has to share its core holds up
    all: on two cores, quickstart took 22 s, and 181 s beside another busy program, but 26 s there with one thread
    (n = 1 each, an Intel Xeon, 2026-11-29). The number is only told: another one would change the order of sums.
    """
    cores = num_cores()
    if threads == 1 or (idle := idle_cores()) >= min(threads, cores) - 0.5:
        return []
    told = f"other programs leave {idle:.1f} of {cores} cores idle, so that {threads} threads wait for each other"
    return [f"{told}: --threads {max(1, math.ceil(idle - 0.5))} may be several times faster"]


def resolve(options: RunOptions, local_rank: int = 0) -> Place:
    """Return the device of this process and the precision that ``--precision`` means on it."""
    if kind_of(options) == "cpu":
        return Place(torch.device("cpu"), *resolve_precision(options.precision, "cpu"))
    here, asked = gpus_here(options), f"LOCAL_RANK={local_rank}" if local_rank else "--device cuda"
    check_gpus(max(here, local_rank + 1), f"--gpus {options.gpus}" if options.gpus and here > local_rank else asked)
    before = None
    with contextlib.suppress(RuntimeError):
        before = GpuSettings.now()
    torch.cuda.set_device(local_rank)
    _check_code(local_rank)
    precision, reason = resolve_precision(options.precision, "cuda")
    torch.backends.cudnn.benchmark = True
    # Beside half precision, what is left in fp32 may use TF32. A run in fp32 does so only with --tf32.
    fast = options.tf32 or precision != "fp32"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = fast
    return Place(torch.device("cuda", local_rank), precision, reason, before)


def _check_code(index: int) -> None:
    """Raise DeviceError for a GPU that is too old or too new for the installed torch, which counts it all the same: its
    first operator would fail with a traceback."""
    (major, minor), known = torch.cuda.get_device_capability(index), torch.cuda.get_arch_list()
    if not has_code((major, minor), known):
        name = f"{torch.cuda.get_device_name(index)} (sm_{major}{minor})"
        what = f"got a GPU for which this torch has no code, {name}; allowed: {', '.join(known)}"
        raise DeviceError(what, hint="use --device cpu, or install a torch that supports this GPU")


def has_code(capability: tuple[int, int], built_for: Sequence[str]) -> bool:
    """Whether a GPU of this compute capability runs code that was built for these architectures.

    Code for sm_80 runs on 8.0 and on later cards of the same generation; compute_80 is translated at run time for any
    later card. Other names, such as those of ROCm, are not judged.
    """
    found = [(kind, divmod(int(number), 10)) for kind, number in re.findall(r"(sm|compute)_(\d+)", " ".join(built_for))]
    runs = (at <= capability and (kind == "compute" or at[0] == capability[0]) for kind, at in found)
    return not found or any(runs)


def resolve_precision(precision: str, kind: str) -> tuple[str, str]:
    """(fp32 | bf16 | fp16, why)."""
    if precision != "auto":
        if precision == "fp16" and kind == "cpu":
            raise DeviceError("got --precision fp16 on a CPU; allowed: fp32, bf16", hint="leave --precision out")
        return precision, "asked for"
    if kind == "cuda":
        if not num_gpus():  # a dry run for another machine
            return "bf16", "as GPUs have it from Ampere on; none is here to ask"
        has = torch.cuda.is_bf16_supported(including_emulation=False)
        return ("bf16", "the GPU has it") if has else ("fp16", "the GPU has no bf16")
    if torch.backends.mkldnn.is_available() and _cpu_has_bf16():
        return "bf16", "the CPU multiplies bf16 in hardware"
    return "fp32", "the CPU has no bf16 instructions"


def _cpu_has_bf16() -> bool:
    """Whether the kernel reports avx512_bf16 or AMX; False on systems that do not report CPU flags."""
    return not {"avx512_bf16", "amx_bf16"}.isdisjoint(cpu_field("flags").split())


@contextlib.contextmanager
def exact(deterministic: bool) -> Iterator[None]:
    """If ``deterministic``, use only bit-for-bit repeatable algorithms in the block; settings are restored afterwards.

    cuBLAS reads its workspace setting at its first use in a process, so enter this before the first matrix product.
    If torch has no such algorithm, UsageError names the operator; a run finds that out in its warm-up, before step 1.
    """
    if not deterministic:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    cudnn = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    workspace = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = workspace or ":4096:8"
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    try:
        yield
    except RuntimeError as error:
        operator, found, _ = str(error).partition(" does not have a deterministic implementation")
        if not found:
            raise
        what = f"got --deterministic, but torch has no deterministic {operator} for this device"
        raise UsageError(what, hint="leave --deterministic out, or choose another network") from error
    finally:
        torch.use_deterministic_algorithms(before)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn
        if workspace is None:
            del os.environ["CUBLAS_WORKSPACE_CONFIG"]


@contextlib.contextmanager
def undisturbed(place: Place | None = None) -> Iterator[None]:
    """Run the block with torch's settings as in a new process; the caller's random state and settings are restored.

    Autocast, no_grad, inference_mode, or a default dtype or device that a caller has set around a call would silently
    change the figures of a run, or break it.
    """
    dtype, gpus = torch.get_default_dtype(), [place.device] if place and place.device.type == "cuda" else []
    with contextlib.ExitStack() as stack:
        if place and place.before:
            stack.callback(place.before.restore)
        stack.enter_context(torch.random.fork_rng(gpus))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(_no_autocast())
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        stack.callback(torch.set_default_dtype, dtype)
        torch.set_default_dtype(torch.float32)
        yield


@contextlib.contextmanager
def _no_autocast() -> Iterator[None]:
    """Run the block as if outside every autocast context.

    Nesting one more, disabled context is not enough. torch drops its cached casts of the weights when the outermost
    context ends; until then a run's own contexts, one for each pass, would keep using the weights of the first step.
    """
    depth = torch.autocast_increment_nesting() - 1
    torch.autocast_decrement_nesting()
    was = {kind: torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda")}
    for kind in was:
        torch.set_autocast_enabled(kind, False)
    for _ in range(depth):
        torch.autocast_decrement_nesting()
    torch.clear_autocast_cache()
    try:
        yield
    finally:
        for kind, enabled in was.items():
            torch.set_autocast_enabled(kind, enabled)
        for _ in range(depth):
            torch.autocast_increment_nesting()


@contextlib.contextmanager
def threads(options: RunOptions) -> Iterator[int]:
    """Set torch's threads for the block: --threads, else the cores this process may use divided by the ranks here.

    In the block denormals are flushed to zero, since they cost up to 100x on a CPU and training does not need them, and
    malloc keeps freed memory, since fresh pages for every activation cost an eighth of a small network's step. Settings
    are restored afterwards, since the caller may be a notebook.
    """
    before, flushed = torch.get_num_threads(), sys.float_info.min / 2 == 0
    ranks = local_size() or options.num_ranks
    torch.set_num_threads(options.threads or max(1, num_cores() // ranks))
    torch.set_flush_denormal(True)
    _mallopt(trim_threshold=2**31 - 1, mmap_max=0)
    try:
        yield torch.get_num_threads()
    finally:
        _mallopt(trim_threshold=128 * 1024, mmap_max=65536)
        torch.set_num_threads(before)
        torch.set_flush_denormal(flushed)


def _mallopt(*, trim_threshold: int, mmap_max: int) -> None:
    """Set glibc's M_TRIM_THRESHOLD and M_MMAP_MAX for this process; does nothing on other systems."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(-1, trim_threshold)
        mallopt(-4, mmap_max)
