"""Building the CUDA library without a GPU: linked and loaded (slow: torch's headers alone take half a minute of
processor time), and what prevents it. test_sass.py compiles the kernels.
"""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from imnet_kernels import build, implementations

FAMILIES = [row.family for row in implementations.IMPLEMENTATIONS if row.tier == "cuda"]


def test_every_source_belongs_to_a_family():
    assert sorted(source.stem for source in (build.csrc() / "cuda").glob("*.cu")) == sorted(FAMILIES)


@pytest.mark.skipif(build.nvcc() is None, reason="no CUDA toolkit (nvcc) here")
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


def test_every_card_that_torch_runs_on_has_a_kernel():
    """`auto` takes the CUDA tier wherever it was built, and a launch without code for the card ends the run."""
    import torch

    known = [int(number) for number in re.findall(r"sm_(\d+)", torch._C._cuda_getArchFlags() or "")]
    if not known:
        pytest.skip("this torch is a CPU build")
    assert min(map(int, build.CUDA_ARCHITECTURES)) <= max(75, min(known))
    assert max(build.CUDA_ARCHITECTURES, key=int) == build.CUDA_ARCHITECTURES[-1]  # its PTX is kept, for newer cards


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


def test_the_folder_to_build_into_is_made_before_anything_is_compiled(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "true")  # compiles nothing, at once
    build.main(["--host", "--out", str(tmp_path / "new" / "folder")])
    assert (tmp_path / "new" / "folder").is_dir()
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(SystemExit, match=r"^cannot make the folder .*file: File exists; give another --out"):
        build.main(["--host", "--out", str(tmp_path / "file")])
