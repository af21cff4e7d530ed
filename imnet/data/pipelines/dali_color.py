"""Colour jitter, TrivialAugmentWide and RandAugment as DALI graphs, defined as torchvision defines them for uint8.

DALI's own operators of these names round where torchvision truncates, or turn the hue in another colour space, so they
are written with its arithmetic. Images are uint8 (H, W, 3), and so are the results. Where images differ in what is done
to them, a conditional splits the batch. Parameters are those of ``dali_feeds``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from nvidia.dali import fn as operators
from nvidia.dali import math as dm
from nvidia.dali import types
from PIL import Image, ImageOps

from imnet.data.pipelines.recolor import equalize

Node = Any  # a DataNode
# The stubs have every operator return a node or a list of nodes, so no result could be used.
fn: Any = operators


def color_jitter(x: Node, p: Mapping[str, Node], with_hue: bool, on_gpu: bool) -> Node:
    """The four changes in the order that each image drew."""
    for place in range(4):
        factor, of_mean, of_grey = (_beside(p[f"{name}{place}"], on_gpu) for name in ("factor", "mean", "grey"))
        if with_hue:
            if p[f"hue{place}"]:
                x = adjust_hue(x, factor)
            else:
                x = blend(x, factor, of_mean, of_grey)
        else:
            x = blend(x, factor, of_mean, of_grey)
    return x


def operate(x: Node, p: Mapping[str, Node], number: int, side: tuple[int, int], on_gpu: bool) -> Node:
    """The operation that each image drew in round ``number``, by its family."""
    amount, of_mean, of_grey = (_beside(p[f"{name}{number}"], on_gpu) for name in ("amount", "of_mean", "of_grey"))
    family = p[f"family{number}"]
    if family == 1:
        x = fn.warp_affine(
            x, matrix=p[f"matrix{number}"], fill_value=0.0, interp_type=types.DALIInterpType.INTERP_LINEAR
        )
    elif family == 2:
        x = blend(x, 1.0 + amount, of_mean, of_grey)
    elif family == 3:
        x = sharpness(x, amount, side, on_gpu)
    elif family == 4:
        step = dm.pow(2.0, 8.0 - amount)
        x = _levels(dm.floor(x / step) * step)
    elif family == 5:
        dark = fn.cast(x < 255.0 * amount, dtype=types.DALIDataType.FLOAT)
        x = _levels(dark * x + (1.0 - dark) * (255.0 - x))
    elif family == 6:
        x = autocontrast(x)
    elif family == 7:
        x = equalized(x, on_gpu)
    return x


def blend(x: Node, factor: Node, of_mean: Node, of_grey: Node) -> Node:
    """x * factor + base * (1 - factor), truncated; the base is black, the mean grey or the grey of the image."""
    luma = dm.floor(x[:, :, 0:1] * 0.2989 + x[:, :, 1:2] * 0.587 + x[:, :, 2:3] * 0.114)
    base = luma * of_grey + fn.reductions.mean(luma, axes=[0, 1], keep_dims=True) * of_mean
    return _levels(x * factor + base * (1.0 - factor))


def adjust_hue(x: Node, turn: Node) -> Node:
    """The hue turned by ``turn``, 1 being once round."""
    red, green, blue = (x[:, :, c : c + 1] / 255.0 for c in range(3))
    value, low = dm.max(dm.max(red, green), blue), dm.min(dm.min(red, green), blue)
    spread = value - low
    safe = spread + _float(spread == 0.0)
    first = _float(value == red)
    second = (1.0 - first) * _float(value == green)
    third = (1.0 - first) * (1.0 - second)
    sector = first * ((green - blue) / safe) + second * (2.0 + (blue - red) / safe)
    sector = sector + third * (4.0 + (red - green) / safe)
    hue = sector / 6.0 * _float(spread > 0.0) + turn
    hue = hue - dm.floor(hue)
    channels = [value - spread * _ramp(n + 6.0 * hue) for n in (5.0, 3.0, 1.0)]
    return _levels(fn.cat(*channels, axis=2) * 255.999)


def _ramp(position: Node) -> Node:
    position = position - 6.0 * dm.floor(position / 6.0)
    return dm.clamp(dm.min(position, 4.0 - position), 0.0, 1.0)


def sharpness(x: Node, amount: Node, side: tuple[int, int], on_gpu: bool) -> Node:
    """Away from a 3 x 3 smoothing, which leaves the border as it is."""
    height, width = side
    if min(side) <= 2:
        return x
    kernel = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], dtype=np.float32)
    smooth = dm.floor(fn.filter(x, kernel, dtype=types.DALIDataType.FLOAT) / 13.0 + 0.5)
    inside = np.zeros((height, width, 1), dtype=np.float32)
    inside[1:-1, 1:-1] = 1
    mask = _beside(types.Constant(inside, device="cpu"), on_gpu)
    return _levels(x - amount * mask * (smooth - x))


def autocontrast(x: Node) -> Node:
    """Each channel stretched to 0..255; a flat channel stays."""
    low, high = (_float(f(x, axes=[0, 1], keep_dims=True)) for f in (fn.reductions.min, fn.reductions.max))
    flat = _float(low == high)
    scale = flat + (1.0 - flat) * ((high - low) * (1.0 / 255))
    return _levels((x - low * (1.0 - flat)) / scale)


def equalized(x: Node, on_gpu: bool) -> Node:
    """Pillow's rule; DALI's equalize has OpenCV's, which gives other levels. A Python function in the graph."""
    if not on_gpu:
        return fn.python_function(x, function=_equalize, output_layouts=["HWC"])
    from nvidia.dali.plugin.pytorch import fn as torch_fn

    return torch_fn.torch_python_function(x, function=equalize_on_device, device="gpu", output_layouts=["HWC"])


def _equalize(image: np.ndarray) -> np.ndarray:
    return np.asarray(ImageOps.equalize(Image.fromarray(np.ascontiguousarray(image))))


def equalize_on_device(image: torch.Tensor) -> torch.Tensor:
    """uint8 (H, W, 3) -> the same, equalized, on any device."""
    even = equalize(image.permute(2, 0, 1)[None].float())
    return even[0].permute(1, 2, 0).to(torch.uint8).contiguous()


def _levels(x: Node) -> Node:
    """Truncated to uint8."""
    whole = fn.cast(dm.floor(dm.clamp(x, 0.0, 255.0)), dtype=types.DALIDataType.UINT8)
    return fn.reshape(whole, layout="HWC")


def _float(x: Node) -> Node:
    return fn.cast(x, dtype=types.DALIDataType.FLOAT)


def _beside(x: Node, on_gpu: bool) -> Node:
    return x.gpu() if on_gpu else x
