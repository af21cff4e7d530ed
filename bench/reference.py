"""Our throughput against what was published for a card: images/s, share of each one's peak, time of the full schedule.

Published figures are data with their sources (reference_hardware.json). Where a network has several on a card, the
fastest is the reference: a slow pipeline of theirs is no credit to us.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imnet.errors import UsageError
from imnet.recipe import Recipe, replace
from imnet.recipes import by_name

from .case import plain, train_flops

FILE = Path(__file__).resolve().parent / "reference_hardware.json"
# A step of about this many FLOPs takes seconds on two cores, which is as long as it should.
CPU_STEP_FLOPS = 400e9
CPU_LEAST_BATCH = 8


@dataclass(frozen=True)
class Reference:
    """A published figure with the recipe that it is compared with."""

    card: str
    recipe: Recipe
    images_per_s: float
    hours: float | None
    precision: str
    source: str
    has_schedule: bool
    others: tuple[str, ...] = ()


def load() -> dict[str, Any]:
    return json.loads(FILE.read_text())


def find_card(name: str) -> str:
    """The card's name as the file has it: any case, ``NVIDIA`` and ``GeForce`` optional. UsageError if unknown."""
    cards = list(load()["cards"])
    known = {_bare(card): card for card in cards}
    if _bare(name) in known:
        return known[_bare(name)]
    close = difflib.get_close_matches(_bare(name), list(known), n=2, cutoff=0.4)
    hint = f"did you mean {' or '.join(known[c] for c in close)}?" if close else f"allowed: {', '.join(cards)}"
    raise UsageError(f"got --against {name!r}, a card without published figures here", hint=hint)


def _bare(name: str) -> str:
    words = name.lower().replace("nvidia", "").replace("geforce", "").replace("tesla", "")
    return "".join(words.split())


def references(card: str, models: list[str] | None = None) -> list[Reference]:
    """One reference a network that the card has figures for, the fastest; ``models`` picks among them."""
    data = load()
    groups: dict[tuple[str, int, str], list[Reference]] = {}
    for row in data["rows"]:
        if row["card"] == card:
            reference = _reference(row, data["train_images"])
            # A network at one size trains at another rate where its data come from elsewhere (ImageNet, Tiny ImageNet).
            key = (reference.recipe.model, row["px"], reference.recipe.data.name)
            groups.setdefault(key, []).append(reference)
    best = []
    for group in groups.values():
        ranked = sorted(group, key=lambda r: -r.images_per_s)
        others = tuple(f"{r.images_per_s:,.0f} images/s ({r.source})" for r in ranked[1:])
        # The time that was published is the document's own, wherever the fastest rate comes from.
        hours = next((r.hours for r in group if r.hours is not None), None)
        best.append(dataclasses.replace(ranked[0], hours=hours, others=others))
    return _picked(best, models, card)


def _picked(found: list[Reference], models: list[str] | None, card: str) -> list[Reference]:
    if models is None:
        return found
    known = list(dict.fromkeys(r.recipe.model for r in found))
    for model in models:
        if model not in known:
            raise UsageError(f"got --models {model}; allowed for {card}: {', '.join(known)}", hint="choose among them")
    return [r for r in found if r.recipe.model in models]


def _reference(row: dict[str, Any], train_images: dict[str, int]) -> Reference:
    recipe = by_name(row["recipe"]) if "recipe" in row else _plain_recipe(row)
    if recipe.input_px != row["px"]:
        raise ValueError(f"{FILE.name}: {recipe.name} is at {recipe.input_px} px, the row at {row['px']}")
    hours = row.get("hours")
    rate = row.get("images_per_s")
    if rate is None:
        assert hours is not None, "a row has images_per_s or hours"
        rate = recipe.epochs * train_images[recipe.data.name] / (hours * 3600)
    return Reference(row["card"], recipe, rate, hours, row["precision"], row["source"], "recipe" in row)


def _plain_recipe(row: dict[str, Any]) -> Recipe:
    return plain(row["model"], row["px"], row["channels"], row["num_classes"], row["batch_images"])


def smaller_for_cpu(recipe: Recipe) -> Recipe:
    """The recipe with a batch that takes seconds, not minutes, on a few cores."""
    batch = max(CPU_LEAST_BATCH, int(CPU_STEP_FLOPS / train_flops(recipe)))
    return replace(recipe, data=replace(recipe.data, batch_images=min(batch, recipe.data.batch_images)))


def compared(reference: Reference, row: dict[str, Any]) -> dict[str, Any]:
    """A row of ``imnet-bench throughput --against``; ``row`` is throughput's, of the reference's recipe."""
    data, recipe = load(), reference.recipe
    card, counted = data["cards"][reference.card], row["train_flops_per_image"]
    rates = row["rates"]["end to end"]
    ours = rates["images_per_s"]
    images = recipe.epochs * data["train_images"][recipe.data.name] if reference.has_schedule else None
    return {
        "card": reference.card,
        "recipe": recipe.name,
        "model": recipe.model,
        "image_px": row["image_px"],
        "batch_images": row["batch_images"],
        "recipe_batch_images": recipe.data.batch_images,
        "precision": row["precision"],
        "images_per_s": ours,
        "images_per_s_iqr": rates["images_per_s_iqr"],
        "images_per_s_by_clock": rates["images_per_s_by_clock"],
        "n": rates["n"],
        "published_images_per_s": reference.images_per_s,
        "published_precision": reference.precision,
        "source": reference.source,
        "other_figures": list(reference.others),
        "ratio": ours / reference.images_per_s,
        "train_flops_per_image": counted,
        "share_of_peak": counted * rates["images_per_s_by_clock"] / row["matmul_flops_per_s"],
        "published_share_of_peak": _share_of_peak(reference, counted, card),
        "projected_hours": images / ours / 3600 if images else None,
        "published_hours": reference.hours,
    }


def _share_of_peak(reference: Reference, flops: float, card: dict[str, Any]) -> float | None:
    """Of the maker's figure for the card, where the source says which card it was."""
    if card["peak_tflops"] is None:
        return None
    return flops * reference.images_per_s / (1e12 * card["peak_tflops"][reference.precision])
