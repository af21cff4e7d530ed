"""The table of all kernel implementations: family, tier, device, and when and why `auto` chooses it.

To add a tier to a family, write `<family>/_<tier>.py` with the functions of the family's reference.py, and list it
in IMPLEMENTATIONS. A new kind of tier also needs an entry in TIERS.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

PACKAGE = Path(__file__).resolve().parent


def c_compiler() -> str | None:
    """The C compiler that Triton builds its launcher with, found as Triton finds it; without one no kernel starts."""
    return os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")


def _has_triton() -> bool:
    runs = os.environ.get("TRITON_INTERPRET") == "1" or c_compiler() is not None
    return runs and importlib.util.find_spec("triton") is not None


def find_host() -> ModuleType | None:
    """imnet_kernels._host, or None if it was not built. If it exists but cannot be imported, the error is raised."""
    try:
        import imnet_kernels._host as host  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        if error.name != "imnet_kernels._host":
            raise
        return None
    return host


@dataclass(frozen=True, kw_only=True)
class Tier:
    """A kind of implementation: the device types it runs on (``runs_on`` in words for messages), the remedy to print if
    it is missing, and whether it is installed."""

    devices: Callable[[], tuple[str, ...]]
    runs_on: str
    remedy: str
    installed: Callable[[], bool]


TIERS = {
    "reference": Tier(
        devices=lambda: ("cpu", "cuda"),
        runs_on="all tensors",
        remedy="",
        installed=lambda: True,
    ),
    "host": Tier(
        devices=lambda: ("cpu",),
        runs_on="cpu tensors",
        remedy="install a C++ compiler and reinstall, or run `python -m imnet_kernels.build --host`",
        installed=lambda: find_host() is not None,
    ),
    "triton": Tier(
        devices=lambda: ("cpu", "cuda") if os.environ.get("TRITON_INTERPRET") == "1" else ("cuda",),
        runs_on="CUDA tensors (cpu ones with TRITON_INTERPRET=1)",
        remedy="install triton (it is in torch's CUDA builds for Linux) and gcc; on a CPU set TRITON_INTERPRET=1 too",
        installed=_has_triton,
    ),
    "cuda": Tier(
        devices=lambda: ("cuda",),
        runs_on="CUDA tensors",
        remedy="run `python -m imnet_kernels.build` where the CUDA toolkit is",
        installed=lambda: any(PACKAGE.glob("_C.torch*.so")),
    ),
}


class Implementation(NamedTuple):
    """One family in one tier on one device type. `auto` chooses the first row of a family and device type that is
    installed and whose ``auto`` is ALWAYS, or CAPTURED in a captured step."""

    family: str
    tier: str
    device: str
    auto: str
    why: str
    """The measurement behind ``auto``."""


ALWAYS, CAPTURED, NEVER = "always", "captured", "never"
"""When `auto` chooses a row. CAPTURED: only if each step is captured as one CUDA graph and not compiled."""

_H200 = "H200, 2026-11-26, bench/results/h200-2026-11-26.json"
_H200_2 = "H200, 2026-11-27, bench/results/h200-2026-11-27.json"
_H200_3 = "H200, 2026-11-28, bench/results/h200-2026-11-28.json"
_CPU = "faster than eager in every recipe's shape (bench/results/kernels-cpu.json)"
# A compiled step keeps the traceable reference, because torch.compile cannot fuse across an opaque op.
IMPLEMENTATIONS = (
    # Every batch is one launch from Python, so the time of the launch counts as well as that of the kernel.
    Implementation("augment", "cuda", "cuda", ALWAYS, f"256 x 64 px launched: CUDA 40 us, Triton 68 us ({_H200})"),
    Implementation("augment", "triton", "cuda", ALWAYS, f"256 x 64 px: Triton 7.0 us, CUDA 6.6 us ({_H200})"),
    Implementation("augment", "host", "cpu", ALWAYS, _CPU),
    Implementation("spectral", "triton", "cuda", ALWAYS, f"sub4 10 us, CUDA 20 us; sub36 31 us, 55 us ({_H200})"),
    Implementation("spectral", "host", "cpu", ALWAYS, _CPU),
    Implementation("shake_shake", "triton", "cuda", CAPTURED, f"stage 1 of 2x96d 41 us, CUDA 83 us ({_H200})"),
    Implementation("shake_shake", "host", "cpu", ALWAYS, _CPU),
    Implementation("batch_norm", "triton", "cuda", CAPTURED, f"stage 1 of WRN-36-5 161 us, torch's 501 us ({_H200})"),
    Implementation("dense_stage", "triton", "cuda", CAPTURED, f"DenseNet-BC: 8.4 ms a step, 12.9 without ({_H200_2})"),
    Implementation("shake_batch_norm", "triton", "cuda", CAPTURED, f"2x96d: 14.4 ms a step, 14.9 without ({_H200_3})"),
    Implementation("sgd_ema", "host", "cpu", ALWAYS, _CPU),
    Implementation("sgd_ema", "triton", "cuda", NEVER, f"WRN-28-10 269 us, torch's fused one 312 ({_H200})"),
)
FAMILIES = tuple(dict.fromkeys(row.family for row in IMPLEMENTATIONS))


def tiers_of(family: str) -> tuple[str, ...]:
    """The tiers that implement a family, installed or not, in the order of TIERS."""
    ours = {"reference", *(row.tier for row in IMPLEMENTATIONS if row.family == family)}
    return tuple(name for name in TIERS if name in ours)


@cache
def module(family: str, tier: str) -> ModuleType:
    """The module with a family's functions in one tier. It is imported here, because importing triton takes seconds,
    which a run on another tier should not pay."""
    name = tier if tier == "reference" else f"_{tier}"
    return importlib.import_module(f".{family}.{name}", __package__)
