"""A measured lower bound ("floor") of a training step: the convolutions alone, plus all other traffic at a copy's rate.

Every convolution of a network is timed alone in bf16 and channels_last, with the fastest algorithm that cuDNN's search
finds: forward, data gradient and weight gradient, with several calls in one CUDA graph to exclude launch times. What is
between them (norms, activations, additions) counts as the bytes that a perfect fusion would move: eight passes over
every normalised map, since its statistics must be known before it is normalised. Linear layers, the optimiser and the
loss are left out: well under 2 % of these networks. Without other convolutions a step cannot be much faster.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import machine
from ..case import train_flops
from ..clock import replayed
from .plan import DEVICE, Figures, Row, Setting
from .steps import DRY_NETS, NETS, Net

Convolution = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], Any, tuple[int, ...], int]
"""(shape of the images, shape of the weight, stride, padding, dilation, groups)."""
CALLS, ROUNDS = 5, 7
NORM_PASSES = 8
"""Passes over a map: forward it is read for the statistics, read again and written; backward map and gradient are read
twice and the gradient is written."""
COST_S = 6.0
"""Seconds on an H100, not measured; most of it is cuDNN's search."""


def floor_rows(setting: Setting) -> Iterator[Row]:
    for net in DRY_NETS[:1] if setting.dry else NETS:
        yield Row("floor", net.label, "convolutions + bytes", COST_S, functools.partial(_floor, net, setting), DEVICE)


def _floor(net: Net, setting: Setting, limit_s: float) -> Figures:
    convolutions, norm_elements = shapes(net)
    ms = {"forward": 0.0, "data": 0.0, "weight": 0.0}
    first = next(iter(convolutions))
    torch.backends.cudnn.benchmark = True
    for convolution, count in convolutions.items():
        for name, call in directions(convolution, setting.device).items():
            # The first convolution needs no gradient of its input, the images.
            times = count - (convolution == first) if name == "data" else count
            with torch.no_grad():
                ms[name] += times * replayed([call] * CALLS, ROUNDS).median_s * 1e3
    rest_bytes = NORM_PASSES * 2 * norm_elements
    rest_ms = rest_bytes / machine.copy_bytes_per_s(setting.device) * 1e3
    floor_ms = sum(ms.values()) + rest_ms
    peak = machine.matmul_flops_per_s(setting.device, torch.bfloat16)
    return {
        "batch": net.batch,
        "convolutions": sum(convolutions.values()),
        "rest_bytes": rest_bytes,
        **{f"{name}_ms": round(value, 3) for name, value in ms.items()},
        "rest_ms": round(rest_ms, 3),
        "floor_ms": round(floor_ms, 3),
        "floor_images_per_s": round(net.batch / floor_ms * 1e3, 1),
        "mfu_of_convolutions": round(net.batch * train_flops(net.recipe) / sum(ms.values()) * 1e3 / peak, 4),
        "n": ROUNDS,
    }


def shapes(net: Net) -> tuple[Counter[Convolution], int]:
    """The number of times that a step runs each convolution, in order, and the number of elements of all maps that are
    normalised."""
    from imnet.from_recipe import build_network

    found: Counter[Convolution] = Counter()
    elements = 0

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal elements
        if isinstance(module, nn.Conv2d):
            sizes = (tuple(inputs[0].shape), tuple(module.weight.shape))
            found[*sizes, module.stride, module.padding, module.dilation, module.groups] += 1
        else:
            elements += inputs[0].numel()

    with torch.device("meta"):
        network = build_network(net.recipe)
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
                module.register_forward_hook(note)
        network(torch.empty(net.batch, net.channels, net.px, net.px))
    return found, elements


def directions(convolution: Convolution, device: str) -> dict[str, Callable[[], Any]]:
    """The three calls of a convolution on random numbers: forward, data gradient and weight gradient."""
    image_shape, weight_shape, stride, padding, dilation, groups = convolution

    def random(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, device=device).to(torch.bfloat16, memory_format=torch.channels_last)

    images, weight = random(image_shape), random(weight_shape)

    def forward() -> Tensor:
        return F.conv2d(images, weight, None, stride, padding, dilation, groups)

    gradient = random(tuple(forward().shape))

    def backward(data: bool) -> Any:
        where = (list(stride), list(padding), list(dilation), False, [0, 0], groups)
        return torch.ops.aten.convolution_backward(gradient, images, weight, None, *where, [data, not data, False])

    return {"forward": forward, "data": lambda: backward(True), "weight": lambda: backward(False)}
