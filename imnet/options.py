"""The command line of imnet-train: file < flags, every leaf of the recipe typed and open to a dotted override.

Torch-free, so that --help and mistakes answer at once. jsonargparse parses and checks the types; what is ours: short
flags for the usual leaves, one-line errors with a suggestion, and the line number inside a configuration file.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
import typing
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import ActionYesNo, ArgumentParser, Namespace

from imnet.errors import UsageError
from imnet.recipe import Recipe
from imnet.recipe_json import KINDS, from_dict, to_dict
from imnet.recipes import by_model, by_name, suggest
from imnet.run_options import RunOptions

ALIASES = {"data": "data.name", "batch_size": "data.batch_images"}
ASK = ("dry_run", "doctor", "print_config", "debug")
FIXED = ("name", "source", "published")
DESCRIPTION = """Train an image classifier from a recipe.

  imnet-train                                        the embedded data set, two minutes on a laptop
  imnet-train --recipe fashion-mnist/wrn28_10        a published system
  imnet-train --model wrn36_5 --gpus 2               the recipe whose network this is, on two GPUs
  imnet-train --recipe fashion-mnist/wrn28_10 --optim.lr 0.05 --epochs 20 --dry-run"""

HELP = {
    "recipe": "recipe by name; --list recipes shows them",
    "model": "network by name; picks its recipe, or replaces the network of --recipe",
    "config": "configuration file (YAML), e.g. a run folder's config.yaml; flags win over it",
    "out": "run folder (default: runs/<recipe>-<hash of the configuration>)",
    "data_dir": "folder that holds the data set (also: $IMNET_DATA)",
    "gpus": "number of GPUs; starts one process each",
    "procs": "number of CPU processes (with --device cpu)",
    "resume": "auto: go on where a run of the same configuration stopped; never: refuse a used folder",
    "precision": "auto: bf16 where the hardware has it, else fp32",
    "data.name": "data set (--data); `shapes` and `synthetic` need no files",
    "data.batch_images": "images an optimiser step sees over all ranks (--batch-size)",
    "max_restarts": "how often a lost rank makes all ranks go on from the newest checkpoint",
    "compile": "torch.compile (default: on a GPU)",
    "cuda_graphs": "capture the whole step in one CUDA graph (one GPU)",
    "kernels": "kernel tier: auto, reference, host, triton or cuda; or family=tier,...",
    "allow_change": "resume although recipe, precision or data differ",
    "micro_batch_images": "most images a rank holds at once; more are accumulated over several passes",
    "optim_backend": "apex: NVIDIA's FusedSGD, where it is installed",
    "eval_every_epochs": "default: about ten evaluations a run, and the last epoch",
    "checkpoint_every_steps": "also save within an epoch",
    "log_every_steps": "default: about 20 lines an epoch",
    "on_nonfinite": "stop, or skip:N to leave up to N bad steps out",
    "threads": "CPU threads a process",
    "device": "auto takes a GPU where there is one",
    "data.split": "division of a set that has several (fashion-mnist: custom, official)",
    "data.drop_last": "leave the incomplete last batch of an epoch out",
    "data.train_images": "size of a generated set; of others that many evenly spaced images",
    "model_options": "keyword arguments of the network",
    "seed": "decides initial weights, order and augmentation",
    "augment.hflip": "alternating: each image mirrored every second epoch",
    "dry_run": "check everything, print parameters, FLOPs, memory and schedule, train nothing",
    "doctor": "print versions, devices and kernel tiers, and what would improve each",
    "print_config": "print the resolved configuration and exit",
    "debug": "show the traceback of an error",
    "list": "list recipes, models, data sets",
}


@dataclass(frozen=True)
class Request:
    """What the command line asked for."""

    recipe: Recipe
    options: RunOptions
    ask: frozenset[str]


def parse(argv: list[str]) -> Request:
    """Resolve ``argv`` to a recipe and run options; a mistake is a UsageError of one line."""
    argv = [_canonical(word) for word in argv]
    first = _first_look(argv)
    file_values = _read_config(first["config"]) if first["config"] else {}
    base = _base_recipe(first, file_values)
    parser = build_parser(base)
    try:
        known = _leaf_names(parser)
        _check_words(argv, known)
        if file_values:
            _check_keys(first["config"], known)
            file_values = {k: v for k, v in file_values.items() if k not in FIXED}
            parser.set_defaults(_flatten(file_values))
        values = parser.parse_args(argv)
    except argparse.ArgumentError as error:
        raise UsageError(_one_line(str(error)), hint="imnet-train --help lists every option") from error
    return _to_request(values, base)


def _canonical(word: str) -> str:
    """``--batch-size=7`` -> ``--data.batch_images=7``: one spelling inside, dashes and short names outside."""
    if not word.startswith("--"):
        return word
    name, equals, value = word[2:].partition("=")
    name = name.replace("-", "_")
    return f"--{ALIASES.get(name, name)}{equals}{value}"


def _first_look(argv: list[str]) -> dict[str, str | None]:
    """The words that decide which options exist at all."""
    found: dict[str, str | None] = dict.fromkeys(("config", "recipe", "model", "optim.kind", "schedule.kind"))
    for i, word in enumerate(argv):
        name, equals, value = word.removeprefix("--").partition("=")
        if word.startswith("--") and name in found:
            if not equals and i + 1 >= len(argv):
                raise UsageError(f"got --{name} without a value")
            found[name] = value if equals else argv[i + 1]
    return found


def _read_config(path: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise UsageError(f"got --config {path}: {error.strerror}", hint="give a readable YAML file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"not YAML: {_one_line(str(error))}", file=path) from error
    if not isinstance(values, dict):
        raise UsageError("got no mapping of names to values", file=path, hint="--print-config writes one")
    return values


def _base_recipe(first: dict[str, str | None], file_values: dict[str, Any]) -> Recipe:
    """--recipe, else the file's recipe, else the recipe of --model, else quickstart; then changed kinds."""
    name = first["recipe"] or (file_values.get("recipe") if not first["model"] else None) or file_values.get("name")
    model = first["model"]
    if name:
        base = by_name(str(name))
    elif model:
        base = by_model(model)
        if base is None:
            raise UsageError(_no_recipe(model), hint=_model_hint(model))
    else:
        base = by_name("quickstart")
    if model:
        base = replace(base, model=model)
    for part, kinds in KINDS.items():
        kind = first[f"{part}.kind"] or (file_values.get(part) or {}).get("kind")
        if kind and kind != getattr(base, part).kind:
            base = _with_kind(base, part, kind, kinds)
    return base


def _no_recipe(model: str) -> str:
    from imnet import models

    return (
        f"got --model {model}, which has no recipe of its own"
        if models.known(model)
        else f"got unknown --model {model!r}"
    )


def _model_hint(model: str) -> str:
    from imnet import models

    if models.known(model):
        return "add --recipe NAME for the data and schedule to use"
    return suggest(model, list(models.names())) or "imnet-train --list models shows them all"


def _with_kind(base: Recipe, part: str, kind: str, kinds: dict[str, type]) -> Recipe:
    """Swap e.g. SGD for AdamW; fields that both have keep their values, the others start at their defaults."""
    if kind not in kinds:
        raise UsageError(f"got --{part}.kind {kind}; allowed: {', '.join(kinds)}")
    old, cls = getattr(base, part), kinds[kind]
    shared = {f.name: getattr(old, f.name) for f in dataclasses.fields(cls) if hasattr(old, f.name)}
    return replace(base, **{part: cls(**shared)})


def leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted name, type, value) of every leaf of a dataclass value."""
    hints = typing.get_type_hints(type(value))
    for f in dataclasses.fields(value):
        inner = getattr(value, f.name)
        if dataclasses.is_dataclass(inner):
            yield from leaves(inner, f"{prefix}{f.name}.")
        else:
            yield prefix + f.name, hints[f.name], inner


def build_parser(base: Recipe) -> ArgumentParser:
    """The parser whose defaults are the values of ``base``."""
    parser = ArgumentParser(
        prog="imnet-train",
        usage="imnet-train [--recipe NAME | --model NAME] [options]",
        description=DESCRIPTION,
        exit_on_error=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_argument_group("what to train")
    what.add_argument("--recipe", type=typing.Optional[str], default=None, help=HELP["recipe"])  # noqa: UP045
    what.add_argument("--config", type=typing.Optional[str], default=None, help=HELP["config"])  # noqa: UP045
    run = parser.add_argument_group("how and where")
    for name, hint, value in leaves(RunOptions()):
        _add(run, name, hint, value)
    values = parser.add_argument_group(f"values of the recipe (here: {base.name})")
    for name, hint, value in leaves(base):
        if name.split(".")[0] not in FIXED:
            _add(values, name, hint, value)
    for part, kinds in KINDS.items():
        kind = getattr(base, part).kind
        values.add_argument(f"--{part}.kind", type=Literal[tuple(kinds)], default=kind, help="which variant")
    ask = parser.add_argument_group("ask instead of training")
    for name in ASK:
        ask.add_argument(f"--{name}", action="store_true", help=HELP[name])
    ask.add_argument("--list", metavar="{recipes,models,data}", nargs="?", const="recipes", help=HELP["list"])
    return parser


def _add(group: Any, name: str, hint: Any, value: Any) -> None:
    text = HELP.get(name, "")
    if hint is bool or hint == bool | None:
        action = ActionYesNo(yes_prefix="", no_prefix="no_")
        group.add_argument(f"--{name}", action=action, default=value, help=text)
        return
    if typing.get_origin(hint) is not None and "Mapping" in str(hint):
        hint, value = dict, dict(value)
    group.add_argument(f"--{name}", type=hint, default=value, help=text, metavar=_metavar(hint))


def _metavar(hint: Any) -> str:
    """What stands for the value in --help."""
    members = [m for m in (typing.get_args(hint) or (hint,)) if m is not type(None)]
    short = {int: "N", float: "X", str: "NAME", dict: "{NAME: VALUE}"}
    if typing.get_origin(hint) is Literal:
        return "{" + ",".join(members) + "}"
    return short.get(members[0], "[X, ...]")


def _leaf_names(parser: ArgumentParser) -> list[str]:
    return [a.dest for a in parser._actions]


def _check_words(argv: list[str], known: list[str]) -> None:
    """An unknown flag is one line with a suggestion, before anything else can go wrong."""
    for word in argv:
        name = word.removeprefix("--").partition("=")[0]
        plain = name.removeprefix("no_")
        is_known = name in known or plain in known or name.startswith("model_options.")
        if not word.startswith("--") or word == "--" or is_known or name in ("help", "h"):
            continue
        raise UsageError(f"got unknown option --{name.replace('_', '-')}", hint=_flag_hint(plain, known))


def _flag_hint(name: str, known: list[str]) -> str:
    candidates = known + list(ALIASES) + [k.rpartition(".")[2] for k in known if "." in k]
    close = suggest(name, candidates)
    if not close:
        return "imnet-train --help lists every option"
    word = close.removeprefix("did you mean ").removesuffix("?")
    full = word if word in known or word in ALIASES else next(k for k in known if k.endswith("." + word))
    return f"did you mean --{full.replace('_', '-') if '.' not in full else full}?"


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and key != "model_options":
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + str(key)] = value
    return flat


def _check_keys(path: str | None, known: list[str]) -> None:
    """Every key of the file must be an option; the error names file and line."""
    assert path is not None
    for name, line in _key_lines(yaml.compose(Path(path).read_text())):
        if name not in known and name.split(".")[0] not in (*FIXED, "model_options"):
            raise UsageError(f"got unknown key {name}", file=f"{path}:{line}", hint=_flag_hint(name, known))


def _key_lines(node: Any, prefix: str = "") -> Iterator[tuple[str, int]]:
    for key, value in node.value:
        name = f"{prefix}{key.value}"
        if isinstance(value, yaml.MappingNode) and key.value != "model_options":
            yield from _key_lines(value, f"{name}.")
        else:
            yield name, key.start_mark.line + 1


def _to_request(values: Namespace, base: Recipe) -> Request:
    raw = values.as_dict()
    asked = frozenset(name for name in ASK if raw.pop(name)) | ({f"list:{raw['list']}"} if raw["list"] else set())
    names = {f.name for f in dataclasses.fields(RunOptions)}
    try:
        options = RunOptions(**{k: raw[k] for k in names})
        fixed = {k: v for k, v in to_dict(base).items() if k in FIXED}
        recipe_fields = {f.name for f in dataclasses.fields(Recipe)}
        recipe = from_dict(fixed | {k: _plain(v) for k, v in raw.items() if k in recipe_fields})
    except ValueError as error:
        raise UsageError(_one_line(str(error))) from error
    return Request(recipe=recipe, options=options, ask=asked)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return {k: _plain(v) for k, v in value.items()} if isinstance(value, dict) else value


def _one_line(text: str) -> str:
    """jsonargparse's several lines, as one; 'Parser key "x"' becomes the flag that was typed."""
    text = re.sub(r"<class '(\w+)'>|typing\.", r"\1", " ".join(text.split()))
    if text.startswith('Parser key "'):
        name, _, rest = text.removeprefix('Parser key "').partition('"')
        text = f"--{name}{rest}"
    return text if len(text) <= 240 else text[:237] + "..."


def config_dict(recipe: Recipe, options: RunOptions) -> dict[str, Any]:
    """What config.yaml holds: every value, under the names that the command line uses."""
    return {"recipe": recipe.name} | to_dict(recipe) | to_dict(options)


def dump_config(recipe: Recipe, options: RunOptions) -> str:
    """config.yaml as text."""
    return yaml.safe_dump(config_dict(recipe, options), sort_keys=False, allow_unicode=True, stream=None)


def print_help() -> None:
    """The whole help, with the values of quickstart; shown with dashes, as everyone types them."""
    text = build_parser(by_name("quickstart")).format_help()
    dashed = re.sub(r"--[a-z][a-z_]*(?![\w.])", lambda m: m[0].replace("_", "-"), text)
    sys.stdout.write(
        dashed.replace("--data.name NAME ", "--data NAME, --data.name NAME\n").replace(
            "--data.batch_images N ", "--batch-size N, --data.batch_images N\n"
        )
    )
