"""Philox4x32-10, the counter-based generator behind every random choice (Salmon et al., SC 2011).

A draw is a pure function of (seed, epoch, sample id, stream): there is no state to save, and draws are the same for
every tier, batch size and world size. The key is the two halves of the seed; the counter is (id low, id high, epoch,
stream). The arithmetic is plain int64: torch's products wrap modulo 2^64, so the 32 x 32 -> 64 bit multiply is exact.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

MASK32 = 0xFFFFFFFF
_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_NUM_ROUNDS = 10

# One stream per purpose, so that switching cutout on does not change the crops.
STREAM_CROP_FLIP = 0
STREAM_CUTOUT = 1
STREAM_FLIP_PHASE = 2
STREAM_ORDER = 3


def _check_range(name: str, value: int, bits: int) -> None:
    if not 0 <= value < 1 << bits:
        raise ValueError(f"{name} = {value}; allowed 0 .. 2^{bits} - 1; pass a smaller non-negative integer")


def philox4x32(counter: Sequence[Tensor], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Ten rounds on four int64 tensors of one shape that hold 32-bit words; returns four such tensors."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_NUM_ROUNDS):
        p0, p1 = c0 * _M0, c2 * _M1
        c0, c1, c2, c3 = ((p1 >> 32) & MASK32) ^ c1 ^ k0, p1 & MASK32, ((p0 >> 32) & MASK32) ^ c3 ^ k1, p0 & MASK32
        k0, k1 = (k0 + _W0) & MASK32, (k1 + _W1) & MASK32
    return c0, c1, c2, c3


def philox(ids: Tensor, *, seed: int, epoch: int, stream: int | range) -> tuple[Tensor, ...]:
    """Four independent 32-bit words per id.

    ids (any shape) int64; seed 0 .. 2^64 - 1; epoch and stream 0 .. 2^32 - 1. Returns four int64 tensors of ids'
    shape with values 0 .. 2^32 - 1, on ids' device. For a range of streams their shape is (streams, *shape), drawn
    with as many tensor operations as for one stream.
    """
    _check_range("seed", seed, 64)
    _check_range("epoch", epoch, 32)
    streams = stream if isinstance(stream, range) else range(stream, stream + 1)
    _check_range("stream", streams.start, 32)
    _check_range("stream", streams.stop - 1, 32)
    if ids.dtype != torch.int64:
        raise TypeError(f"ids are {ids.dtype}; allowed torch.int64; call ids.long()")
    numbers = torch.arange(streams.start, streams.stop, device=ids.device).view(-1, *[1] * ids.dim())
    counter = torch.broadcast_tensors(ids & MASK32, (ids >> 32) & MASK32, torch.full_like(ids, epoch), numbers)
    words = philox4x32(counter, (seed & MASK32, seed >> 32))
    return words if isinstance(stream, range) else tuple(word[0] for word in words)


def uniform_below(word: Tensor, n: int | Tensor) -> Tensor:
    """Map a 32-bit word to an integer in 0 .. n - 1 by multiply-high; the bias is below n / 2^32 (2e-8 for n = 65)."""
    return (word * n) >> 32


def philox_permutation(n: int, *, seed: int, epoch: int) -> Tensor:
    """The sample order of one epoch: (n,) int64 on the CPU. It is the stable argsort of 62-bit draws, so it is the same
    on every platform."""
    if n < 0:
        raise ValueError(f"n = {n}; allowed 0 or more; pass the number of samples")
    r0, r1, _, _ = philox(torch.arange(n, dtype=torch.int64), seed=seed, epoch=epoch, stream=STREAM_ORDER)
    return torch.argsort((r0 << 30) | (r1 >> 2), stable=True)
