"""torch.ops.imnet.sgd_ema_: the opaque op behind the tiers that are not plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import tier
from .reference import Lists, Step


@torch.library.custom_op("imnet::sgd_ema_", mutates_args=("params", "momenta", "emas"))
def sgd_ema_op(
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
    """See reference.sgd_ema_."""
    step = Step(lr, grad_scale, skip, momentum, weight_decay, ema_decay, nesterov)
    tier.implementation("sgd_ema", params[0].device.type).sgd_ema_(Lists(params, grads, momenta, emas), step)
