"""--log: CSV, TensorBoard and W&B hold each step of metrics.jsonl once, also after a kill; the bar in a notebook."""

import csv
import dataclasses
import errno
import importlib.util
import json
import os
import signal
import struct
import subprocess
import sys

import pytest

from imnet import loggers, options
from imnet.cli import train_main
from imnet.errors import DataError, IOFailure, UsageError
from imnet.metrics import read_metrics
from imnet.start import train

from . import conftest
from .conftest import TINY
from .test_resume import wait_for_step

HELD = dataclasses.replace(TINY, data=dataclasses.replace(TINY.data, val_images=32), epochs=4)
BOTH = "csv,tensorboard" if importlib.util.find_spec("tensorboard") else "csv"


@pytest.fixture(scope="module")
def resumed(tmp_path_factory, spawn):
    """The folder of a run that was killed after its first checkpoint, with log lines to take back, and then resumed."""
    folder = tmp_path_factory.mktemp("logged") / "run"
    told = conftest.options(folder, checkpoint_every_steps=3, log_every_steps=1, log=BOTH)
    process = spawn(HELD, told)
    wait_for_step(folder, process)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    process = spawn(HELD, told)
    process.join(120)
    assert process.exitcode == 0
    return folder


def in_csv(row):
    return {name: "" if row.get(name) is None else str(row[name]) for name in loggers.COLUMNS}


def test_csv_is_metrics_jsonl_after_a_kill_too(resumed):
    rows = read_metrics(resumed / "metrics.jsonl")
    with (resumed / "metrics.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == [in_csv(row) for row in rows]
    assert {name for row in rows for name in row} <= set(loggers.COLUMNS)  # a new metric needs a column
    assert {row["kind"] for row in rows} == {"train", "val", "eval"}


def test_tensorboard_has_each_step_once_after_a_kill_too(resumed):
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed (extra: track)")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    rows = read_metrics(resumed / "metrics.jsonl")
    events = EventAccumulator(str(resumed / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    wanted = {}
    for row in rows:
        for name, value in loggers.scalars(row).items():
            wanted.setdefault(name, []).append((row["step"], value))
    assert {"train/loss", "train/lr", "val/top1", "eval/top1", "eval/top5"} <= set(wanted)
    assert set(events.Tags()["scalars"]) == set(wanted)
    for name, points in wanted.items():
        found = events.Scalars(name)
        assert [e.step for e in found] == [step for step, _ in points]
        assert [e.value for e in found] == pytest.approx([value for _, value in points], rel=1e-6)
        times = [e.wall_time for e in found]
        assert times == sorted(times)


def records(data):
    """Yields the records of a .wandb file: seven bytes, then LevelDB's log format (blocks; checksum, length, kind)."""
    at, parts = 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or its last part
            yield parts
            parts = b""


def test_wandb_goes_on_with_its_run(tmp_path, monkeypatch):
    """Offline, two starts keep one run id, and the files to be sent have every line of the metrics."""
    pytest.importorskip("wandb", reason="W&B is not installed (extra: track)")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    folder = tmp_path / "run"
    train(HELD, conftest.options(folder, log="wandb", log_every_steps=4))
    kept = (folder / "wandb-id").read_text()
    more = dataclasses.replace(HELD, epochs=5)
    train(more, conftest.options(folder, log="wandb", log_every_steps=4, allow_change=True))
    assert (folder / "wandb-id").read_text() == kept
    sent = sorted((folder / "wandb").glob("offline-run-*"))
    assert len(sent) == 2
    assert all(path.name.endswith(kept) for path in sent)
    from wandb.proto import wandb_internal_pb2

    found = {}
    for path in sent:
        for data in records(next(path.glob("*.wandb")).read_bytes()):
            record = wandb_internal_pb2.Record.FromString(data)
            if record.WhichOneof("record_type") == "history":
                items = {i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in record.history.item}
                step = record.history.step.num
                assert step not in found
                found[step] = items
    for row in read_metrics(folder / "metrics.jsonl"):
        for name, value in loggers.scalars(row).items():
            assert found[row["step"]][name] == pytest.approx(value)


def test_a_run_that_is_complete_is_handed_on_when_asked_for(tmp_path):
    train(HELD, conftest.options(tmp_path))
    assert not (tmp_path / "metrics.csv").exists()
    # Empty lines, as an editor or a script leaves them, do not end the reading.
    written = tmp_path / "metrics.jsonl"
    lines = written.read_bytes().splitlines(keepends=True)
    written.write_bytes(b"".join([*lines[:2], b"\n", b"  \r\n", *lines[2:]]))
    assert len(read_metrics(written)) == len(lines)
    train(HELD, conftest.options(tmp_path, log="csv"))
    with (tmp_path / "metrics.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == [in_csv(row) for row in read_metrics(tmp_path / "metrics.jsonl")]


@pytest.mark.parametrize("gone", ["kind", "step", "seconds"])
def test_a_damaged_line_that_is_to_be_handed_on_is_one_line(gone, tmp_path):
    row = {"kind": "train", "step": 1, "seconds": 0.1, "loss": 2.0}
    (tmp_path / "metrics.jsonl").write_text(json.dumps({k: row[k] for k in row if k != gone}) + "\n")
    with pytest.raises(DataError, match=r"without kind, step or seconds: .*; remove it, or leave --log out"):
        loggers.opened(BOTH.split(","), tmp_path, {})


def test_a_file_in_the_place_of_tensorboards_folder_is_one_line(tmp_path):
    pytest.importorskip("tensorboard")
    (tmp_path / "tensorboard").touch()
    with pytest.raises(IOFailure, match="tensorboard: cannot be a folder: File exists; move it away"):
        loggers.opened(["tensorboard"], tmp_path, {})


@pytest.mark.parametrize("kind", ["tensorboard", "wandb"])
def test_what_is_not_installed_is_one_line_before_anything_is_made(kind, tmp_path, monkeypatch, capsys):
    real = loggers.importlib.util.find_spec
    monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda name: None if name == kind else real(name))
    assert train_main(["--log", f"csv,{kind}", "--out", str(tmp_path / "run")]) == 2
    assert f"got --log {kind}, but {kind} is not installed; pip install 'imnet[track]'" in capsys.readouterr().err
    assert train_main(["--log", kind, "--dry-run"]) == 2
    assert not (tmp_path / "run").exists()


def test_a_full_disk_is_one_line_also_in_closing(tmp_path):
    log = loggers.open_log(tmp_path, 0, ("csv",), {})
    log.loggers[0]._file.close()
    log.loggers[0]._file = full = open("/dev/full", "w")  # noqa: SIM115
    log.loggers[0]._writer = csv.writer(full)
    for act in (lambda: log.write(kind="train", step=1, seconds=0.1, loss=2.0), log.close):
        with pytest.raises(IOFailure, match="No space left on device; make room"):
            act()


@pytest.mark.parametrize("number", [errno.EDQUOT, errno.ENOSPC, errno.EIO])
def test_a_disk_that_is_full_only_at_the_fsync_is_one_line(tmp_path, monkeypatch, number):
    """Network disks with quotas report this only at the fsync."""

    fsync = os.fsync

    def full(fd):
        if os.readlink(f"/proc/self/fd/{fd}").endswith("metrics.jsonl"):
            raise OSError(number, os.strerror(number))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(IOFailure, match=rf"metrics.jsonl: not written: {os.strerror(number)}; make room, then resume"):
        train(HELD, conftest.options(tmp_path))


def test_bands_of_different_ensembles_have_different_names(tmp_path):
    assert loggers.name_of(tmp_path / "first" / "band-0") == "first/band-0"
    assert loggers.name_of(tmp_path / "first") == "first"


def test_words():
    with pytest.raises(UsageError, match="log = 'csv,mlflow'"):
        options.parse(["--log", "csv,mlflow"])
    for word in ("--wandb", "--tensorboard", "--report-to"):
        with pytest.raises(UsageError, match="did you mean --log"):
            options.parse([word])
    assert options.parse(["--log", "csv,csv"]).options.logs == ("csv",)


NOTEBOOK = """
import sys
from imnet.console import Console
console = Console(interval_s=0.0)
console.say("a [bold]line[/bold]")
console.start(10, 0)
console.progress(5, 0.5, 1, 2.0, 0.1, 100.0, 3.0)
console.stop()
"""


# Runs in a process of its own: inside pytest, nbclient waits a minute for a message that has already come.
RUN_NOTEBOOK = """
import json, sys, nbclient, nbformat
book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(sys.argv[1])])
nbclient.NotebookClient(book, timeout=60, kernel_name="python3").execute()
print(json.dumps(book.cells[0].outputs))
"""


@pytest.mark.slow
def test_a_notebook_has_a_bar_and_its_lines_as_they_are():
    for name in ("nbformat", "nbclient", "ipykernel", "ipywidgets"):
        pytest.importorskip(name, reason=f"{name} is not installed: no notebook here")
    command = [sys.executable, "-c", RUN_NOTEBOOK, NOTEBOOK]
    outputs = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=100).stdout)
    assert "a [bold]line[/bold]" in "".join(out.get("data", {}).get("text/plain", "") for out in outputs)
    assert any("application/vnd.jupyter.widget-view+json" in out.get("data", {}) for out in outputs)
    assert not any(out["output_type"] == "error" for out in outputs)


def test_a_pipe_has_lines_and_no_bar():
    done = subprocess.run([sys.executable, "-c", NOTEBOOK], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines() == [
        "a [bold]line[/bold]",
        "step 5  epoch 0.5/1  loss 2.0000  lr 0.1  100 images/s  0:03 left",
    ]
    assert "\r" not in done.stdout
