"""Builds the optimisers of recipes: torch's fused SGD and AdamW, SGD with the EMA of the weights in the same pass
(imnet_kernels.sgd_ema_), NVIDIA apex's FusedSGD on request, ``imnet.adamcpr``, and LAMB, Lion and Muon of
``imnet.foreach``. Also ``Ema``, the moving average itself.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

import torch
from imnet_kernels import sgd_ema_, tier
from torch import Tensor, nn

from imnet import adamcpr, foreach
from imnet.errors import UsageError
from imnet.models.head import head_name, is_head
from imnet.optimisers import Optim
from imnet.recipe import SGD, AdamCPR, AdamW, Lamb, Lion, Muon

MERGED_MEAN_ELEMENTS = 16384
"""--optim-backend auto chooses MergedSGD from this mean number of weights per tensor. At about 8,800 it takes as long
as torch's fused SGD followed by the average (two cores of an Intel Xeon with AMX, 2026-11-21)."""


_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def no_decay(network: nn.Module) -> set[str]:
    """Names of the parameters without weight decay: vectors (biases, norms, layer scales), biases and norms of any
    other shape, and the parameters that the network itself lists.

    Vectors are found by shape, as in timm: nothing else identifies timm's own norms and biases with other names
    (``q_bias``). timm's networks list theirs (position tables and the like) in a ``no_weight_decay`` method, as
    patterns. Shared parameters appear under the first of their names, as in ``named_parameters``.
    """
    own: Any = getattr(network, "no_weight_decay", set)()
    norms = {id(p) for m in network.modules() if isinstance(m, _NORMS) for p in m.parameters(recurse=False)}
    return {
        name
        for name, p in network.named_parameters()
        if p.ndim < 2
        or name.rpartition(".")[2] == "bias"
        or id(p) in norms
        or any(fnmatchcase(name, pattern) for pattern in own)
    }


def spared(network: nn.Module, optim: Optim) -> set[str]:
    """Names of the parameters that get no weight decay under the recipe's ``decay_norms`` and ``decay_biases``. With
    the defaults of SGD that is none, as in most published runs."""
    if not optim.decay_norms:
        return no_decay(network)
    if isinstance(optim, SGD) and not optim.decay_biases:
        return {name for name, _ in network.named_parameters() if name.rpartition(".")[2] == "bias"}
    return set()


def param_groups(network: nn.Module, optim: Optim, body_lr: float = 1.0) -> list[dict[str, Any]]:
    """Parameter groups for an optimiser: those of :func:`spared`, with a weight decay of 0, and the rest.

    Frozen parameters are left out. If ``body_lr`` is not 1, either group is split again, and the layers before the head
    get that share of the learning rate. Muon also splits by the matrices, which it updates, and the rest, for AdamW.
    """
    skip = spared(network, optim)
    is_muon = isinstance(optim, Muon)
    head = head_name(network) if body_lr != 1.0 or is_muon else ""
    tables = no_decay(network) if is_muon else set()
    groups: dict[tuple[float, bool, bool], list[Tensor]] = {}
    for name, p in network.named_parameters():
        if not p.requires_grad:
            continue
        factor = 1.0 if not head or is_head(name, head) else body_lr
        matrix = is_muon and p.ndim > 1 and name not in tables and not is_head(name, head)
        groups.setdefault((factor, name in skip, matrix), []).append(p)
    return [
        {"params": params, "weight_decay": 0.0 if none else optim.weight_decay, "lr_factor": factor}
        | ({"matrix": matrix} if is_muon else {})
        for (factor, none, matrix), params in sorted(groups.items())
    ]


def build(
    model: nn.Module, optim: Optim, backend: str = "auto", *, graphs: bool = False, body_lr: float = 1.0
) -> torch.optim.Optimizer:
    """The optimiser of a recipe over the parameters of ``model``; ``body_lr`` as in ``param_groups``.

    With ``graphs`` the learning rate is a device tensor, so that a captured CUDA graph sees it change.
    """
    if type(optim) not in BUILDERS:
        allowed = ", ".join(known.kind for known in BUILDERS)
        raise UsageError(f"got optimiser {optim.kind}; allowed: {allowed}", hint="add its builder to BUILDERS")
    device = next(model.parameters()).device
    groups = param_groups(model, optim, body_lr)
    lr: Any = torch.tensor(optim.lr, device=device) if graphs else optim.lr
    for group in groups if graphs else ():
        group["lr"] = lr.clone()  # one tensor per group, since groups may have different shares of the rate
    if backend == "auto":
        backend = "imnet" if isinstance(optim, SGD) and _merging_pays(model) else "torch"
    return BUILDERS[type(optim)](groups, optim, lr, backend)


def _sgd(groups: list[dict[str, Any]], optim: SGD, lr: Any, backend: str) -> torch.optim.Optimizer:
    if backend == "apex":
        check_backend(backend)
        from apex.optimizers import FusedSGD  # pyright: ignore[reportMissingImports]

        return FusedSGD(groups, lr=optim.lr, momentum=optim.momentum, nesterov=optim.nesterov)
    kind = MergedSGD if backend == "imnet" else foreach.PlainSGD
    sgd = kind(groups, lr=lr, momentum=optim.momentum, nesterov=optim.nesterov, fused=True)
    # torch creates the momenta uninitialised in the first step, and would leave them so if that step is skipped.
    for param in (p for group in sgd.param_groups for p in group["params"] if optim.momentum):
        sgd.state[param]["momentum_buffer"] = torch.zeros_like(param)
    return sgd


def _adamw(groups: list[dict[str, Any]], optim: AdamW, lr: Any, backend: str) -> torch.optim.Optimizer:
    betas = (optim.beta1, optim.beta2)
    capturable = isinstance(lr, Tensor)
    return foreach.PlainAdamW(groups, lr=lr, betas=betas, eps=optim.eps, fused=True, capturable=capturable)


def _lamb(groups: list[dict[str, Any]], optim: Lamb, lr: Any, backend: str) -> torch.optim.Optimizer:
    return foreach.Lamb(groups, lr=lr, betas=(optim.beta1, optim.beta2), eps=optim.eps)


def _lion(groups: list[dict[str, Any]], optim: Lion, lr: Any, backend: str) -> torch.optim.Optimizer:
    return foreach.Lion(groups, lr=lr, betas=(optim.beta1, optim.beta2))


def _muon(groups: list[dict[str, Any]], optim: Muon, lr: Any, backend: str) -> torch.optim.Optimizer:
    adam = {"betas": (optim.beta1, optim.beta2), "eps": optim.eps}
    matrices = {"momentum": optim.momentum, "nesterov": optim.nesterov, "ns_steps": optim.ns_steps}
    return foreach.Muon(groups, lr=lr, **adam, **matrices)


BUILDERS: dict[type, Callable[..., torch.optim.Optimizer]] = {
    SGD: _sgd,
    AdamW: _adamw,
    AdamCPR: adamcpr.build,
    Lamb: _lamb,
    Lion: _lion,
    Muon: _muon,
}
"""Optimiser of a recipe -> builder, which is called with the parameter groups, that optimiser, lr and backend."""


def _merging_pays(model: nn.Module) -> bool:
    """Whether MergedSGD is faster here: on a CPU with the host kernel, if the tensors are large on average, since each
    one costs microseconds of Python.

    `imnet-bench kernels` measures it per step; no measurement on a GPU has shown it to be faster there.
    """
    sizes = [p.numel() for p in model.parameters() if p.requires_grad]
    device = next(model.parameters()).device.type
    large = sum(sizes) >= MERGED_MEAN_ELEMENTS * len(sizes)
    return large and device == "cpu" and tier.choose("sgd_ema", device) == "host"


def check_backend(backend: str) -> None:
    """UsageError if ``backend`` is not installed."""
    # The package named apex on PyPI is a web toolkit; only NVIDIA's has `optimizers`.
    found = importlib.util.find_spec("apex") is not None and importlib.util.find_spec("apex.optimizers") is not None
    if backend == "apex" and not found:
        raise UsageError("got --optim-backend apex, but NVIDIA apex is not installed", hint="use --optim-backend torch")


class MergedSGD(foreach.PlainSGD):
    """torch's SGD, with the same parameter groups and state, that also updates the EMA of the weights in its pass.

    Before ``Ema.merge`` it is torch's fused step, bit for bit. After it, a step whose ``found_inf`` is set (read on
    the device) leaves weights and momenta unchanged. The average is then updated on a CPU only, as without a merge.
    """

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.averages: dict[Tensor, Tensor] = {}
        self.ema_decay = 0.0

    @torch.no_grad()
    def step(self) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Same as torch's; the average is updated with the new weights."""
        if not self.averages:
            super().step()
            return
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        for group in self.param_groups:
            self._update(group, found_inf)
        skipped = found_inf is not None and found_inf.device.type == "cpu" and bool(found_inf)
        still = [p for p in self.averages if skipped or p.grad is None]
        if still:
            torch._foreach_lerp_([self.averages[p] for p in still], still, 1 - self.ema_decay)

    def _update(self, group: dict[str, Any], found_inf: Tensor | None) -> None:
        params = [p for p in group["params"] if p.grad is not None]
        scale: Tensor | None = getattr(self, "grad_scale", None)
        sgd_ema_(
            params,
            [p.grad for p in params],
            [self.state[p]["momentum_buffer"] for p in params] if group["momentum"] else [],
            [self.averages[p] for p in params],
            lr=group["lr"],
            momentum=group["momentum"],
            nesterov=group["nesterov"],
            weight_decay=group["weight_decay"],
            ema_decay=self.ema_decay,
            grad_scale=None if scale is None else scale.reciprocal(),
            skip=found_inf,
        )


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every group to its share of ``lr``; a rate in a device tensor is changed in place."""
    for group in optimizer.param_groups:
        mine = lr * group.get("lr_factor", 1.0)
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(mine)
        else:
            group["lr"] = mine


def state_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser state as ``<parameter index>.<name>`` -> tensor, e.g. ``3.momentum_buffer``."""
    state = optimizer.state_dict()["state"]
    return {f"{i}.{k}": v for i, named in state.items() for k, v in named.items() if isinstance(v, Tensor)}


def load_state_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Inverse of ``state_tensors``; gives state the memory layout of its parameter, which fused updates rely on.

    UsageError if a shape differs: the state is that of other parameter groups, in which an index means another
    parameter.
    """
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        param = params[int(index)]
        if value.ndim and value.shape != param.shape:
            what = f"got optimiser state {key} of {tuple(value.shape)}; allowed: {tuple(param.shape)}, its parameter's"
            raise UsageError(what, hint="begin in another --out, or go on with the imnet that run.json names")
        like = torch.empty_like(param) if value.shape == param.shape else torch.empty_like(value, device=param.device)
        optimizer.state[param][name] = like.copy_(value)


class Ema:
    """Exponential moving average of parameters and buffers, updated in place.

    torch's AveragedModel reads its counter on the host in every step, for which the host waits; this does not.
    """

    def __init__(self, model: nn.Module, averaged: nn.Module, decay: float, warm_up: bool = False):
        """``averaged`` is a copy of ``model`` of the same memory layout, for evaluation; for ``warm_up`` see ``at``."""
        self.averaged, self.decay = averaged.eval().requires_grad_(False), decay
        self.full_decay, self.warm_up = decay, warm_up
        self._merged: MergedSGD | None = None
        pairs = list(zip(averaged.state_dict().values(), model.state_dict().values(), strict=True))
        self._float = [(a, m) for a, m in pairs if a.is_floating_point()]
        self._other = [(a, m) for a, m in pairs if not a.is_floating_point()]

    def merge(self, optimizer: torch.optim.Optimizer) -> None:
        """Let ``optimizer`` update the averages of its weights if it is a ``MergedSGD``; otherwise do nothing."""
        if not isinstance(optimizer, MergedSGD):
            return
        by_address = {m.data_ptr(): a for a, m in self._float if m.numel()}
        params = [p for group in optimizer.param_groups for p in group["params"]]
        optimizer.averages = {p: by_address[p.data_ptr()] for p in params if p.data_ptr() in by_address}
        self._merged, optimizer.ema_decay = optimizer, self.decay
        merged = {p.data_ptr() for p in optimizer.averages}
        self._float = [(a, m) for a, m in self._float if m.data_ptr() not in merged]

    def at(self, step: int) -> None:
        """Set the decay for optimiser step ``step``, counted from 0; with ``warm_up`` it begins small. It depends on
        the step alone, so that a run resumes exactly."""
        if not self.warm_up:
            return
        self.decay = min(self.full_decay, (1 + step) / (10 + step))
        if self._merged is not None:
            self._merged.ema_decay = self.decay

    @torch.no_grad()
    def update(self) -> None:
        if self._float:
            torch._foreach_lerp_([a for a, _ in self._float], [m for _, m in self._float], 1 - self.decay)
        for a, m in self._other:
            a.copy_(m)
