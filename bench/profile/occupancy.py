"""How many warps of a kernel a multiprocessor can hold, from what the compiler gave it.

The limits are those of NVIDIA's CUDA C++ programming guide, "Technical Specifications per Compute Capability"; shared
memory is what a multiprocessor can give to blocks, of which the driver takes 1 KiB for each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

WARP_THREADS = 32
_REGISTERS = 65536
_REGISTER_UNIT = 256
"""Registers are given to a warp in pieces of this many."""
_WARPS_TOGETHER = 4
"""A block's warps take registers as if their number were a multiple of this, one for each scheduler."""
_SHARED_UNIT_BYTES = 128
_SYSTEM_SHARED_BYTES = 1024
MAX_WARPS = 64
_MAX_BLOCKS = 32
_SHARED_BYTES = {80: 164 * 1024, 90: 228 * 1024}
ARCHITECTURES = tuple(_SHARED_BYTES)


@dataclass(frozen=True)
class Occupancy:
    """Blocks and warps of one multiprocessor, and which of warps, blocks, registers and shared memory ends it."""

    blocks: int
    active_warps: int
    limit: str

    @property
    def share(self) -> float:
        return self.active_warps / MAX_WARPS


def occupancy(registers: int, shared_bytes: int, threads: int, architecture: int) -> Occupancy:
    """Of a kernel with ``registers`` a thread and ``shared_bytes`` a block of ``threads``, on sm_<architecture>.

    An upper limit: it says what fits, not what the launch fills. Raises ValueError outside the device's limits.
    """
    if architecture not in _SHARED_BYTES:
        raise ValueError(f"got sm_{architecture}; allowed: {', '.join(f'sm_{a}' for a in ARCHITECTURES)}")
    if not (1 <= threads <= 1024 and 0 <= registers <= 255 and shared_bytes >= 0):
        got = f"got {threads} threads, {registers} registers, {shared_bytes} bytes"
        raise ValueError(f"{got}; allowed: 1..1024 threads, at most 255 registers, bytes from 0")
    warps = math.ceil(threads / WARP_THREADS)
    allowed = {
        "warps": MAX_WARPS // warps,
        "blocks": _MAX_BLOCKS,
        "registers": _blocks_by_registers(registers, warps),
        "shared memory": _SHARED_BYTES[architecture] // _shared_per_block(shared_bytes),
    }
    limit = min(allowed, key=lambda name: allowed[name])
    return Occupancy(allowed[limit], allowed[limit] * warps, limit)


def _blocks_by_registers(registers: int, warps: int) -> int:
    if registers == 0:
        return _MAX_BLOCKS
    per_warp = math.ceil(registers * WARP_THREADS / _REGISTER_UNIT) * _REGISTER_UNIT
    warps_held = _REGISTERS // per_warp // _WARPS_TOGETHER * _WARPS_TOGETHER
    return warps_held // warps


def _shared_per_block(shared_bytes: int) -> int:
    return math.ceil((shared_bytes + _SYSTEM_SHARED_BYTES) / _SHARED_UNIT_BYTES) * _SHARED_UNIT_BYTES
