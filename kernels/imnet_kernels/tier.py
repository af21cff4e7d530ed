"""Which implementation runs: reference | host | triton | cuda, decided once per family and device type, with the
reason.

`auto` takes the fastest tier that is installed and was measured or predicted to pay; IMNET_KERNELS or set() force one:
"host", or per family "augment=host,shake_shake=reference". A forced tier that is missing is an error at its first use,
and only "not installed" counts as missing: a broken import is raised.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

FAMILIES = ("augment", "spectral", "shake_shake", "sgd_ema")
TIERS = ("reference", "host", "triton", "cuda")
DEVICES = ("cpu", "cuda")
ENV = "IMNET_KERNELS"
PACKAGE = Path(__file__).resolve().parent

REMEDY = {
    "host": "install a C++ compiler and reinstall, or run `python -m imnet_kernels.build --host`",
    "triton": "install triton (it comes with torch's CUDA builds for Linux); on a CPU also set TRITON_INTERPRET=1",
    "cuda": "run `python -m imnet_kernels.build` where the CUDA toolkit is",
}
_DEVICE_OF = {
    "host": "cpu tensors",
    "cuda": "CUDA tensors",
    "triton": "CUDA tensors (cpu ones with TRITON_INTERPRET=1)",
}

# The order in which auto looks, and why. Shake-Shake and the optimiser stay at the traceable reference on CUDA: an
# opaque op costs torch.compile its fusions, and no GPU has shown that it pays. Triton comes first on CUDA: of the
# kernels before 2026-11-26 it was the faster on an H100 but for spectral's r = 6; of today's it is predicted to be.
_AUTO: dict[tuple[str, str], tuple[str, ...]] = {
    ("augment", "cuda"): ("triton", "cuda"),
    ("spectral", "cuda"): ("triton", "cuda"),
    ("augment", "cpu"): ("host",),
    ("spectral", "cpu"): ("host",),
    ("shake_shake", "cpu"): ("host",),
    ("sgd_ema", "cpu"): ("host",),
}


class Choice(NamedTuple):
    """A family's tier on one device type and why; error is set where a forced tier is missing."""

    tier: str
    reason: str
    error: str | None = None


_choices: dict[tuple[str, str], Choice] = {}


def find_host() -> ModuleType | None:
    try:
        return importlib.import_module("imnet_kernels._host")
    except ModuleNotFoundError as error:
        if error.name != "imnet_kernels._host":
            raise
        return None


def _interpreting() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def missing(tier: str, device: str) -> str | None:
    """None where the tier can run on the device type, else what is missing and what to do."""
    wrong_device = {
        "host": device != "cpu",
        "cuda": device != "cuda",
        "triton": device == "cpu" and not _interpreting(),
    }
    if wrong_device.get(tier, False):
        return (
            f"tier {tier} runs on {_DEVICE_OF[tier]}, got {device}; {REMEDY[tier] if device == 'cpu' else 'use auto'}"
        )
    installed = {
        "reference": lambda: True,
        "host": lambda: find_host() is not None,
        "triton": lambda: importlib.util.find_spec("triton") is not None,
        "cuda": lambda: any(PACKAGE.glob("_C.torch*.so")),
    }
    return None if installed[tier]() else f"tier {tier} is not installed; {REMEDY[tier]}"


def _forced(spec: str) -> dict[str, str]:
    """'host' or 'augment=host,...' -> {family: tier}; 'auto' leaves a family out."""
    wanted: dict[str, str] = {}
    for part in filter(None, (piece.strip() for piece in spec.split(","))):
        family, _, tier = part.rpartition("=")
        if tier not in (*TIERS, "auto") or (family and family not in FAMILIES):
            allowed = f"auto or one of {', '.join(TIERS)}, or family=tier of {', '.join(FAMILIES)}"
            raise ValueError(f"kernel tier {part!r}; allowed {allowed}; correct {ENV} or --kernels")
        wanted.update(dict.fromkeys((family,) if family else FAMILIES, tier))
    return {family: tier for family, tier in wanted.items() if tier != "auto"}


def _choose(family: str, device: str, forced: str | None, source: str) -> Choice:
    if forced is not None:
        problem = missing(forced, device)
        return Choice(forced, f"forced by {source}", problem and f"{family}: {problem}")
    order = _AUTO.get((family, device), ())
    if not order:
        return Choice("reference", "auto: torch.compile fuses the reference; nothing faster was measured")
    skipped = []
    for tier in order:
        problem = missing(tier, device)
        if problem is None:
            return Choice(tier, "auto" + "".join(f"; {text}" for text in skipped))
        skipped.append(problem)
    return Choice("reference", "auto; " + "; ".join(skipped))


def set(spec: str, *, source: str = "tier.set") -> None:
    """Decide again: 'auto', a tier for every family, or 'family=tier,...' with auto for the rest."""
    forced = _forced(spec)
    # Choosing from a table, not from probes: torch.compile guards on it and never traces an import.
    _choices.update({(f, d): _choose(f, d, forced.get(f), source) for f in FAMILIES for d in DEVICES})


@contextmanager
def using(spec: str) -> Iterator[None]:
    """set() for a block; the earlier choices come back after it."""
    before = snapshot()
    set(spec, source="tier.using")
    try:
        yield
    finally:
        restore(before)


def snapshot() -> dict[tuple[str, str], Choice]:
    """The choices made, for restore()."""
    return dict(_choices)


def restore(choices: dict[tuple[str, str], Choice]) -> None:
    """Puts a snapshot back, without looking for the tiers again."""
    _choices.update(choices)


def choose(family: str, device_type: str) -> str:
    """The tier of a family for tensors of this device type; raises RuntimeError where a forced one is missing."""
    choice = _choices.get((family, device_type))
    if choice is None:
        return "reference"
    if choice.error:
        raise RuntimeError(choice.error)
    return choice.tier


def report(device_type: str | None = None) -> dict[str, tuple[str, str]]:
    """{family: (tier, reason)} for a run header; device_type "cpu" or "cuda", by default the best one present."""
    if device_type is None:
        import torch

        device_type = "cuda" if torch.cuda.is_available() else "cpu"
    rows = {family: _choices[family, device_type] for family in FAMILIES}
    return {family: (row.tier, row.error or row.reason) for family, row in rows.items()}


set(os.environ.get(ENV, "auto"), source=ENV)
