"""One set of build parameters, for setup.py (the host module) and for `python -m imnet_kernels.build` (host, CUDA).

Standard library only at import: setup.py loads this file by path in an isolated build, where torch is absent.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
HOST_FLAGS = ["-O3", "-std=c++17", "-fvisibility=hidden", "-pthread", "-ffp-contract=off", "-fno-math-errno", "-Wall"]
SANITIZE_FLAGS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g", "-O1"]
CUDA_FLAGS = ["-O3", "-std=c++17", "--expt-relaxed-constexpr", "-lineinfo"]
CUDA_ARCHITECTURES = ("80", "90")


def csrc() -> Path:
    """The C++ sources: beside the package in a checkout, inside it in an installed wheel."""
    for folder in (PACKAGE / "csrc", PACKAGE.parent.parent / "csrc"):
        if (folder / "host" / "module.cpp").is_file():
            return folder
    raise RuntimeError(f"no csrc folder beside or in {PACKAGE.name}; reinstall the package from its sources")


def host_sources() -> list[Path]:
    return sorted((csrc() / "host").glob("*.cpp"))


def build_host(out_dir: Path | None = None, extra_flags: tuple[str, ...] = ()) -> Path:
    """Compile the host module with $CXX (c++) into out_dir (default: the package); returns its path."""
    import pybind11

    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise RuntimeError("no C++ compiler: $CXX, c++, g++ and clang++ are all missing; install one (Debian: g++)")
    target = (out_dir or PACKAGE) / f"_host{sysconfig.get_config_var('EXT_SUFFIX')}"
    includes = [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_paths()['include']}"]
    flags = [*HOST_FLAGS, *extra_flags, "-fPIC", "-shared"]
    _run([*compiler.split(), *flags, *includes, *map(str, host_sources()), "-o", str(target)])
    return target


def _run(command: list[str]) -> str:
    """Run and return the output; a failure shows the compiler's own errors, not a traceback."""
    done = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}\nthe build failed (exit {done.returncode})")
    return done.stdout


def nvcc() -> str | None:
    """The CUDA compiler of $CUDA_HOME, of the path or of /usr/local/cuda; no GPU is asked for."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    candidates = [Path(home) / "bin" / "nvcc"] if home else []
    candidates += [Path(p) for p in (shutil.which("nvcc"),) if p] + [Path("/usr/local/cuda/bin/nvcc")]
    return next((str(c) for c in candidates if c.is_file()), None)
