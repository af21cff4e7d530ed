"""imnet-train --list: recipes, models, data sets. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence

from imnet import data
from imnet.command import suggest
from imnet.errors import UsageError
from imnet.models.catalog import CATALOG, Entry
from imnet.recipe import Recipe
from imnet.recipes import RECIPES


def table(what: str) -> str:
    """Return the table called ``what``: recipes, models or data."""
    tables = {"recipes": _recipes, "models": _models, "data": _data}
    if what not in tables:
        hint = suggest(what, list(tables)) or f"allowed: {', '.join(tables)}"
        raise UsageError(f"got --list {what}", hint=hint)
    return tables[what]()


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """The rows as lines, with their cells below each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def _recipes() -> str:
    head = ("recipe", "model", "data", "px", "batch", "epochs", "published")
    rows = [
        (r.name, _networks(r), r.data.name, str(r.input_px), str(r.data.batch_images), str(r.epochs), _published(r))
        for r in RECIPES.values()
    ]
    return "\n".join(columns([head, *rows]))


def _networks(recipe: Recipe) -> str:
    bands = recipe.augment.num_bands
    return f"{recipe.model} x {bands}" if bands else recipe.model


def _published(recipe: Recipe) -> str:
    p = recipe.published
    if p is not None and p.ensemble_top1 is not None:
        which = f"bands {' '.join(map(str, p.ensemble_of))}" if p.ensemble_of else "all bands"
        return f"{p.ensemble_top1:.2%} of {which}" + (f" on {p.hardware}" if p.hardware else "")
    if p is None or p.top1 is None:
        return "-"
    hours = "" if p.hours is None else f" in {p.hours:g} h"
    return f"{p.top1:.2%}{hours}" + (f" on {p.hardware}" if p.hardware else "")


def _models() -> str:
    head = ("model", "parameters", "GFLOP", "classes", "input", "source")
    rows = [(name, *_size(entry), entry.source) for name, entry in CATALOG.items()]
    notes = (
        "GFLOP: one image's forward pass, 2 FLOPs per multiply-add; a training step costs about three times as much",
        "any wrnD_K, torchvision:NAME and timm:NAME build too",
    )
    return "\n".join([*columns([head, *rows]), *notes])


def _size(entry: Entry) -> tuple[str, str, str, str]:
    """Parameters, GFLOP, classes, and the input (channels x pixels x pixels) for which the first two are counted."""
    px = entry.image_px
    shape = f"{entry.in_channels}x{px}x{px}"
    return f"{entry.num_params:,}", f"{entry.forward_flops / 1e9:.2f}", str(entry.num_classes), shape


def _data() -> str:
    return "\n".join(data.names())
