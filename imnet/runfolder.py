"""The run folder: one process writes to it at a time, and it keeps one configuration unless --allow-change is given.

config.yaml    every value; --config reads it back
run.json       versions, git commit, device, kernel tiers, data fingerprint, status
metrics.jsonl  one object per line
checkpoints/   see imnet.checkpoint
report.html    see imnet.report
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from imnet.errors import DataError, IOFailure, UsageError, quoted
from imnet.files import check_folder, exists, is_dir, is_file, listed, write_atomic, write_json
from imnet.locks import NO_LOCKS, is_at, try_lock
from imnet.recipe import Recipe, replace
from imnet.recipe_json import PROVENANCE, RESTORE, config_hash, from_dict, to_dict
from imnet.run_options import RunOptions

LOCK = ".lock"
BUSY = "a run is writing here"
WRITTEN = ("config.yaml", "metrics.jsonl", "metrics.csv", "evaluation.json", "report.html", "worst.png", "tensorboard",
           "wandb-id", "checkpoints")  # fmt: skip
"""The files and folders that a run writes or replaces besides run.json. Without a run.json they are not a run's."""


def default_path(recipe: Recipe, precision: str, bands: Sequence[int]) -> Path:
    """runs/<recipe>-<hash>, so that the same configuration finds its folder again and a different one gets another.
    An ensemble gets runs/<recipe>-ensemble-<hash> whatever its ``bands``, so that bands can be added later."""
    if bands:
        recipe = replace(recipe, augment=replace(recipe.augment, spectral_band=0))
    name = recipe.name.replace("/", "-") + ("-ensemble" if bands else "")
    return Path("runs") / f"{name}-{config_hash(recipe, precision)[:8]}"


def band_folder(path: Path, band: int) -> Path:
    """The run folder of one spectral band in the ensemble folder ``path``."""
    return path / f"band-{band}"


def runs_of(path: Path, bands: Sequence[int]) -> list[Path]:
    """The run folders that a command with ``--out path`` writes: one, or one per band of an ensemble."""
    return [band_folder(path, band) for band in bands] or [path]


def is_complete(path: Path) -> bool:
    """Whether the run in ``path`` is complete and evaluated. IOFailure if its run.json is unreadable."""
    return (read_run(path) or {}).get("status") == "complete" and is_file(path / "evaluation.json")


def bands_in(path: Path) -> dict[int, Path]:
    """Band -> run folder of the ensemble in ``path``; empty if it is not an ensemble."""
    folders = {p.name.removeprefix("band-"): p for p in listed(path, "band-*") if listed(p, "run.json")}
    return dict(sorted((int(number), folder) for number, folder in folders.items() if number.isdecimal()))


class RunFolder:
    """An open, locked run folder. The lock ends with the process, so a killed run blocks nobody."""

    def __init__(self, path: Path, lock: bool = True):
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.metrics = path / "metrics.jsonl"
        check_writable(path)
        self._made = [made for made in (path / LOCK, path, *path.parents) if not exists(made)]
        self._is_locked = lock
        try:
            self._lock = self._open_lock()
            self._lock.seek(0)
            self._found = self._lock.read()
            # Held open, so that its inode number is not used again; see check_place.
            self._place = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise _unwritable(error, path) from error
        self._sign(f"pid {os.getpid()} on {socket.gethostname()}")

    def _open_lock(self) -> TextIO:
        """Open and lock the lock file; IOFailure if another process holds it."""
        path = self.path / LOCK
        while True:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = path.open("a+")
            if not self._is_locked or try_lock(lock.fileno(), path):
                return lock
            with lock:
                if is_at(lock.fileno(), path):
                    lock.seek(0)
                    holder = lock.read().strip() or "another process"
                    hint = "wait for it, or choose another --out"
                    raise IOFailure(f"{BUSY} ({holder})", file=self.path, hint=hint)
            # The holder has closed an unused folder and removed this file in the meantime: try again with a new one.

    def _sign(self, text: str) -> None:
        """Write into the lock file who holds it. A full disk is no error here, since the lock itself needs no room."""
        with contextlib.suppress(OSError):
            self._lock.truncate(0)
            self._lock.write(text)
            self._lock.flush()

    def close(self) -> None:
        """Release the lock and restore the lock file's text. If no run began here, also remove the lock file and the
        folders that this object created."""
        self._sign(self._found)
        lock = self.path / LOCK
        with contextlib.suppress(OSError):
            # Removed while it is still locked: a process about to lock the same file then finds it gone (``try_lock``).
            unused = self._is_locked and is_at(self._lock.fileno(), lock) and not exists(self.path / "run.json")
            if unused and lock in self._made:
                lock.unlink()
        with contextlib.suppress(OSError):  # closing flushes the buffer, for which a full disk has no room
            self._lock.close()
        os.close(self._place)
        with contextlib.suppress(OSError):  # stop at the first folder that is not empty
            for folder in self._made:
                if folder != lock:
                    folder.rmdir()

    def check_place(self) -> None:
        """IOFailure if the folder is no longer at its path. A save would otherwise create a new folder there, or write
        into the folder of a run that was started since."""
        try:
            same = is_at(self._place, self.path)
        except OSError as error:
            same = error.errno not in (errno.ENOTDIR, errno.ESTALE)
        if not same:
            what = "the run folder has been moved or removed while the run was going on"
            raise IOFailure(what, file=self.path, hint="the same command with --out of its new place goes on there")

    def check_room(self, num_bytes: int) -> None:
        """IOFailure if a checkpoint of ``num_bytes`` would not fit: better before the first epoch than after it."""
        free = shutil.disk_usage(self.path).free
        try:
            if free < num_bytes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            # Free space does not account for quotas and file size limits, so allocate. macOS has no such call.
            if hasattr(os, "posix_fallocate"):
                with tempfile.TemporaryFile(dir=self.path) as f:
                    os.posix_fallocate(f.fileno(), 0, num_bytes)
        except OSError as error:
            if error.errno in NO_LOCKS:
                return  # this file system cannot allocate ahead, so there is no answer
            what = f"no room for a checkpoint of {-(-num_bytes >> 20):,} MiB: {error.strerror}"
            hint = f"{free >> 20:,} MiB free; make room, or choose another --out"
            raise IOFailure(what, file=self.path, hint=hint) from error

    def write_config(self, text: str) -> None:
        write_atomic(self.path / "config.yaml", text)

    def write_run(self, values: dict[str, Any]) -> None:
        write_json(self.path / "run.json", values)


def check_writable(path: Path) -> None:
    """IOFailure if a run folder cannot be created at ``path`` or written to. Leaves nothing there."""
    try:
        check_folder(path)
        if exists(path / LOCK):
            (path / LOCK).open("a+").close()
    except OSError as error:
        raise _unwritable(error, path) from error


def _unwritable(error: OSError, path: Path) -> IOFailure:
    return IOFailure(f"run folder: {error.strerror}", file=path, hint="choose another --out")


def check_same(path: Path, recipe: Recipe, options: RunOptions, precision: str) -> dict[str, Any] | None:
    """The run.json of the run that is to be resumed in the folder, or None for a new run. UsageError if the folder
    holds a run of another configuration, a run that may not be resumed, or other files."""
    checkpoints = path / "checkpoints"
    if os.path.lexists(checkpoints) and not is_dir(checkpoints):
        what = "there is something in the place of its checkpoints that is no folder"
        raise IOFailure(what, file=checkpoints, hint="move it away, or choose another --out")
    run = read_run(path)
    if run is None:
        _check_unused(path)
        return None
    for other in (path / name for name in WRITTEN if "." in name):
        if exists(other) and not is_file(other):  # a pipe would be waited for without end
            raise IOFailure("is no file, and a run would write one", file=other, hint="move it away")
    if options.resume == "never":
        raise UsageError("the folder already holds a run", file=path, hint="choose another --out")
    wanted = config_hash(recipe, precision)
    if run["config_hash"] == wanted or options.allow_change:
        return run
    old = recipe_of(run, path)
    if config_hash(old, run["precision"]) == wanted:  # older versions had another hash for lr: 1 than for lr: 1.0
        return run
    changed = difference(*(to_dict(r) | {"precision": p} for r, p in ((old, run["precision"]), (recipe, precision))))
    what = f"the folder holds a run of another configuration ({changed})"
    longer = recipe.epochs > old.epochs and changed == f"epochs was {old.epochs}, is {recipe.epochs}"
    spent = run["status"] == "complete" and not run.get("stopped") and recipe.epochs <= old.epochs
    how = ("extend it" if longer else "go on with it all the same") + ": --allow-change" + " and more --epochs" * spent
    if changed == f"name was {old.name}, is {recipe.name}" and recipe.name.startswith("own/"):
        how += f"; were the pictures moved: --config {quoted(path / 'config.yaml')} --data-dir THEIR_NEW_PLACE"
    raise UsageError(what, file=path, hint=f"choose another --out, or {how}")


def _check_unused(path: Path) -> None:
    """UsageError if a new run would overwrite, truncate or delete files that no run wrote."""
    there = [name for name in WRITTEN if os.path.lexists(path / name)]
    taken = [name for name in there if name != "checkpoints" or any((path / name).iterdir())]
    if taken:
        what = f"the folder holds {', '.join(taken)} of no run (there is no run.json), which a run would replace"
        raise UsageError(what, file=path, hint="choose another --out, or move them away")


def writer(path: Path) -> str | None:
    """Which process is writing to the run folder ``path``; None if there is none, or if it cannot be found out."""
    with contextlib.suppress(OSError, IOFailure), (path / LOCK).open("r+") as lock:
        if not try_lock(lock.fileno(), path / LOCK):
            return lock.read().strip() or "another process"
    return None


_ALWAYS = {"status": str, "config_hash": str, "recipe": dict, "precision": str, "device": str}
"""Keys that every version has written to run.json, and their types."""
_SOMETIMES = {"data": dict, "best": dict, "execution": dict, "kernels": dict, "weights": dict, "before": list}
_SOMETIMES |= {"num_ranks": int, "threads": int, "parameters": int}
"""Keys that may be absent (older versions) or null."""
_BEFORE = {"config_hash": str, "recipe": dict, "precision": str, "train_images": int}
"""Keys of every entry of ``before``, the configurations that the run had earlier."""
_DATA = {"name": str, "fingerprint": str, "class_names": list, "train_images": int, "encoded": bool}
"""Keys of ``data``; each may be absent."""
_WORDS = {str: "text", dict: "object", list: "list", int: "whole number", float: "number", bool: "true or false"}


def read_run(path: Path) -> dict[str, Any] | None:
    """The contents of run.json of a run folder, or None if there is none; IOFailure if it is unreadable or a value has
    the wrong type."""
    try:
        if (path / "run.json").is_fifo():
            raise ValueError("it is a pipe")
        run = json.loads((path / "run.json").read_text(encoding="utf-8"))
        if not isinstance(run, dict):
            raise ValueError(f"it holds a {type(run).__name__}, must be an object")
        _check_kinds(run, _ALWAYS | {key: kind for key, kind in _SOMETIMES.items() if run.get(key) is not None})
        for i, entry in enumerate(run.get("before") or ()):
            _check_kinds(entry if isinstance(entry, dict) else {}, _BEFORE, f"before[{i}].")
        kernels = dict.fromkeys(run.get("kernels") or (), dict)
        for key, kinds in (("data", _DATA), ("best", {"since": float}), ("kernels", kernels)):
            there = run.get(key) or {}
            _check_kinds(there, {name: kind for name, kind in kinds.items() if name in there}, f"{key}.")
        return run
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise IOFailure(f"run.json is unreadable: {error}", file=path, hint=RESTORE) from error


def _check_kinds(values: Mapping[str, Any], kinds: Mapping[str, type], prefix: str = "") -> None:
    for key, kind in kinds.items():
        if not isinstance(values.get(key), kind):
            raise ValueError(f"{prefix}{key} is missing or no {_WORDS[kind]}")


def data_of(run: Mapping[str, Any], path: Path | None = None) -> dict[str, Any]:
    """The ``data`` object of ``run``, the run.json of the folder ``path``; DataError if a required key is missing."""
    data = run.get("data") or {}
    gone = ", ".join(key for key in ("name", "fingerprint", "train_images") if key not in data)
    if gone:
        raise DataError(f"run.json does not say of its data: {gone}", file=path, hint=RESTORE)
    return data


def recipe_of(entry: Mapping[str, Any], path: Path) -> Recipe:
    """The recipe of ``entry``, which is the run.json of the folder ``path`` or an entry of its ``before``; DataError if
    it cannot be read."""
    try:
        return from_dict(entry.get("recipe", {}))
    except ValueError as error:
        raise DataError(f"the recipe in run.json cannot be read: {error}", file=path, hint=RESTORE) from error


def difference(old: dict[str, Any], new: dict[str, Any], most: int = 3) -> str:
    """The first ``most`` values that differ, as ``name was 1, is 2``."""
    return ", ".join(_differences(old, new, "")[:most])


def _differences(old: dict[str, Any], new: dict[str, Any], prefix: str) -> list[str]:
    rows: list[str] = []
    for key in dict.fromkeys([*old, *new]):
        a, b = old.get(key), new.get(key)
        if key in PROVENANCE:
            continue
        if isinstance(a, dict) and isinstance(b, dict):
            rows += _differences(a, b, f"{prefix}{key}.")
        elif a != b:
            rows.append(f"{prefix}{key} was {a}, is {b}")
    return rows
