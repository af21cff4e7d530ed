"""Builds networks of torchvision and timm by these libraries, so that weights are interchangeable, and adapts them to
the number of classes, channels and pixels.

``timm`` is an extra (``pip install imnet[timm]``).
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..command import suggest
from ..errors import UsageError
from ..fields import misfit
from .registry import keyword_types, too_small

REFUSALS = (TypeError, ValueError, RuntimeError, ArithmeticError, AttributeError, AssertionError)
"""Errors that a network's constructor may raise for an option that it cannot use."""


def from_torchvision(name: str, num_classes: int, in_channels: int = 3, **options: Any) -> nn.Module:
    """torchvision's classification network ``name`` without weights; ``options`` go to its constructor.

    If ``in_channels`` is not 3, the first convolution is replaced, since torchvision has no such option. GoogLeNet and
    Inception come without auxiliary heads, so that every network returns plain logits; ``aux_logits=True`` adds them.
    Raises UsageError for an unknown name or an option that the network refuses.
    """
    import torchvision

    from .fused_resnet import fuse_norms

    known = torchvision.models.list_models(torchvision.models)
    if name not in known:
        raise UsageError(f"torchvision has no network {name!r}", hint=_nearest(name, known))
    if name in ("googlenet", "inception_v3"):
        options = {"aux_logits": False, "init_weights": True} | options
    meta = torch.get_default_device().type == "meta"
    # RegNet's constructor reads its widths from a tensor, which the meta device does not support.
    with torch.device("cpu") if meta and name.startswith("regnet") else contextlib.nullcontext():
        make = functools.partial(torchvision.models.get_model, name, weights=None, num_classes=num_classes)
        network = _made(f"torchvision:{name}", make, options)
    if meta:
        network = network.to("meta")
    if in_channels != 3:
        _set_in_channels(network, in_channels)
    fuse_norms(network)
    for path, module in list(network.named_modules()):
        if isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size not in (1, (1, 1)):
            network.set_submodule(path, EvenPool(module.output_size))
    return network


class EvenPool(nn.AdaptiveAvgPool2d):
    """Adaptive average pooling that does nothing if the map has the wanted size, and uses plain pooling if all windows
    are of equal size.

    The results are the same; the backward pass of adaptive pooling has no deterministic algorithm on a GPU.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, C, *output_size)."""
        size, have = self.output_size, input.shape[2:]
        size = size if isinstance(size, tuple) else (size, size)
        height, width = size[0] or have[0], size[1] or have[1]
        if have == (height, width):
            return input
        if have[0] % height == 0 and have[1] % width == 0:
            return F.avg_pool2d(input, (have[0] // height, have[1] // width))
        return super().forward(input)


def from_timm(name: str, num_classes: int, in_channels: int = 3, **options: Any) -> nn.Module:
    """timm's network ``name`` with random weights; ``options`` go to ``timm.create_model``.

    Raises UsageError if timm is not installed, the name is unknown or an option is refused.
    """
    timm = _timm()
    if not timm.is_model(name):
        raise UsageError(f"timm has no network {name!r}", hint=_nearest(name, timm.list_models()))
    make = functools.partial(timm.create_model, name, num_classes=num_classes, in_chans=in_channels)
    return _made(f"timm:{name}", make, options)


def check_logits(
    name: str, network: nn.Module, images: torch.Tensor, num_classes: int, options: Mapping[str, Any]
) -> None:  # fmt: skip
    """UsageError, which blames ``options``, if ``network`` does not turn ``images`` into logits (B, num_classes)."""
    try:
        given = network(images)
    except REFUSALS as error:
        if too_small(error):
            raise
        raise _refused(name, options, error) from error
    if not isinstance(given, torch.Tensor) or given.shape != (len(images), num_classes):
        got = f"a tensor {tuple(given.shape)}" if isinstance(given, torch.Tensor) else f"a {type(given).__name__}"
        what = f"{name} with {dict(options)} gives {got}, no logits ({len(images)}, {num_classes})"
        raise UsageError(what, hint="check the options")


def _refused(name: str, options: Mapping[str, Any], error: BaseException) -> UsageError:
    told = str(error).partition("\n")[0] or type(error).__name__
    return UsageError(f"{name} refused {dict(options)}: {told}", hint="check the options")


def _made(name: str, make: Callable[..., nn.Module], options: dict[str, Any]) -> nn.Module:
    """``make(**options)``. UsageError for options that it refuses, and for strings that do not fit the annotations of
    the network's class, since many networks would only fail on them in their forward pass."""
    try:
        network = make(**options)
    except REFUSALS as error:
        raise _refused(name, options, error) from error
    types = keyword_types(type(network))
    for option, value in options.items():
        words = misfit(value, types.get(option)) if isinstance(value, str) else None
        if words is not None:
            raise UsageError(f"got {name}'s model_options.{option}={value!r}", hint=f"allowed: {words}")
    return network


def _timm() -> ModuleType:
    try:
        import timm
    except ModuleNotFoundError as error:
        if error.name != "timm":
            raise
        raise UsageError("timm is not installed", hint="pip install 'imnet[timm]'") from error
    return timm


def _nearest(name: str, known: list[str]) -> str:
    return suggest(name, known) or f"it has {len(known)} others, from {known[0]} on"


def _set_in_channels(network: nn.Module, in_channels: int) -> None:
    """Replace the first convolution in place by one with ``in_channels``, initialised as in ``replace_conv``."""
    first = next(path for path, module in network.named_modules() if isinstance(module, nn.Conv2d))
    replace_conv(network, first, in_channels=in_channels)


def replace_conv(network: nn.Module, path: str, **changes: Any) -> nn.Conv2d:
    """Replace the convolution at ``path`` by one with ``changes`` (in_channels, kernel_size, stride, padding), and
    return it. Its weights are He normal by fan-out, its biases 0."""
    old = network.get_submodule(path)
    same = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    arguments: dict[str, Any] = {key: getattr(old, key) for key in same}
    arguments.update(changes, bias=old.bias is not None)
    new = nn.Conv2d(**arguments)
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    if new.bias is not None:
        nn.init.zeros_(new.bias)
    network.set_submodule(path, new)
    return new


def resize_classifier(network: Any, index: int, channels: int, map_px: int, *, init_std: float | None) -> None:
    """Let ``network.classifier[index]`` take maps (B, channels, map_px, map_px), unless it already does.

    ``network`` is torchvision's AlexNet or VGG. The new weights are N(0, init_std), the biases 0; torch's default
    initialisation if ``init_std`` is None.
    """
    old = network.classifier[index]
    if old.in_features == channels * map_px**2:
        return
    new = nn.Linear(channels * map_px**2, old.out_features)
    if init_std is not None:
        nn.init.normal_(new.weight, 0.0, init_std)
        nn.init.zeros_(new.bias)
    network.avgpool = EvenPool(map_px)
    network.classifier[index] = new
