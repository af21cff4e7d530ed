"""--log: sends the lines of metrics.jsonl to other formats as well: CSV, TensorBoard, W&B (extra: track).

metrics.jsonl stays the source of truth. A resumed run truncates it to its checkpoint and then rewrites CSV and
TensorBoard from it, so that no step appears twice. W&B's server keeps the steps it has and ignores repeated ones.
"""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import json
import os
import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from imnet.errors import DataError, IOFailure, UsageError
from imnet.files import write_atomic
from imnet.metrics import MetricsLog, read_metrics
from imnet.run_options import LOGS

COLUMNS = ("kind", "step", "epoch", "loss", "lr", "images_per_s", "seconds", "top1", "top5")
Row = Mapping[str, Any]


class Logger(Protocol):
    """Takes the lines of metrics.jsonl one after another."""

    def write(self, row: Row) -> None: ...

    def close(self) -> None: ...


def check(kinds: Sequence[str]) -> None:
    """Raise UsageError for a kind whose package is not installed; nothing is imported."""
    for kind in kinds:
        if kind != "csv" and importlib.util.find_spec(kind) is None:
            raise UsageError(f"got --log {kind}, but {kind} is not installed", hint="pip install 'imnet[track]'")


def open_log(folder: Path, resume_at: int, kinds: Sequence[str], config: Mapping[str, Any]) -> MetricsLog:
    """Open metrics.jsonl of a run folder, truncated to ``resume_at`` bytes, and the loggers that also get its lines."""
    log = MetricsLog(folder / "metrics.jsonl", resume_at)
    log.loggers = opened(kinds, folder, config)
    return log


def opened(kinds: Sequence[str], folder: Path, config: Mapping[str, Any]) -> list[Logger]:
    """One logger for each kind, which has received the lines that metrics.jsonl of ``folder`` already holds; ``config``
    is for W&B."""
    rows = _whole_rows(folder / "metrics.jsonl") if kinds else []
    makers = {"csv": Csv, "tensorboard": TensorBoard, "wandb": WandB}
    assert tuple(makers) == LOGS
    return [makers[kind](folder, rows, config) for kind in kinds]


def _whole_rows(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; DataError for one without the values that every logger needs."""
    rows = read_metrics(path)
    for row in rows:
        if not {"kind", "step"} <= set(row) or not isinstance(row.get("seconds"), int | float):
            what = f"a line is without kind, step or seconds: {json.dumps(row):.80}"
            raise DataError(what, file=path, hint="remove it, or leave --log out")
    return rows


class Csv:
    """metrics.csv of the run folder."""

    def __init__(self, folder: Path, rows: Sequence[Row], config: Mapping[str, Any]):
        path = folder / "metrics.csv"
        write_atomic(path, ",".join(COLUMNS) + "\n")
        self._file = path.open("a", newline="", encoding="utf-8")
        self._writer = csv.writer(self._file, lineterminator="\n")
        for row in rows:
            self.write(row)

    def write(self, row: Row) -> None:
        self._writer.writerow([row.get(name) for name in COLUMNS])
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def scalars(row: Row) -> dict[str, float]:
    """The numbers of a line by names such as ``train/loss``, without step and time."""
    told = {k: v for k, v in row.items() if k not in ("kind", "step", "seconds") and isinstance(v, int | float)}
    return {f"{row['kind']}/{name}": value for name, value in told.items()}


class TensorBoard:
    """Event files in tensorboard/ of the run folder."""

    def __init__(self, folder: Path, rows: Sequence[Row], config: Mapping[str, Any]):
        from torch.utils.tensorboard import SummaryWriter

        place = folder / "tensorboard"
        try:
            place.mkdir(exist_ok=True)
        except OSError as error:
            raise IOFailure(f"cannot be a folder: {error.strerror}", file=place, hint="move it away") from error
        for old in place.glob("events.out.tfevents.*"):
            old.unlink()
        self._began = time.time() - (rows[-1]["seconds"] if rows else 0.0)
        self._writer = SummaryWriter(str(place))
        for row in rows:
            self.write(row)

    def write(self, row: Row) -> None:
        for name, value in scalars(row).items():
            self._writer.add_scalar(name, value, row["step"], self._began + row["seconds"])

    def close(self) -> None:
        self._writer.close()


def name_of(folder: Path) -> str:
    """The name of a run in W&B: that of its folder; for a band, preceded by the ensemble's, since each has a band-0."""
    folder = folder.resolve()
    return f"{folder.parent.name}/{folder.name}" if folder.name.startswith("band-") else folder.name


class WandB:
    """A W&B run in the project imnet, or $WANDB_PROJECT. The run folder keeps its id, so a resumed run continues it."""

    def __init__(self, folder: Path, rows: Sequence[Row], config: Mapping[str, Any]):
        import wandb  # pyright: ignore[reportMissingImports]

        kept, is_new = folder / "wandb-id", False
        with contextlib.suppress(FileExistsError), kept.open("x") as file:
            is_new = bool(file.write(secrets.token_hex(8)))
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "imnet"), name=name_of(folder), dir=str(folder),
                id=kept.read_text(), resume="allow", reinit="create_new", config=dict(config),
            )  # fmt: skip
        except wandb.Error as error:
            raise IOFailure(f"W&B: {error}", hint="wandb login, or export WANDB_MODE=offline") from error
        for row in rows if is_new else ():
            self.write(row)

    def write(self, row: Row) -> None:
        self._run.log(scalars(row), step=row["step"])

    def close(self) -> None:
        self._run.finish()
