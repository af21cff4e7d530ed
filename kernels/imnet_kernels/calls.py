"""What the families' public functions share: whether anything watches a call, and values made once from tensors."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

Made = TypeVar("Made")
Given = ParamSpec("Given")
MOST_KEPT = 64

_kept: dict[tuple[Any, ...], tuple[Any, tuple[Any, ...]]] = {}


def unobserved() -> bool:
    """True where neither a compiler nor a dispatch mode watches: then an op, whose Python wrappers take 15 to 20 us of
    a CPU's call, has nothing to tell and its implementation is called directly."""
    return not torch.compiler.is_compiling() and _get_current_dispatch_mode() is None


def _is_known(tensor: Tensor) -> bool:
    """Whether its version tells of writes: an inference tensor has none."""
    return type(tensor) is Tensor and not tensor.is_inference()


def once(make: Callable[..., Made], *given: Any) -> Made:
    """make(*given), kept for the next call with the same: a few tiny launches a batch would cost as much as a kernel.

    Tensors are the same while they are the same object, not written to since. What is made while a CUDA graph is
    captured is not kept: its memory is filled by replays only.
    """
    if not unobserved() or not all(_is_known(g) for g in given if isinstance(g, Tensor)):
        return make(*given)
    key = (make, *((id(g), g._version) if isinstance(g, Tensor) else g for g in given))
    found = _kept.get(key)
    if found is not None:
        return found[0]
    made = make(*given)
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        return made
    if len(_kept) >= MOST_KEPT:
        _kept.clear()
    _kept[key] = made, given  # holding `given` keeps its addresses from being another tensor's
    return made


def constant(make: Callable[Given, Made]) -> Callable[Given, Made]:
    """``make``, of hashable arguments, with what it once made kept: a transfer per batch would be a host sync.

    torch.compile takes the result as it is. That is what torch.compiler.assume_constant_result does to a function, here
    without importing the compiler: that takes seconds, also of a run that compiles nothing.
    """
    made = lru_cache(maxsize=MOST_KEPT)(make)

    @wraps(make)
    def call(*given: Given.args, **named: Given.kwargs) -> Made:
        return made(*given, **named)

    call._dynamo_marked_constant = True  # pyright: ignore[reportAttributeAccessIssue]
    return call
