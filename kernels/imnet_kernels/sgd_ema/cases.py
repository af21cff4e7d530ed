"""sgd_ema_'s cases: the weights of a small network with every option in turn, and larger ones to be timed."""

from __future__ import annotations

import torch

from ..family import Call, Case, Family
from . import sgd_ema_

_SHAPES = ((64, 32, 3, 3), (64,), (10, 64), (10,), (1,), (0,), (3, 5, 7))
_LARGE = ((320, 160, 3, 3), (320, 320, 3, 3), (320,), (640, 320, 3, 3), (640,))
# Shapes of wrn28_10's weights: the convolutions of its three groups, projections and head. The norms' weights, 0.05 %
# of all, are left out.
_WRN28_10 = (
    *((160, 160, 3, 3),) * 7, (160, 16, 3, 3), (320, 160, 3, 3), *((320, 320, 3, 3),) * 7, (640, 320, 3, 3),
    *((640, 640, 3, 3),) * 7, (160, 16, 1, 1), (320, 160, 1, 1), (640, 320, 1, 1), (10, 640)
)  # fmt: skip
_USUAL = {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4, "ema_decay": 0.999}

CASES = (
    Case(name="wrn", options={"shapes": _LARGE, **_USUAL}, real=True),
    Case(name="nesterov", options={"shapes": _SHAPES, **_USUAL}),
    Case(name="heavy_ball", options={"shapes": _SHAPES, **_USUAL, "nesterov": False}),
    Case(name="no_momentum", options={"shapes": _SHAPES, **_USUAL, "nesterov": False, "momentum": 0.0}),
    Case(name="no_average", options={"shapes": _SHAPES, **_USUAL, "ema_decay": None}),
    Case(name="no_decay", options={"shapes": _SHAPES, **_USUAL, "weight_decay": 0.0}),
    Case(name="unscale", options={"shapes": _SHAPES, **_USUAL, "grad_scale": 0.25}),
    Case(name="skip", options={"shapes": _SHAPES, **_USUAL, "skip": 1.0}),
    Case(name="no_skip", options={"shapes": _SHAPES, **_USUAL, "skip": 0.0}),
    Case(name="lr_tensor", options={"shapes": _SHAPES, **_USUAL, "lr_tensor": True}),
    Case(name="channels_last", options={"shapes": _SHAPES, **_USUAL, "channels_last": True}),
    Case(name="mixed_layouts", options={"shapes": _SHAPES, **_USUAL, "mixed": True}),
    Case(name="no_params", options={"shapes": (), **_USUAL}),
    Case(name="wrn28_10", options={"shapes": _WRN28_10, **_USUAL}, gpu=True),
)


def make(case: Case, dtype: torch.dtype, device: str) -> Call:
    """A step over newly drawn weights, since a call changes them in place."""
    o, generator = dict(case.options), torch.Generator().manual_seed(4)
    shapes, layout = o.pop("shapes"), torch.channels_last if o.pop("channels_last", False) else None
    average, with_momentum = o["ema_decay"] is not None, o["momentum"] > 0
    lists = [[torch.randn(s, generator=generator).to(device, dtype) for s in shapes] for _ in range(4)]
    for tensors in lists:
        for index, tensor in enumerate(tensors):
            if layout is not None and tensor.dim() == 4:
                tensors[index] = tensor.contiguous(memory_format=layout)
    if o.pop("mixed", False):
        lists[1] = [g.contiguous(memory_format=torch.channels_last) if g.dim() == 4 else g for g in lists[1]]
    lists[2], lists[3] = lists[2] if with_momentum else [], lists[3] if average else []
    o["ema_decay"] = o["ema_decay"] or 0.0
    if o.pop("lr_tensor", False):
        o["lr"] = torch.tensor(o["lr"], device=device)
    if "skip" in o:
        o["skip"] = torch.tensor(o["skip"], device=device)
    return Call(run=lambda: sgd_ema_(*lists, **o), in_place=(*lists[0], *lists[2], *lists[3]))


def bytes_moved(case: Case, dtype: torch.dtype) -> int:
    """The least traffic: weights, momenta and averages are read and written, gradients read."""
    elements = sum(torch.Size(shape).numel() for shape in case.options["shapes"])
    return 7 * elements * dtype.itemsize


FAMILY = Family(name="sgd_ema", cases=CASES, tolerance={torch.float32: 2e-7}, make=make, bytes_moved=bytes_moved)
