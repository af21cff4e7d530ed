"""The report of a run: one self-contained HTML file, its comparison with other runs, and a few plain lines.

    render(run_dir)             -> run_dir/report.html
    compare([run, run], out)    -> out
    system(name, places, out)   -> out, beside it the table as .md and .csv
    summary(run_dir)            -> text for the end of a run
    contact_sheet(images, ...)  -> PNG bytes for worst.png

A figure without a measurement is shown as "not measured". The last epoch comes before the best one, whose name says on
which images it was selected. Equal run folders give equal bytes, since no clock is read here. ``data`` describes the
files of a run folder. Importing this module imports neither torch nor matplotlib.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from imnet.errors import UsageError, first_few
from imnet.files import check_kind, check_output, exists, holds, is_file, listed, write_atomic
from imnet.recipes.documents import of_system
from imnet.report import comparison, measured, mistakes, quality, rows, search, sections
from imnet.report import system as documents
from imnet.report.data import RunLog
from imnet.report.markup import MARK, duration, page, percent, points, rate
from imnet.report.plots import contact_sheet
from imnet.report.read import load

__all__ = ["compare", "contact_sheet", "expand", "load", "ranking", "render", "summary", "system"]

REPORT_NAME = "report.html"
BESIDE = "Recipes of the same system that are no row of the document."


def render(run_dir: Path | RunLog, out: Path | None = None) -> Path:
    """Write ``run_dir/report.html`` (or ``out``) atomically and return its path; works while the run is in progress.
    ``run_dir`` may also be what ``load`` has read, since a long run's log takes seconds.

    DataError if the folder is not a run or a file in it is damaged, IOFailure if the page cannot be written (a previous
    report is then unchanged), UsageError if ``out`` names another kind of file, e.g. a PDF.
    """
    run = _read(run_dir)
    if out is not None:
        _check_page(Path(out))
    body = [
        sections.headline(run),
        *sections.notes(run),
        sections.results(run),
        sections.curves(run),
        quality.classes(run),
        quality.calibration(run),
        mistakes.confusion(run),
        mistakes.worst(run),
        *quality.others(run),
        sections.recipe(run),
        sections.environment(run),
    ]
    return _write(out or run.path / REPORT_NAME, page(run.name, sections.status(run), body))


def compare(run_dirs: Sequence[Path], out: Path) -> Path:
    """Write one HTML page at ``out`` that overlays the runs; runs of one recipe are averaged over their seeds.

    UsageError for fewer than two runs, and for a run given twice, since it would count twice in n. A copy counts as the
    same run, even if it was trained further. Other errors as ``render``.
    """
    _check_page(Path(out))
    if len(run_dirs) < 2:
        raise UsageError(f"got {len(run_dirs)} run folders to compare, need 2 or more", hint="render() reports one run")
    runs = [load(Path(run_dir)) for run_dir in run_dirs]
    _check_once(runs)
    body = [
        comparison.groups_table(runs),
        *search.heat_maps(runs),
        comparison.overlays(runs),
        comparison.runs_table(runs),
    ]
    names = ", ".join(dict.fromkeys(run.name for run in runs))
    return _write(Path(out), page(f"{len(runs)} runs", names, body))


def _check_page(out: Path) -> None:
    """Raise an error if ``out`` is no place for a page."""
    check_kind(out, ".html", "the page is HTML")
    check_output(out, MARK.encode())


def expand(places: Sequence[Path]) -> list[Path]:
    """The run folders among ``places``; a folder of runs, e.g. of a sweep or an ensemble, is replaced by its runs.

    A shell's ``sweep/*`` also names the pages of this package and trials that have not begun. They are left out, unless
    there is nothing else.
    """
    found: list[Path] = []
    for place in places:
        found += _runs_in(place, 2) or ([] if _beside_runs(place) else [place])
    return found or list(places)


def _runs_in(place: Path, depth: int) -> list[Path]:
    """``place`` if it is a run, else the runs up to ``depth`` folders below it. IOFailure for a folder that this user
    may not list, since it may contain a run."""
    if listed(place, "run.json"):
        return [place]
    # A file system's lost+found cannot be listed by users and contains no run.
    inside = [path for path in listed(place, "*") if path.name != "lost+found"] if depth else []
    return [run for path in inside for run in _runs_in(path, depth - 1)]


def _beside_runs(place: Path) -> bool:
    """Whether ``place`` is a page, a table written beside a page, or the folder of a sweep's trial without a run."""
    page_of = place.with_suffix(".html")
    if is_file(place) and is_file(page_of):
        return holds(page_of, MARK.encode())
    return is_file(place / "trial.json") and not exists(place / "run.json")


def system(
    word: str,
    places: Sequence[Path],
    out: Path,
    sheets: Sequence[tuple[str, bytes]] = (),
    tell: Callable[[str], object] = lambda _: None,
) -> list[Path]:
    """Write the page of a system, its Markdown and its CSV, and return their paths.

    The page has the table of the system's document with measurements from ``places``, which are folders as for
    ``expand`` or JSON files of imnet-bench, and the pictures ``sheets``, (title, PNG) each. ``tell`` gets a line for
    the runs and results that were left out. UsageError for an unknown system or a run given twice, other errors as
    ``render``.
    """
    document = of_system(word)
    _check_page(out)
    check_output(out.with_suffix(".md"), documents.MARK.encode())
    check_output(out.with_suffix(".csv"), ",".join(documents.CSV_COLUMNS).encode())
    runs = [load(folder) for folder in expand([Path(place) for place in places if Path(place).suffix != ".json"])]
    _check_once(runs)
    found = measured.of_runs(runs)
    parents = {run.path.parent: run for run in reversed(runs)}
    fused = [measured.of_ensemble(folder, band) for folder, band in reversed(parents.items())]
    found += [m for part in fused for m in part or ()]
    found += [m for place in places if Path(place).suffix == ".json" for m in measured.of_results(Path(place))]
    main, bands, beside = rows.rows(document, found)
    mine = {id(row.found.recipe) for row in (*main, *bands, *beside) if row.found}
    drawn = [run for run in runs if id(run.recipe) in mine or rows.belongs(run.recipe, document)]
    body = [
        documents.main_table(document, main),
        *documents.other_table("bands", "Bands", "One network a band; each row is one of them.", bands),
        *documents.other_table("beside", "Beside the document", BESIDE, beside),
        *search.heat_maps(drawn),
        *([comparison.runs_table(drawn), comparison.overlays(drawn)] if drawn else []),
        *mistakes.best_confusion(drawn),
        *(mistakes.sheet(f"sheet{i}", title, data) for i, (title, data) in enumerate(sheets)),
    ]
    left = _left_out(runs, drawn, found, mine, fused.count(None))
    for line in left:
        tell(line)
    told = "; ".join([f"{len(drawn)} run folder(s)", *left])
    tables = {documents.MAIN_TITLE: main, "Bands": bands, "Beside the document": beside}
    return [
        _write(out, page(document.title, told, body)),
        _write(out.with_suffix(".md"), documents.markdown(document, tables)),
        _write(out.with_suffix(".csv"), documents.as_csv([*main, *bands, *beside])),
    ]


def _left_out(
    runs: Sequence[RunLog], drawn: Sequence[RunLog], found: Sequence[measured.Measured], mine: set[int], early: int
) -> list[str]:
    """Lines about what was given and is in no row of the page: of other systems, unfinished, or fused too early."""
    others = [run.path.name for run in runs if not any(run is one for one in drawn)]
    waiting = [run.path.name for run in drawn if not run.finished or run.last is None]
    ran = {id(run.recipe) for run in runs}
    rows_left = sum(1 for m in found if id(m.recipe) not in mine | ran)
    lines = [
        (len(others), f"of other systems left out: {first_few(others)}"),
        (len(waiting), f"not finished, in no row: {first_few(waiting)}"),
        (rows_left, "recipe(s) of result files left out, of other systems"),
        (early, f"{measured.FUSION} left out, of weights that are not the last: imnet-eval again"),
    ]
    return [f"{count} {what}" for count, what in lines if count]


def _check_once(runs: Sequence[RunLog]) -> None:
    places: set[Path] = set()
    began: dict[str, Path] = {}
    for run in runs:
        place, beginning = run.path.resolve(), _beginning(run)
        if place in places:
            raise UsageError("this run folder was given twice", file=place, hint="name each run once")
        places.add(place)
        if beginning and began.setdefault(beginning, place) != place:
            what = f"is a copy of the run in {began[beginning]}, or both went on from one"
            raise UsageError(what, file=place, hint="name each run once")


def _beginning(run: RunLog) -> str:
    """The recipe and the log up to the first evaluation, clock included. They are equal only for copies of a run, even
    if a copy was trained further. Empty if nothing was logged."""
    end = run.evals[0].step if run.evals else math.inf
    lines = [line for line in (*run.train, *run.evals) if line.step <= end]
    return repr((run.recipe, run.info.get("precision"), lines)) if lines else ""


def ranking(run_dirs: Sequence[Path], labels: Sequence[str]) -> str:
    """A table in plain lines, averaged over the runs of each label, the best label first. Errors as ``load``."""
    return search.ranking([load(Path(run_dir)) for run_dir in run_dirs], labels)


def _read(run: Path | RunLog) -> RunLog:
    return run if isinstance(run, RunLog) else load(Path(run))


def summary(run_dir: Path | RunLog) -> str:
    """The few plain lines printed at the end of a run, without a final newline. Input and errors as ``render``."""
    run = _read(run_dir)
    best = run.best
    best_at = f" at epoch {best.epoch:g} (selected on the {run.chosen_on})" if best else ""
    report = run.path / REPORT_NAME
    against = "" if math.isnan(run.raw_top1) else f"{points(run.raw_top1 - run.last_top1)} against"
    lines = [
        ("run", f"{run.name}: {sections.status(run)}"),
        ("images", _images(run)),
        *([("top-1, test set", run.final_told)] if run.final_told else []),
        ("top-1, last epoch", percent(run.last_top1)),
        *([("top-1, raw weights", f"{percent(run.raw_top1)}, {against} their average")] if against else []),
        ("top-1, best epoch", percent(run.best_top1) + best_at),
        *([("validation, last", percent(run.vals[-1].top1))] if run.vals else []),
        ("published", _published(run)),
        ("images/s, median", rate(run.images_per_s)),
        ("training time", f"{duration(run.total_seconds)} on {run.hardware}"),
        ("report", str(report) if is_file(report) else "not written yet"),
        *(("note", note) for note in run.notes),
    ]
    return "\n".join(f"{name:<18} {text}" for name, text in lines)


def _write(path: Path, text: str) -> Path:
    # Names that are not valid Unicode (a class folder with odd bytes) must not prevent the report.
    write_atomic(path, text.encode("utf-8", errors="replace"))
    return path


def _images(run: RunLog) -> str:
    recorded = run.info.get("data")
    counts = dict(recorded) if isinstance(recorded, dict) else {}
    if run.evaluation:
        counts["test_images"] = run.evaluation.num_images
    counts["final_images"] = (run.info.get("final") or {}).get("num_images")
    judged = "test (its validation set)" if run.judged_on == "validation set" else "test"
    words = {"train": "train", "val": "val", "test": judged, "final": "final (its test set)"}
    told = [f"{counts[f'{part}_images']:,} {word}" for part, word in words.items() if counts.get(f"{part}_images")]
    return ", ".join(told) or "not recorded"


def _published(run: RunLog) -> str:
    ensemble = run.published.get("ensemble_top1")
    if math.isnan(run.published_top1) and ensemble is None:
        return "nothing published for this recipe"
    told = [percent(run.published_top1, "nothing for this band")]
    if run.changed:
        told.append(run.changed)
    elif run.last is not None and not math.isnan(run.published_top1):
        told.append(f"last epoch {run.against_published(run.last.top1)} against it")
    if ensemble is not None:
        hours = run.published.get("ensemble_hours")
        within = "" if hours is None else f" in {hours:g} h"
        told.append(f"an ensemble of several bands {percent(float(ensemble))}{within}")
    if run.published.get("hours") is not None:
        told.append(sections.hours_published(run))
    told += [str(run.published[key]) for key in ("hardware", "note") if run.published.get(key)]
    return "; ".join(told)
