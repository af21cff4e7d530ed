"""Reads a grid file (see ``EXAMPLE``) and expands it into trials. Does not import torch."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imnet import options, yaml_file
from imnet.command import suggest
from imnet.errors import UsageError
from imnet.fields import flag
from imnet.files import is_file
from imnet.parser import ASK, canonical
from imnet.recipe import Recipe
from imnet.recipe_json import config_hash
from imnet.run_options import RunOptions
from imnet.runfolder import default_path

EXAMPLE = """\
about: what is searched, and where the values are from
base:                         # options of imnet-train, for every trial
  recipe: fashion-mnist/wrn28_10
grid:                         # every combination of the values
  optim.lr: [0.1, 0.05]
random:                       # and this many draws, each with every combination
  draws: 20
  seed: 0
  values:
    optim.weight_decay: {low: 1.0e-5, high: 1.0e-2, log: true}
    augment.cutout_px: [0, 8, 16]
seeds: [1, 2, 3]              # of the runs; without it each recipe's own
"""
SHIPPED = Path(__file__).parent / "grids"
PARTS = ("about", "base", "grid", "random", "seeds")
RANDOM_PARTS = ("draws", "seed", "values")
RANGE_PARTS = ("low", "high", "log")
MOST_TRIALS = 10_000
OURS = {"out": "--out of imnet-sweep", "seed": "seeds: [1, 2, 3]"}
"""Options of imnet-train that the sweep sets itself -> what the user gives instead."""
HOW = {field.name for field in dataclasses.fields(RunOptions)} - {"precision"}
"""Options that are not part of a run's identity."""


@dataclass(frozen=True)
class Trial:
    """One run of a sweep. ``values`` are its values on the axes, ``words`` the whole command line without ``--out``."""

    number: int
    values: Mapping[str, Any]
    words: tuple[str, ...]
    recipe: Recipe
    options: RunOptions
    notes: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """The first eight digits of the configuration's hash. It contains the precision as requested, not as resolved,
        so that a login node without a GPU names the trials as the nodes that run them do."""
        return config_hash(self.recipe, self._precision)[:8]

    @property
    def name(self) -> str:
        """The name of its run folder."""
        return default_path(self.recipe, self._precision, self.bands).name

    @property
    def bands(self) -> tuple[int, ...]:
        """The spectral bands that are trained together; empty if the trial is one network."""
        return self.options.bands_of(self.recipe)

    @property
    def _precision(self) -> str:
        return self.options.as_ran(self.recipe).precision

    @property
    def label(self) -> str:
        """The values that distinguish it from the other trials, or the recipe's name if there are none."""
        return label(self.values) or self.recipe.name


def needs(wanted: Iterable[Trial]) -> tuple[int, int, bool]:
    """(GPUs, ranks on a CPU) of the largest of the trials, each at least 1, and whether all of them run on a CPU."""
    options = [trial.options for trial in wanted]
    on_cpu = all(o.device == "cpu" or o.procs for o in options)
    return max((o.gpus or 1 for o in options), default=1), max((o.procs or 1 for o in options), default=1), on_cpu


def label(values: Mapping[str, Any]) -> str:
    """The values as text, e.g. ``optim.lr 0.1, seed 3``."""
    return ", ".join(f"{name} {value}" for name, value in values.items())


@dataclass(frozen=True)
class Grid:
    """The contents of a grid file, checked as far as that is possible without the recipes."""

    path: Path
    about: str
    base: Mapping[str, Any]
    points: tuple[Mapping[str, Any], ...]
    """The values on the axes, for each configuration."""
    seeds: tuple[int, ...]


def names() -> list[str]:
    """The names of the grids that come with imnet."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def find(word: str) -> Path:
    """The file of ``word``, a path or the name of a grid that comes with imnet. UsageError if there is none."""
    if is_file(Path(word)):
        return Path(word)
    if word not in names():
        hint = suggest(word, names()) or "give a YAML file; imnet-sweep --list shows the grids that come with imnet"
        raise UsageError(f"got {word!r}: no such file, and no grid of imnet's", hint=hint)
    return SHIPPED / f"{word}.yaml"


def read(path: Path) -> Grid:
    """Read and check the grid file ``path``; every UsageError names the file."""
    raw = _mapping(yaml_file.read(path)[0], "the file", PARTS, path)
    base = _mapping(raw.get("base"), "base", None, path)
    axes = _mapping(raw.get("grid"), "grid", None, path)
    for name, value in (raw.get("base") or {}).items():
        if isinstance(value, dict) and canonical(str(name)) != "model_options":
            inner = next(iter(value), "NAME")
            raise UsageError(f"base.{name} is a mapping", file=path, hint=f"write {name}.{inner}: VALUE")
    draws = _draws(_mapping(raw.get("random"), "random", RANDOM_PARTS, path), path)
    twice = next((name for name in axes if name in base or any(name in draw for draw in draws)), None)
    if twice is not None:
        raise UsageError(f"{twice} is given twice", file=path, hint="once in base, grid or random")
    choices = [[(name, value) for value in _list(values, f"grid.{name}", path)] for name, values in axes.items()]
    count = math.prod(map(len, choices)) * len(draws)
    if count > MOST_TRIALS:
        raise UsageError(f"got {count:,} trials; allowed: {MOST_TRIALS:,}", file=path, hint="search at random instead")
    points = tuple({**dict(point), **draw} for draw in draws for point in itertools.product(*choices))
    twice = next((name for point in points for name in _in_mapping(point) if name in base or name in point), None)
    if twice is not None:
        what = f"{twice} is given twice, of which one is in model_options"
        raise UsageError(what, file=path, hint=f"make it an axis of its own: {twice}: [...]")
    seeds = _seeds(raw.get("seeds"), path)
    if not (base or any(points) or seeds):
        raise UsageError("names nothing to train", file=path, hint="imnet-sweep --help shows a grid file")
    _check_varied(points[0], path)
    return Grid(path, " ".join(str(raw.get("about", "")).split()), base, points, seeds)


def _in_mapping(point: Mapping[str, Any]) -> list[str]:
    """The network's options, by dotted name, that a point gives as a mapping. One that is given by its dotted name as
    well would always win, so that the mapping's values would not be tried."""
    network = point.get("model_options")
    return [f"model_options.{key}" for key in network] if isinstance(network, dict) else []


def _check_varied(axes: Iterable[str], path: Path) -> None:
    """UsageError for an axis that is not part of a run's identity: its trials would all be the same run."""
    for name in axes:
        if name.removeprefix("no_") in HOW:
            what = f"{name} is no part of a run's configuration: its values would be one trial"
            raise UsageError(what, file=path, hint=f"give it in base, or behind --: --{flag(name)}")


def _mapping(value: Any, what: str, allowed: Sequence[str] | None, path: Path) -> dict[str, Any]:
    """``value`` as a mapping; None becomes an empty one. Keys must be in ``allowed``; if that is None, they are options
    of imnet-train and get their canonical names."""
    if value is None:
        value = {}
    if not isinstance(value, dict):
        raise UsageError(f"{what} is {value!r:.60}, not a mapping", file=path, hint="write NAME: VALUE lines")
    unknown = next((str(key) for key in value if allowed is not None and key not in allowed), None)
    if unknown is not None:
        hint = suggest(unknown, allowed or ()) or f"allowed: {', '.join(allowed or ())}"
        raise UsageError(f"got unknown key {unknown} in {what}", file=path, hint=hint)
    if allowed is not None:
        return value
    ours = next((str(key) for key in value if str(key) in OURS), None)
    if ours is not None:
        raise UsageError(f"got {ours} in {what}, which the sweep sets", file=path, hint=f"use {OURS[ours]}")
    named = [canonical(str(key)) for key in value]
    if idle := next((name for name in named if name in ASK), None):
        raise UsageError(f"got {idle} in {what}, which is no setting of a run", file=path, hint="leave it out")
    network = value.get("model_options")
    leaves = [*named, *(f"model_options.{key}" for key in (network if isinstance(network, dict) else ()))]
    twice = next((name for i, name in enumerate(leaves) if name in leaves[:i]), None)
    if twice is not None:
        raise UsageError(f"{twice} is given twice in {what}", file=path, hint="leave one of them out")
    return dict(zip(named, value.values(), strict=True))


def _list(value: Any, what: str, path: Path) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise UsageError(f"{what} is {value!r:.60}, not a list of values", file=path, hint="e.g. [0.1, 0.01]")
    return value


def _whole(value: Any, what: str, least: int, path: Path) -> int:
    if type(value) is not int or value < least:
        raise UsageError(f"{what} is {value!r:.60}; allowed: a whole number from {least}", file=path)
    return value


def _seeds(value: Any, path: Path) -> tuple[int, ...]:
    return () if value is None else tuple(_whole(seed, "a seed", 0, path) for seed in _list(value, "seeds", path))


def _draws(raw: Mapping[str, Any], path: Path) -> list[dict[str, Any]]:
    """The random draws, each a mapping from axis to value; a single empty one if nothing is random."""
    if not raw:
        return [{}]
    values = _mapping(raw.get("values"), "random.values", None, path)
    if not values:
        raise UsageError("random.values is absent or empty", file=path, hint="name what is drawn, or leave random out")
    seed = _whole(raw.get("seed", 0), "random.seed", 0, path)
    number = min(_whole(raw.get("draws", 10), "random.draws", 1, path), MOST_TRIALS + 1)
    return [{name: _draw(of, name, f"{seed}:{i}:{name}", path) for name, of in values.items()} for i in range(number)]


def _draw(of: Any, name: str, key: str, path: Path) -> Any:
    """Draw a value of ``name``. It depends on ``key`` alone, so that more draws or axes do not change the others."""
    share = random.Random(key).random()
    what = f"random.values.{name}"
    if not isinstance(of, dict):
        choices = _list(of, what, path)
        return choices[int(share * len(choices))]
    spans = _mapping(of, what, RANGE_PARTS, path)
    log = spans.get("log", False)
    given: tuple[Any, Any] = spans.get("low"), spans.get("high")
    ends = [x for x in given if type(x) in (int, float) and math.isfinite(x)]
    if len(ends) < 2 or ends[0] >= ends[1] or (log and ends[0] <= 0) or not isinstance(log, bool):
        got = ", ".join(f"{key} = {spans.get(key)}" for key in RANGE_PARTS)
        raise UsageError(f"{what}: got {got}", file=path, hint="low < high, both numbers; with log: true low > 0")
    low, high = ends
    whole = isinstance(low, int) and isinstance(high, int)
    top = high + 1 if whole else high
    value = low * (top / low) ** share if log else low + share * (top - low)
    # Six digits are enough for a search, and the same with every machine's math library.
    return min(int(value), high) if whole else float(f"{value:.6g}")


def trials(grid: Grid, num_seeds: int | None = None, more: Sequence[str] = ()) -> tuple[list[Trial], int]:
    """(all trials in the order in which they run, number of duplicate configurations that were left out).

    ``num_seeds`` is the number of seeds to use: the file's, or the recipe's own, and then the integers after the
    largest. ``more`` are words of imnet-train for every trial. All configurations run with their first seed before any
    runs with its second.
    """
    names = {canonical(word.removeprefix("--").partition("=")[0]) for word in more if word.startswith("--")}
    varied = [*grid.points[0], *(name for point in grid.points for name in _in_mapping(point))]
    both = next((name for name in varied if name in names), None)
    if both is not None or "seed" in names:
        hint = f"change {grid.path}" if both else "use --seeds N"
        raise UsageError(f"got --{both or 'seed'} for every trial, which the sweep varies", hint=hint)
    found: dict[str, Trial] = {}
    twice = 0
    for turn in range(num_seeds or len(grid.seeds) or 1):
        for point in grid.points:
            trial = _trial(len(found) + 1, grid, point, turn, num_seeds is not None, more)
            twice += trial.name in found
            found.setdefault(trial.name, trial)
    return list(found.values()), twice


def _trial(number: int, grid: Grid, point: Mapping[str, Any], turn: int, seeded: bool, more: Sequence[str]) -> Trial:
    words = [*(_word(name, value) for name, value in (dict(grid.base) | dict(point)).items()), *more]
    values = dict(point)
    if seeded or grid.seeds:
        first = grid.seeds or (_parse(words, grid, number, values).recipe.seed,)
        seed = first[turn] if turn < len(first) else max(first) + 1 + turn - len(first)
        values, words = values | {"seed": seed}, [*words, f"--seed={seed}"]
    request = _parse(words, grid, number, values)
    return Trial(number, values, tuple(words), request.recipe, request.options, request.notes)


def _word(name: str, value: Any) -> str:
    return f"--{name}={value if isinstance(value, str) else json.dumps(value)}"


def _parse(words: Sequence[str], grid: Grid, number: int, values: Mapping[str, Any]) -> options.Request:
    if set(words) & {"-h", "--help"}:
        raise UsageError("got --help for every trial", file=grid.path, hint="imnet-train --help")
    try:
        request = options.parse(list(words))
    except UsageError as error:
        which = f"trial {number}" + (f" ({label(values)})" if values else "")
        raise UsageError(f"{which}: {error.what}", file=error.file or grid.path, hint=error.hint) from error
    asked = sorted(word.partition(":")[0] for word in request.ask)
    if asked:
        hint = f"leave it out: {', '.join(ASK)} and list train nothing"
        raise UsageError(f"got --{asked[0].replace('_', '-')} for every trial", file=grid.path, hint=hint)
    if request.options.out is not None:
        raise UsageError("got --out for every trial", file=grid.path, hint=f"use {OURS['out']}")
    return request
