"""imnet-bench: how fast this machine trains, where its time goes, and whether today's code is slower than before.

    imnet-bench throughput --recipe fashion-mnist/speedrun
    imnet-bench throughput --against "GTX 1080 Ti" --picture bars.png
    imnet-bench throughput --save base.json;  imnet-bench throughput --compare base.json --fail-under 0.97
    imnet-bench scaling --procs 2;            imnet-bench scaling --model 1024
    imnet-bench all --json all.json

The code of a command is imported when it runs, so that --help does not import torch.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from imnet.command import Parser, guarded
from imnet.errors import IOFailure, UsageError
from imnet.files import check_output

FEWER = "take a smaller --batch-size, --recipe or --model, where the part has them"
"""The hint for memory."""
FAIL_UNDER = 0.97
FAMILIES = ("augment", "spectral", "shake_shake", "sgd_ema")
_OF_RANKS = ("recipe", "procs", "gpus", "steps", "threads", "compile", "device", "precision")
GATED = ("throughput", "kernels", "data", "step", "all")


def main(argv: list[str] | None = None) -> int:
    """Run imnet-bench; returns the exit code: 1 if the gate failed, else those of imnet/errors.py."""
    return guarded("imnet-bench", _main, argv, FEWER)


def _main(argv: list[str]) -> int:
    values = parser().parse_args(argv)
    _check(values)
    from imnet.defaults import choose_kernels
    from imnet.files import write_json
    from imnet.run_options import RunOptions

    from . import commands, gate

    choose_kernels(RunOptions())
    report, measure = commands.COMMANDS[values.command](values)
    code = 0
    if values.save is not None:
        gate.save(values.save, report, measure)
    if values.compare is not None:
        options = values.fail_under or FAIL_UNDER, values.force
        table, passed = gate.against(values.compare, report["fingerprint"], measure, *options)
        print(table)
        code = 0 if passed else 1
    if values.json is not None:
        write_json(values.json, report)
        print(f"written: {values.json}")
    return code


def _check(values: argparse.Namespace) -> None:
    """Raise an error for options that are known to be wrong before anything is measured."""
    gate = "--save" if values.save else "--compare" if values.compare else None
    if gate and values.command not in GATED:
        raise UsageError(f"got {gate} for {values.command}; allowed for {', '.join(GATED)}", hint=f"leave {gate} out")
    seconds = getattr(values, "seconds", 1.0)
    if not 0 < seconds < float("inf"):
        raise UsageError(f"got --seconds {seconds:g}; allowed: above 0", hint="e.g. 20")
    if values.command == "scaling" and values.model is not None:
        given = next((name for name in _OF_RANKS if getattr(values, name) not in (None, "auto")), None)
        if given is not None:
            what = f"got --{given.replace('_', '-')} with --model {values.model}, which is on paper: nothing runs"
            raise UsageError(what, hint="leave one of them out")
    if values.fail_under is not None and not 0 < values.fail_under <= 1:
        raise UsageError(f"got --fail-under {values.fail_under}; allowed: above 0, at most 1", hint="e.g. 0.97")
    for option, path in (("--json", values.json), ("--save", values.save)):
        if path is None:
            continue
        if not path.parent.is_dir():
            raise IOFailure("no such folder", file=path.parent, hint="make it, or choose another file")
        check_output(path, b'"benchmark"', option)
    _check_gate(values)
    if getattr(values, "picture", None) is not None:
        from . import pictures

        pictures.check(values.picture)


def _check_gate(values: argparse.Namespace) -> None:
    """Check the options of the gate: --compare must name a file of this machine that is not overwritten."""
    if values.compare is None:
        for name in ("fail_under", "force"):
            if getattr(values, name):
                raise UsageError(f"got --{name.replace('_', '-')} without --compare", hint="--compare FILE")
        return
    for option, path in (("--json", values.json), ("--save", values.save)):
        if path is not None and path.resolve() == values.compare.resolve():
            what = f"got one file for {option} and --compare: what is kept in it would be lost"
            raise UsageError(what, file=path, hint=f"name another file behind {option}")
    from . import gate

    gate.check(values.compare, values.force)


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = Parser(prog="imnet-bench", description=(__doc__ or "").split("\n\n")[0])
    top.set_defaults(parse=top.parse_args)
    parts = top.add_subparsers(dest="command", required=True, parser_class=Parser, metavar="COMMAND")
    for name, (text, extend) in _PARTS.items():
        part = parts.add_parser(name, help=text, description=text)
        _common(part)
        extend(part)
    return top


def _common(part: Parser) -> None:
    part.add_argument("--json", type=Path, metavar="FILE", help="write the figures with the machine's fingerprint")
    part.add_argument("--save", type=Path, metavar="FILE", help="the same with scores that --compare reads")
    part.add_argument("--compare", type=Path, metavar="FILE", help="compare the scores with a file of --save")
    part.add_argument("--fail-under", type=float, metavar="R", help=f"exit code 1 below this ratio ({FAIL_UNDER})")
    part.add_argument("--force", action="store_true", help="compare even if the file is from another machine")


def add_run(part: argparse.ArgumentParser) -> None:
    """Add the options for how a recipe runs: batch size, device, precision, threads, compilation."""
    part.add_argument("--batch-size", type=count, metavar="N", help="global batch in images (the recipe's)")
    part.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    part.add_argument("--precision", choices=("auto", "fp32", "bf16", "fp16"), default="auto")
    part.add_argument("--threads", type=count, metavar="N", help="CPU threads a process (the cores)")
    part.add_argument("--compile", action=argparse.BooleanOptionalAction, help="torch.compile (default: on a GPU)")


def _throughput(part: argparse.ArgumentParser) -> None:
    add_run(part)
    part.add_argument("--recipe", metavar="NAME", help="a recipe of imnet-train --list (fashion-mnist/speedrun)")
    part.add_argument("--model", metavar="NAME", help="a network: its first recipe, or a plain one")
    part.add_argument("--data-dir", metavar="DIR", help="the recipe's own data; default random images of their shape")
    part.add_argument("--pipeline", default="auto", metavar="KIND", help="auto | resident | host | dali | torch")
    told = "the whole step in one CUDA graph (default: on a GPU, as training)"
    part.add_argument("--cuda-graphs", action=argparse.BooleanOptionalAction, help=told)
    part.add_argument("--seconds", type=float, default=20.0, help="measuring time per recipe (20)")
    part.add_argument("--against", metavar="CARD", help='published figures of a card, e.g. "GTX 1080 Ti"')
    part.add_argument("--models", metavar="A,B", help="with --against: these networks only")
    part.add_argument("--picture", type=Path, metavar="FILE", help="with --against: bar chart (.png, .svg)")


def _kernels(part: argparse.ArgumentParser) -> None:
    part.add_argument("--family", choices=FAMILIES, help="one kernel family (all)")
    part.add_argument("--quick", action="store_true", help="fewer rounds, no compiled column")


def _step(part: argparse.ArgumentParser) -> None:
    part.add_argument("--only", metavar="NAME", help="one network of the table")
    part.add_argument("--rounds", type=count, default=12, metavar="N", help="timed rounds (12)")
    part.add_argument("--threads", type=count, metavar="N", help="CPU threads (the cores)")
    part.add_argument("--compile", action="store_true", help="torch.compile on both sides of equal flags")


def _scaling(part: argparse.ArgumentParser) -> None:
    add_run(part)
    part.add_argument("--recipe", metavar="NAME", help="a recipe (fashion-mnist/speedrun)")
    part.add_argument("--procs", type=count, metavar="N", help="up to N gloo processes on the CPU (the cores)")
    part.add_argument("--gpus", type=count, metavar="N", help="up to N GPUs (all)")
    part.add_argument("--steps", type=count, metavar="N", help="timed steps a row (20)")
    part.add_argument("--model", type=count, metavar="N", help="predict instead: the scaling model up to N GPUs")


def _data(part: argparse.ArgumentParser) -> None:
    part.add_argument("--rounds", type=count, default=12, metavar="N", help="timed rounds (12)")
    part.add_argument("--jpegs", type=Path, metavar="ZIP", help="also time packing, of this zip of JPEG class folders")


def _whole(part: argparse.ArgumentParser) -> None:
    part.add_argument("--timm-script", type=Path, required=True, metavar="FILE", help="train.py of timm's repository")
    part.add_argument("--pictures", type=Path, required=True, metavar="DIR", help="train/ and val/ of class folders")
    part.add_argument("--model", default="resnet18", metavar="NAME", help="a network of timm (resnet18)")
    part.add_argument("--image-px", type=count, default=64, metavar="N", help="side of the images (64)")
    part.add_argument("--batch-size", type=count, default=128, metavar="N", help="images a step (128)")
    part.add_argument("--epochs", type=count, default=2, metavar="N", help="of each run (2)")
    part.add_argument("--rounds", type=count, default=2, metavar="N", help="runs of each side (2)")


def _runs(part: argparse.ArgumentParser) -> None:
    part.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folders of complete runs")


def count(text: str) -> int:
    """The argparse type of whole numbers from 1."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}; allowed: a whole number from 1")
    return value


_PARTS = {
    "throughput": ("images/s of a recipe: loader, model, both; the bottleneck", _throughput),
    "kernels": ("a CPU's kernels against their reference and peers (a GPU's: python -m imnet_bench.gpu)", _kernels),
    "data": ("packing, reading and augmenting against their peers", _data),
    "step": ("the training step against timm's", _step),
    "whole": ("the whole command against timm's own train.py", _whole),
    "scaling": ("1 to N ranks, weak and strong; or the model of it on paper", _scaling),
    "runs": ("accuracies and seconds of whole trainings, from their run folders", _runs),
    "all": ("small cases of everything, under ten minutes on two cores", lambda part: None),
}

if __name__ == "__main__":
    sys.exit(main())
