"""The contract of the kernels: in every case and dtype, each tier has the reference's values, gradients and layout.

On a CPU the tiers are host and, in a child process with TRITON_INTERPRET=1 (see test_triton.py), triton.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from imnet_kernels import tier
from imnet_kernels.family import Case, Family, families, outputs
from imnet_kernels.implementations import tiers_of
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

TIERS_ON = {"cpu": {"host"}, "cuda": {"triton", "cuda"}}
"""The tiers that are tested here; Triton's interpreter, which runs on a CPU, has tests of its own."""
ROWS = [
    pytest.param(family, case, dtype, id=f"{family.name}-{case.name}-{str(dtype).removeprefix('torch.')}")
    for family in families()
    for case in family.contract
    for dtype in family.tolerance
]


@pytest.fixture
def poison(monkeypatch):
    """Fills what torch.empty returns with NaN, or 77 for integers, so that an element left unwritten is noticed."""
    import torch._dynamo  # the ops import it, and it must not take the replacement for torch's function

    plain, plain_like = torch.empty, torch.empty_like

    def fill(tensor):
        return tensor.fill_(float("nan") if tensor.is_floating_point() else 77)

    monkeypatch.setattr(torch, "empty", lambda *a, **k: fill(plain(*a, **k)))
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: fill(plain_like(*a, **k)))


@pytest.mark.parametrize(
    ("family", "case", "dtype", "device"),
    [
        pytest.param(*row.values, device, id=f"{row.id}-{device}", marks=[pytest.mark.gpu] * (device == "cuda"))
        for row in ROWS
        for device, on in TIERS_ON.items()
        if on & {*tiers_of(row.values[0].name)}
    ],
)
def test_tiers_agree_with_the_reference(family: Family, case: Case, dtype, device, poison):
    names = family.tiers(device)
    if not names:
        pytest.skip(f"only the reference is installed for {device}")
    for name in names:
        family.check(case, dtype, name, device)


@pytest.mark.parametrize(
    ("family", "case", "dtype"),
    [row for row in ROWS if "float32" in str(row.id) and "host" in tiers_of(row.values[0].name)],  # others: torch's own
)
def test_same_call_same_bits_on_any_number_of_threads(family: Family, case: Case, dtype):
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(outputs(family.make(case, dtype, "cpu")))
    finally:
        torch.set_num_threads(before)
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second)


def test_every_auto_tier_on_this_cpu_is_what_the_report_says():
    rows = tier.report("cpu")
    assert set(rows) == set(tier.FAMILIES)
    for name, reason in rows.values():
        assert name in tier.TIERS
        assert reason


@pytest.mark.parametrize("family", families(), ids=lambda family: family.name)
def test_the_gate_closes(family: Family):
    """Otherwise a wrong kernel would pass: with a tolerance of -1, not even the reference agrees with itself."""
    case = next(case for case in family.contract if not case.real)
    strict = dataclasses.replace(family, tolerance={torch.float32: -1.0})
    with pytest.raises(AssertionError, match=rf"{family.name} {case.name} float32 reference on cpu: .*allowed -1"):
        strict.check(case, torch.float32, "reference")


class Moves(TorchDispatchMode):
    """Collects the operators whose inputs and outputs, scalars aside, are on more than one kind of device."""

    def __init__(self):
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = (t for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor))
        if len({t.device.type for t in tensors if t.dim()}) > 1:
            self.found.append(str(func))
        return out


@pytest.mark.parametrize("family", families(), ids=lambda family: family.name)
def test_nothing_comes_from_the_host_while_a_step_is_captured(family: Family):
    """A copy from host memory waits for the device: it would end a capture, and delay every step outside of one."""
    for case in family.contract:
        with FakeTensorMode(), tier.using("reference"):
            call = family.make(case, torch.float32, "cuda")
            if not call.leaves and not call.in_place:
                return  # families that make images: their tables are made once, before a capture
            with Moves() as moves:
                call.run()
        assert not moves.found, case.name
