"""imnet-sweep: runs many trainings from one grid file, several at once, and writes one page with the results.

Every trial is an ordinary imnet-train run in a folder named by the hash of its configuration. So the same command
resumes after it was killed, does nothing if all trials are complete, and runs only what was added to the file. Only the
running of trials imports torch.
"""

from __future__ import annotations

import shlex
import time
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path

from imnet import loggers, report
from imnet.command import Parser, guarded
from imnet.errors import ImnetError, Preempted, UsageError, quoted
from imnet.files import check_folder, check_output
from imnet.recipes.documents import DOCUMENTS
from imnet.report.markup import MARK
from imnet.sweep import jobs, sbatch
from imnet.sweep.grid import EXAMPLE, Trial, find, label, names, read, trials

ABOUT = """Train every configuration of a grid file, and compare them. A trial that is complete is not run again.

  imnet-sweep fashion-mnist --seeds 3               a grid that comes with imnet (--list), three seeds of each
  imnet-sweep grid.yaml --jobs 4                    your own; four at once
  imnet-sweep grid.yaml -- --data-dir DIR           words behind -- go to every imnet-train
  imnet-sweep grid.yaml --sbatch > sweep.sh         a job array for Slurm"""


def main(argv: list[str] | None = None) -> int:
    """imnet-sweep GRID."""
    return guarded("imnet-sweep", _sweep, argv)


def _parser() -> Parser:
    parser = Parser(prog="imnet-sweep", description=ABOUT, formatter_class=RawDescriptionHelpFormatter)
    parser.epilog = f"a grid file:\n\n{EXAMPLE}"
    told = "YAML file, as below, or the name of a grid that comes with imnet"
    parser.add_argument("grid", nargs="?", metavar="GRID", help=told)
    parser.add_argument("--out", type=Path, default=None, help="folder of the runs (runs/sweep-GRID)")
    parser.add_argument("--seeds", type=int, default=None, metavar="N", help="runs of each configuration")
    told = "trials at once (one a visible GPU; one on a CPU)"
    parser.add_argument("--jobs", type=int, default=None, metavar="N", help=told)
    parser.add_argument("--trial", type=int, default=None, metavar="N", help="run this trial alone")
    ask = parser.add_argument_group("ask instead of training").add_mutually_exclusive_group()
    ask.add_argument("--dry-run", action="store_true", help="list the trials and their status")
    ask.add_argument("--sbatch", action="store_true", help="print a script for Slurm: an array with a task a trial")
    ask.add_argument("--list", action="store_true", help="list the grids that come with imnet")
    return parser


def _sweep(argv: list[str]) -> int:
    at = argv.index("--") if "--" in argv else len(argv)
    words, more = argv[:at], argv[at + 1 :]
    try:
        values = _parser().parse_args(words)
    except UsageError as error:
        if error.what.startswith("got unknown option"):
            error.hint = f"{error.hint}; words for imnet-train go behind --: imnet-sweep GRID -- --device cpu"
        raise
    for name in ("seeds", "jobs", "trial"):
        if getattr(values, name) is not None and getattr(values, name) < 1:
            raise UsageError(f"got --{name} {getattr(values, name)}; allowed: 1 or more", hint=f"e.g. --{name} 3")
    if values.list:
        print("\n".join(f"{name:<20} {read(find(name)).about}" for name in names()))
        return 0
    if values.grid is None:
        raise UsageError("got no grid", hint="give a YAML file, or one that comes with imnet: imnet-sweep --list")
    path = find(values.grid)
    out = values.out or Path("runs") / f"sweep-{path.stem}"
    found, twice = trials(read(path), values.seeds, more)
    if values.trial is not None and values.trial > len(found):
        raise UsageError(f"got --trial {values.trial}; allowed: 1 to {len(found)}", hint="--dry-run lists the trials")
    chosen = found if values.trial is None else [found[values.trial - 1]]
    if values.sbatch:
        again = [values.grid, *([] if values.seeds is None else ["--seeds", str(values.seeds)]), "--out", str(out)]
        todo = [trial for trial in chosen if jobs.state(trial, out) != "complete"]
        if not todo:
            raise UsageError(f"all {len(chosen)} trials are complete", hint="nothing is left to submit")
        print(sbatch.script(path.stem, todo, again, more, values.jobs), end="")
        return 0
    if twice:
        print(f"note       {twice} configuration(s) came twice: each is run once")
    for told in dict.fromkeys(note for trial in chosen for note in trial.notes):
        print(f"note       {told}")
    _check(chosen, out)
    if values.dry_run:
        _list(chosen, out)
        return 0
    return _run(chosen, out, values.jobs)


def _check(chosen: Sequence[Trial], out: Path) -> None:
    """Raise errors of folders, files and loggers now rather than after the trials; a dry run makes the same checks."""
    check_output(out / "report.html", MARK.encode())
    for trial in chosen:
        try:
            check_folder(out / trial.name)
        except OSError as error:
            raise jobs.unwritable(error, out / trial.name) from error
        if jobs.state(trial, out) != "complete":
            check_output(out / trial.name / jobs.FILE, b'"command"')
            loggers.check(trial.options.logs)  # here, so that the error comes once and not in every trial


def _list(chosen: Sequence[Trial], out: Path) -> None:
    for trial in chosen:
        print(f"{trial.number:>4}  {trial.id}  {jobs.state(trial, out):<9} {trial.label}")
    print(f"{len(chosen)} trial(s) in {out}; as commands: imnet-train WORDS --out FOLDER, e.g.")
    print(f"imnet-train {shlex.join(chosen[0].words)} --out {quoted(out / chosen[0].name)}")


def _run(chosen: Sequence[Trial], out: Path, at_once: int | None) -> int:
    states = {trial.name: jobs.state(trial, out) for trial in chosen}
    todo = [trial for trial in chosen if states[trial.name] != "complete"]
    began = time.monotonic()
    width = len(str(max(trial.number for trial in chosen)))

    def say(word: str, trial: Trial, text: str) -> None:
        mark = f"{trial.number:>{width}} of {len(chosen)}" if len(chosen) > 1 else f"trial {trial.number}"
        more = _result(out / trial.name) if word == "done" else text
        print(f"{word:<10} {mark}  {trial.id}  {trial.label}{': ' if more else ''}{more}", flush=True)

    complete = len(chosen) - len(todo)
    if todo:
        places = jobs.slots(at_once, todo)
        again = sum(state == "failed" for state in states.values())
        failed_before = f", {again} of them failed before" if again else ""
        told = f"{len(chosen)} trial(s) in {out}, {complete} complete, {len(todo)} to run{failed_before}"
        print(f"sweep      {told}; {min(len(places), len(todo))} at once", flush=True)
        sweep = jobs.Sweep(out, places, say)
        try:
            sweep.run(todo)
        except Preempted as stop:
            done = sum(jobs.state(trial, out) == "complete" for trial in chosen)
            raise Preempted(f"{stop.what}; {done} of {len(chosen)} are complete", hint=stop.hint) from stop
        print(f"sweep      {time.monotonic() - began:.0f} s")
    else:
        print(f"complete already: {len(chosen)} trial(s) in {out}")
    return _end(chosen, out)


def _result(folder: Path) -> str:
    from imnet.report.markup import duration, percent
    from imnet.report.read import load

    bands = report.expand([folder])
    if len(bands) > 1:
        return f"{len(bands)} bands; imnet-eval {quoted(folder)} fuses them"
    run = load(bands[0])
    return f"top-1 {percent(run.last_top1)} in {duration(run.total_seconds)}"


def _end(chosen: Sequence[Trial], out: Path) -> int:
    """Print the table, write the page and list the failed trials. Returns 0 if all trials are complete; otherwise
    raises ImnetError with the exit code of the first failure, or Preempted if none failed."""
    ended = {trial.name: jobs.state(trial, out) for trial in chosen}
    complete = [trial for trial in chosen if ended[trial.name] == "complete"]
    runs = [(run, _varied(trial, run)) for trial in complete for run in report.expand([out / trial.name])]
    if len(chosen) > 1 and runs:
        folders = [run for run, _ in runs]
        print(report.ranking(folders, [label for _, label in runs]))
        page = report.compare(folders, out / "report.html") if len(folders) > 1 else report.render(folders[0])
        print(f"report     {page}{_document(complete, out)}")
    failed = [trial for trial in chosen if ended[trial.name] == "failed"]
    for trial in failed:
        said = jobs.outcome(out / trial.name)
        print(f"failed     {trial.number} {trial.id}  {trial.label}: {said['error']} ({out / trial.name}/trial.log)")
    if failed:
        error = ImnetError(f"{len(failed)} of {len(chosen)} trials failed", hint="the same command tries them again")
        error.exit_code = max(1, jobs.outcome(out / failed[0].name)["code"])
        raise error
    open_ = len(chosen) - len(complete)
    if open_:
        raise Preempted(f"{open_} of {len(chosen)} trials are not complete", hint="run the same command to go on")
    return 0


def _varied(trial: Trial, run: Path) -> str:
    """The label of a trial's configuration without its seed, by which seeds are averaged; the run of an ensemble's band
    gets the band's name as well."""
    told = label({name: value for name, value in trial.values.items() if name != "seed"}) or trial.recipe.name
    return told if run.name == trial.name else f"{told}, {run.name}"


def _document(complete: Sequence[Trial], out: Path) -> str:
    """Text with the command that compares the runs with their document, or "" unless all belong to the same one."""
    systems = {trial.recipe.name.partition("/")[0] for trial in complete}
    known = sorted(systems & {document.system for document in DOCUMENTS})
    if len(systems) != 1 or len(known) != 1:
        return ""
    return f"; against the document: imnet-report --system {known[0]} {quoted(out)}"
