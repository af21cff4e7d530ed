"""SGD with momentum and the exponential moving average (EMA) of the weights, in one pass over the parameters.

Why a family: torch's foreach SGD plus EMA moves 76 bytes per parameter, fused SGD plus EMA 32 to 38, where 28 suffice,
and the time of an optimiser step is memory traffic alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import tier
from . import reference
from .reference import Lists, Step

__all__ = ["sgd_ema_"]

Scalar = float | Tensor


def sgd_ema_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momenta: Sequence[Tensor],
    emas: Sequence[Tensor],
    *,
    lr: Scalar,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    ema_decay: float = 0.0,
    grad_scale: Scalar | None = None,
    skip: Tensor | None = None,
) -> None:
    """One step in place, in torch.optim.SGD's order of operations, then ema += (1 - ema_decay) (p - ema).

    params, grads, momenta, emas: equally long lists of equally shaped tensors on one device. momenta start at 0;
    momenta or emas may be empty (no momentum; no average). lr and grad_scale (a factor on the gradients, for unscaling
    and clipping) are numbers, or 0-dim tensors on the device, which a captured CUDA graph reads anew in every replay.
    If the 0-dim tensor skip is not 0 (GradScaler's found_inf), nothing changes. Weight decay is coupled (L2).
    An average has its param's dtype.
    Raises ValueError for other shapes, devices or ranges.
    """
    lists = Lists(list(params), list(grads), list(momenta), list(emas))
    _check(lists, momentum, nesterov, weight_decay, ema_decay)
    if not lists.params:
        return
    device = lists.params[0].device
    scale, bad = (None if v is None else _scalar(v, device) for v in (grad_scale, skip))
    step = Step(_scalar(lr, device), scale, bad, momentum, weight_decay, ema_decay, nesterov)
    with torch.no_grad():
        if tier.choose("sgd_ema", device.type) == "reference":
            reference.sgd_ema_(lists, step)
        elif torch.compiler.is_compiling():
            sgd_ema_op(*lists, *step)
        else:
            # Eager calls skip the custom op: for a few hundred small tensors its dispatch takes longer than the update.
            tier.implementation("sgd_ema", device.type).sgd_ema_(lists, step)
            torch.autograd.graph.increment_version([*lists.params, *lists.momenta, *lists.emas])


def _scalar(value: Scalar, device: torch.device) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach().reshape(()).to(device=device, dtype=torch.float32)
    return torch.full((), float(value), dtype=torch.float32, device=device)


def _check(lists: Lists, momentum: float, nesterov: bool, weight_decay: float, ema_decay: float) -> None:
    params, grads, momenta, emas = lists
    wanted = [(p.shape, p.device) for p in params]
    for name, tensors in (("grads", grads), ("momenta", momenta), ("emas", emas)):
        if len(tensors) != len(params) and (tensors or name == "grads"):
            raise ValueError(
                f"{len(tensors)} {name} for {len(params)} params; allowed equally many; pass one per param"
            )
        if [(t.shape, t.device) for t in tensors] == wanted[: len(tensors)]:
            continue
        for index, (tensor, param) in enumerate(zip(tensors, params, strict=False)):
            if tensor.shape != param.shape or tensor.device != param.device:
                got = f"{tuple(tensor.shape)} on {tensor.device}"
                raise ValueError(
                    f"{name}[{index}] is {got}; allowed {tuple(param.shape)} on {param.device}; match them"
                )
    if not 0.0 <= momentum < 1.0 or not 0.0 <= ema_decay <= 1.0 or not weight_decay >= 0.0:
        got = f"momentum {momentum}, ema_decay {ema_decay}, weight_decay {weight_decay}"
        raise ValueError(f"{got}; allowed 0 <= momentum < 1, 0 <= ema_decay <= 1, weight_decay >= 0; correct them")
    for index, (param, ema) in enumerate(zip(params, emas, strict=False)):
        if ema.dtype != param.dtype:
            raise ValueError(f"emas[{index}] is {ema.dtype}; allowed {param.dtype}, like its param; convert it")
    if nesterov and params and not momenta:
        raise ValueError("nesterov without momenta; allowed with momenta only; pass zeros like params")


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
