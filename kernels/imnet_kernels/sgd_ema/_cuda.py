"""sgd_ema_ through the CUDA library: one launch over a table of addresses."""

from __future__ import annotations

from torch import Tensor

from .. import cudalib
from . import reference
from ._host import fits
from .table import constant, tables

CHUNK = 4096


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
    """See reference.sgd_ema_; other dtypes and layouts go there, all together."""
    lists = (params, grads, momenta, emas)
    if not all(fits(list(tensors)) for tensors in zip(*(items for items in lists if items), strict=True)):
        reference.sgd_ema_(*lists, lr, grad_scale, skip, momentum, weight_decay, ema_decay, nesterov)
        return
    device = params[0].device
    scale = constant(1.0, device) if grad_scale is None else grad_scale
    bad = constant(0.0, device) if skip is None else skip
    flags = (bool(momenta), bool(emas), momentum, weight_decay, 1.0 - ema_decay, nesterov)
    cudalib.ops().sgd_ema(*tables(lists, CHUNK), CHUNK, lr, scale, bad, *flags)
