"""sgd_ema_ on the CPU through imnet_kernels._host."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import native
from . import reference
from .reference import Lists, Step


def fits(tensors: tuple[Tensor, ...]) -> bool:
    """Whether all tensors are fp32, dense and of one layout, so that element i of each belongs to the same weight."""
    if any(t.dtype is not torch.float32 for t in tensors):
        return False
    if all(t.is_contiguous() for t in tensors):
        return True
    # Strides are not compared: those of axes of length 1 are arbitrary.
    return all(t.dim() == 4 and t.is_contiguous(memory_format=torch.channels_last) for t in tensors)


def fitting(lists: Lists) -> list[bool]:
    """Per parameter: fits() of the parameter with its gradient, momentum and average."""
    return [fits(tensors) for tensors in zip(*(items for items in lists if items), strict=True)]


def sgd_ema_(lists: Lists, step: Step) -> None:
    """See reference.sgd_ema_, which updates the parameters whose dtype or layout does not fit."""
    ours, good = lists, fitting(lists)
    if not all(good):
        ours = Lists(*([t for t, ok in zip(items, good, strict=False) if ok] for items in lists))
        rest = Lists(*([t for t, ok in zip(items, good, strict=False) if not ok] for items in lists))
        reference.sgd_ema_(rest, step)
    if not ours.params or (step.skip is not None and float(step.skip) != 0.0):
        return
    native.host().sgd_ema(
        **{name: [t.data_ptr() for t in items] for name, items in ours._asdict().items()},
        sizes=[t.numel() for t in ours.params],
        lr=float(step.lr),
        grad_scale=1.0 if step.grad_scale is None else float(step.grad_scale),
        momentum=step.momentum,
        weight_decay=step.weight_decay,
        ema_weight=1.0 - step.ema_decay,
        nesterov=step.nesterov,
        num_threads=torch.get_num_threads(),
    )
