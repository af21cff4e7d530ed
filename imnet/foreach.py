"""LAMB, Lion and Muon with torch's multi-tensor operations; torch has no version of them that ``step.py`` can use.
Also torch's own SGD and AdamW, without what would import the compiler.

The step never waits for the device: learning rate, counters and ``found_inf`` stay there, so that a CUDA graph can
repeat it. State is created with the optimiser, so that a resumed run has tensors to load its state into.
"""

from __future__ import annotations

import inspect
import math
from typing import Any, ClassVar

import torch
from torch import Tensor

NS_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Coefficients of Jordan's quintic iteration, as in torch.optim.Muon."""


class Uncompiled(torch.optim.Optimizer):
    """An optimiser without the wrappers by which torch's compiler skips optimiser methods.

    At their first call the wrappers import the compiler: 5 of the 12 seconds that a short run took on a machine with an
    H200 (2026-11-26), in a run that compiled nothing. imnet compiles the network, but never its optimiser.
    """

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)


class PlainSGD(Uncompiled, torch.optim.SGD):
    """torch's SGD, bit for bit, without the wrappers around its methods."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.SGD.step))


class PlainAdamW(Uncompiled, torch.optim.AdamW):
    """torch's AdamW, bit for bit, without the wrappers around its methods."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


class Foreach(Uncompiled):
    """Updates all tensors of a group at once. If ``found_inf``, a scalar on the device, is 1, nothing changes.

    ``names`` are those of the state tensors of every parameter. They have its shape, except for ``step``, a scalar that
    counts updates.
    """

    names: ClassVar[tuple[str, ...]] = ()
    _step_supports_amp_scaling = True  # torch's GradScaler then leaves found_inf to this class

    def __init__(self, groups: list[dict[str, Any]], **defaults: Any):
        super().__init__(groups, defaults)
        for group in self.param_groups:
            for p in group["params"]:
                for name in self.names_in(group):
                    zero = torch.zeros((), device=p.device) if name == "step" else torch.zeros_like(p)
                    self.state[p][name] = zero

    def names_in(self, group: dict[str, Any]) -> tuple[str, ...]:
        """The names of the state tensors in a group."""
        return self.names

    @torch.no_grad()
    def step(self) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take one step; gradients must be unscaled already."""
        assert getattr(self, "grad_scale", None) is None, "call scaler.unscale_ first"
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                old, new = self.updated(group, params, [p.grad for p in params])
                replace(old, new, getattr(self, "found_inf", None))

    def updated(
        self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return the tensors of parameters and state, and their new values."""
        raise NotImplementedError

    def held(self, params: list[Tensor], name: str) -> list[Tensor]:
        """The state ``name`` of each parameter."""
        return [self.state[p][name] for p in params]


def replace(old: list[Tensor], new: list[Tensor], found_inf: Tensor | None) -> None:
    """Copy ``new`` into ``old``, unless ``found_inf`` is 1. Values are selected, since NaN times 0 is NaN."""
    if found_inf is not None:
        keep = found_inf.bool()
        new = [o.where(keep, n) for o, n in zip(old, new, strict=True)]
    torch._foreach_copy_(old, new)


def decayed(params: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
    """``params`` after decoupled weight decay: scaled by 1 - lr * weight_decay."""
    return list(torch._foreach_mul(params, 1 - group["lr"] * group["weight_decay"]))


class Adam(Foreach):
    """Adam's state (``exp_avg``, ``exp_avg_sq``, ``step``) and direction, for LAMB and for Muon's other parameters."""

    names = ("exp_avg", "exp_avg_sq", "step")

    def direction(
        self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Return Adam's direction for each tensor, the state tensors and their new values. All tensors of a group have
        taken the same number of steps."""
        beta1, beta2 = group["betas"]
        means, squares, steps = (self.held(params, name) for name in self.names)
        mean = torch._foreach_lerp(means, grads, 1 - beta1)
        square = torch._foreach_mul(squares, beta2)
        torch._foreach_addcmul_(square, grads, grads, 1 - beta2)
        step = torch._foreach_add(steps, 1.0)
        root = torch._foreach_sqrt(square)
        torch._foreach_mul_(root, (1 - beta2 ** step[0]).rsqrt())
        torch._foreach_add_(root, group["eps"])
        toward = torch._foreach_mul(mean, (1 - beta1 ** step[0]).reciprocal())
        torch._foreach_div_(toward, root)
        return list(toward), [*means, *squares, *steps], [*mean, *square, *step]


class Lamb(Adam):
    """LAMB, with the fields of ``imnet.recipe.Lamb``."""

    def updated(
        self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        toward, old, new = self.direction(group, params, grads)
        if group["weight_decay"]:
            torch._foreach_add_(toward, params, alpha=group["weight_decay"])
            weights, moves = (torch.stack(torch._foreach_norm(tensors)) for tensors in (params, toward))
            trust = torch.where((weights > 0) & (moves > 0), weights / moves, 1.0)
            torch._foreach_mul_(toward, list(trust.unbind()))
        torch._foreach_mul_(toward, group["lr"])
        return [*params, *old], [*torch._foreach_sub(params, toward), *new]


class Lion(Foreach):
    """Lion, with the fields of ``imnet.recipe.Lion``."""

    names = ("exp_avg",)

    def updated(
        self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        beta1, beta2 = group["betas"]
        means = self.held(params, "exp_avg")
        toward = torch._foreach_sign(torch._foreach_lerp(means, grads, 1 - beta1))
        torch._foreach_mul_(toward, group["lr"])
        new = torch._foreach_sub(decayed(params, group), toward)
        return [*params, *means], [*new, *torch._foreach_lerp(means, grads, 1 - beta2)]


class Muon(Adam):
    """Muon, with the fields of ``imnet.recipe.Muon``. Groups with ``matrix`` are orthogonalised, others get AdamW."""

    def names_in(self, group: dict[str, Any]) -> tuple[str, ...]:
        return ("momentum_buffer",) if group["matrix"] else self.names

    def updated(
        self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        if group["matrix"]:
            old = self.held(params, "momentum_buffer")
            new = torch._foreach_lerp(old, grads, 1 - group["momentum"])
            ahead = torch._foreach_lerp(grads, new, group["momentum"]) if group["nesterov"] else new
            toward = [_moved(a, group["ns_steps"]) for a in ahead]
        else:
            toward, old, new = self.direction(group, params, grads)
        torch._foreach_mul_(toward, group["lr"])
        return [*params, *old], [*torch._foreach_sub(decayed(params, group), toward), *new]


def _moved(momentum: Tensor, ns_steps: int) -> Tensor:
    """The orthogonalised momentum of a matrix or convolution, scaled to about the size of AdamW's direction."""
    flat = momentum.flatten(1)
    scale = 0.2 * math.sqrt(max(flat.shape))
    return (orthogonalised(flat, ns_steps).to(momentum.dtype) * scale).view(momentum.shape)


def orthogonalised(matrix: Tensor, steps: int) -> Tensor:
    """(m, n) -> bf16 (m, n) with singular values near 1, by Newton-Schulz iterations; same arithmetic as
    torch.optim.Muon."""
    a, b, c = NS_COEFFICIENTS
    x = matrix.bfloat16()
    x = x.T if matrix.shape[0] > matrix.shape[1] else x
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if matrix.shape[0] > matrix.shape[1] else x
