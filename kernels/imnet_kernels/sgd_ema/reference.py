"""The definition of SGD with momentum, coupled weight decay and an EMA, in torch.optim.SGD's order of operations.

    g = grad_scale grad + weight_decay p;   m = momentum m + g;   d = g + momentum m if nesterov else m
    p = p - lr d;   ema = ema + (1 - ema_decay) (p - ema)

Without momenta d = g. If skip is not 0 (GradScaler's found_inf), nothing changes. It runs torch's foreach kernels, so
it is also a fair baseline for timing.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Lists(NamedTuple):
    """Equally long lists of equally shaped tensors; momenta and emas may be empty."""

    params: list[Tensor]
    grads: list[Tensor]
    momenta: list[Tensor]
    emas: list[Tensor]


class Step(NamedTuple):
    """The scalars of one step; those that are tensors are 0-dim fp32 on the parameters' device."""

    lr: Tensor
    grad_scale: Tensor | None
    skip: Tensor | None
    momentum: float
    weight_decay: float
    ema_decay: float
    nesterov: bool


def sgd_ema_(lists: Lists, step: Step) -> None:
    """Update params, of which there is at least one, momenta and emas in place."""
    params, grads, momenta, emas = lists
    skip, momentum = step.skip, step.momentum
    before = [[t.clone() for t in tensors] for tensors in (params, momenta, emas)] if skip is not None else []
    update = [g.to(p.dtype) for g, p in zip(grads, params, strict=True)]
    if step.grad_scale is not None:
        update = torch._foreach_mul(update, step.grad_scale)
    if step.weight_decay:
        update = torch._foreach_add(update, params, alpha=step.weight_decay)
    if momenta:
        torch._foreach_mul_(momenta, momentum)
        torch._foreach_add_(momenta, update)
        update = torch._foreach_add(update, momenta, alpha=momentum) if step.nesterov else momenta
    torch._foreach_sub_(params, torch._foreach_mul(update, step.lr))
    if emas:
        torch._foreach_lerp_(emas, params, 1.0 - step.ema_decay)
    for old, new in zip(before, (params, momenta, emas), strict=False):
        for was, now in zip(old, new, strict=True):
            now.copy_(torch.where(skip != 0, was, now))
