"""The floor of a training step, measured: the fastest convolutions alone, and the bytes of all else at a copy's rate.

Every convolution of a network is timed by itself in bf16 and channels_last, as cuDNN's own search finds it fastest:
forward, gradient of the data and gradient of the weight, many calls in one CUDA graph so that no launch is waited for.
What stands between them (norms, activations, additions) is counted as a perfect fusion would move it: for every
normalised map eight passes, since its statistics must be known before it is normalised. Linear layers, the optimiser
and the loss are left out: well under 2 % of these networks. A step cannot be much faster without other convolutions.
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
"""Shapes of images and weight, stride, padding, dilation, groups."""
CALLS, ROUNDS = 5, 7
NORM_PASSES = 8
"""Forward: read for the statistics, read, write. Backward: read map and gradient twice, write."""
COST_S = 6.0
"""On an H100, not measured: cuDNN's search takes most of it."""


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
            # Nobody asks for the gradient of the images.
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
    """How often a training step has every convolution, in their order, and the elements of all normalised maps."""
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
    """The three calls of a convolution on random numbers: forward, gradient of the data, gradient of the weight."""
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
