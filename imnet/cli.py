"""The commands imnet-train, -eval, -predict, -export and -report. An error is one line, with an exit code by class."""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from pathlib import Path

from imnet.command import Parser, guarded
from imnet.errors import UsageError, quoted
from imnet.resources import FEWER

_BEGAN = time.perf_counter()


def train_main(argv: list[str] | None = None) -> int:
    """imnet-train. If it is a rank of torchrun or srun, the process ends here and this does not return."""
    code = guarded("imnet-train", _train, argv)
    launch = sys.modules.get("imnet.launch")  # not imported if torch was not needed
    if argv is None and launch is not None and launch.connections:
        launch.leave(code)
    return code


def eval_main(argv: list[str] | None = None) -> int:
    """imnet-eval RUN."""
    return guarded("imnet-eval", _evaluate, argv, FEWER)


def report_main(argv: list[str] | None = None) -> int:
    """imnet-report RUN [RUN ...]."""
    return guarded("imnet-report", _report, argv)


def _train(argv: list[str]) -> int:
    from imnet import options, parser

    if "-h" in argv or "--help" in argv:
        print(parser.help_text(), end="")
        return 0
    request = options.parse(argv)
    head = "# " if "show_config" in request.ask else ""
    for line in request.reasons:
        print(f"{head}{line}", flush=True)
    asked = {word.partition(":")[0]: word.partition(":")[2] for word in request.ask}
    if "list" in asked:
        from imnet import listing

        print(listing.table(asked["list"]))
        return 0
    if "show_config" in asked:
        print("".join(f"# {note}\n" for note in request.notes), end="")
        print(options.dump_config(request.recipe, request.options), end="")
        return 0
    if "doctor" in asked:
        from imnet import doctor

        print(doctor.text())
        return 0
    for note in request.notes:
        print(f"note       {note}")
    if "find_lr" in asked or "find_batch_size" in asked:
        from imnet import find

        print((find.lr if "find_lr" in asked else find.batch_size)(request.recipe, request.options))
        return 0
    if "dry_run" in asked:
        from imnet import dryrun

        print(dryrun.text(request.recipe, request.options))
        return 0
    from imnet.launch import current_world
    from imnet.start import train

    if request.reasons and current_world().is_main:
        from imnet import own

        told = own.expected(request.recipe, request.options)
        print(told, end="\n" if told else "", flush=True)
    code = train(request.recipe, request.options)[0]
    if code == 0 and current_world().is_main:
        print(f"{'the whole command':<18} {time.perf_counter() - _BEGAN:.1f} s")
    return code


def _evaluate(argv: list[str]) -> int:
    about = (
        "Evaluate a network on its run's test split, or on any set whose classes it knows by name; fuse an ensemble."
    )
    parser = Parser(prog="imnet-eval", description=about)
    told = "folder of a run or of an ensemble; with --data also a .safetensors of imnet-export"
    parser.add_argument("run", type=Path, help=told)
    told = "another set that imnet-data inspect recognises; the figures go to evaluation-NAME.json of the run"
    parser.add_argument("--data", type=Path, default=None, metavar="PATH", help=told)
    told = "test, val: held out of train, train, or final: the test set beside a validation set (test)"
    parser.add_argument("--split", default=None, metavar="NAME", help=told)
    told = "best, last, or the number of an epoch (last)"
    parser.add_argument("--checkpoint", default="last", metavar="WHICH", help=told)
    parser.add_argument("--batch-size", type=int, default=None, metavar="N", help="images at once")
    told = "arithmetic (default: the run's; fp32 of a file)"
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16", "fp16"), default=None, help=told)
    told = "write a table of all predictions: image, label, predicted, probability, loss"
    parser.add_argument("--out", type=Path, default=None, metavar="FILE.csv", help=told)
    parser.add_argument(
        "--data-dir", default=None, help="folder that holds the run's own data set (default: the run's)"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    many = parser.add_mutually_exclusive_group()
    many.add_argument(
        "--gpus", type=int, default=None, metavar="N", help="split the images over N GPUs, one process each"
    )
    many.add_argument("--procs", type=int, default=None, metavar="N", help="split the images over N CPU processes")
    parser.add_argument("--no-flip", action="store_true", help="skip the pass over mirrored images")
    told = (
        "also average crops of the corners and the centre and their mirrors; for images larger than the network's input"
    )
    parser.add_argument("--ten-crop", action="store_true", help=told)
    told = "of an ensemble: the band of rank i weighs P (1 - P)^i (0.3)"
    parser.add_argument("--p", type=float, default=None, metavar="P", help=told)
    told = "for an ensemble: a run on whole images to compare its cost with"
    parser.add_argument("--baseline", type=Path, default=None, metavar="RUN", help=told)
    values = parser.parse_args(argv)
    from imnet import judge

    return judge.run(values)


def predict_main(argv: list[str] | None = None) -> int:
    """imnet-predict RUN PICTURE ..."""
    return guarded("imnet-predict", _predict, argv, FEWER)


def _predict(argv: list[str]) -> int:
    parser = Parser(prog="imnet-predict", description="Classify images with a trained network.")
    parser.add_argument("model", type=Path, metavar="RUN", help="folder of a run or ensemble, or a .safetensors")
    told = "picture, or a folder of pictures; - reads one picture, or names of files, from standard input"
    parser.add_argument("pictures", nargs="+", metavar="PICTURE", help=told)
    parser.add_argument("--top", type=int, default=5, metavar="N", help="classes to name (5)")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="images per batch (64)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="a line of JSON a picture")
    form.add_argument("--csv", action="store_true", help="a table: picture, rank, class, probability, error")
    values = parser.parse_args(argv)
    from imnet import predict

    return predict.run(values)


def export_main(argv: list[str] | None = None) -> int:
    """imnet-export RUN --to FORMAT."""
    return guarded("imnet-export", _export, argv)


def _export(argv: list[str]) -> int:
    about = "Export a run's network to a file, checked against the run before it is kept."
    parser = Parser(prog="imnet-export", description=about)
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder")
    parser.add_argument("--to", choices=("safetensors", "onnx", "pt2", "timm"), required=True, help="file format")
    told = "file, for timm a folder (default: in the run folder)"
    parser.add_argument("--out", type=Path, default=None, metavar="FILE", help=told)
    parser.add_argument("--data-dir", default=None, help="folder of the data set; for networks with a mean image only")
    values = parser.parse_args(argv)
    from imnet.export import export
    from imnet.run import Run

    out = values.out or values.run / ("timm" if values.to == "timm" else f"model.{values.to}")
    run = Run(values.run)
    for note in run.unfinished:
        print(note, flush=True)
    if values.data_dir is not None and run.recipe.augment.mean != "image":
        print(f"note       a network without a mean image reads nothing of --data-dir {values.data_dir}", flush=True)
    print(export(run.classifier(data_dir=values.data_dir), values.to, out))
    return 0


def _report(argv: list[str]) -> int:
    about = "Write the report of a run, one page that compares several, or the page of a system."
    parser = Parser(prog="imnet-report", description=about)
    told = "run folders, folders of imnet-sweep, ensembles; with --system also JSON files of imnet-bench"
    parser.add_argument("runs", type=Path, nargs="*", metavar="RUN", help=told)
    told = "published against measured, row by row: imagenet64, fashion-mnist, tiny-imagenet or spectral"
    parser.add_argument("--system", default=None, metavar="NAME", help=told)
    told = "with --system spectral: the image to show in its bands"
    parser.add_argument("--picture", type=Path, default=None, metavar="FILE", help=told)
    told = "the page (RUN/report.html, comparison.html, or system-NAME.html with .md and .csv beside it)"
    parser.add_argument("--out", type=Path, default=None, help=told)
    values = parser.parse_args(argv)
    from imnet import report

    if values.system is not None:
        return _system(values)
    if values.picture is not None:
        raise UsageError("got --picture without --system spectral", hint="leave it out")
    if not values.runs:
        raise UsageError("got no run folder", hint="name one or more, or --system NAME")
    runs = report.expand(values.runs)
    if len(runs) == 1:
        print(report.render(runs[0], values.out))
    else:
        print(report.compare(runs, values.out or Path("comparison.html")))
    return 0


def _system(values: Namespace) -> int:
    from imnet import report
    from imnet.recipes.documents import of_system

    name = of_system(values.system).system
    sheets: list[tuple[str, bytes]] = []
    if name == "spectral":
        from imnet import bandsheet

        sheets = bandsheet.sheets(values.picture)
    elif values.picture is not None:
        raise UsageError(f"got --picture for {name}, which has no bands", hint="leave it out")
    out = values.out or Path(f"system-{name}.html")
    if out.suffix in (".md", ".csv"):
        raise UsageError(
            f"got --out {out}, which lies beside the page", hint=f"--out {quoted(out.with_suffix('.html'))}"
        )
    for path in report.system(name, values.runs, out, sheets, lambda line: print(f"note       {line}")):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(train_main())
