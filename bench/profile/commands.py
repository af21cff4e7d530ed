"""The command lines of nsys and ncu for the very run that was asked for."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

_KERNELS_PROFILED = 20


@contextlib.contextmanager
def captured(place: torch.device) -> Iterator[None]:
    """What nsys and ncu are to look at, started as below; on a CPU nothing."""
    if place.type != "cuda":
        yield
        return
    torch.cuda.profiler.start()
    try:
        yield
    finally:
        torch.cuda.profiler.stop()


def again(arguments: Sequence[str], extra: Sequence[str] = ()) -> str:
    """This run as a shell command; PYTHONPATH comes along where it is set, as in a checkout."""
    package = (__package__ or "bench").partition(".")[0]
    path = os.environ.get("PYTHONPATH")
    words = [*(["env", f"PYTHONPATH={path}"] if path else []), sys.executable, "-m", f"{package}.profile"]
    missing = [word for word in extra if word not in arguments]
    return shlex.join([*words, *arguments, *missing])


def nsys(arguments: Sequence[str], folder: Path, name: str, extra: Sequence[str] = ()) -> str:
    """The timeline of launches and kernels between cudaProfilerStart and Stop (see ``captured``)."""
    ranged = ["--capture-range=cudaProfilerApi", "--capture-range-end=stop"]
    options = ["--trace=cuda,nvtx,cudnn,cublas,osrt", *ranged, "--force-overwrite=true", "-o", str(folder / name)]
    return f"{shlex.join(['nsys', 'profile', *options])} {again(arguments, extra)}"


def ncu(arguments: Sequence[str], folder: Path, name: str, extra: Sequence[str] = ()) -> str:
    """Every counter of the first kernels after cudaProfilerStart; the clocks stay as they are."""
    ranged = ["--nvtx", "--profile-from-start", "off"]
    options = ["--set", "full", "--clock-control", "none", *ranged, "--launch-count", str(_KERNELS_PROFILED)]
    return f"{shlex.join(['ncu', *options, '-f', '-o', str(folder / name)])} {again(arguments, extra)}"


def text(arguments: Sequence[str], folder: Path, name: str, extra: Sequence[str] = ()) -> str:
    """Both, with what they are for. ``extra``: what the run needs besides, e.g. ``--nvtx``."""
    return (
        f"on a GPU, the timeline:  {nsys(arguments, folder, name, extra)}\n"
        f"on a GPU, the counters:  {ncu(arguments, folder, name, extra)}"
    )
