"""imnet-profile step | kernels: where the time goes and how far from the roof, on a GPU or a CPU."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from imnet.command import Parser, guarded
from imnet.errors import IOFailure
from imnet.files import check_folder

from ..cli import FAMILIES, FEWER, add_run, count

if TYPE_CHECKING:
    import torch

KERNELS_COUNTED = 20
_OUT = Path("runs") / "profile"


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code (2 usage, 65 data, 69 device, 74 files)."""
    return guarded("imnet-profile", _run, argv, FEWER)


def _run(argv: list[str]) -> int:
    values = _parser().parse_args(argv)
    from imnet.defaults import choose_kernels
    from imnet.run_options import RunOptions

    if values.command != "kernels":  # which chooses its tier itself
        choose_kernels(RunOptions(device=values.device))
    importlib.import_module(f".{values.command}", __package__).run(values, argv)
    return 0


def _parser() -> argparse.ArgumentParser:
    about = "Where the time of a training goes, and how far from the roof it is."
    parser = Parser(prog="imnet-profile", description=about)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser, metavar="COMMAND")
    for name, (about, extend) in _COMMANDS.items():
        command = commands.add_parser(name, help=about, description=about)
        extend(command)
        command.add_argument("--out", type=Path, default=_OUT, help=f"folder for the files (default {_OUT})")
    return parser


def _add_step(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--recipe", help="recipe to profile (default quickstart)")
    parser.add_argument("--model", help="or a network: in its recipe, else at 64 px")
    add_run(parser)
    parser.add_argument("--image-px", type=count, help="side of the images (default: the recipe's)")
    parser.add_argument("--steps", type=count, default=3, help="steps to profile (default 3)")
    parser.add_argument("--nvtx", action="store_true", help="NVTX ranges instead of torch's profiler: for nsys and ncu")
    parser.add_argument("--by-shape", action="store_true", help="a line for every shape of an operator")
    parser.add_argument("--top", type=count, default=25, help="lines to print (default 25)")


def _add_kernels(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("family", choices=(*FAMILIES, "batch_norm", "dense_stage", "shake_batch_norm"))
    parser.add_argument("--case", help="one case (default: all)")
    parser.add_argument("--dtype", choices=("fp32", "bf16", "fp16"), help="default: bf16 where it has it")
    tiers = ("auto", "reference", "host", "triton", "cuda")
    parser.add_argument("--tier", choices=tiers, default="auto", help="default: what training takes")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--threads", type=count, help="CPU threads (default: the cores)")
    parser.add_argument("--no-resources", action="store_true", help="do not compile for sm_80 and sm_90")


def usable_folder(path: Path) -> Path:
    """``path``, which need not exist yet; raises IOFailure unless files can be written to it. Makes nothing."""
    try:
        check_folder(path)
    except OSError as error:
        what = f"not writable: {error.strerror}"
        raise IOFailure(what, file=path, hint="choose another --out") from error
    return path


@contextlib.contextmanager
def captured(place: torch.device) -> Iterator[None]:
    """Mark the part of the run that nsys and ncu record when started as in ``commands``; does nothing on a CPU."""
    import torch

    if place.type != "cuda":
        yield
        return
    torch.cuda.profiler.start()
    try:
        yield
    finally:
        torch.cuda.profiler.stop()


def again(arguments: Sequence[str], extra: Sequence[str] = ()) -> str:
    """This run as a shell command, with PYTHONPATH if it is set, as in a checkout."""
    package = (__package__ or "bench").partition(".")[0]
    path = os.environ.get("PYTHONPATH")
    words = [*(["env", f"PYTHONPATH={path}"] if path else []), sys.executable, "-m", f"{package}.profile.cli"]
    missing = [word for word in extra if word not in arguments]
    return shlex.join([*words, *arguments, *missing])


def commands(arguments: Sequence[str], folder: Path, name: str, extra: Sequence[str] = ()) -> str:
    """Command lines for nsys (the timeline of launches) and ncu (all counters of the first kernels) of the part between
    cudaProfilerStart and Stop (see ``captured``). ``extra``: options that the run also needs, e.g. ``--nvtx``."""
    out, run = str(folder / name), again(arguments, extra)
    ranged = ["--capture-range=cudaProfilerApi", "--capture-range-end=stop"]
    nsys = ["nsys", "profile", "--trace=cuda,nvtx,cudnn,cublas,osrt", *ranged, "--force-overwrite=true", "-o", out]
    chosen = ["--nvtx", "--profile-from-start", "off", "--launch-count", str(KERNELS_COUNTED)]
    ncu = ["ncu", "--set", "full", "--clock-control", "none", *chosen, "-f", "-o", out]
    return f"on a GPU, the timeline:  {shlex.join(nsys)} {run}\non a GPU, the counters:  {shlex.join(ncu)} {run}"


_COMMANDS = {
    "step": ("real training steps, operator by operator", _add_step),
    "kernels": ("a kernel family, case by case", _add_kernels),
}


if __name__ == "__main__":
    sys.exit(main())
