"""Finds a network's classifier, which fine-tuning replaces and may train alone or at a higher learning rate, and
freezes layers."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..errors import UsageError

ALL_BUT_HEAD = "all-but-head"


def head_name(network: nn.Module) -> str:
    """Dotted name of the classifier: the one that timm's networks state, else the last linear layer or convolution."""
    own: Any = getattr(network, "get_classifier", None)
    layer = own() if callable(own) else None
    found = [name for name, module in network.named_modules() if module is layer]
    found += [name for name, m in network.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1:]
    if not found or not found[0]:
        raise UsageError(
            f"{type(network).__name__} has no classifier of its own", hint="leave freeze, body_lr and muon out"
        )
    return found[0]


def is_head(name: str, head: str) -> bool:
    """Whether a parameter or module called ``name`` belongs to the classifier."""
    return name == head or name.startswith(f"{head}.")


def freeze(network: nn.Module, how: str) -> list[nn.Module]:
    """Freeze parameters: all but the classifier's (``all-but-head``), or those of the first N top-level parts that have
    parameters (a number).

    Returns the frozen modules, which must stay in evaluation mode, so that their norms keep their statistics. Raises
    UsageError if the number leaves nothing to train.
    """
    if how == ALL_BUT_HEAD:
        head = head_name(network)
        inner = [(name, m) for name, m in network.named_modules() if name]  # without the network itself
        still = [m for name, m in inner if not is_head(name, head) and not is_head(head, name)]
        params = [p for name, p in network.named_parameters() if not is_head(name, head)]
    else:
        parts = [m for m in network.children() if next(m.parameters(), None) is not None]
        if int(how) >= len(parts):
            what = f"got freeze = {how}; allowed: {ALL_BUT_HEAD}, or 1..{len(parts) - 1}"
            names = ", ".join(n for n, m in network.named_children() if m in parts)
            raise UsageError(what, hint=f"the parts of this network: {names}")
        still = [module for part in parts[: int(how)] for module in part.modules()]
        params = [p for part in parts[: int(how)] for p in part.parameters()]
    for param in params:
        param.requires_grad_(False)
    return still
