"""Measures the machine's roofs (copy bandwidth, matrix products) on small arrays: tests need them fast, not exact."""

import pytest

from bench import machine


@pytest.fixture(scope="session", autouse=True)
def small_roofs():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(machine.COPY_BYTES, "cpu", 1 << 22)
        patch.setitem(machine.MATMUL, "cpu", 128)
        yield
