"""The result file of a device: every row is written as soon as it is measured, and a later call continues the file.

    {"benchmark": "gpu", "dry": false, "running": null, "fingerprint": {...}, "rows": [...]}

A row is {"part", "name", "variant", figures ..., "took_s"}. Instead of figures a row that failed has "error", one line,
and one that was left out has "skipped". ``running`` is the row being measured, in case the process ends there.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from imnet.data.files import make_dir
from imnet.errors import DataError, UsageError
from imnet.files import check_output, write_atomic, write_json
from imnet.report.read import read_json

from .plan import BASELINE, Figures, Key, Row

MARK = b'"benchmark": "gpu"'
"""Text that every result file contains, by which it is recognised before it is overwritten."""
RESULTS = Path(__file__).resolve().parents[1] / "results"
TIME = re.compile(r"us|us_\w+|seconds|\w+_(s|ms|iqr)|share\w*|of_roof|mfu\w*|peak_gib")
"""Names of the figures that a dry run, which is on a CPU, must not show: times and figures derived from them."""
ERRORS = ("error_forward", "error_gradient", "error_fp64")


def fingerprint(dry: bool, git_sha: str | None) -> dict[str, Any]:
    """The machine's fingerprint with device, driver, clocks, versions, commit and date (UTC)."""
    import torch

    from ..machine import fingerprint as common

    found = common("bf16")
    # The user's word comes first: a copied checkout may contain the .git of an older commit.
    found["git_sha"] = git_sha or found["git_sha"]
    found["device"] = "CPU, dry run: no GPU figure"
    if not dry:
        p = torch.cuda.get_device_properties(0)
        memory, l2 = round(p.total_memory / 2**30, 1), round(p.L2_cache_size / 2**20, 1)
        found |= {"device": p.name, "multiprocessors": p.multi_processor_count, "memory_gib": memory, "l2_mib": l2}
        found["versions"]["cudnn"] = torch.backends.cudnn.version()
    return found


class ResultFile:
    """``<out>/<device>.json``; a machine with another card gets another file."""

    def __init__(self, folder: Path, dry: bool, about: dict[str, Any]):
        slug = re.sub(r"[^a-z0-9]+", "-", about["device"].lower()).strip("-")
        self.path, self.git_sha = folder / f"{slug}.json", about.get("git_sha")
        self.values: dict[str, Any] = {"benchmark": "gpu", "dry": dry, "running": None, "fingerprint": about}
        self.values["rows"] = []
        check_output(self.path, MARK)
        if self.path.exists():
            self._take_up(read_json(self.path))

    def _take_up(self, old: dict[str, Any]) -> None:
        """Continue an existing file: skipped rows are dropped and so tried again; failed rows are kept, and tried again
        after all others (see ``tried``). A row that was running is marked as failed."""
        self.values |= {"fingerprint": old["fingerprint"], "rows": [r for r in old["rows"] if "skipped" not in r]}
        if old.get("running") is not None:
            part, name, variant = old["running"]
            self.add((part, name, variant), {"error": "everything ended here"})

    @property
    def rows(self) -> list[Figures]:
        return self.values["rows"]

    def measured(self) -> set[Key]:
        return {key_of(row) for row in self.rows if "error" not in row}

    def tried(self) -> set[Key]:
        """The keys of the rows that failed."""
        return {key_of(row) for row in self.rows if "error" in row}

    def begin(self, row: Row) -> None:
        self.values["running"] = list(row.key)
        self._write()

    def add(self, key: Key, figures: Figures) -> None:
        self.rows[:] = [row for row in self.rows if key_of(row) != key]
        elsewhere = {"git_sha": self.git_sha} if self.git_sha != self.values["fingerprint"].get("git_sha") else {}
        self.rows.append({**dict(zip(("part", "name", "variant"), key, strict=True)), **figures, **elsewhere})
        self.values["running"] = None
        self._write()

    def _write(self) -> None:
        write_json(self.path, self.values)


def untimed(figures: Figures) -> Figures:
    """The figures with None for those that ``TIME`` matches, also in the rows of a nested table ("top")."""
    rows = {key: [untimed(row) for row in value] for key, value in figures.items() if key == "top"}
    return figures | dict.fromkeys(filter(TIME.fullmatch, figures)) | rows


def key_of(row: Figures) -> Key:
    return row["part"], row["name"], row["variant"]


def known() -> set[Key]:
    """The keys of the rows that have figures in bench/results, of any card; checks by family and tier. Never those of
    what trials are compared with, which belong to one sitting."""
    found: set[Key] = set()
    for path in sorted(RESULTS.glob("*.json")):
        values = json.loads(path.read_text())
        if values.get("benchmark") == "gpu":
            found |= {key_of(row) for row in values["rows"] if "error" not in row and row["variant"] != BASELINE}
    return found


def has_result(row: Row, found: set[Key]) -> bool:
    if row.part != "checks":
        return row.key in found
    return ("checks", row.name.split(" ")[0], row.variant) in found


def merge(source: Path, target: Path) -> None:
    """Write the result files of ``source`` to one file to commit; raises DataError if there are none, UsageError for a
    dry run or for several devices."""
    paths = sorted(source.glob("*.json")) if source.is_dir() else [source] if source.is_file() else []
    found = [values for values in map(read_json, paths) if values.get("benchmark") == "gpu"]
    if not found:
        raise DataError("holds no result file", file=source, hint="give an --out of a run of python -m bench.gpu")
    if any(values.get("dry") for values in found):
        raise UsageError("got a dry run; allowed: a run on a GPU, since nothing here was measured", file=source)
    devices = sorted({values["fingerprint"]["device"] for values in found})
    if len(devices) > 1:
        what = f"got {' and '.join(devices)}; allowed: one device"
        raise UsageError(what, file=source, hint="merge each file by itself")
    rows = [row for values in found for row in values["rows"] if "skipped" not in row]
    checks = [row for row in rows if row["part"] == "checks"]
    kept = [{k: v for k, v in row.items() if k != "took_s"} for row in rows if row["part"] != "checks"]
    check_output(target, MARK, "--merge")
    make_dir(target.parent)
    lines = ",\n  ".join(json.dumps(row) for row in [*condensed(checks), *kept])
    head = json.dumps({"benchmark": "gpu", "fingerprint": found[0]["fingerprint"]}, indent=1).removesuffix("\n}")
    write_atomic(target, f'{head},\n "rows": [\n  {lines}\n ]\n}}\n')


def condensed(checks: list[Figures]) -> list[Figures]:
    """One row per family and tier: how many cases agree, the largest errors, and how many replayed graphs are equal."""
    groups: dict[tuple[str, str], list[Figures]] = defaultdict(list)
    for row in checks:
        groups[row["name"].split(" ")[0], row["variant"]].append(row)
    found = []
    for (family, tier), rows in groups.items():
        good = [row for row in rows if "error" not in row]
        largest = {k: max((r[k] for r in good if r.get(k) is not None), default=None) for k in ERRORS}
        counts = {"of": len(rows), "agree": len(good)}
        counts["graph_replays_equal"] = sum(row.get("graph_replay_equal") is True for row in good)
        failed = [f"{row['name']}: {row['error']}" for row in rows if "error" in row][:5]
        head = {"part": "checks", "name": family, "variant": tier}
        found.append(head | counts | largest | ({"failed": failed} if failed else {}))
    return found
