"""Builds the native modules and lists the packages; the other metadata is in pyproject.toml.

The host module is optional. The CUDA library is built only with IMNET_BUILD_CUDA=1.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


def _load_build():
    """Load imnet_kernels.build by path: importing the package needs torch, which an isolated build does not have."""
    spec = importlib.util.spec_from_file_location("_imnet_build", ROOT / "kernels" / "imnet_kernels" / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


build = _load_build()


class BuildPy(build_py):
    """Copies csrc into the package, so that `python -m imnet_kernels.build` also works from a wheel."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            shutil.copytree(ROOT / "csrc", Path(self.build_lib) / "imnet_kernels" / "csrc", dirs_exist_ok=True)


def _extensions() -> tuple[list, dict]:
    try:
        from pybind11.setup_helpers import Pybind11Extension, build_ext
    except ImportError:
        sys.stderr.write("imnet: no pybind11, so no host kernels: the PyTorch reference runs; `pip install pybind11`\n")
        return [], {}

    class BuildExt(build_ext):
        """Reports a missing or failing compiler; the extension is optional, so the installation goes on."""

        def build_extension(self, ext) -> None:
            try:
                super().build_extension(ext)
            except Exception as error:
                sys.stderr.write(f"imnet: host kernels not built ({error}): the PyTorch reference runs; install g++\n")
                raise

    sources = [str(path.relative_to(ROOT)) for path in build.host_sources()]
    host = Pybind11Extension("imnet_kernels._host", sources, extra_compile_args=build.HOST_FLAGS, cxx_std=17)
    host.optional = True
    return [host], {"build_ext": BuildExt}


extensions, commands = _extensions()
if os.environ.get("IMNET_BUILD_CUDA") == "1":
    build.build_cuda()
# Listed here and not in pyproject.toml, because the folder bench is installed as the package imnet_bench.
bench = [name.replace("bench", "imnet_bench", 1) for name in find_packages(".", include=["bench", "bench.*"])]
packages = [*find_packages(".", include=["imnet", "imnet.*"]), *find_packages("kernels"), *bench]
setup(packages=packages, ext_modules=extensions, cmdclass={"build_py": BuildPy, **commands})
