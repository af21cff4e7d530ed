"""The one dict of networks and the decorator that fills it. No torch here: names are listed without importing it."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    Builder = Callable[..., nn.Module]

MODELS: dict[str, Builder] = {}
_SIGNED: dict[str, Callable[..., Any]] = {}


def model(builder: Builder | None = None, *, options_of: Callable[..., Any] | None = None) -> Any:
    """Register ``builder(num_classes, in_channels=3, **options)``; the function's name IS the ``--model`` name.

    ``options_of`` names the class whose keyword-only parameters the builder passes on, so that a misspelt option is
    refused with the list of allowed ones; without it the builder's own keyword-only parameters are the options. Their
    types are what the options are held to: a number with its range is ``Annotated`` with a ``fields.Range``.

    Raises ValueError where the name is taken.
    """
    if builder is None:
        return lambda function: model(function, options_of=options_of)
    name = builder.__name__
    if name in MODELS:
        raise ValueError(f"model name {name!r} is registered twice: in {MODELS[name].__module__}, {builder.__module__}")
    MODELS[name] = builder
    _SIGNED[name] = options_of or builder
    return builder


def keyword_options(function: Callable[..., Any]) -> dict[str, Any]:
    """The keyword-only parameters of ``function`` (of ``__init__`` for a class) with their defaults."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


def keyword_types(function: Callable[..., Any]) -> dict[str, Any]:
    """The types of the parameters; none where another's annotations cannot be looked up."""
    signed = function.__init__ if isinstance(function, type) else function
    try:
        return typing.get_type_hints(signed, include_extras=True)
    except (NameError, AttributeError, TypeError):
        return {}


SHRUNK = ("Output size is too small", "Kernel size can't be greater", "shapes cannot be multiplied")
"""What torch says where a map has become smaller than a window, or another size than a linear layer reads."""


def too_small(error: BaseException) -> bool:
    """Whether a network met images of another size than it is made for."""
    return isinstance(error, RuntimeError) and any(words in str(error) for words in SHRUNK)


def signed(name: str) -> Callable[..., Any]:
    """What has the options of a registered network as its keyword-only parameters."""
    return _SIGNED[name]
