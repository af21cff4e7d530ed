"""SGD with momentum, coupled weight decay and an exponential moving average, by definition (torch.optim.SGD's order).

    g = grad_scale grad + weight_decay p;   m = momentum m + g;   d = g + momentum m if nesterov else m
    p = p - lr d;   ema = ema + (1 - ema_decay) (p - ema)

Without momenta d = g. Where skip is not 0 (GradScaler's found_inf) nothing changes. torch's foreach kernels do the
work, so this is also a fair peer.
"""

from __future__ import annotations

import torch
from torch import Tensor


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
    """In place; lr, grad_scale, skip are 0-dim fp32 on the parameters' device; momenta and emas may be empty."""
    if not params:
        return
    before = [[t.clone() for t in tensors] for tensors in (params, momenta, emas)] if skip is not None else []
    update = [g.to(p.dtype) for g, p in zip(grads, params, strict=True)]
    if grad_scale is not None:
        update = torch._foreach_mul(update, grad_scale)
    if weight_decay:
        update = torch._foreach_add(update, params, alpha=weight_decay)
    if momenta:
        torch._foreach_mul_(momenta, momentum)
        torch._foreach_add_(momenta, update)
        update = torch._foreach_add(update, momenta, alpha=momentum) if nesterov else momenta
    torch._foreach_sub_(params, torch._foreach_mul(update, lr))
    if emas:
        torch._foreach_lerp_(emas, params, 1.0 - ema_decay)
    for old, new in zip(before, (params, momenta, emas), strict=False):
        for was, now in zip(old, new, strict=True):
            now.copy_(torch.where(skip != 0, was, now))
