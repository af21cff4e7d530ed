"""The command line of imnet-train: file < flags, every leaf of the recipe typed and open to a dotted override.

Torch-free, so that --help and mistakes answer at once. jsonargparse parses and checks the types; what is ours: short
flags for the usual leaves, one-line errors with a suggestion, and the line number inside a configuration file.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
from dataclasses import dataclass, replace
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from imnet import place, yaml_file
from imnet.command import option_hint, suggest
from imnet.errors import UsageError
from imnet.fields import flag
from imnet.parser import ALIASES, ASK, FIXED, allowed, build_parser, choose_bands
from imnet.recipe import Recipe
from imnet.recipe_json import KINDS, config_dict, dump_config, from_dict, to_dict
from imnet.recipes import by_model, by_name
from imnet.run_options import RunOptions

__all__ = ["Request", "config_dict", "dump_config", "parse"]

FIRST = (*place.DECIDES, "config", "recipe", "optim.kind", "schedule.kind", "optim.lr", "model_options", "data.name")
FIRST += ("augment.spectral_band", "bands")
"""What decides which options exist, and with which defaults."""


@dataclass(frozen=True)
class Request:
    """What the command line asked for."""

    recipe: Recipe
    options: RunOptions
    ask: frozenset[str]
    notes: tuple[str, ...] = ()
    """What the command line did not say and the user should know, a line each."""
    reasons: tuple[str, ...] = ()
    """Why a recipe made for the user's own data is this one."""


def parse(argv: list[str]) -> Request:
    """Resolve ``argv`` to a recipe and run options; a mistake is a UsageError of one line."""
    argv, network_options = _split_network_options([_canonical(word) for word in argv])
    argv, path = place.split(argv)
    first = _first_look(argv)
    file_values, lines = _read_config(first["config"]) if first["config"] else ({}, [])
    base, notes, reasons = place.recipe(path, first) if path else (*_base_recipe(first, file_values), ())
    base = _with_kinds(base, first, file_values)
    parser = build_parser(base)
    try:
        known = _leaf_names(parser)
        _check_words(argv, known, {spelling for action in parser._actions for spelling in action.option_strings})
        if file_values:
            _check_keys(first["config"], lines, known)
            file_values = {k: v for k, v in file_values.items() if k not in FIXED}
            parser.set_defaults(_flatten(file_values))
        values = parser.parse_args(argv)
    except (argparse.ArgumentError, OverflowError) as error:  # YAML has whole numbers of any length
        raise UsageError(_one_line(str(error), base), hint="imnet-train --help lists every option") from error
    request = _to_request(values, base, network_options, notes)
    options = choose_bands(request.recipe, request.options, first, file_values)
    return replace(request, options=options, reasons=reasons)


def _canonical(word: str) -> str:
    """``--batch-size=7`` -> ``--data.batch_images=7``: one spelling inside, dashes and short names outside."""
    if not word.startswith("--"):
        return word
    name, equals, value = word[2:].partition("=")
    name = name.replace("-", "_")
    if name.startswith("no_") and name[3:] in ALIASES:
        return f"--no_{ALIASES[name[3:]]}{equals}{value}"
    return f"--{ALIASES.get(name, name)}{equals}{value}"


def _split_network_options(argv: list[str]) -> tuple[list[str], dict[str, Any]]:
    """``--model_options.NAME VALUE`` apart from the rest: VALUE is YAML, since only the network knows its type."""
    rest: list[str] = []
    found: dict[str, Any] = {}
    words = iter(argv)
    for word in words:
        name, equals, value = word.partition("=")
        if not name.startswith("--model_options."):
            rest.append(word)
            continue
        text = value if equals else next(words, None)
        if text is None:
            raise UsageError(f"got {name} without a value", hint=f"e.g. {name} 8")
        try:
            found[name.removeprefix("--model_options.")] = yaml_file.parse(text)
        except UsageError as error:
            raise UsageError(f"got {name} {text}: not a YAML value", hint="quote brackets and colons") from error
    return rest, found


def _first_look(argv: list[str]) -> dict[str, str | None]:
    """The words that decide which options exist at all."""
    found: dict[str, str | None] = dict.fromkeys(FIRST)
    for i, word in enumerate(argv):
        name, equals, value = word.removeprefix("--").partition("=")
        if word.startswith("--") and name in found:
            found[name] = value if equals else "".join(argv[i + 1 : i + 2])
            if not found[name]:
                raise UsageError(f"got --{flag(name)} without a value", hint="imnet-train --help lists all")
    return found


def _read_config(path: str) -> tuple[dict[str, Any], list[tuple[str, int]]]:
    """Its values, and its names with their lines."""
    values, lines = yaml_file.read(path)
    if not isinstance(values, dict):
        raise UsageError("got no mapping of names to values", file=path, hint="--print-config writes one")
    return values, lines


def _base_recipe(first: dict[str, str | None], file_values: dict[str, Any]) -> tuple[Recipe, tuple[str, ...]]:
    """--recipe, else the file's recipe, else the recipe of --model, else quickstart."""
    name = first["recipe"] or (file_values.get("recipe") if not first["model"] else None) or file_values.get("name")
    model = first["model"]
    if name and str(name).startswith("own/") and not first["recipe"]:
        base = from_dict({f.name: file_values[f.name] for f in dataclasses.fields(Recipe) if f.name in file_values})
    elif name:
        base = by_name(str(name))
    elif model:
        base = by_model(model)
        if base is None:
            raise UsageError(_no_recipe(model), hint=_model_hint(model))
    else:
        base = by_name("quickstart")
    notes: tuple[str, ...] = ()
    if model and model != base.model:
        given = first["model_options"] is not None or "model_options" in file_values
        base, notes = (replace(base, model=model, model_options={}), ()) if given else _with_model(base, model)
    given = file_values.get("data")
    dataset = first["data.name"] or (given.get("name") if isinstance(given, dict) else None)
    if dataset and dataset != base.data.name:
        base, more = _with_data(base, str(dataset))
        notes += more
    return base, notes


def _with_kinds(base: Recipe, first: dict[str, str | None], file_values: dict[str, Any]) -> Recipe:
    """The recipe with the kinds of optimiser and schedule that were asked for."""
    for part, kinds in KINDS.items():
        given = file_values.get(part)
        given = given if isinstance(given, dict) else {}
        kind = first[f"{part}.kind"] or given.get("kind")
        if kind and kind != getattr(base, part).kind:
            has_lr = first["optim.lr"] is not None or "lr" in given
            base = _with_kind(base, part, kind, kinds, has_lr)
    return base


def _with_model(base: Recipe, model: str) -> tuple[Recipe, tuple[str, ...]]:
    """The recipe with another network: what was meant for its own is left out where the other does not take it."""
    if not base.model_options:
        return replace(base, model=model), ()
    from imnet import models

    taken = models.option_names(model) if models.known(model) and ":" not in model else ()
    kept = {name: value for name, value in base.model_options.items() if name in taken}
    gone = ", ".join(f"{name} = {value}" for name, value in base.model_options.items() if name not in taken)
    notes = (f"{model} has no {gone} (model_options of {base.name}): left out",) if gone else ()
    return replace(base, model=model, model_options=kept), notes


def _with_data(base: Recipe, dataset: str) -> tuple[Recipe, tuple[str, ...]]:
    """The recipe with another data set, taken whole: sizes and split were meant for the recipe's own."""
    old = base.data
    if dataset in ("shapes", "synthetic"):
        return replace(base, data=replace(old, name=dataset, split=None)), ()
    new = replace(old, name=dataset, split=None, train_images=None, test_images=None)
    meant = ("split", "train_images", "test_images")
    gone = ", ".join(f"data.{n} = {getattr(old, n)}" for n in meant if getattr(old, n) is not None)
    notes = (f"{dataset} is taken whole: {gone} of {base.name} left out",) if gone else ()
    return replace(base, data=new), notes


def _no_recipe(model: str) -> str:
    from imnet import models

    without = f"got --model {model}, which has no recipe of its own"
    return without if models.known(model) else f"got unknown --model {model!r}"


def _model_hint(model: str) -> str:
    from imnet import models

    if models.known(model):
        return "add --recipe NAME for the data and schedule to use"
    return suggest(model, list(models.names())) or "imnet-train --list models shows them all"


def _with_kind(base: Recipe, part: str, kind: str, kinds: dict[str, type], has_lr: bool) -> Recipe:
    """Swap e.g. SGD for AdamW; fields that both have keep their values, the others start at their defaults.

    A learning rate is not one of them: SGD's 0.1 is a hundred times too much for AdamW.
    """
    if kind not in kinds:
        hint = suggest(str(kind), kinds) or f"give one of them: --{part}.kind {next(iter(kinds))}"
        raise UsageError(f"got --{part}.kind {kind}; allowed: {', '.join(kinds)}", hint=hint)
    old = getattr(base, part)
    if part == "optim" and not has_lr:
        what = f"got --optim.kind {kind} without a learning rate; {old.lr:g} is that of {old.kind} in {base.name}"
        raise UsageError(what, hint="give it as well: --lr X")
    old, cls = getattr(base, part), kinds[kind]
    shared = {f.name: getattr(old, f.name) for f in dataclasses.fields(cls) if hasattr(old, f.name)}
    return replace(base, **{part: cls(**shared)})


def _leaf_names(parser: ArgumentParser) -> list[str]:
    return [a.dest for a in parser._actions]


def _check_words(argv: list[str], known: list[str], spellings: set[str]) -> None:
    """An unknown flag is one line with a suggestion, before anything else can go wrong."""
    for word in argv:
        name = word.lstrip("-").partition("=")[0]
        if word.partition("=")[0] in spellings or not re.match(r"--.|-[A-Za-z]", word) or name in ("help", "h"):
            continue
        plain = name.removeprefix("no_")
        if plain != name and plain in known and word.startswith("--no_"):
            hint = "leave it out" if plain in ASK else f"give it a value: --{flag(plain)} VALUE"
            raise UsageError(f"got --no-{flag(plain)}, which is no matter of yes or no", hint=hint)
        dashes = "-" * (len(word) - len(word.lstrip("-")))
        raise UsageError(f"got unknown option {dashes}{name.replace('_', '-')}", hint=_flag_hint(name, known))


def _check_asked(asked: frozenset[str]) -> None:
    """UsageError for two questions at once, of which one would have no answer."""
    words = sorted(flag(word.partition(":")[0]) for word in asked - {"debug"})
    if len(words) > 1:
        told = " and ".join(f"--{word}" for word in words).replace("show-config", "print-config")
        raise UsageError(f"got {told}; allowed: one at a time", hint="leave one of them out")


def _flag_hint(name: str, known: list[str]) -> str:
    return option_hint(name, [*ALIASES, *known], "imnet-train")


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and key != "model_options":
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + str(key)] = value
    return flat


def _check_keys(path: str | None, lines: list[tuple[str, int]], known: list[str]) -> None:
    """Every key of the file must be an option, once; the error names file and line."""
    seen: set[str] = set()
    for name, line in lines:
        if name not in known and name.split(".")[0] not in (*FIXED, "model_options"):
            hint = f"write {ALIASES[name]}" if name in ALIASES else _flag_hint(name, known)
            raise UsageError(f"got unknown key {name}", file=f"{path}:{line}", hint=hint)
        if name in seen:
            raise UsageError(f"{name} is given twice", file=f"{path}:{line}", hint="leave one of them out")
        seen.add(name)


def _to_request(values: Namespace, base: Recipe, network_options: dict[str, Any], notes: tuple[str, ...]) -> Request:
    raw = values.as_dict()
    raw["model_options"] = (raw["model_options"] or {}) | network_options
    asked = frozenset(name for name in ASK if raw.pop(name)) | ({f"list:{raw['list']}"} if raw["list"] else set())
    names = {f.name for f in dataclasses.fields(RunOptions)}
    try:
        options = RunOptions(**{k: raw[k] for k in names})
        fixed = {k: v for k, v in to_dict(base).items() if k in FIXED}
        recipe_fields = {f.name for f in dataclasses.fields(Recipe)}
        recipe = from_dict(fixed | {k: _plain(v) for k, v in raw.items() if k in recipe_fields})
        options.as_ran(recipe)  # refuses what the two cannot be together
    except ValueError as error:
        raise UsageError(_one_line(str(error), base)) from error
    _check_asked(asked)
    return Request(recipe=recipe, options=options, ask=asked, notes=notes)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return {k: _plain(v) for k, v in value.items()} if isinstance(value, dict) else value


def _one_line(text: str, base: Recipe) -> str:
    """jsonargparse's several lines, as one; a value of another type is told as all other wrong values are."""
    text = re.sub(r"<class '(\w+)'>|typing\.", r"\1", " ".join(text.split()))
    text = re.sub(r"(--[\w.]+)/--no_[\w.]+: invalid _boolean_type value:", r"\1: allowed: true, false; got", text)
    wrong = re.match(r'Parser key "([\w.]+)": ?(?:Expected|Does not validate).*(?:Got|Given) value: ?(.*)', text)
    may_be = allowed(base, wrong[1]) if wrong else ""
    if wrong and may_be:
        text = f"got --{flag(wrong[1])} {wrong[2] or 'without a value'}; allowed: {may_be}"
    return text if len(text) <= 240 else text[:237] + "..."
