"""Optimisers from recipes: torch's fused ones; NVIDIA's apex FusedSGD where it is really installed and asked for."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import Tensor, nn

from imnet.errors import UsageError
from imnet.models.layers import param_groups
from imnet.recipe import SGD, Optim


def build(model: nn.Module, optim: Optim, backend: str = "auto", *, graphs: bool = False) -> torch.optim.Optimizer:
    """The optimiser of a recipe over the parameters of ``model``.

    ``graphs`` makes the learning rate a device tensor, so that a captured CUDA graph sees it change.
    """
    device = next(model.parameters()).device
    # Norms and biases are spared the decay only where the recipe says so; the published runs decayed everything.
    groups = param_groups(model, optim.weight_decay, decay_all=optim.decay_norms)
    lr: Any = torch.tensor(optim.lr, device=device) if graphs else optim.lr
    if backend == "apex":
        return _apex_sgd(groups, optim)
    if isinstance(optim, SGD):
        sgd = torch.optim.SGD(groups, lr=lr, momentum=optim.momentum, nesterov=optim.nesterov, fused=True)
        # torch makes them in the first step, uninitialised, and leaves them so where that step is skipped.
        for param in (p for group in sgd.param_groups for p in group["params"] if optim.momentum):
            sgd.state[param]["momentum_buffer"] = torch.zeros_like(param)
        return sgd
    betas = (optim.beta1, optim.beta2)
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=optim.eps, fused=True, capturable=graphs)


def _apex_sgd(groups: list[dict[str, Any]], optim: Optim) -> torch.optim.Optimizer:
    # The package of that name on PyPI is a web toolkit; only NVIDIA's has `optimizers`.
    found = importlib.util.find_spec("apex") is not None and importlib.util.find_spec("apex.optimizers") is not None
    if not found:
        raise UsageError("got --optim-backend apex, but NVIDIA apex is not installed", hint="use --optim-backend torch")
    if not isinstance(optim, SGD):
        raise UsageError(f"got --optim-backend apex for {optim.kind}; allowed: sgd", hint="use --optim-backend torch")
    from apex.optimizers import FusedSGD  # pyright: ignore[reportMissingImports]

    return FusedSGD(groups, lr=optim.lr, momentum=optim.momentum, nesterov=optim.nesterov)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every group, in place where it is a device tensor."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def state_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """``<parameter index>.<name>`` -> tensor, e.g. ``3.momentum_buffer``."""
    state = optimizer.state_dict()["state"]
    return {f"{i}.{k}": v for i, named in state.items() for k, v in named.items() if isinstance(v, Tensor)}


def load_state_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Inverse of ``state_tensors``; keeps each parameter's own memory layout, which fused updates rely on."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        param = params[int(index)]
        like = torch.empty_like(param) if value.shape == param.shape else torch.empty_like(value, device=param.device)
        if name == "step" and not any(g.get("capturable") or g.get("fused") for g in optimizer.param_groups):
            like = torch.empty_like(value)
        optimizer.state[param][name] = like.copy_(value)


class Ema:
    """Exponential moving average of parameters and buffers, updated in place.

    torch's AveragedModel reads its counter on the host every step, which would make the GPU wait; this does not.
    """

    def __init__(self, model: nn.Module, averaged: nn.Module, decay: float):
        """``averaged`` is a copy of ``model`` of the same layout; it is what gets evaluated."""
        self.averaged, self.decay = averaged.eval().requires_grad_(False), decay
        pairs = list(zip(averaged.state_dict().values(), model.state_dict().values(), strict=True))
        self._float = [(a, m) for a, m in pairs if a.is_floating_point()]
        self._other = [(a, m) for a, m in pairs if not a.is_floating_point()]

    @torch.no_grad()
    def update(self) -> None:
        torch._foreach_lerp_([a for a, _ in self._float], [m for _, m in self._float], 1 - self.decay)
        for a, m in self._other:
            a.copy_(m)
