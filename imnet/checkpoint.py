"""Crash-safe checkpoints: each is a directory written under a temporary name, fsynced, renamed, and then verified.

    checkpoints/step-00000120/
        MANIFEST.json       sha256 and size of every file
        model.safetensors   the network's state dict, and nothing else: any tool can read it
        ema.safetensors     the averaged weights, if the recipe has them
        state.safetensors   optimiser and scaler tensors
        state.json          step, epoch, scalars, lengths of the logs, data fingerprint, configuration

No pickle anywhere. Loading takes the newest checkpoint whose manifest verifies and names the newer ones that it had to
skip. An older checkpoint is deleted only after the newer one has been read back.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from imnet.errors import DataError, IOFailure
from imnet.files import exists, in_utf8, is_dir, listed
from imnet.resources import FULL, exhausted

KEEP = (2, False)
"""Keep the newest two, and not the best one; see ``RunOptions.keeps``."""
MANIFEST = "MANIFEST.json"


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint: tensors by file stem and name, and the JSON state."""

    path: Path
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]
    skipped: tuple[str, ...] = ()
    """One line for each newer checkpoint that did not verify."""


def save(
    folder: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    keep: tuple[int, bool] = KEEP,
    own: Sequence[str] = (),
) -> Path:
    """Write ``folder/step-XXXXXXXX`` and return its path. If writing fails, older checkpoints are untouched.

    ``tensors`` maps a file stem (model, ema, state) to its tensors. ``keep`` is how many of the newest checkpoints to
    keep, and whether to keep the one with the highest ``top1`` in its state. ``own`` are the hashes from ``of_run``:
    checkpoints of other runs are neither counted nor deleted, and one that has this name is renamed. Raises IOFailure.
    """
    own = own or (state.get("config_hash", ""),)
    final = folder / f"step-{step:08d}"
    temporary, replaced = folder / f"step-{step:08d}.tmp", folder / f"step-{step:08d}.old.tmp"
    try:
        folder.mkdir(exist_ok=True)  # without parents: the run folder may have been moved away
        if exists(temporary):
            shutil.rmtree(temporary)
        if exists(final) and _problem(final) is None and _config_hash(final) == state.get("config_hash"):
            return final
        temporary.mkdir()
        for stem, named in tensors.items():
            plain = {k: v.detach().cpu().contiguous() for k, v in named.items()}
            save_file(plain, temporary / f"{stem}.safetensors")
        (temporary / "state.json").write_text(json.dumps(state, indent=1), encoding="utf-8")
        _write_manifest(temporary)
        if exists(final):  # it is damaged, of an earlier configuration (--allow-change), or of another run
            final.rename(replaced if _is_own(final, own) else _aside(final))
        temporary.rename(final)
        _fsync(folder)
    except (OSError, SafetensorError) as error:
        # safetensors reports a full disk as its own error type.
        shutil.rmtree(temporary, ignore_errors=True)
        with contextlib.suppress(OSError):  # of a disk that fails altogether
            if exists(replaced) and not exists(final):
                replaced.rename(final)
        reason = getattr(error, "strerror", None) or str(error)
        raise IOFailure(f"checkpoint not written: {reason}", file=final, hint=_hint(folder, error)) from error
    problem = _problem(final)
    if problem is not None:
        raise IOFailure(f"checkpoint does not read back: {problem}", file=final, hint="check the disk")
    _prune(final, state, keep, own)
    return final


def _hint(folder: Path, error: OSError | SafetensorError) -> str:
    kept = "the older checkpoints are untouched"
    if getattr(error, "errno", None) not in FULL and (known := exhausted(error)) is not None:
        return f"{kept}; {known.hint}"  # room would not help
    try:
        free_mib = shutil.disk_usage(folder).free >> 20
    except OSError:
        return kept
    return f"{free_mib} MiB free; {kept}; make room and run the same command again"


def of_run(run: Mapping[str, Any] | None) -> tuple[str, ...]:
    """The hashes of all configurations that a run has had, the present one first; empty without its run.json. A
    checkpoint with any other hash does not belong to the run."""
    return () if run is None else (run["config_hash"], *(entry["config_hash"] for entry in run.get("before") or ()))


def _is_own(path: Path, own: Sequence[str]) -> bool:
    """Whether a checkpoint belongs to the run whose configurations are ``own``; one without a readable hash does."""
    return not own or _config_hash(path) in (*own, None)


def _aside(final: Path) -> Path:
    """An unused path beside ``final`` whose name is not that of a checkpoint."""
    aside, number = final.with_name(f"foreign-{final.name}"), 1
    while exists(aside):
        number += 1
        aside = final.with_name(f"foreign-{final.name}-{number}")
    return aside


def load(folder: Path, own: Sequence[str] = ()) -> Checkpoint | None:
    """Load the newest checkpoint that verifies; None if there are no checkpoints at all. ``own`` are the hashes from
    ``of_run``: checkpoints of the run's present configuration are tried first, then those of its earlier ones.

    Raises DataError if checkpoints exist but none verifies, or none that verifies belongs to the run.
    """
    skipped: list[str] = []
    for path in _newest_first(folder, own):
        problem = _problem(path)
        if problem is None:
            return _load(path, own, tuple(skipped))
        skipped.append(f"{path.name}: {problem}")
    if skipped:
        hint = "no older one is left; use another --out to start anew"
        raise DataError(f"no checkpoint verifies ({'; '.join(skipped)})", file=folder, hint=hint)
    return None


def _load(path: Path, own: Sequence[str], skipped: tuple[str, ...] = ()) -> Checkpoint:
    """Load a checkpoint that the caller has verified. Raises DataError if it does not belong to the run whose
    configurations are ``own``."""
    if not _is_own(path, own):
        what = "the checkpoint is of a configuration that run.json does not know"
        raise DataError(what, file=path, hint="put a copy of the run's own back, or take another folder")
    tensors = {}
    for file in listed(path, "*.safetensors"):
        with in_utf8(file) as name:
            tensors[file.stem] = load_file(name)
    return Checkpoint(path, tensors, json.loads((path / "state.json").read_text(encoding="utf-8")), skipped)


def absent(run: Mapping[str, Any], folder: Path) -> DataError:
    """The error for the run in ``folder``, with this run.json, which has no checkpoint."""
    if run.get("status") == "complete":
        return DataError("the run is complete, and its checkpoints are gone", file=folder, hint="put a copy back")
    return DataError("no checkpoint yet", file=folder, hint="let the run reach its first checkpoint")


def verified(path: Path, own: Sequence[str] = ()) -> Checkpoint:
    """Load exactly this checkpoint. Raises DataError if it is damaged, or does not belong to the run whose
    configurations are ``own``."""
    problem = _problem(path)
    if problem is not None:
        raise DataError(f"the checkpoint is damaged: {problem}", file=path, hint="take another --checkpoint")
    return _load(path, own)


def states(folder: Path, own: Sequence[str] = ()) -> dict[Path, dict[str, Any]]:
    """The state.json of every checkpoint of a run by path, the earliest step first; unreadable ones are left out."""
    found = {path: _state(path) for path in sorted(_paths(folder)) if _is_own(path, own)}
    return {path: state for path, state in found.items() if state is not None}


def _best_of(paths: Sequence[Path], fingerprint: str | None) -> Path | None:
    """The checkpoint of highest top-1 on the data with this fingerprint, the earliest if several have it; None if none
    was evaluated."""
    judged = [(path, s) for path in paths if (s := _state(path)) and s.get("data_fingerprint") == fingerprint]
    ranked = [(s["top1"], -s["epoch"], path) for path, s in judged if s.get("top1") is not None]
    return max(ranked)[2] if ranked else None


def newest(folder: Path, own: Sequence[str] = ()) -> Path | None:
    """The checkpoint that ``load`` tries first, whether it verifies or not; None if there is none."""
    return next(iter(_newest_first(folder, own)), None)


def _newest_first(folder: Path, own: Sequence[str]) -> list[Path]:
    """Checkpoints in the order in which to try them: of the present configuration, of the run's earlier ones, of other
    runs. Steps of another configuration count other batches, so step numbers are only compared within each group."""
    return sorted(_paths(folder), key=lambda p: (_is_own(p, own[:1]), _is_own(p, own), p.name), reverse=True)


def _paths(folder: Path) -> list[Path]:
    return [p for p in listed(folder, "step-*") if is_dir(p) and p.name[5:].isdigit()]


def _state(path: Path) -> dict[str, Any] | None:
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return state if isinstance(state, dict) else None


def _config_hash(path: Path) -> str | None:
    """The hash of the configuration that wrote a checkpoint; None if its state cannot be read."""
    return (_state(path) or {}).get("config_hash")


def _write_manifest(folder: Path) -> None:
    files = {}
    for path in sorted(folder.iterdir()):
        _fsync(path)
        files[path.name] = {"sha256": _sha256(path), "bytes": path.stat().st_size}
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps({"format": 1, "files": files}, indent=1), encoding="utf-8")
    _fsync(manifest)
    _fsync(folder)


def _problem(folder: Path) -> str | None:
    """Why this checkpoint cannot be trusted, or None."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        for name, expected in files.items():
            path = folder / name
            if path.stat().st_size != expected["bytes"]:
                return f"{name} has {path.stat().st_size} bytes, not {expected['bytes']}"
            if _sha256(path) != expected["sha256"]:
                return f"{name} is damaged (sha256 differs)"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} is unreadable ({type(error).__name__})"
    return None if "state.json" in files and "model.safetensors" in files else f"{MANIFEST} names too few files"


def _prune(final: Path, state: Mapping[str, Any], keep: tuple[int, bool], own: Sequence[str]) -> None:
    """Delete the checkpoints that ``keep`` does not ask for beside ``final``, which has just been written, and the
    leftovers of interrupted saves."""
    folder, (newest, with_best) = final.parent, keep
    ordered = [path for path in _newest_first(folder, own) if _is_own(path, own)]
    at = ordered.index(final)
    # Damaged checkpoints of later steps, which loading skips, would displace good ones among the newest.
    for path in ordered[:at]:
        if _problem(path) is not None:
            shutil.rmtree(path, ignore_errors=True)
    best = _best_of(ordered, state.get("data_fingerprint")) if with_best else None
    for path in ordered[at + newest :]:
        if path != best:
            shutil.rmtree(path, ignore_errors=True)
    for path in (p for p in folder.iterdir() if re.fullmatch(r"step-\d+(\.old)?\.tmp", p.name)):
        shutil.rmtree(path, ignore_errors=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
