"""Runs a test once for every instruction set of the host kernels that this CPU has."""

import pytest


@pytest.fixture(params=["base", "avx2", "avx512", "avx512bf16"])
def isa(request):
    host = pytest.importorskip("imnet_kernels._host", reason="the host module is not built")
    try:
        host.force_isa(request.param)
    except ValueError:
        pytest.skip(f"this CPU or compiler has no {request.param}")
    yield request.param
    host.force_isa("auto")
