"""After kill -9, a signal or damage, a resumed run ends with the uninterrupted run's bytes; locks keep others out."""

import dataclasses
import errno
import hashlib
import json
import os
import shutil
import signal
import sys
import time

import pytest

from imnet import checkpoint, load_run
from imnet.errors import IOFailure, UsageError
from imnet.metrics import read_metrics
from imnet.start import train

from .conftest import TINY, options, skip_if_ignored, start_ranks


def digests(folder):
    """(name of the newest checkpoint, sha256 of its tensor files, the metrics without times)."""
    newest = sorted((folder / "checkpoints").glob("step-????????"))[-1]
    files = {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in newest.glob("*.safetensors")}
    rows = [
        {k: v for k, v in r.items() if k not in ("seconds", "images_per_s")}
        for r in read_metrics(folder / "metrics.jsonl")
    ]
    return newest.name, files, rows


def wait_for_step(folder, process):
    """Waits until the run has saved its first checkpoint or has ended."""
    while process.is_alive() and not list((folder / "checkpoints").glob("step-????????")):
        time.sleep(0.01)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, spawn):
    recipe = dataclasses.replace(TINY, epochs=6)
    folder = tmp_path_factory.mktemp("whole")
    started = time.monotonic()
    process = spawn(recipe, options(folder, checkpoint_every_steps=3))
    process.join(120)
    assert process.exitcode == 0
    return recipe, digests(folder), time.monotonic() - started


@pytest.mark.parametrize(("first", "then"), [
    pytest.param("host", "host", marks=pytest.mark.slow), pytest.param("torch", "torch", marks=pytest.mark.slow),
    ("host", "resident")])  # fmt: skip
def test_a_kill_under_another_pipeline_with_mixed_images(tiny, spawn, tmp_path, first, then):
    """With mixup, CutMix and accumulation; the host pipeline's batches equal the resident one's to the last bit."""
    recipe = dataclasses.replace(tiny, mixup_alpha=0.2, cutmix_alpha=1.0)
    common = {"checkpoint_every_steps": 3, "micro_batch_images": 20, "workers": 2}
    spawn(recipe, options(tmp_path / "whole", pipeline=first, **common)).join(120)
    process = spawn(recipe, options(tmp_path / "killed", pipeline=first, **common))
    wait_for_step(tmp_path / "killed", process)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    process = spawn(recipe, options(tmp_path / "killed", pipeline=then, **common))
    process.join(120)
    assert process.exitcode == 0
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")


# SIGTERM and SIGINT are also among the signals of test_kills.py.
OTHERS = [pytest.param(number, marks=pytest.mark.slow) for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT)]


@pytest.mark.parametrize("number", [signal.SIGUSR1, *OTHERS], ids=lambda s: s.name)
def test_a_signal_saves_and_exits_75_and_the_next_start_goes_on(uninterrupted, spawn, tmp_path, number):
    skip_if_ignored(number)
    recipe, expected, _ = uninterrupted
    process = spawn(recipe, options(tmp_path, checkpoint_every_steps=3))
    wait_for_step(tmp_path, process)
    os.kill(process.pid, number)
    process.join(30)
    assert process.exitcode == 75
    process = spawn(recipe, options(tmp_path, checkpoint_every_steps=3))
    process.join(120)
    assert process.exitcode == 0
    assert digests(tmp_path) == expected


def test_a_second_run_in_the_same_folder_gets_one_line(uninterrupted, spawn, tmp_path):
    recipe, _, _ = uninterrupted
    process = spawn(dataclasses.replace(recipe, epochs=500), options(tmp_path))
    wait_for_step(tmp_path, process)
    with pytest.raises(IOFailure, match=rf"pid {process.pid} on .*wait for it, or choose another --out"):
        train(recipe, options(tmp_path))
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    # A killed run's lock does not block the next start, but its different configuration does.
    with pytest.raises(UsageError, match="epochs was 500, is 6"):
        train(recipe, options(tmp_path))


@pytest.mark.parametrize(
    "then", ["moved, another in its place", "removed", pytest.param("moved", marks=pytest.mark.slow)]
)
def test_a_folder_that_goes_away_stops_the_run_and_no_other_is_written(uninterrupted, spawn, tmp_path, then):
    recipe, expected, _ = uninterrupted
    folder, elsewhere = tmp_path / "run", tmp_path / "moved"
    process = spawn(recipe, options(folder, checkpoint_every_steps=3))
    wait_for_step(folder, process)
    os.kill(process.pid, signal.SIGSTOP)
    folder.rename(elsewhere)
    if "another" in then:
        (folder / "checkpoints").mkdir(parents=True)
    if then == "removed":
        shutil.rmtree(elsewhere)
    os.kill(process.pid, signal.SIGCONT)
    process.join(60)
    assert process.exitcode == 74
    assert [path.name for path in folder.rglob("*")] == (["checkpoints"] if "another" in then else [])
    if then != "removed":
        train(recipe, options(elsewhere, checkpoint_every_steps=3))
        assert digests(elsewhere) == expected


def test_another_configuration_is_refused_and_the_same_one_is_complete(tiny, tmp_path, capsys):
    short = dataclasses.replace(tiny, epochs=1)
    train(short, options(tmp_path))
    before = digests(tmp_path)
    capsys.readouterr()
    train(short, options(tmp_path))
    assert "complete already" in capsys.readouterr().out
    assert digests(tmp_path) == before
    with pytest.raises(UsageError, match=r"seed was 7, is 8.*--allow-change"):
        train(dataclasses.replace(short, seed=8), options(tmp_path))
    with pytest.raises(UsageError, match="already holds a run"):
        train(short, options(tmp_path, resume="never"))


def damage_flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def damage_cut(path):
    path.write_bytes(path.read_bytes()[:-7])


DAMAGE = {
    "a flipped bit in the weights": lambda p: damage_flip(p / "model.safetensors"),
    "a flipped bit in the optimiser": lambda p: damage_flip(p / "state.safetensors"),
    "truncated weights": lambda p: damage_cut(p / "model.safetensors"),
    "empty state": lambda p: (p / "state.json").write_bytes(b""),
    "a missing file": lambda p: (p / "ema.safetensors").unlink(),
    "no manifest": lambda p: (p / "MANIFEST.json").unlink(),
    "an empty manifest": lambda p: (p / "MANIFEST.json").write_bytes(b"{}"),
    "a manifest that is a list": lambda p: (p / "MANIFEST.json").write_bytes(b"[]"),
    "a manifest cut short": lambda p: damage_cut(p / "MANIFEST.json"),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    train(dataclasses.replace(TINY, epochs=2), options(folder))
    return folder


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_seen_and_the_one_before_it_taken(finished, tmp_path, kind):
    folder = tmp_path / "checkpoints"
    shutil.copytree(finished / "checkpoints", folder)
    older, newest = sorted(folder.iterdir())
    DAMAGE[kind](newest)
    found = checkpoint.load(folder)
    assert found is not None
    assert found.path == older
    assert len(found.skipped) == 1
    assert newest.name in found.skipped[0]


def test_resuming_from_the_older_checkpoint_ends_in_the_same_weights(finished, tiny, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    expected = digests(folder)
    newest = sorted((folder / "checkpoints").iterdir())[-1]
    damage_flip(newest / "model.safetensors")
    (folder / "evaluation.json").unlink()
    train(dataclasses.replace(tiny, epochs=2), options(folder))
    assert "is damaged (sha256 differs)" in capsys.readouterr().out
    assert digests(folder) == expected


def test_a_run_of_the_first_version_goes_on(finished, tiny, tmp_path):
    """The first version's run.json lacks how steps are executed; its folder and checkpoints are as today's."""
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    shutil.rmtree(sorted((folder / "checkpoints").iterdir())[-1])
    (folder / "evaluation.json").unlink()
    run = json.loads((folder / "run.json").read_text()) | {"status": "running"}
    first = {key: value for key, value in run.items() if key not in ("execution", "warm_up_s")}
    assert len(first) == len(run) - 2
    (folder / "run.json").write_text(json.dumps(first))
    train(dataclasses.replace(tiny, epochs=2), options(folder))
    assert digests(folder) == digests(finished)


@pytest.mark.parametrize("name", ["fsync", "rename", "mkdir"])
def test_a_save_that_fails_leaves_the_older_checkpoint(finished, tmp_path, monkeypatch, name):
    folder = tmp_path / "checkpoints"
    shutil.copytree(finished / "checkpoints", folder)
    kept = checkpoint.load(folder)
    assert kept is not None

    def fail(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, name, fail)
    with pytest.raises(IOFailure, match=r"No space left on device.*older checkpoints are untouched"):
        checkpoint.save(folder, 999, kept.tensors, kept.state)
    monkeypatch.undo()
    after = checkpoint.load(folder)
    assert after is not None
    assert after.path == kept.path
    assert not after.skipped
    assert not list(folder.glob("*999*"))


def test_a_disk_that_fails_while_a_damaged_checkpoint_is_replaced_is_one_line(finished, tmp_path, monkeypatch):
    """The first rename sets the damaged one aside; neither the new one nor that one can be given its name then."""
    folder = tmp_path / "checkpoints"
    shutil.copytree(finished / "checkpoints", folder)
    kept = checkpoint.load(folder)
    (kept.path / "state.json").write_text("{}")
    rename, names = os.rename, []

    def failing(*given, **named):
        names.append(given)
        if len(names) > 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        rename(*given, **named)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(IOFailure, match=r"checkpoint not written: Input/output error"):
        checkpoint.save(folder, int(kept.path.name.split("-")[1]), kept.tensors, kept.state)
    assert len(names) == 3


def test_metrics_are_cut_to_the_checkpoint_on_resume(finished, tiny, tmp_path):
    """Lines that a killed run wrote after its last checkpoint must not be in the log twice."""
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    shutil.rmtree(sorted((folder / "checkpoints").iterdir())[-1])
    with (folder / "metrics.jsonl").open("ab") as f:
        f.write(b'{"kind": "train", "st')
    (folder / "evaluation.json").unlink()
    train(dataclasses.replace(tiny, epochs=2), options(folder))
    assert digests(folder)[2] == digests(finished)[2]
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        json.loads(line)


@pytest.mark.parametrize("left", [0, 100, -30])
def test_a_log_that_lost_lines_is_said_and_stays_readable(finished, tiny, tmp_path, left, capsys):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    shutil.rmtree(sorted((folder / "checkpoints").iterdir())[-1])
    log = folder / "metrics.jsonl"
    known = json.loads((next((folder / "checkpoints").iterdir()) / "state.json").read_text())["metrics_bytes"]
    log.write_bytes(log.read_bytes()[:known][:left])
    whole = log.read_bytes().rpartition(b"\n")[0]
    train(dataclasses.replace(tiny, epochs=2), options(folder))
    assert "bytes of metrics.jsonl are gone: curves and the best epoch are of what is left" in capsys.readouterr().out
    assert log.read_bytes().startswith(whole)
    assert [json.loads(line)["epoch"] for line in log.read_text().splitlines()][-1] == 2


def test_other_threads_are_said(finished, tiny, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    (folder / "evaluation.json").unlink()
    run = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(run | {"threads": run["threads"] + 3}))
    train(dataclasses.replace(tiny, epochs=2), options(folder))
    assert f"were {run['threads'] + 3}: sums come in another order" in capsys.readouterr().out


def test_no_pickle_is_opened_on_the_whole_path(tmp_path):
    (process,) = start_ranks(pickles, (tmp_path,))
    process.join(120)
    assert process.exitcode == 0


def pickles(folder):
    """The number of classes that pickle looks up while a run is trained and its network is loaded."""
    found = []
    sys.addaudithook(lambda name, args: found.append(args) if name == "pickle.find_class" else None)
    train(dataclasses.replace(TINY, epochs=1), options(folder))
    load_run(folder).model()
    print(*found[:3])
    return len(found)
