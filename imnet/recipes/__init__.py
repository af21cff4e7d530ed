"""All recipes by name. Importing this package does not import torch."""

from __future__ import annotations

import importlib
import pkgutil

from imnet.command import suggest
from imnet.errors import UsageError, quoted
from imnet.recipe import Recipe


class _Recipes(dict[str, Recipe]):
    """Name -> recipe; an unknown name is a UsageError with a suggestion."""

    def __missing__(self, name: object) -> Recipe:
        hint = suggest(str(name), list(self)) or "imnet-train --list recipes shows them all"
        if str(name).lower().endswith((".yaml", ".yml")):
            hint = f"--config {quoted(str(name))}"
        raise UsageError(f"got unknown recipe {name!r}", hint=hint)


RECIPES = _Recipes()
# Every module of this folder, so that a new file needs no line here; quickstart comes first.
for _name in sorted((module.name for module in pkgutil.iter_modules(__path__)), key=lambda n: (n != "quickstart", n)):
    for _value in vars(importlib.import_module(f"{__name__}.{_name}")).values():
        if isinstance(_value, Recipe):
            if _value.name in RECIPES:
                raise ValueError(f"two recipes are called {_value.name}")
            RECIPES[_value.name] = _value


def by_name(name: str) -> Recipe:
    """The recipe called ``name``; UsageError if there is none."""
    return RECIPES[name]


def by_model(model: str) -> Recipe | None:
    """The only recipe with the network ``model``, apart from ``_as_run`` and ``_fast`` ones; None if there is none.
    UsageError if there are several."""
    found = [r for r in RECIPES.values() if r.model == model and not r.name.endswith(("_as_run", "_fast"))]
    if len(found) > 1:
        names = ", ".join(r.name for r in found)
        raise UsageError(f"got --model {model}, which has {len(found)} recipes: {names}", hint="choose with --recipe")
    return found[0] if found else None
