"""Counts the bytes and FLOPs of every operator of a step from the tensors that it is called with, without estimates.

This is a separate pass without a profiler: a dispatch mode sees the operators that reach the device
(``aten::convolution``, not the ``aten::conv2d`` around it) in the same order as the profiler.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, shape_wrapper

from imnet.models.count import convolution_backward_flops

FLOPS = flop_registry | {torch.ops.aten.convolution_backward: shape_wrapper(convolution_backward_flops)}
# These overwrite their first argument without reading it.
_WRITE_ONLY = {
    *("aten::zero_", "aten::fill_", "aten::copy_", "aten::_foreach_zero_", "aten::_foreach_copy_"),
    *("aten::bernoulli_", "aten::uniform_", "aten::normal_", "aten::random_", "aten::exponential_"),
}
_ALLOCATING = ("aten::empty", "aten::new_empty")


@dataclass(frozen=True)
class OpCall:
    """One call: the ``shapes`` of its tensor arguments, bytes read and written, FLOPs (None if not known)."""

    name: str
    shapes: tuple[tuple[int, ...], ...]
    dtype: torch.dtype | None
    bytes_moved: int
    flops: int | None


class OpCounter(TorchDispatchMode):
    """A dispatch mode that collects ``calls`` while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[OpCall] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        kwargs = dict(kwargs or {})
        inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        out = func(*args, **kwargs)
        flops = FLOPS.get(func.overloadpacket)
        self.calls.append(
            OpCall(
                name=func._schema.name,
                shapes=tuple(tuple(t.shape) for t in inputs),
                dtype=_compute_dtype(inputs),
                bytes_moved=bytes_of_call(func, args, kwargs, out),
                flops=None if flops is None else int(flops(*args, **kwargs, out_val=out)),
            )
        )
        return out


def count(work: Callable[[], object]) -> list[OpCall]:
    """The operators of one call of ``work``, forward and backward, in order."""
    with OpCounter() as counter:
        work()
    return counter.calls


def bytes_of_call(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> int:
    """Bytes read and written by a call: of arguments, results and arguments changed in place. Views and allocations
    move none."""
    schema = func._schema
    if schema.name.startswith(_ALLOCATING) or any(_is_view(r) for r in schema.returns):
        return 0
    total = 0
    for argument, value in _bound(schema, args, kwargs):
        size = sum(_num_bytes(t) for t in tree_leaves(value) if isinstance(t, Tensor))
        written = argument.alias_info is not None and argument.alias_info.is_write
        if argument.name == "grads":  # of fused optimisers, which write them only if they divide by a scale
            written = kwargs.get("grad_scale") is not None
        overwritten = argument.is_out or (written and schema.name in _WRITE_ONLY)
        total += size * (written + (not overwritten))
    results = out if isinstance(out, (tuple, list)) and len(schema.returns) > 1 else (out,)
    for declared, value in zip(schema.returns, results, strict=False):
        if declared.alias_info is None:
            total += sum(_num_bytes(t) for t in tree_leaves(value) if isinstance(t, Tensor))
    return total


def _bound(schema: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[tuple[Any, Any]]:
    """(declared argument, value) of a call."""
    for index, argument in enumerate(schema.arguments):
        if index < len(args) and not argument.kwarg_only:
            yield argument, args[index]
        elif argument.name in kwargs:
            yield argument, kwargs[argument.name]


def _is_view(declared: Any) -> bool:
    """Whether a result shares the memory of an argument that the operator does not change."""
    return declared.alias_info is not None and not declared.alias_info.is_write


def _num_bytes(tensor: Tensor) -> int:
    """The distinct bytes of a tensor: an expanded dimension is in memory once."""
    sizes = [n for n, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride or n == 0]
    return torch.Size(sizes).numel() * tensor.element_size()


def _compute_dtype(inputs: list[Tensor]) -> torch.dtype | None:
    """The dtype of the first tensor of two or more dimensions, else of the first tensor; None without tensors."""
    wide = [t for t in inputs if t.dim() >= 2] or inputs
    return wide[0].dtype if wide else None
