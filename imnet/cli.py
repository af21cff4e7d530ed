"""The commands: imnet-train, imnet-eval, imnet-report. An error is ONE line and an exit code by class."""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from imnet.errors import ImnetError, IOFailure, UsageError

_BEGAN = time.perf_counter()


def train_main(argv: list[str] | None = None) -> int:
    """imnet-train. A rank of torchrun or srun ends its process here."""
    code = guarded("imnet-train", _train, sys.argv[1:] if argv is None else argv)
    launch = sys.modules.get("imnet.launch")  # absent where torch was not needed
    if argv is None and launch is not None and launch.connections:
        launch.leave(code)
    return code


def eval_main(argv: list[str] | None = None) -> int:
    """imnet-eval RUN."""
    return guarded("imnet-eval", _evaluate, sys.argv[1:] if argv is None else argv)


def report_main(argv: list[str] | None = None) -> int:
    """imnet-report RUN [RUN ...]."""
    return guarded("imnet-report", _report, sys.argv[1:] if argv is None else argv)


def guarded(name: str, command: Callable[[list[str]], int], argv: list[str]) -> int:
    """Run a command; known errors become one line on stderr, ``--debug`` shows the traceback of any."""
    try:
        return command(argv)
    except ImnetError as error:
        if "--debug" in argv:
            traceback.print_exc()
        print(f"{name}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return IOFailure.exit_code


def _train(argv: list[str]) -> int:
    from imnet import options, parser

    if "-h" in argv or "--help" in argv:
        print(parser.help_text(), end="")
        return 0
    request = options.parse(argv)
    asked = {word.partition(":")[0]: word.partition(":")[2] for word in request.ask}
    if "list" in asked:
        from imnet import listing

        print(listing.table(asked["list"]))
        return 0
    if "show_config" in asked:
        print(options.dump_config(request.recipe, request.options), end="")
        return 0
    if "doctor" in asked:
        from imnet import doctor

        print(doctor.text())
        return 0
    if "dry_run" in asked:
        from imnet import dryrun

        print(dryrun.text(request.recipe, request.options))
        return 0
    from imnet.launch import current_world
    from imnet.start import train

    code = train(request.recipe, request.options)[0]
    if code == 0 and current_world().is_main:
        print(f"{'the whole command':<18} {time.perf_counter() - _BEGAN:.1f} s")
    return code


def _evaluate(argv: list[str]) -> int:
    parser = _Parser("imnet-eval", "Evaluate a run's newest checkpoint on its test split; writes evaluation.json.")
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--data-dir", default=None, help="folder that holds the data set (default: the run's)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--no-flip", action="store_true", help="leave out the pass with mirrored images")
    values = parser.parse_args(argv)
    from imnet.run import evaluate_run

    print(evaluate_run(values.run, data_dir=values.data_dir, device_name=values.device, flip=not values.no_flip))
    return 0


def _report(argv: list[str]) -> int:
    parser = _Parser("imnet-report", "Write the report of a run, or one page that compares several.")
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folders")
    parser.add_argument("--out", type=Path, default=None, help="where the comparison goes (default: comparison.html)")
    values = parser.parse_args(argv)
    from imnet import report

    if len(values.runs) == 1:
        print(report.render(values.runs[0]))
    else:
        print(report.compare(values.runs, values.out or Path("comparison.html")))
    return 0


class _Parser(argparse.ArgumentParser):
    """argparse whose mistakes are one line."""

    def __init__(self, prog: str, description: str):
        super().__init__(prog=prog, description=description, allow_abbrev=False)
        self.add_argument("--debug", action="store_true", help="show the traceback of an error")

    def error(self, message: str):
        raise UsageError(message, hint=f"{self.prog} --help lists every option")


if __name__ == "__main__":
    sys.exit(train_main())
