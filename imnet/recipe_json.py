"""Converts recipes to plain JSON data and back, and hashes them to identify an experiment. Standard library only."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imnet.errors import DataError
from imnet.fields import types_of, union_members
from imnet.optimisers import Optim
from imnet.recipe import Recipe
from imnet.run_options import RunOptions
from imnet.schedules import Schedule

KINDS: dict[str, dict[str, type]] = {
    part: {kind.kind: kind for kind in typing.get_args(kinds)}
    for part, kinds in (("optim", Optim), ("schedule", Schedule))
}
"""The classes that these parts of a recipe may have, by their ``kind``."""
PROVENANCE = ("source", "published", "ran")
"""The fields of a recipe that only say where it comes from."""
RESTORE = "put a copy back, or take another folder"
"""The hint for a damaged run.json."""


def to_dict(value: Any, *, unset: bool = True) -> Any:
    """``value`` as plain JSON data; optimisers and schedules also get their ``kind``. Without ``unset``, fields that
    recipes gained later are left out while they have their defaults."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        word = getattr(value, "kind", None)
        found = {} if word is None else {"kind": word}
        for f in dataclasses.fields(value):
            held = getattr(value, f.name)
            if unset or not f.metadata.get("later") or held != f.default:
                found[f.name] = to_dict(held, unset=unset)
        return found
    if isinstance(value, Mapping):
        return {str(k): to_dict(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [to_dict(v) for v in value]
    return value


def from_dict(raw: Mapping[str, Any]) -> Recipe:
    """The recipe that ``to_dict`` turned into ``raw``; ValueError for unknown or missing keys."""
    return build_value(Recipe, raw, "recipe")


def build_value(cls: Any, raw: Any, path: str) -> Any:
    """Turn plain JSON data into ``cls`` (a dataclass, tuple or union of them); ValueError if it does not fit."""
    members = union_members(cls)
    dataclass_options: list[Any] = [c for c in members if dataclasses.is_dataclass(c)]
    if raw is None and type(None) in members:
        return None
    if dataclass_options and isinstance(raw, Mapping):
        return _build_dataclass(dataclass_options, dict(raw), path)
    if dataclass_options and not isinstance(raw, tuple(dataclass_options)):
        raise ValueError(f"got {path} = {raw!r:.80}; allowed: a mapping of its values; leave it out or mend it")
    if isinstance(raw, list):
        return tuple(raw)
    return raw


def _build_dataclass(options: list[Any], raw: dict[str, Any], path: str) -> Any:
    kind = raw.pop("kind", None)
    cls = options[0]
    if len(options) > 1:
        by_kind = {c.kind: c for c in options}
        if not isinstance(kind, str) or kind not in by_kind:
            raise ValueError(f"got {path}.kind = {kind!r}; allowed: {', '.join(by_kind)}; set --{path}.kind")
        cls = by_kind[kind]
    hints = types_of(cls)
    names = {f.name for f in dataclasses.fields(cls)}
    unknown = sorted(set(raw) - names)
    if unknown:
        raise ValueError(f"got unknown {path}.{unknown[0]}; allowed: {', '.join(sorted(names))}; remove it")
    try:
        return cls(**{k: build_value(hints[k], v, f"{path}.{k}".removeprefix("recipe.")) for k, v in raw.items()})
    except TypeError as error:
        raise ValueError(f"got an incomplete {path}: {error}") from error


def config_hash(recipe: Recipe, precision: str) -> str:
    """Identity of an experiment: a hash of the recipe without its provenance, and of the resolved precision.

    A field that was added to recipes later (``metadata={"later": True}``) is left out while it has its default, so that
    a new option does not send an old command to a new folder.
    """
    return _hash(to_dict(recipe, unset=False), precision)


def _hash(body: dict[str, Any], precision: str) -> str:
    named = {key: value for key, value in body.items() if key not in PROVENANCE}
    text = json.dumps({"recipe": named, "precision": precision}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def check_hash(entry: Mapping[str, Any], recipe: Recipe, path: Path) -> None:
    """Raise DataError if ``recipe``, which was read from ``entry`` of the run.json in ``path``, does not have the hash
    beside it: one of its values is damaged or was edited, and images prepared by it would be judged wrongly.

    The values are hashed as they are written, since older versions kept the 1 of ``lr: 1``, where 1.0 is read now.
    """
    if _hash(_written(entry["recipe"], recipe), entry["precision"]) != entry["config_hash"]:
        what = "the recipe in run.json is not the one that was trained: its hash is not config_hash"
        raise DataError(what, file=path, hint=RESTORE)


def _written(raw: Mapping[str, Any], value: Any) -> dict[str, Any]:
    """``raw``, from which ``value`` was read, without the fields that ``to_dict`` leaves out without ``unset``."""
    left = {
        f.name for f in dataclasses.fields(value) if f.metadata.get("later") and getattr(value, f.name) == f.default
    }
    parts = ((key, held, getattr(value, key, None)) for key, held in raw.items() if key not in left)
    return {key: _written(held, part) if dataclasses.is_dataclass(part) else held for key, held, part in parts}


def config_dict(recipe: Recipe, options: RunOptions) -> dict[str, Any]:
    """The contents of config.yaml: every value, under the names that the command line uses."""
    return {"recipe": recipe.name} | to_dict(recipe) | to_dict(options)


def dump_config(recipe: Recipe, options: RunOptions) -> str:
    """The text of config.yaml. It is here and not in the parser, since training from Python needs no jsonargparse."""
    from imnet import yaml_file

    return yaml_file.dump(config_dict(recipe, options))
