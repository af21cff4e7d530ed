"""AdamCPR: Adam with a bound on the norm of each weight (Franke et al. 2023, arXiv 2311.09058)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from imnet.foreach import PlainAdamW
from imnet.recipe import AdamCPR


class BoundedAdam(PlainAdamW):
    """torch's fused Adam, after which each bounded weight W of n elements is pulled towards its bound kappa.

    After every step t > T, where T = ``warm_start_steps`` and kappa = |W|^2 after step T:
        multiplier = max(0, multiplier + kappa_update / n * (|W|^2 - kappa))
        W          = W - 2 * multiplier * W
    The multiplier is that of an augmented Lagrangian: it grows while |W|^2 is above kappa and falls towards zero while
    it is below. Groups whose ``bounded`` is false get Adam alone. A step with ``found_inf`` changes nothing. The host
    reads nothing back, so the step can be captured in a CUDA graph.
    """

    def __init__(self, groups: list[dict[str, Any]], *, warm_start_steps: int, kappa_update: float, **adam: Any):
        super().__init__(groups, weight_decay=0.0, fused=True, **adam)
        self.warm_start_steps, self.kappa_update = warm_start_steps, kappa_update

    @torch.no_grad()
    def step(self) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        super().step()
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None] if group["bounded"] else []
            if params:
                self._pull(params, found_inf)

    def _pull(self, params: list[Tensor], found_inf: Tensor | None) -> None:
        for p in params:
            self.state[p].setdefault("kappa", p.new_zeros(()))
            self.state[p].setdefault("multiplier", p.new_zeros(()))
        steps, kappa, multiplier = (
            torch.stack([self.state[p][name] for p in params]) for name in ("step", "kappa", "multiplier")
        )
        squares = torch.stack(torch._foreach_norm(params)).square()
        # The rates are launch arguments; a tensor of them would need a copy from the host, for which the host waits.
        rates = [self.kappa_update / p.numel() for p in params]
        grown = multiplier + torch.stack(torch._foreach_mul((squares - kappa).unbind(), rates))
        past = steps > self.warm_start_steps
        if found_inf is not None:
            past = past & (found_inf == 0)
        kappa = torch.where(steps == self.warm_start_steps, squares, kappa)
        multiplier = torch.where(past, grown.clamp(min=0.0), multiplier)
        shorter = torch.where(past, 1 - 2 * multiplier, 1.0)
        torch._foreach_copy_([self.state[p]["kappa"] for p in params], list(kappa.unbind()))
        torch._foreach_copy_([self.state[p]["multiplier"] for p in params], list(multiplier.unbind()))
        torch._foreach_mul_(params, list(shorter.unbind()))


def build(groups: list[dict[str, Any]], optim: AdamCPR, lr: Any, backend: str) -> torch.optim.Optimizer:
    """Builder for ``imnet.optim.BUILDERS``: groups that would have no weight decay have no bound."""
    return BoundedAdam(
        [{**group, "weight_decay": 0.0, "bounded": group["weight_decay"] > 0} for group in groups],
        lr=lr,
        betas=(optim.beta1, optim.beta2),
        eps=optim.eps,
        warm_start_steps=optim.warm_start_steps,
        kappa_update=optim.kappa_update,
        capturable=isinstance(lr, Tensor),
    )
