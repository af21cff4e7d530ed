"""The recipe that a command line or a configuration file starts from, before single values are set: a named recipe with
the network, the data set and the kinds of optimiser and schedule that were asked for."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from typing import Any

from imnet.command import suggest
from imnet.errors import UsageError
from imnet.recipe import Recipe
from imnet.recipe_json import KINDS, from_dict
from imnet.recipes import by_model, by_name


def of(told: dict[str, str | None], in_file: dict[str, Any]) -> tuple[Recipe, tuple[str, ...]]:
    """The recipe asked for by name, else that of the network, else quickstart, with the network and data set that were
    asked for; and notes about what was left out of it.

    ``told`` has what the command line asks for, else the configuration file, whose values are ``in_file``."""
    model, name = told["model"], named(told, in_file)
    if name and name.startswith("own/"):
        base = _own(in_file, told["config"])
    elif name:
        base = by_name(name)
    elif model:
        base = by_model(model)
        if base is None:
            raise _no_recipe(model)
    else:
        base = by_name("quickstart")
    notes: tuple[str, ...] = ()
    if model and model != base.model:
        if told["model_options"] is not None:
            base = replace(base, model=model, model_options={})
        else:
            base, notes = _with_model(base, model)
    dataset = told["data.name"]
    if dataset and dataset != base.data.name:
        base, more = _with_data(base, dataset)
        notes += more
    return base, notes


def named(told: dict[str, str | None], in_file: dict[str, Any]) -> str | None:
    """The name of the recipe asked for, or None.

    Raises UsageError if the file has every value of a recipe, as --print-config writes them, and another one is asked
    for: nothing of that one would be used but its name and its published figure."""
    whole, name, written = in_file.get("name"), told["recipe"], in_file.get("recipe")
    if isinstance(written, dict | list):  # run.json has the recipe itself there
        hint = "the file of a run folder that can be read here is config.yaml"
        raise UsageError(f"got recipe = {str(written)[:30]}...; allowed: its name", file=told["config"], hint=hint)
    if whole and name and name != str(whole):
        what = f"got recipe {name}, but {told['config']} has all values of {whole}; allowed: one recipe"
        raise UsageError(what, hint="leave the recipe out, or keep in the file only the values to change")
    return name or (str(whole) if whole else None)


def _own(in_file: dict[str, Any], file: str | None) -> Recipe:
    """A recipe for the user's own data, which only exists in its configuration file, as a whole."""
    try:
        return from_dict({f.name: in_file[f.name] for f in dataclasses.fields(Recipe) if f.name in in_file})
    except ValueError as error:
        raise UsageError(str(error), file=file) from error


def with_kinds(base: Recipe, told: dict[str, str | None]) -> Recipe:
    """``base`` with the kinds of optimiser and schedule that were asked for."""
    for part in KINDS:
        kind = told[f"{part}.kind"]
        if kind and kind != getattr(base, part).kind:
            base = _with_kind(base, part, kind, told["optim.lr"] is not None)
    return base


def _with_model(base: Recipe, model: str) -> tuple[Recipe, tuple[str, ...]]:
    """``base`` with another network; model options that this network does not take are left out."""
    if not base.model_options:
        return replace(base, model=model), ()
    from imnet import models

    taken = models.option_names(model) if models.known(model) and ":" not in model else ()
    kept = {name: value for name, value in base.model_options.items() if name in taken}
    gone = ", ".join(f"{name} = {value}" for name, value in base.model_options.items() if name not in taken)
    notes = (f"{model} has no {gone} (model_options of {base.name}): left out",) if gone else ()
    return replace(base, model=model, model_options=kept), notes


def _with_data(base: Recipe, dataset: str) -> tuple[Recipe, tuple[str, ...]]:
    """``base`` with the whole of another data set: sizes and split were meant for the recipe's own."""
    old = base.data
    if dataset in ("shapes", "synthetic"):
        return replace(base, data=replace(old, name=dataset, split=None)), ()
    new = replace(old, name=dataset, split=None, train_images=None, test_images=None)
    meant = ("split", "train_images", "test_images")
    gone = ", ".join(f"data.{n} = {getattr(old, n)}" for n in meant if getattr(old, n) is not None)
    notes = (f"{dataset} is taken whole: {gone} of {base.name} left out",) if gone else ()
    return replace(base, data=new), notes


def _no_recipe(model: str) -> UsageError:
    from imnet import models

    if models.known(model):
        what = f"got --model {model}, which has no recipe of its own"
        return UsageError(what, hint="add --recipe NAME for the data and schedule to use")
    hint = suggest(model, models.names()) or "imnet-train --list models shows them all"
    return UsageError(f"got unknown --model {model!r}", hint=hint)


def _with_kind(base: Recipe, part: str, kind: str, has_lr: bool) -> Recipe:
    """Swap e.g. SGD for AdamW; fields that both have keep their values, the others start at their defaults.

    The learning rate is not kept, since SGD's 0.1 is a hundred times too much for AdamW: UsageError without ``has_lr``.
    """
    old, kinds = getattr(base, part), KINDS[part]
    if kind not in kinds:
        hint = suggest(kind, kinds) or f"give one of them: --{part}.kind {next(iter(kinds))}"
        raise UsageError(f"got --{part}.kind {kind}; allowed: {', '.join(kinds)}", hint=hint)
    if part == "optim" and not has_lr:
        what = f"got --optim.kind {kind} without a learning rate; {old.lr:g} is that of {old.kind} in {base.name}"
        raise UsageError(what, hint="give it as well: --lr X")
    cls = kinds[kind]
    shared = {f.name: getattr(old, f.name) for f in dataclasses.fields(cls) if hasattr(old, f.name)}
    return replace(base, **{part: cls(**shared)})
