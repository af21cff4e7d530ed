"""What every profile needs: a folder that can be used, and the lines of nsys and ncu for this run."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from imnet.errors import IOFailure

KERNELS_COUNTED = 20


def usable_folder(path: Path) -> Path:
    """The folder, made where it was not; IOFailure unless files can be written into it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".probe.{os.getpid()}"
        probe.write_bytes(b"imnet")
        probe.unlink()
    except OSError as error:
        what = f"not writable: {error.strerror}"
        raise IOFailure(what, file=path, hint="choose another --out") from error
    return path


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
    words = [*(["env", f"PYTHONPATH={path}"] if path else []), sys.executable, "-m", f"{package}.profile.cli"]
    missing = [word for word in extra if word not in arguments]
    return shlex.join([*words, *arguments, *missing])


def commands(arguments: Sequence[str], folder: Path, name: str, extra: Sequence[str] = ()) -> str:
    """The timeline of launches, and every counter of the first kernels, between cudaProfilerStart and Stop (see
    ``captured``). ``extra``: what the run needs besides, e.g. ``--nvtx``."""
    out, run = str(folder / name), again(arguments, extra)
    ranged = ["--capture-range=cudaProfilerApi", "--capture-range-end=stop"]
    nsys = ["nsys", "profile", "--trace=cuda,nvtx,cudnn,cublas,osrt", *ranged, "--force-overwrite=true", "-o", out]
    chosen = ["--nvtx", "--profile-from-start", "off", "--launch-count", str(KERNELS_COUNTED)]
    ncu = ["ncu", "--set", "full", "--clock-control", "none", *chosen, "-f", "-o", out]
    return f"on a GPU, the timeline:  {shlex.join(nsys)} {run}\non a GPU, the counters:  {shlex.join(ncu)} {run}"
