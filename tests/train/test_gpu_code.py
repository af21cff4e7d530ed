"""GPUs that torch counts, but has no code for."""

import pytest

from imnet import device
from imnet.errors import DeviceError
from imnet.run_options import RunOptions

WHEEL = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]


@pytest.mark.parametrize(
    ("capability", "built_for", "runs"),
    [
        ((6, 1), WHEEL, False),  # GTX 1080 Ti
        ((7, 5), WHEEL, True),
        ((8, 9), WHEEL, True),
        ((9, 0), WHEEL, True),
        ((10, 3), WHEEL, True),
        ((11, 0), WHEEL, False),
        ((12, 1), WHEEL, True),
        ((13, 0), WHEEL, False),
        ((13, 0), [*WHEEL, "compute_120"], True),
        ((8, 0), ["sm_86"], False),
        ((8, 0), ["compute_86"], False),
        ((9, 0), ["sm_90a"], True),
        ((9, 4), ["gfx942"], True),
        ((9, 0), [], True),
    ],
)
def test_which_gpus_code_runs_on(capability, built_for, runs):
    assert device.has_code(capability, built_for) == runs


def test_a_gpu_without_code_is_refused_in_one_line(monkeypatch):
    """No machine of ours has such a card, so torch's answers are replaced."""
    monkeypatch.setattr(device, "num_gpus", lambda: 1)
    monkeypatch.setattr("torch.cuda.set_device", lambda index: None)
    monkeypatch.setattr("torch.cuda.get_arch_list", lambda: WHEEL)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda index: (6, 1))
    monkeypatch.setattr("torch.cuda.get_device_name", lambda index: "NVIDIA GeForce GTX 1080 Ti")
    with pytest.raises(DeviceError, match=r"no code, NVIDIA GeForce GTX 1080 Ti \(sm_61\); allowed: sm_75.*device cpu"):
        device.resolve(RunOptions())
