"""Helpers of the families' public functions: detecting tracers and dispatch modes, caching small tensors, full fp32."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
    """True if neither torch.compile nor a dispatch mode observes the call. Then the custom op, whose Python wrappers
    take 15 to 20 us per call on a CPU, is not needed and the implementation is called directly."""
    return not torch.compiler.is_compiling() and _get_current_dispatch_mode() is None


def _is_known(tensor: Tensor) -> bool:
    """Whether the tensor has a version counter that records writes; an inference tensor has none."""
    return type(tensor) is Tensor and not tensor.is_inference()


def once(make: Callable[..., Made], *given: Any) -> Made:
    """Return make(*given) and cache it: a few tiny launches per batch would cost as much as a kernel.

    Tensor arguments match if they are the same object and were not written to since. Results made during the capture
    of a CUDA graph are not cached, because only replays fill their memory.
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
    _kept[key] = made, given  # keeping `given` alive prevents another tensor from getting the same id
    return made


def constant(make: Callable[Given, Made]) -> Callable[Given, Made]:
    """Cache the results of ``make``, whose arguments are hashable: a transfer per batch would be a host sync.

    torch.compile treats the result as a constant. The attribute set here is the one that
    torch.compiler.assume_constant_result sets, but that function imports the compiler, which takes seconds.
    """
    made = lru_cache(maxsize=MOST_KEPT)(make)

    @wraps(make)
    def call(*given: Given.args, **named: Given.kwargs) -> Made:
        return made(*given, **named)

    call._dynamo_marked_constant = True  # pyright: ignore[reportAttributeAccessIssue]
    return call


@contextmanager
def full_fp32(tensor: Tensor) -> Iterator[None]:
    """Multiply matrices on the tensor's GPU in fp32, also where training in half precision has allowed TF32: with its
    ten bits of mantissa some pixels would be others than on a CPU.

    On a CPU nothing is done, since there is no TF32, and since the threads that prepare images share this setting.
    """
    if not tensor.is_cuda or torch.compiler.is_compiling():
        yield
        return
    matmul = torch.backends.cuda.matmul
    before, matmul.allow_tf32 = matmul.allow_tf32, False
    try:
        yield
    finally:
        matmul.allow_tf32 = before
