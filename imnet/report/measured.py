"""The measurements for a system's page: runs, ensembles and rows of result files, all as ``Measured``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imnet.errors import DataError
from imnet.files import exists
from imnet.recipe_json import to_dict
from imnet.recipes import RECIPES
from imnet.report.comparison import group
from imnet.report.data import NAN, RunLog, hardware_of
from imnet.report.read import as_fraction, as_number, load, read_json
from imnet.runfolder import band_folder

FUSION = "fusion.json"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Finished runs of one configuration on one kind of hardware, one value per seed."""

    recipe: Mapping[str, Any]
    last: tuple[float, ...]
    """Test top-1 at the last epoch, one fraction per run."""
    best: tuple[float, ...] = ()
    chosen_on: str = ""
    """The images on which the best epoch was selected, in words."""
    seconds: tuple[float, ...] = ()
    hardware: str
    precision: str = ""
    seeds: tuple[str, ...] = ()
    band: int | None = None
    """The spectral band of the network; None for whole images and for an ensemble."""
    ensemble: str = ""
    """How the bands of an ensemble were fused; empty for single networks."""
    more: tuple[str, ...] = ()
    """Differences from what was published that are not values of the recipe."""

    @property
    def name(self) -> str:
        return str(self.recipe.get("name", "?"))


def of_runs(runs: Sequence[RunLog]) -> list[Measured]:
    """The finished ones of ``runs``, grouped by experiment and hardware."""
    found = []
    for members in group(runs):
        done = [run for run in members if run.finished and run.last is not None]
        for hardware in dict.fromkeys(run.hardware for run in done):
            found.append(_of([run for run in done if run.hardware == hardware]))
    return found


def _of(runs: Sequence[RunLog]) -> Measured:
    first = runs[0]
    best = [run.best.top1 for run in runs if run.best is not None]
    return Measured(
        recipe=first.recipe,
        last=tuple(run.last_top1 for run in runs),
        best=tuple(best),
        chosen_on=first.chosen_on,
        seconds=tuple(run.total_seconds for run in runs),
        hardware=first.hardware,
        precision=str(first.info.get("precision", "")),
        seeds=tuple("?" if run.seed is None else str(run.seed) for run in runs),
        band=first.band,
        more=first.changed_on_the_way,
    )


def read_fusion(folder: Path) -> dict[str, Any] | None:
    """The fusion.json that imnet-eval wrote for an ensemble: ``rules``, ``costs`` and the weights of its ``bands``.
    None if the ensemble was not evaluated, DataError if the file is damaged."""
    path = folder / FUSION
    if not exists(path):
        return None
    data = read_json(path)
    rules, costs, bands = data.get("rules"), data.get("costs"), data.get("bands")
    lists = all(isinstance(rows, list) and all(isinstance(row, dict) for row in rows) for rows in (rules, costs))
    if not lists or not _numbered(bands) or not all(_is_rule(rule, bands) for rule in rules or ()):
        what = "does not hold bands, rules with the weights of bands, and costs"
        raise DataError(what, file=path, hint="run imnet-eval on the ensemble again")
    return data


def _is_rule(rule: dict[str, Any], bands: Any) -> bool:
    """Whether ``rule`` has valid weights for some of the ``bands``; null is allowed only if a fit has failed."""
    weights, chosen = rule.get("weights"), "chosen" in str(rule.get("name"))
    if not _numbered(weights) or not weights or not set(weights) <= set(bands):
        return False
    held = [weight for weight in weights.values() if weight is not None or chosen]
    numbers = all(isinstance(w, int | float) and type(w) is not bool and math.isfinite(w) for w in held)
    return numbers and isinstance(rule.get("test") or {}, dict)


def _numbered(bands: Any) -> bool:
    return isinstance(bands, dict) and all(band.isdecimal() for band in bands)


def of_ensemble(folder: Path, band: RunLog) -> list[Measured] | None:
    """The measurements of imnet-eval for an ensemble, one band of which is ``band``. Empty if it was not evaluated,
    None if it was evaluated before the training of all bands had ended."""
    path, data = folder / FUSION, read_fusion(folder)
    if data is None:
        return []
    if not all(_is_final(band_folder(folder, int(number)), weights) for number, weights in data["bands"].items()):
        return None
    hours = {str(row.get("name")): as_number(row.get("device_hours"), "device_hours", path) for row in data["costs"]}
    found = []
    for rule in data["rules"]:
        name, test = str(rule.get("name")), rule.get("test") or {}
        if "chosen" not in name:
            continue
        bands = ", ".join(sorted(rule["weights"], key=int))
        where = rule.get("chosen_on") or "nothing"
        found.append(
            Measured(
                recipe=band.recipe,
                last=(as_fraction(test.get("top1"), "top1", path),),
                seconds=(3600 * hours.get(name, NAN),),
                hardware=band.hardware,
                precision=str(band.info.get("precision", "")),
                seeds=("?" if band.seed is None else str(band.seed),),
                ensemble=f"{name}; bands {bands}; chosen on {where}",
                more=band.changed_on_the_way,
            )
        )
    return found


def _is_final(folder: Path, weights: str) -> bool:
    """Whether ``weights`` are the last weights of a finished run (see ``Run.weights_id``)."""
    run = load(folder) if exists(folder / "run.json") else None
    if run is None or run.last is None or not run.finished:
        return False
    return weights == f"step-{int(run.last.step):08d} of {run.info.get('config_hash', '')[:8]}"


def of_results(path: Path) -> list[Measured]:
    """The trainings in a JSON file of imnet-bench (runs, or those of a GPU); DataError if there are none."""
    if not exists(path):
        raise DataError("no such file", file=path, hint="give a JSON file of imnet-bench, or a run folder")
    data = read_json(path)
    rows = [
        row for row in data.get("rows") or () if isinstance(row, dict) and {"epochs", "top1", "seconds"} <= set(row)
    ]
    # Rows of whole trainings on a GPU have the recipe as their name.
    known = [row | {"recipe": row.get("recipe", row.get("name"))} for row in rows]
    known = [row for row in known if row["recipe"] in RECIPES]
    if not known:
        raise DataError("holds no row of a training (recipe, epochs, top1, seconds)", file=path)
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in known:
        keys = [row.get(key) for key in ("recipe", "epochs", "schedule", "precision")]
        groups.setdefault(json.dumps([*keys, _hardware(row, data)]), []).append(row)
    return [_of_rows(rows, _hardware(rows[0], data), path) for rows in groups.values()]


def _of_rows(rows: Sequence[Mapping[str, Any]], hardware: str, path: Path) -> Measured:
    first = rows[0]
    recipe = to_dict(RECIPES[first["recipe"]])
    schedule = first.get("schedule") or recipe["schedule"]["kind"]
    if schedule != recipe["schedule"]["kind"]:
        recipe["schedule"] = {"kind": schedule}
    return Measured(
        recipe=recipe | {"epochs": first["epochs"]},
        last=tuple(as_fraction(row["top1"], "top1", path) for row in rows),
        seconds=tuple(as_number(row["seconds"], "seconds", path) for row in rows),
        hardware=hardware,
        precision=str(first.get("precision", "")),
        seeds=tuple(str(row.get("seed", "?")) for row in rows),
    )


def _hardware(row: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    """The hardware in the form of a run's own report."""
    machine = row.get("hardware") or data.get("fingerprint") or {}
    names = machine.get("gpus") if isinstance(machine.get("gpus"), list) else [machine.get("gpu")]
    gpus, ranks = [name for name in names or () if name], row.get("num_ranks")
    # Rows of before have neither: they are of one rank, and on a GPU if the machine had one.
    device = str(row.get("device") or ("cuda" if gpus else "not recorded"))
    return hardware_of({**machine, "gpus": gpus}, device, ranks if isinstance(ranks, int) else 1)
