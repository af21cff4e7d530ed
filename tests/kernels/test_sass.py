"""The sm_90 machine code of the GPU kernels of augment, spectral and the norms, read without a GPU: instructions per
element on the main path, the width of memory accesses, and that nothing is kept in local memory.
"""

from __future__ import annotations

import os
import textwrap

import pytest
from imnet_kernels import build

from bench.profile import resources, sass

pytest.importorskip("triton", reason="triton is not installed")
SLACK = 1.5
# Kernel -> (instructions per bf16 element on the main path, bytes per store), as the compilers gave them on 2026-11-26,
# those of sums on 2026-11-27. For the statistics of a sum, the main path is that of the last rows, one tile at a time.
TRITON = {
    "augment imagenet64 *bf16": (12.4, 16), "augment mean_image *bf16": (15.7, 16), "augment fashion *bf16": (15.6, 8),
    "spectral s=4 *bf16": (17.6, 16), "spectral s=16 *bf16": (16.7, 8), "spectral s=36 *bf16": (24.2, 4),
    "normalise_kernel *bf16": (9.2, 16), "gradient_kernel *bf16": (16.1, 16), "reduce_kernel *bf16 adds": (13.6, 16),
    "statistics_kernel *bf16 adds": (40.4, 16), "gradient_kernel *bf16 adds": (18.4, 16),
    "shake mix_kernel *bf16": (12.0, 16), "shake reduce_kernel *bf16": (31.1, 16),
    "shake gradient_kernel *bf16": (14.5, 16),
}  # fmt: skip
CUDA = {
    "augment_kernel<__nv_bfloat16, 3, 8, false>": (14.1, 16), "augment_kernel<__nv_bfloat16, 3, 8, true>": (17.1, 16),
    "augment_kernel<__nv_bfloat16, 1, 4, false>": (18.0, 8),
}  # fmt: skip


def _check(found: dict[str, resources.Resources], expected: dict[str, tuple[float, int]]) -> None:
    for name, (per_element, store_bytes) in expected.items():
        code = found[name].code
        assert code is not None, name
        assert 0 < code.per_element <= SLACK * per_element, (name, code)
        assert code.store_bytes == store_bytes, (name, code)
    for name, kernel in found.items():
        assert kernel.code is not None, name
        assert 0 < kernel.registers <= 255, (name, kernel)
        assert (kernel.code.local, kernel.code.byte_stores, kernel.spill_bytes) == (0, 0, 0), (name, kernel)


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="interpreted kernels cannot be compiled")
@pytest.mark.parametrize(
    "family",
    [
        "augment",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("spectral", "batch_norm", "shake_batch_norm")),
    ],
)
def test_triton_kernels(family):
    found = {k.name: k for k in resources.triton_kernels(family, "bf16", (90,))}
    expected = {name: limits for name, limits in TRITON.items() if name in found}
    assert len(expected) == {"batch_norm": 5}.get(family, 3)
    _check(found, expected)
    for name in found.keys() & {"statistics_kernel *bf16", "statistics_kernel *bf16 adds", "reduce_kernel *bf16"}:
        code = found[name].code
        assert code is not None
        assert code.load_bytes == 16


@pytest.mark.skipif(build.nvcc() is None, reason="no CUDA toolkit (nvcc) here")
def test_cuda_kernels():
    """sm_80's, which take as long to compile, are looked at by a slow test of test_profile_kernels.py."""
    found = {k.name: k for k in resources.cuda_kernels("augment", (90,))}
    _check(found, CUDA)
    # Pixels are loaded from global memory as 16-byte words, never byte by byte.
    assert all(k.code and k.code.load_bytes == 16 and k.code.byte_loads == 0 for k in found.values())


def test_the_main_path_is_the_shortest_one_through_the_widest_store():
    """The listing has a loop with a wide store and a narrow remainder, local memory outside it, and final padding."""
    listing = """
        /*0000*/   STL [R1], R2 ;
        /*0010*/   LDG.E.U8 R0, desc[UR4][R2.64] ;
        /*0020*/   @!P1 BRA 0x0060 ;
        /*0030*/   ISETP.GE.AND P2, PT, R0, 0x1, PT ;
        /*0040*/   @P2 STG.E.U8 desc[UR4][R2.64], R0 ;
        /*0050*/   BRA 0x0080 ;
        /*0060*/   LDG.E.64 R4, desc[UR4][R2.64] ;
        /*0070*/   STG.E.128 desc[UR4][R2.64], R4 ;
        /*0080*/   @P0 BRA 0x0010 ;
        /*0090*/   EXIT ;
        /*00a0*/   NOP ;
    """
    code = sass.parsed(textwrap.dedent(listing))
    found = sass.counts(code, 2)
    assert found == sass.Counts(10, round(5 / 8, 2), 16, 8, 1, 1, 0)
    assert sass.itemsize("spectral_kernel<2, float, __half>") == 2
    assert sass.itemsize("sgd_ema") == 4
