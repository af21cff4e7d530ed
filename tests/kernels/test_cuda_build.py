"""The CUDA sources without a GPU: every .cu for sm_80 and sm_90 without spills; the library linked and loaded (slow:
torch's headers alone take half a minute of processor time).
"""

from __future__ import annotations

import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from imnet_kernels import build, implementations

needs_nvcc = pytest.mark.skipif(build.nvcc() is None, reason="no CUDA toolkit (nvcc) here")
FAMILIES = [row.family for row in implementations.IMPLEMENTATIONS if row.tier == "cuda"]


@pytest.fixture(scope="module")
def reports(tmp_path_factory) -> dict[str, str]:
    """Returns the ptxas report of every .cu, by its name, for both architectures; two compilers run at a time."""
    folder = tmp_path_factory.mktemp("objects")
    sources = sorted((build.csrc() / "cuda").glob("*.cu"))
    with ThreadPoolExecutor(2) as pool:
        found = pool.map(lambda source: build.compile_cuda(source, folder / f"{source.stem}.o"), sources)
        return {source.stem: report for source, report in zip(sources, found, strict=True)}


@needs_nvcc
@pytest.mark.parametrize("family", FAMILIES)
def test_compiles_for_both_architectures_without_spills(family, reports):
    report = reports[family]
    for architecture in build.CUDA_ARCHITECTURES:
        assert f"sm_{architecture}" in report
    spills = [int(n) for n in re.findall(r"(\d+) bytes spill (?:stores|loads)", report)]
    assert spills
    assert not any(spills), report
    assert max(int(n) for n in re.findall(r"Used (\d+) registers", report)) <= 255


@needs_nvcc
def test_every_source_belongs_to_a_family(reports):
    assert sorted(reports) == sorted(FAMILIES)


@needs_nvcc
@pytest.mark.slow
def test_library_builds_and_registers_its_ops(tmp_path):
    pytest.importorskip("torch.version", reason="torch is needed")
    import torch

    if torch.version.cuda is None:
        pytest.skip("this torch has no CUDA headers")
    library = build.build_cuda(tmp_path)
    code = "import sys, pathlib; from imnet_kernels import native; ops = native.cuda(pathlib.Path(sys.argv[1])); "
    code += "print([str(getattr(ops, n).default._schema) for n in ('augment',)])"
    path = {"PYTHONPATH": ":".join(p for p in sys.path if p)}
    done = subprocess.run(
        [sys.executable, "-c", code, str(library.parent)], env=path, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("imnet_cuda::") == 1


def test_a_library_for_another_torch_is_one_clear_line(tmp_path):
    from imnet_kernels import native

    (tmp_path / "_C.torch0.0.so").write_bytes(b"")
    with pytest.raises(RuntimeError, match=r"_C\.torch0\.0\.so; allowed .*build` again"):
        native.cuda(tmp_path)


def test_cuda_wheel_in_isolation_says_what_to_add(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(SystemExit, match="--no-build-isolation"):
        build.build_cuda()


def test_no_compiler_is_one_clear_line(monkeypatch, tmp_path):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    with pytest.raises(SystemExit, match="no C\\+\\+ compiler"):
        build.build_host(tmp_path)
