"""The registry of networks and the decorator that fills it. Without torch, so that names can be listed quickly."""

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
    refused with the list of allowed ones; without it the builder's own keyword-only parameters are the options. Values
    are checked against the annotations: a number with a range is ``Annotated`` with a ``fields.Range``.

    Raises ValueError if the name is taken.
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
    """The types of the parameters of ``function``; empty if its annotations, perhaps of a library, do not resolve."""
    signed = function.__init__ if isinstance(function, type) else function
    try:
        return typing.get_type_hints(signed, include_extras=True)
    except (NameError, AttributeError, TypeError):
        return {}


SHRUNK = ("Output size is too small", "Kernel size can't be greater", "shapes cannot be multiplied")
"""torch's errors if a map is smaller than a pooling or convolution window, or does not fit a linear layer."""


def too_small(error: BaseException) -> bool:
    """Whether ``error`` comes from images of a size that the network does not support."""
    return isinstance(error, RuntimeError) and any(words in str(error) for words in SHRUNK)


def signed(name: str) -> Callable[..., Any]:
    """The function or class whose keyword-only parameters are the options of the registered network ``name``."""
    return _SIGNED[name]
