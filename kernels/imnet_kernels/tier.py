"""Chooses the implementation that runs, reference | host | triton | cuda, once per family and device type, and keeps
the reason.

`auto` chooses from the table in implementations.py. IMNET_KERNELS or set() force a tier for all families ("host") or
per family ("augment=host,shake_shake=reference"). A forced tier that is not installed is an error at its first use.
Only "not installed" counts as missing: the error of a broken import is raised.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import NamedTuple

from . import implementations
from .implementations import ALWAYS, CAPTURED, FAMILIES, IMPLEMENTATIONS

TIERS = tuple(implementations.TIERS)
DEVICES = ("cpu", "cuda")
ENV = "IMNET_KERNELS"


class Choice(NamedTuple):
    """A family's tier on one device type and the reason; ``error`` is set if a forced tier is missing."""

    tier: str
    reason: str
    error: str | None = None


_choices: dict[tuple[str, str], Choice] = {}


def missing(tier: str, device: str) -> str | None:
    """None if the tier can run on the device type, else a message: what is missing and what to do."""
    kind = implementations.TIERS[tier]
    if device not in kind.devices():
        remedy = kind.remedy if device == "cpu" else "use auto"
        return f"tier {tier} runs on {kind.runs_on}, got {device}; {remedy}"
    return None if kind.installed() else f"tier {tier} is not installed; {kind.remedy}"


def forced(spec: str) -> dict[str, str]:
    """Parse 'host' or 'augment=host,...' into {family: tier}.

    Families set to 'auto' are left out, and so are families without a tier that is forced for all. Raises ValueError
    for an unknown tier or family.
    """
    wanted: dict[str, str] = {}
    for part in filter(None, (piece.strip() for piece in spec.split(","))):
        family, _, tier = part.rpartition("=")
        if tier not in (*TIERS, "auto") or (family and family not in FAMILIES):
            allowed = f"auto or one of {', '.join(TIERS)}, or family=tier of {', '.join(FAMILIES)}"
            raise ValueError(f"kernel tier {part!r}; allowed {allowed}; correct {ENV} or --kernels")
        ours = (f for f in FAMILIES if tier == "auto" or tier in implementations.tiers_of(f))
        wanted.update(dict.fromkeys((family,) if family else ours, tier))
    return {family: tier for family, tier in wanted.items() if tier != "auto"}


def _choose(family: str, device: str, forced: str | None, source: str, captured: bool) -> Choice:
    if forced is not None:
        ours = implementations.tiers_of(family)
        absent = f"there is no {forced} tier of it; allowed {', '.join(ours)}; force {forced} for other families only"
        problem = missing(forced, device) if forced in ours else absent
        return Choice(forced, f"forced by {source}", problem and f"{family}: {problem}")
    skipped = []
    for row in IMPLEMENTATIONS:
        wanted = row.auto == ALWAYS or (captured and row.auto == CAPTURED)
        if (row.family, row.device) != (family, device) or not wanted:
            continue
        problem = missing(row.tier, device)
        if problem is None:
            return Choice(row.tier, "; ".join([f"auto: {row.why}", *skipped]))
        skipped.append(problem)
    return Choice("reference", "; ".join(["auto", *skipped]) if skipped else "auto: nothing faster was measured")


def set(spec: str, *, source: str = "tier.set", captured: bool = False) -> None:
    """Choose anew: 'auto', one tier for every family, or 'family=tier,...' with auto for the rest.

    ``captured``: each of the following steps is one CUDA graph and not compiled.
    """
    wanted = forced(spec)
    # All choices are made here and looked up later: torch.compile guards on the table and never traces an import.
    choices = {(f, d): _choose(f, d, wanted.get(f), source, captured) for f in FAMILIES for d in DEVICES}
    _choices.update(choices)


@contextmanager
def using(spec: str, *, captured: bool = False) -> Iterator[None]:
    """set() for the duration of a ``with`` block; afterwards the earlier choices are restored."""
    before = snapshot()
    set(spec, source="tier.using", captured=captured)
    try:
        yield
    finally:
        restore(before)


def snapshot() -> dict[tuple[str, str], Choice]:
    """A copy of the current choices, for restore()."""
    return dict(_choices)


def restore(choices: dict[tuple[str, str], Choice]) -> None:
    """Restore a snapshot without checking again which tiers are installed."""
    _choices.update(choices)


def choose(family: str, device_type: str) -> str:
    """The tier of a family for tensors of this device type; raises RuntimeError if a forced tier is missing."""
    choice = _choices.get((family, device_type))
    if choice is None:
        return "reference"
    if choice.error:
        raise RuntimeError(choice.error)
    return choice.tier


def implementation(family: str, device_type: str) -> ModuleType:
    """The module whose functions run for tensors of this device type, with the signatures of the reference."""
    return implementations.module(family, choose(family, device_type))


def report(device_type: str | None = None) -> dict[str, tuple[str, str]]:
    """{family: (tier, reason)} for a run's header; device_type is "cpu" or "cuda", by default "cuda" if available."""
    if device_type is None:
        import torch

        device_type = "cuda" if torch.cuda.is_available() else "cpu"
    rows = {family: _choices[family, device_type] for family in FAMILIES}
    return {family: (row.tier, row.error or row.reason) for family, row in rows.items()}


def _as_the_environment_says() -> None:
    """Apply IMNET_KERNELS. An invalid value is an error at the first use of a tier, not on import, since many programs
    import this package without running a kernel."""
    try:
        set(os.environ.get(ENV, "auto"), source=ENV)
    except ValueError as error:
        _choices.update({(f, d): Choice("reference", f"got {ENV}", str(error)) for f in FAMILIES for d in DEVICES})


_as_the_environment_says()
