"""Roofs of this machine, measured on less: a test needs them quickly, not well."""

import pytest

from bench import machine


@pytest.fixture(scope="session", autouse=True)
def small_roofs():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(machine.COPY_BYTES, "cpu", 1 << 22)
        patch.setitem(machine.MATMUL, "cpu", 128)
        yield
