"""The user's own data on the command line, as a positional word or a path after ``--data``, and its recipe."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from imnet import base_recipe
from imnet.command import at_home, nearest
from imnet.errors import UNSET, UsageError, quoted
from imnet.files import exists, is_file
from imnet.recipe import Recipe
from imnet.recipes import RECIPES

DECIDES = ("model", "weights", "device", "gpus", "procs")
"""Options on which the recipe for the user's data depends."""


def split(argv: list[str]) -> tuple[list[str], str | None]:
    """(remaining words, path of the user's own data or None). The path is a positional word or follows ``--data``; the
    remaining words then name it as data set ``folder`` with ``--data_dir``."""
    rest: list[str] = []
    found: list[str] = []
    before = ""
    for word in argv:
        alone = not word.startswith("-") and (not before.startswith("-") or "=" in before)
        if before == "--data.name" and is_path(word):
            rest.pop()
            alone = True
        name, equals, value = word.partition("=")
        if name == "--data.name" and equals and is_path(value):
            word, alone = value, True
        (found if alone else rest).append(word)
        before = word
    if len(found) > 1:
        raise UsageError(f"got {found[0]!r} and {found[1]!r}; allowed: one place of data", hint="name one folder")
    if not found:
        return rest, None
    twice = next((word for word in rest if word.partition("=")[0] in ("--data.name", "--data_dir")), None)
    if twice:
        option = "--data" if twice.startswith("--data.name") else "--data-dir"
        raise UsageError(f"got {found[0]!r} and {option}; allowed: one place of data", hint=f"leave {option} out")
    if not found[0]:
        raise UsageError("got '', an empty path, for the place of data", hint=UNSET)
    place = at_home(found[0])  # for direct callers of parse; the words of a command are expanded already
    return [*rest, "--data.name", "folder", "--data_dir", place], place


def is_path(word: str) -> bool:
    """Whether a word after --data is a path rather than the name of a data set (``packed:FOLDER`` is a name)."""
    if word.startswith("packed:"):
        return False
    return word.startswith((".", "/", "~")) or "/" in word or (exists(Path(word)) and word not in _set_names())


def _set_names() -> tuple[str, ...]:
    from imnet import data

    return data.names()


def notes(recipe: Recipe, path: str) -> tuple[str, ...]:
    """Lines that the user should know about the data at ``path`` with ``recipe``."""
    from imnet import own

    return own.enlarged(recipe, Path(path))


def unread(recipe: Recipe, data_dir: str | None) -> tuple[str, ...]:
    """A line for a folder of data that is given, and in which a set that is made on the spot looks for nothing."""
    from imnet import data

    told = data.unread(recipe.data.name, data_dir)
    if data_dir is None or not told:
        return ()
    return (f"{told}; imnet-train {quoted(data_dir)} trains on what lies there",)


def elsewhere(config: str | None, out: str | None) -> tuple[str, ...]:
    """A line if the file ``config`` lies in a run folder, but names another as ``out``: the run was moved or copied."""
    folder = Path(config or "").parent
    if config is None or out is None or not is_file(folder / "run.json"):
        return ()
    if os.path.realpath(out) == os.path.realpath(folder):
        return ()
    return (
        f"{config} lies in a run folder, but its out is {out}, which is used; --out {quoted(folder)} uses the other",
    )


def resized(recipe: Recipe, asked_px: str | None) -> tuple[str, ...]:
    """A line if a side of images is asked for, but the augmentation determines that of the network's input."""
    a, reads = recipe.augment, recipe.input_px * (recipe.augment.spectral_r or 1)
    if asked_px is None or (a.crop_px is None and a.resize_px is None) or reads == recipe.data.image_px:
        return ()
    option = "crop_px" if a.crop_px is not None else "resize_px"
    kept = f"data.image_px = {recipe.data.image_px} is the side of the images as stored"
    return (f"{kept}; the network reads {reads} px, as --augment.{option} says",)


def recipe(
    path: str, told: dict[str, str | None], in_file: dict[str, Any]
) -> tuple[Recipe, tuple[str, ...], tuple[str, ...]]:
    """(recipe, notes, lines of reasons) for the data at ``path``: the recipe asked for by name, adapted to the data, or
    one chosen for it. ``told`` and ``in_file`` are those of base_recipe.of."""
    from imnet import device, models, own

    place = Path(path)
    if not exists(place):
        named = {"data": _set_names(), "model": models.CATALOG, "recipe": RECIPES}
        option_of = {name: option for option, names in named.items() for name in names}
        # A mistyped folder is like some name as well, but not very.
        close = path if path.startswith("packed:") else nearest(path, option_of, 0.8)
        meant = f"--{option_of.get(close, 'data')} {close}" if close else ""
        other = f"did you mean {meant}?" if meant else "by name: --recipe NAME, --data NAME"
        hint = f"give a folder, an archive or a store of your own; {other}"
        raise UsageError(f"got {path!r}: no such file or folder", hint=hint)
    if is_file(place / "run.json"):
        hint = f"--config {quoted(place / 'config.yaml')} goes on with the run, imnet-eval {quoted(path)} evaluates it"
        raise UsageError(f"got {path!r}, a run folder, for the place of data", hint=hint)
    if place.suffix.lower() in (".yaml", ".yml"):
        raise UsageError(f"got {path!r}, a YAML file, for the place of data", hint=f"--config {quoted(path)} reads it")
    name = base_recipe.named(told, in_file)
    if name and not name.startswith(own.PREFIX):
        base, notes = base_recipe.of(told | {"data.name": None}, in_file)
        return own.with_data(base, place), notes, ()
    empty = next((option for option in DECIDES if told[option] == ""), None)
    if empty:
        raise UsageError(f"got {empty} = ''; allowed: a word, or null", hint=UNSET)
    asked = told["gpus"] or told["device"] == "cuda"
    gpu = bool(asked) or (told["device"] != "cpu" and not told["procs"] and device.num_gpus() > 0)
    px = told["data.image_px"] or ""
    side = int(px) if re.fullmatch(r"[1-9]\d{0,4}", px) else None  # the parser refuses other words
    made, reasons = own.recipe(place, gpu=gpu, model=told["model"], start=told["weights"], side=side)
    asked, held = told["data.channels"], made.data.channels
    if asked is not None and asked != str(held):
        what = f"got --data.channels {asked} for {path}, whose images have {held}"
        raise UsageError(what, hint="leave it out; grey pictures are read as colours that are equal")
    return made, (), reasons
