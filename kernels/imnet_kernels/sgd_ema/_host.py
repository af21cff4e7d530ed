"""sgd_ema_ on the CPU through imnet_kernels._host."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import hostlib
from . import reference


def fits(tensors: list[Tensor]) -> bool:
    """fp32, dense, one layout: element i of each tensor is the same weight."""
    if any(t.dtype is not torch.float32 for t in tensors):
        return False
    if all(t.is_contiguous() for t in tensors):
        return True
    # Not by strides: those of axes of length 1 mean nothing.
    return all(t.dim() == 4 and t.is_contiguous(memory_format=torch.channels_last) for t in tensors)


def sgd_ema_(
    params: list[Tensor],
    grads: list[Tensor],
    momenta: list[Tensor],
    emas: list[Tensor],
    lr: Tensor,
    grad_scale: Tensor | None,
    skip: Tensor | None,
    momentum: float,
    weight_decay: float,
    ema_decay: float,
    nesterov: bool,
) -> None:
    """See reference.sgd_ema_; other dtypes and layouts go there."""
    lists = (params, grads, momenta, emas)
    fitting = [fits(list(tensors)) for tensors in zip(*(items for items in lists if items), strict=True)]
    ours = lists
    if not all(fitting):
        ours = [[t for t, ok in zip(items, fitting, strict=True) if ok] if items else [] for items in lists]
        rest = [[t for t, ok in zip(items, fitting, strict=True) if not ok] if items else [] for items in lists]
        reference.sgd_ema_(*rest, lr, grad_scale, skip, momentum, weight_decay, ema_decay, nesterov)  # pyright: ignore[reportCallIssue]
    if not ours[0] or (skip is not None and float(skip) != 0.0):
        return
    hostlib.module().sgd_ema(
        *([t.data_ptr() for t in items] for items in ours),
        [t.numel() for t in ours[0]],
        float(lr),
        1.0 if grad_scale is None else float(grad_scale),
        momentum,
        weight_decay,
        1.0 - ema_decay,
        nesterov,
        hostlib.threads(),
    )
