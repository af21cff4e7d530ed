"""The rows of a document, each with its measurement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from imnet.recipe import Recipe
from imnet.recipe_json import to_dict
from imnet.recipes import RECIPES
from imnet.recipes.documents import Document
from imnet.report.data import NAN, differing
from imnet.report.lines import mean
from imnet.report.measured import Measured


@dataclass(frozen=True)
class Row:
    """A row of a system's page: ``recipe`` is that of the document's row, or None if the measurement belongs to no row;
    ``found`` is the measurement, or None if there is none."""

    label: str
    recipe: Recipe | None
    found: Measured | None
    band: int | None = None

    @property
    def published(self) -> float:
        """The published top-1 as a fraction, of the band, of the ensemble if the recipe is one, or of the network."""
        p = self.recipe.published if self.recipe else None
        if p is None or self.recipe is None:
            return NAN
        if self.band is not None:
            return p.band_top1[self.band] if self.band < len(p.band_top1) else NAN
        value = p.ensemble_top1 if self.recipe.augment.spectral_r else p.top1
        return NAN if value is None else value

    @property
    def hours(self) -> float:
        p = self.recipe.published if self.recipe and self.band is None else None
        value = None if p is None or self.recipe is None else p.ensemble_hours if self.networks > 1 else p.hours
        return NAN if value is None else value

    @property
    def networks(self) -> int:
        """The number of networks that make up the row."""
        r = self.recipe.augment.spectral_r if self.recipe and self.band is None else None
        return r * r if r else 1

    @property
    def changed(self) -> tuple[str, ...]:
        """Parts in which the measured runs differ from the row's recipe, or else from the recipe in RECIPES of their
        name."""
        book = self.recipe or (RECIPES.get(self.found.name) if self.found else None)
        if self.found is None or book is None:
            return ()
        return (*differing(self.found.recipe, to_dict(book)), *self.found.more)

    @property
    def last(self) -> float:
        return mean(self.found.last) if self.found else NAN

    @property
    def difference(self) -> float:
        return self.last - self.published


def rows(document: Document, measured: Sequence[Measured]) -> tuple[list[Row], list[Row], list[Row]]:
    """(rows of the document's table, rows of its bands, measurements of the system that belong to no row)."""
    placed = [(m, row_of(m.recipe, document)) for m in measured]
    main, bands = [], []
    for label, name in document.rows.items():
        recipe = RECIPES[name]
        mine = [m for m, row in placed if row == name]
        whole = [m for m in mine if m.band is None]
        main += [Row(label, recipe, m) for m in whole] or [Row(label, recipe, None)]
        bands += _bands(label, recipe, [m for m in mine if m.band is not None])
    beside = [Row("", None, m) for m, row in placed if row is None and m.name.startswith(f"{document.system}/")]
    return main, bands, sorted(beside, key=lambda row: row.found.name if row.found else "")


def belongs(recipe: Mapping[str, Any], document: Document) -> bool:
    """Whether a run of ``recipe`` belongs to the document's system."""
    return str(recipe.get("name")).startswith(f"{document.system}/") or row_of(recipe, document) is not None


def row_of(recipe: Mapping[str, Any], document: Document) -> str | None:
    """The name of the row's recipe for a run: its own, or else the most similar of the same network and data set."""
    names = list(document.rows.values())
    if recipe.get("name") in names:
        return str(recipe["name"])
    mine = recipe.get("model"), (recipe.get("data") or {}).get("name")
    same = [name for name in names if mine == (RECIPES[name].model, RECIPES[name].data.name)]
    return min(same, key=lambda name: len(differing(recipe, to_dict(RECIPES[name]))), default=None)


def _bands(label: str, recipe: Recipe, measured: Sequence[Measured]) -> list[Row]:
    """One row or more for each band, if the recipe's bands were published or measured."""
    count = len(recipe.published.band_top1) if recipe.published else 0
    found: list[Row] = []
    for band in range(max([count, *(m.band + 1 for m in measured if m.band is not None)])):
        mine = [m for m in measured if m.band == band]
        found += [Row(label, recipe, m, band) for m in mine] or [Row(label, recipe, None, band)]
    return found
