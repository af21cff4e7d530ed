"""Half-precision copies of the weights, which the step computes with while the optimiser updates the fp32 weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn


class HalfWeights:
    """Copies in ``dtype`` of the weights of a network's convolutions and linear layers, all cast in one launch.

    Autocast casts every weight, and every weight's gradient, in a kernel of its own: a hundred small kernels a step in
    either direction for a network of a hundred layers. Casting together gives the same bits: a weight is rounded once
    a step, and the gradient of each micro-batch is widened to fp32 before it is added to the others. Only networks of
    this package are served, since other code may read a weight outside its layer and would find it rounded.
    """

    def __init__(self, net: nn.Module, dtype: torch.dtype | None) -> None:
        """With ``dtype`` None nothing is copied and autocast does the casting: under torch.compile, which fuses the
        casts, and on several ranks, where DistributedDataParallel needs the gradients of the parameters themselves."""
        self.layers: list[tuple[nn.Module, nn.Parameter]] = []
        self.copies: dict[nn.Parameter, nn.Parameter] = {}
        """The copy of each weight; two layers that share a weight share its copy."""
        ours = type(net).__module__.startswith("imnet.models.")
        for module in net.modules() if ours and dtype is not None else ():
            weight = module.weight if type(module) in (nn.Conv2d, nn.Linear) else None
            if isinstance(weight, nn.Parameter) and weight.requires_grad:
                self.layers.append((module, weight))
                self.copies.setdefault(weight, nn.Parameter(torch.empty_like(weight, dtype=dtype)))

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Update the copies and put them into the layers; on leaving, the layers get their own weights back.

        A weight with a gradient hook is left to autocast, or the hook would not run.
        """
        layers = [(module, weight) for module, weight in self.layers if not hooks(weight)]
        weights = tuple(dict.fromkeys(weight for _, weight in layers))
        if weights:
            with torch.no_grad():
                torch._foreach_copy_([self.copies[weight] for weight in weights], weights)
        try:
            for module, weight in layers:
                module._parameters["weight"] = self.copies[weight]
            yield
        finally:
            for module, weight in layers:
                module._parameters["weight"] = weight

    @torch.no_grad()
    def hand_over(self) -> None:
        """Add the copies' gradients to those of the weights; to be called after every backward pass."""
        found = [(weight, copy.grad) for weight, copy in self.copies.items() if copy.grad is not None]
        if not found:
            return
        grads = [torch.empty_like(weight) for weight, _ in found]
        torch._foreach_copy_(grads, [grad for _, grad in found])
        earlier = [
            (weight.grad, grad) for (weight, _), grad in zip(found, grads, strict=True) if weight.grad is not None
        ]
        if earlier:
            torch._foreach_add_([before for before, _ in earlier], [grad for _, grad in earlier])
        for (weight, _), grad in zip(found, grads, strict=True):
            self.copies[weight].grad = None
            if weight.grad is None:
                weight.grad = grad


def hooks(weight: nn.Parameter) -> bool:
    """Whether ``weight`` has a gradient hook."""
    return bool(weight._backward_hooks or getattr(weight, "_post_accumulate_grad_hooks", None))
