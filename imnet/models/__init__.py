"""Networks by name: ``build("wrn28_10", num_classes=10, in_channels=1)``. Importing this package does not import torch.

Four kinds of name:

- the networks of :data:`imnet.models.catalog.CATALOG`, one file each;
- any other wide residual network as ``wrnD_K`` (depth D, widening factor K). The number of groups follows from D:
  three if D = 6n + 4 (10, 16, 22, 28, 34, 40, ...: the CIFAR form), otherwise four if D = 8n + 4 (12, 20, 36, 44,
  60, ...: the ImageNet-64 form); if both hold (28, 52, ...), three. ``groups=`` overrides it:
  ``build("wrn20_10", 1000, groups=2)`` is the 16-pixel network of the downsampled-ImageNet paper;
- ``torchvision:NAME`` and ``timm:NAME``: any network of these libraries, with options passed on.
"""

from __future__ import annotations

import contextlib
import importlib
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ..command import suggest
from ..errors import UsageError
from ..fields import misfit
from ..resources import lacking
from .catalog import CATALOG
from .registry import MODELS, keyword_options, keyword_types, model, signed, too_small

if TYPE_CHECKING:
    from torch import nn

__all__ = ["build", "known", "model", "names", "option_defaults", "option_names", "seeing"]

_WRN = re.compile(r"wrn(\d+)_(\d+)")


def names() -> list[str]:
    """The names of all networks, without patterns and prefixes: the catalogue's in its order, then those registered
    elsewhere."""
    return [*CATALOG, *(name for name in MODELS if name not in CATALOG)]


def known(name: str) -> bool:
    """Whether ``build`` would recognise the name. Imports nothing, so any ``timm:`` or ``torchvision:`` name passes."""
    return name in names() or _WRN.fullmatch(name) is not None or name.startswith(("timm:", "torchvision:"))


def build(name: str, num_classes: int, in_channels: int = 3, **kwargs: Any) -> nn.Module:
    """A freshly initialised network that maps images ``(B, in_channels, H, W)`` to logits ``(B, num_classes)``.

    It is built on the default device, so ``with torch.device("meta")`` gives one without memory. Weights are fp32.
    Raises UsageError for an unknown name (with the nearest one), an unknown option (with the allowed ones), sizes
    below 1, or a package that is not installed.
    """
    for what, value in (("num_classes", num_classes), ("in_channels", in_channels)):
        if value < 1:
            raise UsageError(f"{what}={value}", hint=f"{what} must be 1 or more")
    library, colon, theirs = name.partition(":")
    if colon and library in ("timm", "torchvision"):
        from . import external

        return getattr(external, f"from_{library}")(theirs, num_classes, in_channels, **kwargs)
    _check_options(name, kwargs)
    try:
        return _ours(name, num_classes, in_channels, kwargs)
    except (TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        if not kwargs or lacking(error) is not None:
            raise
        told = ", ".join(f"{key} = {value!r}" for key, value in kwargs.items())
        raise UsageError(f"model {name!r} refused {told}: {error}", hint="check --model-options") from error


@contextlib.contextmanager
def seeing(name: str, input_px: int) -> Iterator[None]:
    """For a block that feeds images of ``input_px`` to the network: UsageError if it does not support that size."""
    try:
        yield
    except RuntimeError as error:
        if not too_small(error):
            raise
        what = f"{name} cannot see images of {input_px} px ({str(error).splitlines()[0]})"
        raise UsageError(
            what, hint="take larger images (--data.image_px, --augment.crop_px), or another --model"
        ) from error


def _ours(name: str, num_classes: int, in_channels: int, kwargs: dict[str, Any]) -> nn.Module:
    if name in MODELS:
        return MODELS[name](num_classes, in_channels, **kwargs)
    from .wrn import WideResNet

    depth, widen = _wrn_sizes(name)
    return WideResNet(depth, widen, num_classes, in_channels, **kwargs)


def option_names(name: str) -> tuple[str, ...]:
    """Names of the keyword options that ``build(name, ...)`` accepts. Imports the network's file."""
    return tuple(option_defaults(name))


def option_defaults(name: str) -> dict[str, Any]:
    """The keyword options that ``build(name, ...)`` accepts -> their defaults. Imports the network's file."""
    return keyword_options(_signed(name))


def _signed(name: str) -> Callable[..., Any]:
    if name in CATALOG and name not in MODELS:
        importlib.import_module(f"{__name__}.{CATALOG[name].module}")
    if name in MODELS:
        return signed(name)
    _wrn_sizes(name)
    from .wrn import WideResNet

    return WideResNet


def _check_options(name: str, kwargs: dict[str, Any]) -> None:
    allowed, types = option_names(name), keyword_types(_signed(name))
    for option, value in kwargs.items():
        if option not in allowed:
            hint = suggest(option, allowed) or f"allowed: {', '.join(allowed) or 'none'}"
            raise UsageError(f"model {name!r} has no option {option!r}", hint=hint)
        words = misfit(value, types.get(option))
        if words is not None:
            raise UsageError(f"got {name}'s model_options.{option}={value!r}", hint=f"allowed: {words}")


def _wrn_sizes(name: str) -> tuple[int, int]:
    match = _WRN.fullmatch(name)
    if match is None:
        hint = suggest(name, names()) or "see imnet-train --list models, or wrnD_K, timm:NAME"
        raise UsageError(f"unknown model {name!r}", hint=hint)
    return int(match[1]), int(match[2])
