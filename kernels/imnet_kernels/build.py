"""Builds the native kernels, for setup.py (the host module) and for `python -m imnet_kernels.build` (host, CUDA).

Imports only the standard library at module level: setup.py loads this file by path in an isolated build without torch.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
HOST_FLAGS = ["-O3", "-std=c++17", "-fvisibility=hidden", "-pthread", "-ffp-contract=off", "-fno-math-errno", "-Wall"]
SANITIZE_FLAGS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g", "-O1"]
CUDA_FLAGS = ["-O3", "-std=c++17", "-Xcompiler", "-fPIC", "-lineinfo"]
CUDA_ARCHITECTURES = ("75", "80", "90")  # from Turing on, like torch's wheels for CUDA 13; newer cards use 90's PTX
CUDA_MODULE = "_C.torch{}.so"  # named after the torch version that it was built with; no other version may load it


def csrc() -> Path:
    """The C++ sources: beside the package in a checkout, inside it in an installed wheel."""
    for folder in (PACKAGE / "csrc", PACKAGE.parent.parent / "csrc"):
        if (folder / "host" / "module.cpp").is_file():
            return folder
    raise RuntimeError(f"no csrc folder beside or in {PACKAGE.name}; reinstall the package from its sources")


def host_sources() -> list[Path]:
    return sorted((csrc() / "host").glob("*.cpp"))


def _host_compiler() -> list[str]:
    """The C++ compiler's command line: $CXX, else the first of c++, g++ and clang++. Raises SystemExit if it cannot be
    run: now, rather than after nvcc has run for a minute."""
    found = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if found is None:
        raise SystemExit("no C++ compiler: $CXX, c++, g++ and clang++ are all missing; install one (Debian: g++)")
    _run([*found.split(), "--version"])
    return found.split()


def build_host(out_dir: Path | None = None, extra_flags: tuple[str, ...] = ()) -> Path:
    """Compile the host module into out_dir (default: the package) with the compiler of _host_compiler(); returns its
    path."""
    try:
        import pybind11
    except ImportError as error:
        raise SystemExit("the host module needs pybind11, which is not installed; pip install pybind11") from error
    compiler = _host_compiler()
    target = _place(out_dir) / f"_host{sysconfig.get_config_var('EXT_SUFFIX')}"
    includes = [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_paths()['include']}"]
    flags = [*HOST_FLAGS, *extra_flags, "-fPIC"]
    with tempfile.TemporaryDirectory() as scratch:

        def to_object(source: Path) -> str:
            found = str(Path(scratch) / f"{source.stem}.o")
            _run([*compiler, *flags, *includes, "-c", str(source), "-o", found])
            return found

        objects = _at_once([lambda s=source: to_object(s) for source in host_sources()])
        _run([*compiler, *flags, "-shared", *objects, "-o", str(target)])
    return target


def _place(out_dir: Path | None) -> Path:
    """The folder to write to. It is made before anything is compiled: the linker would miss it, a minute later."""
    place = out_dir or PACKAGE
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SystemExit(f"cannot make the folder {place}: {error.strerror}; give another --out") from error
    return place


def _at_once(works: Iterable[Callable[[], str]]) -> list[str]:
    """Run all works in parallel, one per core, and return their results in order. Each compiles one file."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with ThreadPoolExecutor(cores) as pool:
        return [future.result() for future in [pool.submit(work) for work in works]]


def _run(command: list[str]) -> str:
    """Run a command and return its output; on failure exit with the compiler's own errors instead of a traceback."""
    try:
        done = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    except OSError as error:
        hint = "install a C++ compiler (Debian: g++), or name it in $CXX"
        raise SystemExit(f"cannot run {command[0]}: {error.strerror}; {hint}") from error
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}\nthe build failed (exit {done.returncode})")
    return done.stdout


def nvcc() -> str | None:
    """The CUDA compiler from $CUDA_HOME or $CUDA_PATH, the PATH or /usr/local/cuda, or None; needs no GPU."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    candidates = [Path(home) / "bin" / "nvcc"] if home else []
    candidates += [Path(p) for p in (shutil.which("nvcc"),) if p] + [Path("/usr/local/cuda/bin/nvcc")]
    return next((str(c) for c in candidates if c.is_file()), None)


def toolkit(compiler: str) -> Path:
    """The CUDA toolkit's folder, found by its headers: a distribution's nvcc may be a script in another folder."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    candidates = [Path(home)] if home else []
    candidates += [Path(compiler).resolve().parent.parent, Path("/usr/local/cuda")]
    found = next((c for c in candidates if (c / "include" / "cuda_runtime_api.h").is_file()), None)
    if found is None:
        raise SystemExit(f"no include/cuda_runtime_api.h beside {compiler}; set CUDA_HOME to the toolkit's folder")
    return found


def compile_cuda(source: Path, target: Path, architectures: tuple[str, ...] = CUDA_ARCHITECTURES) -> str:
    """Compile a .cu file to an object for the architectures, with PTX for the last; returns ptxas' report of registers
    and spills."""
    compiler = nvcc()
    assert compiler is not None  # the callers have looked for it
    codes = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in architectures]
    codes.append(f"-gencode=arch=compute_{architectures[-1]},code=compute_{architectures[-1]}")
    return _run([compiler, *CUDA_FLAGS, *codes, "-Xptxas", "-v", "-c", str(source), "-o", str(target)])


def build_cuda(out_dir: Path | None = None) -> Path:
    """Compile csrc/cuda against the installed torch into out_dir (default: the package); returns its path. All files
    are compiled in parallel: bind.cpp, which includes torch's headers, takes as long as a kernel."""
    try:
        import torch
    except ImportError as error:
        hint = "add --no-build-isolation: the CUDA kernels are compiled against the torch that you run"
        raise SystemExit(f"IMNET_BUILD_CUDA=1 needs torch at build time and this build has none; {hint}") from error
    compiler = nvcc()
    if compiler is None:
        raise SystemExit("no nvcc in $CUDA_HOME, on the path or in /usr/local/cuda; install the CUDA toolkit")
    includes, libraries = _torch_folders(toolkit(compiler))
    target, host = _place(out_dir) / CUDA_MODULE.format(torch.__version__), _host_compiler()
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    with tempfile.TemporaryDirectory() as scratch:
        folder, bound = Path(scratch), str(Path(scratch) / "bind.o")
        command = [*host, "-O2", "-std=c++20", "-fPIC", abi, *(f"-I{p}" for p in includes)]
        sources = {source: folder / f"{source.stem}.o" for source in sorted((csrc() / "cuda").glob("*.cu"))}
        _at_once(
            [
                lambda: _run([*command, "-c", str(csrc() / "cuda" / "bind.cpp"), "-o", bound]),
                *(lambda s=source, o=found: compile_cuda(s, o) for source, found in sources.items()),
            ]
        )
        linked = ["-lc10", "-lc10_cuda", "-ltorch", "-ltorch_cpu", "-ltorch_cuda", _cudart(libraries)]
        objects = [bound, *map(str, sources.values())]
        _run([*host, "-shared", *objects, *(f"-L{p}" for p in libraries), *linked, "-o", str(target)])
    return target


def _torch_folders(home: Path) -> tuple[list[str], list[str]]:
    """(include folders, library folders) of torch and of the toolkit in ``home``."""
    import torch
    from torch.utils.cpp_extension import include_paths, library_paths

    # torch's headers include cusparse and others, which a minimal toolkit lacks; the wheels that torch depends on have
    # them.
    wheels = sorted(Path(torch.__file__).parent.parent.glob("nvidia/*/include"))
    includes = [*include_paths(), str(home / "include"), *map(str, wheels)]
    return includes, [*library_paths(), str(home / "lib64"), *(str(w.parent / "lib") for w in wheels)]


def _cudart(folders: list[str]) -> str:
    """The linker option for the CUDA runtime. By file name if there is only libcudart.so.N, as in torch's wheels."""
    names = [p.name for f in folders for p in sorted(Path(f).glob("libcudart.so*"))]
    return f"-l:{min(names, key=len)}" if names and "libcudart.so" not in names else "-lcudart"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m imnet_kernels.build", description="Build the native kernels in place."
    )
    parser.add_argument("--host", action="store_true", help="the CPU module (needs a C++ compiler)")
    parser.add_argument("--cuda", action="store_true", help="the CUDA library (needs nvcc; the default)")
    parser.add_argument("--out", type=Path, help="folder to write to instead of the installed package")
    options = parser.parse_args(arguments)
    if options.host:
        print(f"built {build_host(options.out).name}")
    if options.cuda or not options.host:
        print(f"built {build_cuda(options.out).name}")


if __name__ == "__main__":
    main()
