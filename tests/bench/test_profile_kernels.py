"""imnet-profile kernels: occupancy computed by hand, the compilers' figures, timed cases, the roofline."""

from __future__ import annotations

import json
import shutil
import sys
import xml.etree.ElementTree as ET

import pytest
import torch
from imnet_kernels import build
from imnet_kernels.family import families

from bench.pictures import roofline
from bench.profile import resources as profile_resources
from bench.profile.cli import main
from bench.profile.kernels import flops
from bench.profile.resources import occupancy

COMMON = ["--device", "cpu", "--threads", "1"]


@pytest.mark.parametrize(
    ("registers", "shared", "threads", "architecture", "warps", "limit"),
    [
        (32, 0, 256, 80, 64, "warps"),  # 2048 threads x 32 registers = the whole register file
        (33, 0, 256, 80, 48, "registers"),  # 33 x 32 -> 1280 per warp: 51 warps, 48 in fours, 6 blocks of 8
        (33, 0, 96, 80, 48, "registers"),  # again 48, in 16 blocks of 3; 51 would allow one more block
        (40, 0, 128, 90, 48, "registers"),
        (255, 0, 256, 90, 8, "registers"),  # 8192 per warp: 8 warps, one block
        (128, 0, 512, 80, 16, "registers"),
        (16, 100 * 1024, 128, 80, 4, "shared memory"),  # 164 KiB hold one block of 101 KiB
        (16, 100 * 1024, 128, 90, 8, "shared memory"),  # 228 KiB hold two
        (16, 0, 32, 80, 32, "blocks"),
        (16, 0, 1024, 80, 64, "warps"),
        (65, 0, 1024, 90, 0, "registers"),  # 2304 per warp: 28 warps, a block needs 32: no launch
    ],
)
def test_occupancy_by_hand(registers, shared, threads, architecture, warps, limit):
    found = occupancy(registers, shared, threads, architecture)
    assert (found.active_warps, found.limit) == (warps, limit)
    assert found.share == warps / 64


@pytest.mark.parametrize("wrong", [(32, 0, 256, 75), (256, 0, 256, 80), (32, 0, 2048, 80), (32, -1, 32, 80)])
def test_occupancy_outside_the_limits(wrong):
    with pytest.raises(ValueError, match="allowed"):
        occupancy(*wrong)


def test_ptxas_report_of_several_kernels():
    report = """ptxas info    : Compiling entry function '_Z1aILi2EEvv' for 'sm_80'
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 29 registers, used 1 barriers, 20 bytes smem, 440 bytes cmem[0]
ptxas info    : Compiling entry function '_Z1bv' for 'sm_90a'
    8 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 255 registers"""
    assert profile_resources.parse_ptxas(report) == [("_Z1aILi2EEvv", 80, 29, 20, 0), ("_Z1bv", 90, 255, 0, 20)]
    with pytest.raises(RuntimeError, match="nothing about the registers of _Z1c"):
        profile_resources.parse_ptxas("Compiling entry function '_Z1c' for 'sm_80'")


@pytest.mark.skipif(shutil.which("c++filt") is None, reason="no c++filt here")
def test_names_without_namespaces_and_arguments():
    name = "_ZN5imnet12_GLOBAL__N_114augment_kernelIfLi3EEEvNS_13AugmentLaunchE"
    assert profile_resources.demangled([name]) == ["augment_kernel<float, 3>"]


def test_threads_of_every_cuda_kernel_are_found():
    for source in sorted((build.csrc() / "cuda").glob("*.cu")):
        text = source.read_text()
        bounds = profile_resources.launch_bounds(text)
        assert len(bounds) == text.count("__global__"), source.name
        assert all(64 <= threads <= 1024 and threads % 32 == 0 for threads in bounds.values()), (source.name, bounds)


def test_triton_kernel_compiled_without_a_gpu():
    pytest.importorskip("triton", reason="triton is not installed")
    found = profile_resources.triton_kernels("sgd_ema", "fp32")
    assert [r.architecture for r in found] == [80, 90]
    for r in found:
        assert 16 <= r.registers <= 255
        assert (r.spill_bytes, r.threads, r.tier) == (0, 128, "triton")
        assert r.occupancy == occupancy(r.registers, r.shared_bytes, 128, r.architecture)


@pytest.mark.slow
@pytest.mark.skipif(build.nvcc() is None, reason="no CUDA toolkit (nvcc) here")
def test_cuda_kernels_compiled_without_a_gpu():
    found = profile_resources.cuda_kernels("augment")
    assert len(found) == 2 * len({r.name for r in found}) >= 8
    assert {r.architecture for r in found} == {80, 90}
    assert all(r.name.startswith("augment_kernel") and 64 <= r.threads <= 1024 for r in found)
    assert all(0 < r.registers <= 255 and r.spill_bytes == 0 for r in found)


def kernels(out, *words):
    return main(["kernels", *words, *COMMON, "--no-resources", "--out", str(out)])


def test_every_case_is_timed_against_its_bytes(tmp_path, capsys):
    assert kernels(tmp_path, "shake_shake", "--dtype", "fp32") == 0
    found = json.loads((tmp_path / "kernels-shake_shake.json").read_text())
    family = next(f for f in families() if f.name == "shake_shake")
    wanted = [c.name for c in family.contract if not c.name.startswith("empty")]
    assert [row["case"] for row in found["cases"]] == wanted
    planar = next(row for row in found["cases"] if row["case"] == "planar")
    elements = 5 * 6 * 7 * 9
    assert (planar["bytes"], planar["flops"]) == (4 * 4 * elements, 4 * elements)
    for row in found["cases"]:
        assert row["median_s"] > 0 <= row["iqr_s"]
        assert row["bytes_per_s"] * row["median_s"] == pytest.approx(row["bytes"])
        assert row["of_copy"] == pytest.approx(row["bytes_per_s"] / found["copy_bytes_per_s"])
    printed = capsys.readouterr().out
    for name in wanted:
        assert any(line.startswith(name) for line in printed.splitlines()), name
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: all but the picture was checked")
    drawn = "".join(ET.parse(tmp_path / "kernels-shake_shake.svg").getroot().itertext())
    for name in ("stage1", "odd shapes", "copy", "fp32 matrix product", "FLOP per byte"):
        assert name in drawn, name


@pytest.mark.parametrize("family", families(), ids=lambda family: family.name)
def test_every_family_has_its_arithmetic(family, tmp_path):
    case = next(c for c in reversed(family.contract) if family.bytes_moved(c, torch.float32))
    assert kernels(tmp_path, family.name, "--case", case.name, "--tier", "reference", "--dtype", "fp32") == 0
    (row,) = json.loads((tmp_path / f"kernels-{family.name}.json").read_text())["cases"]
    assert row["flops"] > 0


def test_one_case_of_one_tier(tmp_path):
    assert kernels(tmp_path, "augment", "--case", "plain", "--tier", "reference", "--dtype", "bf16") == 0
    found = json.loads((tmp_path / "kernels-augment.json").read_text())
    (row,) = found["cases"]
    assert (found["tier"], found["dtype"], row["bytes"]) == ("reference", "bf16", 7 * 28 * 28 * 3)
    assert row["flops"] == 2 * 7 * 28 * 28


def test_flops_of_spectral_are_those_of_a_folded_dct():
    """Counts the operations of an explicit DCT: s inputs are folded into s / 2 sums and differences, and each band is
    then a sum of s / 2 terms."""
    case = next(c for f in families() if f.name == "spectral" for c in f.cases if c.name == "sub4")
    s, operations = 4, 0
    x = torch.arange(4.0)
    halves = []
    for p in range(s // 2):
        halves.append((x[p] + x[s - 1 - p], x[p] - x[s - 1 - p]))
        operations += 2
    for k in range(s):
        total = 0.0
        for p in range(s // 2):
            total = total + halves[p][k % 2] * 2 * torch.cos(torch.tensor(torch.pi * k * (2 * p + 1) / (2 * s)))
            operations += 2
        exact = sum(2 * x[p] * torch.cos(torch.tensor(torch.pi * k * (2 * p + 1) / (2 * s))) for p in range(s))
        assert float(total) == pytest.approx(float(exact), abs=1e-5)
    assert flops("spectral", case) == torch.Size(case.options["shape"]).numel() // s * operations


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["augmnet"], 2, "did you mean augment?"),
        (["augment", "--case", "imagenet46"], 2, "did you mean imagenet64?"),
        (["augment", "--case", "empty_batch"], 2, "since they move something"),
        (["augment", "--tier", "hots"], 2, "did you mean host?"),
        (["augment", "--tier", "cuda"], 69, "runs on CUDA tensors"),
        (["batch_norm", "--tier", "host"], 2, "there is no host tier of it; allowed reference, triton"),
        (["sgd_ema", "--dtype", "bf16"], 2, "allowed: fp32"),
    ],
)
def test_mistakes_are_one_line(words, code, said, tmp_path, capsys):
    assert kernels(tmp_path / "out", *words) == code
    error = capsys.readouterr().err.strip()
    assert said in error
    assert "\n" not in error
    assert not (tmp_path / "out").exists()


def test_folder_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert kernels(tmp_path / "file" / "below", "augment", "--case", "plain") == 74
    assert "choose another --out" in capsys.readouterr().err


POINTS = [
    {"case": "a", "flops": 100, "bytes": 50, "median_s": 1e-6, "bytes_per_s": 5e7, "real": True},
    {"case": "b", "flops": 1000, "bytes": 50, "median_s": 1e-5, "bytes_per_s": 5e6, "real": False},
]


def test_roofline_is_the_same_picture_twice(tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    for name in ("one.svg", "two.svg", "three.png"):
        assert roofline(tmp_path / name, "title", POINTS, 1e9, {"fp32": 1e11}) == f"roofline: {tmp_path / name}"
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    assert (tmp_path / "three.png").read_bytes().startswith(b"\x89PNG")
    assert ET.parse(tmp_path / "one.svg").getroot().tag.endswith("svg")


def test_roofline_without_matplotlib_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    said = roofline(tmp_path / "one.svg", "title", POINTS, 1e9, {"fp32": 1e11})
    assert "matplotlib is not installed" in said
    assert not (tmp_path / "one.svg").exists()
