"""The address table that the CUDA and Triton tiers read: every parameter in one launch."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from .reference import Lists, Step


@lru_cache(maxsize=16)
def table(
    addresses: tuple[tuple[int, ...], ...], sizes: tuple[int, ...], chunk: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """(5, T) addresses of p, g, m, e and sizes; (N, 2) chunks: tensor, first element.

    Made once while the tensors stay where they are, as they do under a CUDA graph.
    """
    rows = torch.tensor([*addresses, sizes], dtype=torch.int64)
    chunks = [(t, first) for t, size in enumerate(sizes) for first in range(0, size, chunk)]
    return rows.to(device), torch.tensor(chunks, dtype=torch.int64).view(-1, 2).to(device)


def tables(lists: Lists, chunk: int) -> tuple[Tensor, Tensor]:
    """The table of (params, grads, momenta, emas); an empty list's addresses are never read."""
    params = lists.params
    addresses = tuple(tuple(t.data_ptr() for t in (items or params)) for items in lists)
    return table(addresses, tuple(p.numel() for p in params), chunk, params[0].device)


def on_device(step: Step, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """lr, the gradients' factor and skip, as tensors that a captured graph reads again."""
    scale = constant(1.0, device) if step.grad_scale is None else step.grad_scale
    return step.lr, scale, constant(0.0, device) if step.skip is None else step.skip


@lru_cache(maxsize=16)
def constant(value: float, device: torch.device) -> Tensor:
    """A cached (1,) fp32 tensor: no transfer per step."""
    return torch.full((1,), value, dtype=torch.float32, device=device)
