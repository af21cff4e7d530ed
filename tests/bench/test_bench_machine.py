"""The fingerprint of a machine with several GPUs. There may be none here, so that torch's answers are replaced, and a
program stands in for nvidia-smi."""

import types

import pytest

from bench import machine

ROWS = """GPU-aaaaaaaa-0000-0000-0000-000000000000, 580.82, 210, 1980, 1593, 300.00
GPU-bbbbbbbb-0000-0000-0000-000000000000, 580.82, 1755, 1980, 2619, 700.00
"""
SECOND = {"driver": "580.82", "sm_mhz": "1755", "sm_max_mhz": "1980", "memory_mhz": "2619", "power_limit_w": "700.00"}


@pytest.fixture
def nvidia(tmp_path, monkeypatch):
    """A function nvidia(uuid, script) -> what the fingerprint has of torch's first GPU, whose UUID this is."""

    def asked(uuid, script):
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        monkeypatch.setattr("torch.cuda.get_device_properties", lambda _: types.SimpleNamespace(uuid=uuid))
        monkeypatch.setattr("torch.cuda.get_device_capability", lambda: (9, 0))
        return machine._nvidia()

    return asked


@pytest.mark.parametrize(
    ("uuid", "found"),
    [
        ("bbbbbbbb-0000-0000-0000-000000000000", SECOND),  # as with CUDA_VISIBLE_DEVICES=1
        ("cccccccc-0000-0000-0000-000000000000", {"driver": "580.82"}),  # a slice
    ],
)
def test_clocks_and_power_are_those_of_the_gpu_that_torch_uses(uuid, found, nvidia):
    wanted = "uuid,driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit"
    script = f'[ "$*" = "--query-gpu={wanted} --format=csv,noheader,nounits" ] && cat <<END\n{ROWS}END'
    assert nvidia(uuid, script) == found | {"capability": "9.0"}


def test_a_driver_that_does_not_answer_is_no_error(nvidia):
    assert nvidia("bbbbbbbb-0000-0000-0000-000000000000", "exit 9") == {"driver": None}
