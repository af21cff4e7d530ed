"""The weights in the precision of the step, beside those that the optimiser changes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn


class HalfWeights:
    """Copies of a network's convolutions' and linear layers' weights in ``dtype``, all cast at once.

    Autocast casts every weight, and every gradient of one, in a kernel of its own; for networks of a hundred layers
    that is a hundred small kernels a step each way. The numbers are the same to the bit: a weight is rounded once a
    step, and its gradient of every micro-batch is widened before it is added to the others. For networks of this
    package alone: another one may read a weight outside of its layer, and would find it rounded.
    """

    def __init__(self, net: nn.Module, dtype: torch.dtype | None) -> None:
        """``dtype`` None: autocast keeps doing it, as under torch.compile, which fuses the casts, and on several ranks,
        where DistributedDataParallel waits for the gradients of the parameters themselves."""
        self.layers: list[tuple[nn.Module, nn.Parameter]] = []
        self.copies: dict[nn.Parameter, nn.Parameter] = {}
        """Of each weight; a weight that two layers share has one."""
        ours = type(net).__module__.startswith("imnet.models.")
        for module in net.modules() if ours and dtype is not None else ():
            weight = module.weight if type(module) in (nn.Conv2d, nn.Linear) else None
            if isinstance(weight, nn.Parameter) and weight.requires_grad and weight.dtype == torch.float32:
                self.layers.append((module, weight))
                self.copies.setdefault(weight, nn.Parameter(torch.empty_like(weight, dtype=dtype)))

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """The layers compute with the copies, brought up to date; they have their own weights again afterwards.

        A weight that somebody waits for the gradient of, by a hook, is left to autocast.
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
        """Adds the copies' gradients to those of the weights; after every backward pass."""
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
    """Whether anything is called with its gradient."""
    return bool(weight._backward_hooks or getattr(weight, "_post_accumulate_grad_hooks", None))
