"""sgd_ema_ as one Triton launch for all parameters, through a table of addresses: one program per 4096 elements."""

# ruff: noqa: N803  (Triton constants are written as constants)

from __future__ import annotations

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from ..tritonlib import Build, on_own_device
from . import reference
from ._host import fitting
from .reference import Lists, Step

BLOCK = 1024
CHUNK = 4096
"""Elements per iteration (BLOCK) and per program (CHUNK). Not tuned: no other sizes were timed on a GPU."""


@triton.jit
def sgd_ema_kernel(
    table_ptr, chunks_ptr, lr_ptr, grad_scale_ptr, skip_ptr, num_tensors, momentum, weight_decay, ema_weight,
    MOMENTA: tl.constexpr, EMAS: tl.constexpr, NESTEROV: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Program i updates CHUNK elements of one parameter, all fp32, as chunks[i] = (tensor, first element) says.

    table (5, T) int64: for T tensors the addresses of parameter, gradient, momentum and average, and the sizes.
    """
    tensor = tl.load(chunks_ptr + 2 * tl.program_id(0))
    first = tl.load(chunks_ptr + 2 * tl.program_id(0) + 1)
    p_ptr = tl.load(table_ptr + tensor).to(tl.pointer_type(tl.float32))
    g_ptr = tl.load(table_ptr + num_tensors + tensor).to(tl.pointer_type(tl.float32))
    m_ptr = tl.load(table_ptr + 2 * num_tensors + tensor).to(tl.pointer_type(tl.float32))
    e_ptr = tl.load(table_ptr + 3 * num_tensors + tensor).to(tl.pointer_type(tl.float32))
    lr = tl.load(lr_ptr)
    scale = tl.load(grad_scale_ptr)
    # A step with a gradient that is not finite must change nothing. Reading the flag on the host would be a sync, so
    # the kernel sets the size to 0 for such a step, which masks every load and store.
    size = tl.where(tl.load(skip_ptr) == 0.0, tl.load(table_ptr + 4 * num_tensors + tensor), 0)
    for start in tl.static_range(0, CHUNK, BLOCK):
        at = first + start + tl.arange(0, BLOCK)
        live = at < size
        p = tl.load(p_ptr + at, mask=live, other=0.0)
        step = tl.load(g_ptr + at, mask=live, other=0.0) * scale + p * weight_decay
        if MOMENTA:
            m = tl.load(m_ptr + at, mask=live, other=0.0) * momentum + step
            tl.store(m_ptr + at, m, mask=live)
            step = step + m * momentum if NESTEROV else m
        p = p - step * lr
        tl.store(p_ptr + at, p, mask=live)
        if EMAS:
            e = tl.load(e_ptr + at, mask=live, other=0.0)
            tl.store(e_ptr + at, e + (p - e) * ema_weight, mask=live)


MOST_TABLES = 16
"""The most tables of one list of parameters that are kept. Where gradients move in every step, each is used once."""
_tables = WeakTensorKeyDictionary()
"""The first parameter of a list -> {(addresses, sizes): (table, chunks)}."""


def _table(params: list[Tensor], addresses: tuple[tuple[int, ...], ...]) -> tuple[Tensor, Tensor]:
    """The kernel's table and chunks on the device, cached as long as the tensors keep their addresses.

    They do under a CUDA graph, which reads its table in every replay. So the tables belong to their parameters: one
    cache for all would forget those of the first networks of an ensemble.
    """
    mine, sizes, device = _tables.setdefault(params[0], {}), tuple(p.numel() for p in params), params[0].device
    if (addresses, sizes) not in mine:
        if len(mine) >= MOST_TABLES:
            mine.pop(next(iter(mine)))
        rows = torch.tensor([*addresses, sizes], dtype=torch.int64)
        chunks = [(t, first) for t, size in enumerate(sizes) for first in range(0, size, CHUNK)]
        mine[addresses, sizes] = rows.to(device), torch.tensor(chunks, dtype=torch.int64).view(-1, 2).to(device)
    return mine[addresses, sizes]


@lru_cache(maxsize=16)
def _constant(value: float, device: torch.device) -> Tensor:
    """A (1,) fp32 tensor on the device, cached so that no step makes a transfer."""
    return torch.full((1,), value, dtype=torch.float32, device=device)


def sgd_ema_(lists: Lists, step: Step) -> None:
    """See reference.sgd_ema_, which updates all parameters if the dtype or layout of one does not fit."""
    if not all(fitting(lists)):
        reference.sgd_ema_(lists, step)
        return
    params, device = lists.params, lists.params[0].device
    # For an empty list the parameters' addresses fill the table's row, and the kernel is compiled not to use them.
    addresses = tuple(tuple(t.data_ptr() for t in (items or params)) for items in lists)
    table, chunks = _table(params, addresses)
    if chunks.shape[0] == 0:
        return
    # Device tensors, because a captured graph reads their values anew in every replay.
    scale = _constant(1.0, device) if step.grad_scale is None else step.grad_scale
    skip = _constant(0.0, device) if step.skip is None else step.skip
    numbers = (float(step.momentum), float(step.weight_decay), 1.0 - step.ema_decay)
    launch = on_own_device(sgd_ema_kernel[(chunks.shape[0],)])
    launch(
        table, chunks, step.lr, scale, skip, len(params), *numbers,
        MOMENTA=bool(lists.momenta), EMAS=bool(lists.emas), NESTEROV=step.nesterov, CHUNK=CHUNK, BLOCK=BLOCK
    )  # fmt: skip


def builds() -> list[Build]:
    """The kernel with all options on, to compile without a GPU."""
    signature = dict.fromkeys(("table_ptr", "chunks_ptr"), "*i64")
    signature |= dict.fromkeys(("lr_ptr", "grad_scale_ptr", "skip_ptr"), "*fp32")
    signature |= {"num_tensors": "i32", "momentum": "fp32", "weight_decay": "fp32", "ema_weight": "fp32"}
    constants = {"MOMENTA": True, "EMAS": True, "NESTEROV": True, "CHUNK": CHUNK, "BLOCK": BLOCK}
    return [Build("sgd_ema", sgd_ema_kernel, signature, constants)]
