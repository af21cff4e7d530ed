"""The parser of imnet-train, with a typed option for every leaf of a recipe and of the run options. Without torch."""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from jsonargparse import ActionYesNo, ArgumentParser, Namespace

from imnet.errors import UsageError
from imnet.fields import flag, types_of, union_members
from imnet.recipe import Comm, Recipe
from imnet.recipe_json import KINDS
from imnet.recipes import by_name
from imnet.run_options import RunOptions
from imnet.schedules import MultiStep, Step

KIND_HELP = {"optim": "optimiser", "schedule": "learning-rate schedule"}
LIST = "[X, ...]"
"""How --help and errors show a list of numbers."""
FIXED = ("name", "source", "published", "ran")
DESCRIPTION = """Train an image classifier from a recipe.

  imnet-train                                        the embedded data set, two minutes on a laptop
  imnet-train --recipe fashion-mnist/wrn28_10        a published system
  imnet-train --model wrn36_5 --gpus 2               the recipe whose network this is, on two GPUs
  imnet-train --recipe spectral/resnet34_sub4        a network for each of its spectral bands, in one folder
  imnet-train --recipe fashion-mnist/wrn28_10 --optim.lr 0.05 --epochs 20 --dry-run"""

ASK = {
    "dry_run": "check everything, print parameters, FLOPs, memory and schedule, train nothing",
    "find_lr": "learning-rate range test: up to 100 steps at a rising rate; a plot and a suggestion, no run",
    "find_batch_size": "images/s and memory of growing batches on a GPU, up to the largest that fits; no run",
    "doctor": "print versions, devices and kernel tiers, and what would improve each",
    "show_config": "print the resolved configuration and exit",
    "debug": "show the traceback of an error",
}
# Short names. jsonargparse reserves --print_config, so that ours has another name inside.
ALIASES = {
    "data": "data.name",
    "batch_size": "data.batch_images",
    "num_classes": "data.num_classes",
    "lr": "optim.lr",
    "sampler": "data.sampler",
    "sync_bn": "comm.sync_bn",
    "band": "augment.spectral_band",
    "print_config": "show_config",
}

_NEEDS: dict[str, tuple[str, Callable[[Recipe, RunOptions], bool]]] = {
    "augment.crop_pad_mode": ("--augment.crop_pad_px", lambda r, _: r.augment.crop_pad_px > 0),
    "augment.hflip_p": ("--augment.hflip random", lambda r, _: r.augment.hflip != "none"),
    "augment.cutout_inside": ("--augment.cutout_px", lambda r, _: r.augment.cutout_px > 0),
    "augment.spectral_band": ("--augment.spectral_r", lambda r, _: r.augment.spectral_r is not None),
    "augment.spectral_std": ("--augment.spectral_r", lambda r, _: r.augment.spectral_r is not None),
    "data.split": ("a set with several splits", lambda r, _: _has_splits(r.data.name)),
    "data.val_seed": ("--data.val_images", lambda r, _: r.data.val_images is not None),
    "data.val_stratified": ("--data.val_images", lambda r, _: r.data.val_images is not None),
    "optim.decay_biases": ("--optim.decay_norms", lambda r, _: r.optim.decay_norms),
    "body_lr": ("a body that is not frozen", lambda r, _: r.freeze != "all-but-head"),
    "schedule.every_epochs": ("more --epochs than that", lambda r, _: _first_drop(r) < r.epochs),
    "schedule.milestones_epochs": ("more --epochs than the first", lambda r, _: _first_drop(r) < r.epochs),
    "max_restarts": ("--gpus N or --procs N", lambda _, o: o.num_ranks > 1),
    **{f"comm.{f.name}": ("several ranks, e.g. --gpus 2", lambda _, o: _several(o)) for f in dataclasses.fields(Comm)},
    "tf32": ("fp32 on a GPU", lambda _, o: o.precision in ("auto", "fp32") and o.device != "cpu" and o.procs is None),
    "workers": ("another --pipeline than resident", lambda _, o: o.pipeline != "resident"),
}
"""Option -> (what it needs to have an effect, in words; whether that is there)."""


def canonical(name: str) -> str:
    """The parser's name of an option: ``data.batch_images`` for ``batch-size``."""
    plain = name.replace("-", "_")
    return ALIASES.get(plain, plain)


@dataclass(frozen=True)
class Option:
    """An option before a parser has it, which takes a hundred times longer. ``how``: the words of add_argument."""

    name: str
    group: str
    how: dict[str, Any]

    @property
    def spellings(self) -> tuple[str, ...]:
        yes_or_no = isinstance(self.how.get("action"), ActionYesNo)
        return (f"--{self.name}", f"--no_{self.name}") if yes_or_no else (f"--{self.name}",)


def leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any, str]]:
    """(dotted name, type, value, help) of every leaf of a dataclass instance."""
    hints = types_of(type(value))
    for f in dataclasses.fields(value):
        inner = getattr(value, f.name)
        if dataclasses.is_dataclass(inner):
            yield from leaves(inner, f"{prefix}{f.name}.")
        else:
            yield prefix + f.name, hints[f.name], inner, f.metadata.get("help", "")


def declared(base: Recipe) -> Iterator[Option]:
    """All options, with the values of ``base`` as defaults, in the order of --help."""
    told = "recipe by name; --list recipes shows them"
    yield Option("recipe", "what to train", {"type": str | None, "default": None, "help": told})
    told = "configuration file (YAML), e.g. a run folder's config.yaml; flags win over it"
    yield Option("config", "what to train", {"type": str | None, "default": None, "help": told})
    for name, hint, value, text in leaves(RunOptions()):
        yield Option(name, "how and where", _how(hint, value, text))
    group = f"values of the recipe (here: {base.name})"
    for name, hint, value, text in leaves(base):
        if name.split(".")[0] not in FIXED:
            yield Option(name, group, _how(hint, value, text))
    for part, kinds in KINDS.items():
        kind = getattr(base, part).kind
        yield Option(f"{part}.kind", group, {"type": Literal[tuple(kinds)], "default": kind, "help": KIND_HELP[part]})
    for name, text in ASK.items():
        yield Option(name, "ask instead of training", {"action": "store_true", "help": text})
    told = {"metavar": "{recipes,models,data}", "const": "recipes", "help": "list recipes, models, data sets"}
    yield Option("list", "ask instead of training", {"nargs": "?", **told})


def build_parser(base: Recipe, only: Iterable[Option] | None = None) -> ArgumentParser:
    """Build the parser, with the values of ``base`` as defaults; it has the options ``only``, or all."""
    parser = ArgumentParser(
        prog="imnet-train",
        usage="imnet-train [--recipe NAME | --model NAME] [options]",
        description=DESCRIPTION,
        exit_on_error=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    groups: dict[str, Any] = {}
    for option in declared(base) if only is None else only:
        if option.group not in groups:
            groups[option.group] = parser.add_argument_group(option.group)
        groups[option.group].add_argument(f"--{option.name}", **option.how)
    return parser


def choose_bands(
    recipe: Recipe, options: RunOptions, first: Mapping[str, str | None], in_file: Mapping[str, Any]
) -> RunOptions:
    """``options`` with the bands to train together: those asked for, or all if the recipe uses bands and neither --band
    (on the command line or in the configuration file) nor --bands is given."""
    band, bands = first["augment.spectral_band"], first["bands"]
    if band is not None and bands is not None:
        what = f"got --band {band} with --bands {bands}"
        raise UsageError(what, hint="--band K trains one network as a run of its own, --bands several in one folder")
    if band is not None:
        return replace(options, bands=None)
    if options.bands is None and recipe.augment.spectral_r and "augment.spectral_band" not in in_file:
        options = replace(options, bands="all")
    try:
        options.bands_of(recipe)
    except ValueError as error:
        raise UsageError(str(error)) from error
    return options


def _how(hint: Any, value: Any, text: str) -> dict[str, Any]:
    """What the parser is told of a leaf."""
    if hint is bool or hint == bool | None:
        action = ActionYesNo(yes_prefix="", no_prefix="no_")
        return {"action": action, "nargs": "?", "default": value, "help": text}
    if typing.get_origin(hint) is Mapping:
        hint, value = dict, dict(value)
    metavar = _metavar(hint)
    if hint in (str, str | None):  # a number in a file may stand for a word of digits (see check_ranges)
        hint = str | int if hint is str else str | int | None
    return {"type": hint, "default": value, "help": text, "metavar": metavar}


def _metavar(hint: Any) -> str:
    """The placeholder for the value in --help."""
    if typing.get_origin(hint) is tuple:
        return LIST
    members = [m for m in (typing.get_args(hint) or (hint,)) if m is not type(None)]
    short = {int: "N", float: "X", str: "NAME", dict: "{NAME: VALUE}"}
    if typing.get_origin(hint) is Literal:
        return "{" + ",".join(members) + "}"
    return short.get(members[0], LIST)


def allowed(base: Recipe, name: str) -> str:
    """The allowed values of an option, in words; empty for a name that is not a leaf."""
    hint = next((hint for value in (RunOptions(), base) for leaf, hint, *_ in leaves(value) if leaf == name), None)
    return "" if hint is None else " or ".join(map(_in_words, union_members(hint)))


def check_tags(words: Iterable[tuple[str, Any]]) -> None:
    """Raise UsageError for a word with a type of YAML, such as !!int, for which jsonargparse would fail."""
    for name, word in words:
        if re.match(r"\s*(!|[\[{].*!)", str(word)):
            what = f"got --{flag(name)} {word}; allowed: a value without a type of YAML (!)"
            raise UsageError(what, hint="leave the type out; for a folder of such a name write ./NAME")


def check_numbers(words: Iterable[tuple[str, Any]], values: Namespace, base: Recipe) -> None:
    """Raise UsageError for a word like 1:30 as a number: jsonargparse takes it for 90, as YAML 1.1 does."""
    for name, word in words:
        read = values.get(name)
        numbers = read if isinstance(read, list | tuple) else [read]
        if ":" in str(word) and all(type(number) in (int, float) for number in numbers):
            text = f"got --{flag(name)} {word}; allowed: {allowed(base, name)}"
            raise UsageError(text, hint="imnet-train --help lists every option")


def _in_words(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return ", ".join(map(str, typing.get_args(hint)))
    words = {int: "a whole number", float: "a number", str: "a word", type(None): "null", bool: "true, false"}
    return words.get(hint) or ("{NAME: VALUE}" if "Mapping" in str(hint) else LIST)


def _has_splits(name: str) -> bool:
    from imnet.data import GENERATED  # imports numpy; the sets that are read refuse a split that they do not have

    return name not in GENERATED


def _first_drop(recipe: Recipe) -> int:
    """The epoch at which the learning rate falls for the first time; 0 if the schedule has no such steps."""
    s = recipe.schedule
    if isinstance(s, Step):
        return s.every_epochs
    return min(s.milestones_epochs, default=0) if isinstance(s, MultiStep) else 0


def _several(options: RunOptions) -> bool:
    """Whether there are several ranks: asked for, or started by torchrun or srun."""
    return options.num_ranks > 1 or any(
        os.environ.get(name, "1") != "1" for name in ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
    )


def without_effect(given: Collection[str], recipe: Recipe, options: RunOptions) -> tuple[str, ...]:
    """A line for each option ``given`` on the command line, in the parser's spelling, that has no effect. Those of a
    configuration file are not looked at, since it lists every value."""
    return tuple(
        f"--{flag(name)} has no effect here: it needs {needs}"
        for name, (needs, is_there) in _NEEDS.items()
        if name in given and not is_there(recipe, options)
    )


def help_text() -> str:
    """The whole help, with quickstart's values as defaults and dashes instead of underscores in options."""
    text = build_parser(by_name("quickstart")).format_help()
    dashed = re.sub(r"--[a-z][a-z_0-9]*(?![\w.])", lambda m: m[0].replace("_", "-"), text)
    dashed = dashed.replace(" [{true,yes,false,no}]", "")
    for short, long in ALIASES.items():
        shown = f"--{short.replace('_', '-')}, --{long}"
        dashed = re.sub(rf"--{re.escape(long)} ([A-Z]+|{{[a-z,]+}}) *\n? *", rf"{shown} \1\n{' ' * 24}", dashed)
    return dashed.replace("--show-config ", "--print-config")
