"""Which pipeline a run takes, decided once and said aloud."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

import torch

from imnet.data.base import AnySplit, EncodedSplit
from imnet.data.pipeline import Pipeline, Setting
from imnet.data.resident import Resident, too_large
from imnet.errors import DeviceError, UsageError

KINDS = ("resident", "host", "dali", "torch")


def has_dali() -> bool:
    """Whether NVIDIA DALI is installed; it is not imported."""
    return importlib.util.find_spec("nvidia") is not None and importlib.util.find_spec("nvidia.dali") is not None


def choose(kind: str, splits: Sequence[AnySplit], device: torch.device) -> tuple[str, str]:
    """(pipeline, why) for the splits of a run together; ``kind`` is one of KINDS, or auto."""
    if kind == "dali" and not has_dali():
        raise DeviceError("got --pipeline dali, but NVIDIA DALI is not installed", hint="pip install 'imnet[dali]'")
    if kind != "auto":
        return kind, "asked for"
    if any(isinstance(split, EncodedSplit) for split in splits):
        return "host", "pictures are kept encoded"
    num_bytes = sum(split.num_bytes for split in splits)
    problem = too_large(num_bytes, device)
    return ("host", problem) if problem else ("resident", f"{num_bytes / 2**30:.2f} GiB fit {device}")


def build(kind: str, split: AnySplit, setting: Setting) -> Pipeline:
    """The pipeline of that kind; importing it only now spares the others' dependencies."""
    if kind == "resident":
        return Resident(split, setting)
    if kind == "host":
        from imnet.data.host import Host

        return Host(split, setting)
    if kind == "torch":
        from imnet.data.plain import Plain

        return Plain(split, setting)
    if kind == "dali":
        try:
            from imnet.data.dali import Dali
        except ImportError as error:
            raise DeviceError(f"NVIDIA DALI does not load: {error}", hint="pip install -U 'imnet[dali]'") from error
        return Dali(split, setting)
    raise UsageError(f"got --pipeline {kind}; allowed: auto, {', '.join(KINDS)}")
