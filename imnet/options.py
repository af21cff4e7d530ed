"""The command line of imnet-train: flags override the file, and every leaf of the recipe has a typed dotted option.

It does not import torch, so that --help and errors come at once. jsonargparse parses and checks the types; this module
adds short flags, one-line errors with a suggestion, and line numbers of configuration files.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass, is_dataclass, replace
from typing import Any

from jsonargparse import Namespace

from imnet import base_recipe, place, yaml_file
from imnet.command import option_hint, suggest
from imnet.errors import UsageError
from imnet.fields import flag
from imnet.parser import (
    ALIASES,
    ASK,
    FIXED,
    LIST,
    allowed,
    build_parser,
    canonical,
    check_numbers,
    check_tags,
    choose_bands,
    declared,
    without_effect,
)
from imnet.recipe import Recipe
from imnet.recipe_json import KINDS, config_dict, dump_config, from_dict, to_dict
from imnet.run_options import RunOptions

__all__ = ["Request", "config_dict", "dump_config", "parse"]

FIRST = (
    *place.DECIDES,
    "config",
    "recipe",
    "optim.kind",
    "schedule.kind",
    "optim.lr",
    "model_options",
    "data.name",
    "data.channels",
    "data.image_px",
    "augment.spectral_band",
    "bands",
)
"""The options whose values determine which options exist, and their defaults."""


@dataclass(frozen=True)
class Request:
    """The result of parsing the command line."""

    recipe: Recipe
    options: RunOptions
    ask: frozenset[str]
    notes: tuple[str, ...] = ()
    """Lines about decisions that the command line left open and that the user should know about."""
    reasons: tuple[str, ...] = ()
    """Lines with the reasons for the recipe that was chosen for the user's own data."""


def parse(argv: list[str]) -> Request:
    """Resolve ``argv`` to a recipe and run options; a mistake is a one-line UsageError."""
    argv, network_options = _split_network_options([_canonical(word) for word in argv])
    argv, path = place.split(argv)
    first = _first_look(argv)
    in_file, lines = _read_config(first["config"]) if first["config"] else ({}, [])
    given = _flatten(in_file)
    told = {name: _word(given.get(name)) if word is None else word for name, word in first.items()}
    reasons: tuple[str, ...] = ()
    if path:
        base, notes, reasons = place.recipe(path, told, in_file)
    else:
        base, notes = base_recipe.of(told, in_file)
    base = base_recipe.with_kinds(base, told)
    known = list(declared(base))
    names = [option.name for option in known]
    _check_words(argv, ["help", *names], {spelling for option in known for spelling in option.spellings})
    _check_keys(first["config"], lines, names)
    # The parser has the options that are given, since checking the recipe's own values as well takes 0.1 s.
    asked = {f"--{name}" for name, _ in _words(argv)}
    parser = build_parser(base, [o for o in known if o.name in given or not asked.isdisjoint(o.spellings)])
    try:
        parser.set_defaults({name: value for name, value in given.items() if name.split(".")[0] not in FIXED})
        words = [*given.items(), *_words(argv)]
        check_tags(words)
        values = parser.parse_args(argv)
        check_numbers(words, values, base)
    except (argparse.ArgumentError, OverflowError) as error:  # YAML has whole numbers of any length
        text = _one_line(str(error), base)
        raise UsageError(text, hint=_value_hint(text) or "imnet-train --help lists every option") from error
    request = _to_request(values, base, network_options)
    options = choose_bands(request.recipe, request.options, first, given)
    notes += place.notes(request.recipe, path) if path else place.unread(request.recipe, options.data_dir)
    named = {name for name, _ in _words(argv)}
    notes += () if "out" in named else place.elsewhere(first["config"], options.out)
    notes += place.resized(request.recipe, first["data.image_px"]) + without_effect(named, request.recipe, options)
    return replace(request, options=options, notes=notes, reasons=reasons)


def _canonical(word: str) -> str:
    """``--batch-size=7`` -> ``--data.batch_images=7``: turn dashes and short names into the parser's own spelling."""
    if not word.startswith("--"):
        return word
    name, equals, value = word[2:].partition("=")
    name = canonical(name)
    if name.startswith("no_"):
        name = f"no_{canonical(name[3:])}"
    return f"--{name}{equals}{value}"


def _split_network_options(argv: list[str]) -> tuple[list[str], dict[str, Any]]:
    """(rest of argv, {NAME: value}) with every ``--model_options.NAME VALUE`` taken out. VALUE is parsed as YAML, since
    its type is only known to the network. A whole mapping stays, and is only looked at for names given twice, of which
    jsonargparse takes the last."""
    rest: list[str] = []
    found: dict[str, Any] = {}
    words = iter(argv)
    for word in words:
        name, equals, value = word.partition("=")
        if name.partition(".")[0] != "--model_options":
            rest.append(word)
            continue
        text = value if equals else next(words, None)
        if text is None:
            raise UsageError(f"got {name} without a value", hint=f"e.g. {name} 8")
        try:
            read = yaml_file.parse(text)
        except UsageError as error:
            why = error.args[0].replace("not YAML of plain values", "not a YAML value")
            raise UsageError(f"got {name} {text}: {why}", hint="quote brackets and colons") from error
        if name == "--model_options":
            rest += [name, text]
        else:
            found[name.removeprefix("--model_options.")] = read
    return rest, found


def _first_look(argv: list[str]) -> dict[str, str | None]:
    """The values in ``argv`` of the options FIRST, which determine the other options; None for absent ones."""
    found: dict[str, str | None] = dict.fromkeys(FIRST)
    for name, value in _words(argv):
        if name in found:
            found[name] = value
            if not value:
                raise UsageError(f"got --{flag(name)} without a value", hint="imnet-train --help lists all")
    return found


def _words(argv: list[str]) -> Iterator[tuple[str, str]]:
    """(name, the word that follows, or an empty one) of every option in ``argv``."""
    for i, word in enumerate(argv):
        if word.startswith("--"):
            name, equals, value = word.removeprefix("--").partition("=")
            yield name, value if equals else "".join(argv[i + 1 : i + 2])


def _word(value: Any) -> str | None:
    """A value of the file as it would be written on the command line; None if it is not given."""
    return None if value is None else str(value)


def _read_config(path: str) -> tuple[dict[str, Any], list[tuple[str, int]]]:
    """(values, [(name, line number)]) of a configuration file."""
    values, lines = yaml_file.read(path)
    if not isinstance(values, dict):
        raise UsageError("got no mapping of names to values", file=path, hint="--print-config writes one")
    return values, lines


def _check_words(argv: list[str], known: list[str], spellings: set[str]) -> None:
    """Raise a UsageError with a suggestion for an unknown flag, before any other error is found."""
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
    """Raise UsageError if two questions (such as --doctor) are asked at once, since only one would be answered."""
    words = sorted(flag(word.partition(":")[0]) for word in asked - {"debug"})
    if len(words) > 1:
        told = " and ".join(f"--{word}" for word in words).replace("show-config", "print-config")
        raise UsageError(f"got {told}; allowed: one at a time", hint="leave one of them out")


def _value_hint(text: str) -> str:
    """What to write instead of the value that the error line ``text`` refuses, or an empty string."""
    word = re.fullmatch(r"got --\S+ (.*); allowed: (.*)", text)
    if word is None:
        return ""
    if LIST in word[2] and re.fullmatch(r"[-+.\d\se,]+", word[1]):
        return f"write [{','.join(word[1].replace(',', ' ').split())}]"
    return suggest(word[1], re.split(", | or ", word[2].replace(LIST, "")))


def _flag_hint(name: str, known: list[str]) -> str:
    part, _, leaf = name.partition(".")
    kinds = [kind for kind, cls in KINDS.get(part, {}).items() if leaf in {f.name for f in dataclasses.fields(cls)}]
    if kinds:
        return f"it is of --{part}.kind {' or '.join(kinds)}"
    return option_hint(name, [*ALIASES, *known], "imnet-train")


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of a file by dotted name, whether it has ``optim: {lr: 0.1}`` or ``optim.lr: 0.1``. The options of the
    network stay one mapping."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if name.startswith("model_options."):
            name, value = "model_options", {name.removeprefix("model_options."): value}
        if isinstance(value, dict) and name != "model_options":
            flat |= _flatten(value, f"{name}.")
        elif isinstance(value, dict) and isinstance(flat.get(name), dict):
            flat[name] = flat[name] | value
        else:
            flat[name] = value
    return flat


def _check_keys(path: str | None, lines: list[tuple[str, int]], known: list[str]) -> None:
    """Raise UsageError, with file and line, for a key of the file that is not an option or is given twice."""
    seen: set[str] = set()
    for name, line in lines:
        if name not in known and name.split(".")[0] not in (*FIXED, "model_options"):
            meant = canonical(name)
            hint = f"write {meant}" if meant in known else _flag_hint(name, known)
            raise UsageError(f"got unknown key {name}", file=f"{path}:{line}", hint=hint)
        if name in seen or (name.startswith("model_options.") and "model_options" in seen):
            raise UsageError(f"{name} is given twice", file=f"{path}:{line}", hint="leave one of them out")
        seen.add(name)


def _to_request(values: Namespace, base: Recipe, network_options: dict[str, Any]) -> Request:
    """The request for ``base`` with the ``values`` that are given."""
    raw = values.as_dict()
    given = raw.get("model_options", base.model_options)
    given = {} if given is None else given
    if not isinstance(given, dict):
        hint = "name each: --model_options.NAME VALUE"
        raise UsageError(f"got model_options {given!r:.80}; allowed: a mapping of names to values", hint=hint)
    raw["model_options"] = given | network_options
    asked = frozenset(name for name in ASK if raw.get(name)) | ({f"list:{raw['list']}"} if raw.get("list") else set())
    names = {f.name for f in dataclasses.fields(RunOptions)}
    try:
        options = RunOptions(**{k: v for k, v in raw.items() if k in names})
        whole = to_dict(base)
        changed = {k: whole[k] | v if is_dataclass(getattr(base, k)) else v for k, v in raw.items() if k in whole}
        recipe = from_dict(whole | changed)
        options.as_ran(recipe)  # refuses combinations of options and recipe that are not allowed
    except ValueError as error:
        raise UsageError(_one_line(str(error), base)) from error
    _check_asked(asked)
    return Request(recipe=recipe, options=options, ask=asked)


def _one_line(text: str, base: Recipe) -> str:
    """jsonargparse's message as one line. For a value of a wrong type it has the same form as other errors here."""
    text = re.sub(r"<class '(\w+)'>|typing\.", r"\1", " ".join(text.split()))
    text = re.sub(r"(--[\w.]+)/--no_[\w.]+: invalid _boolean_type value:", r"\1: allowed: true, false; got", text)
    wrong = re.match(r'Parser key "([\w.]+)": ?(?:Expected|Does not validate).*(?:Got|Given) value: ?(.*)', text)
    may_be = allowed(base, wrong[1]) if wrong else ""
    if wrong and may_be:
        text = f"got --{flag(wrong[1])} {wrong[2] or 'without a value'}; allowed: {may_be}"
    return text if len(text) <= 240 else text[:237] + "..."
