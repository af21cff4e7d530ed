"""Real sweeps: killed with kill -9 and resumed, repeated, with failing trials; the page with both plots."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import yaml

from imnet import sweep
from imnet.report.read import load
from imnet.runfolder import writer

BASE = {
    "device": "cpu",
    "precision": "fp32",
    "data.name": "shapes",
    "data.image_px": 12,
    "data.train_images": 1056,
    "data.test_images": 40,
    "data.val_images": 32,
    "data.batch_images": 32,
    "model_options": {"width": 8},
    "epochs": 3,
    "eval_every_epochs": 1,
    "checkpoint_every_steps": 2,
    "threads": 1,
}


def write(folder, base=BASE, **grid):
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump({"base": base, "grid": grid}))
    return path


def start(path, out, *words, **pipes):
    command = [sys.executable, "-c", "import sys; from imnet import sweep; sys.exit(sweep.main())", str(path)]
    return subprocess.Popen([*command, "--out", str(out), *words], stdout=subprocess.PIPE, text=True, **pipes,
                            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})  # fmt: skip


def lines_of(out):
    return sum(len(path.read_text().splitlines()) for path in out.glob("*/metrics.jsonl"))


def kill_after(process, out, lines):
    """Sends kill -9 to the sweep alone once ``lines`` more lines are logged; returns the names of complete trials."""
    before, end = lines_of(out), time.monotonic() + 120
    while process.poll() is None and lines_of(out) < before + lines:
        assert time.monotonic() < end, "the sweep logs nothing"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    end = time.monotonic() + 30
    while any(writer(folder) for folder in out.iterdir()):
        assert time.monotonic() < end, "a trial has outlived its sweep"
        time.sleep(0.05)
    return complete(out)


def complete(out):
    return sorted(
        path.parent.name for path in out.glob("*/run.json") if json.loads(path.read_text())["status"] == "complete"
    )


def stamps(out, names):
    return {
        path: path.stat().st_mtime_ns
        for name in names
        for path in (out / name).rglob("*")
        if path.is_file() and path.name != "report.html"
    }


def test_a_killed_sweep_goes_on_and_a_trial_that_fails_stops_no_other(tmp_path, capsys):
    base = BASE | {"data.train_images": 544, "epochs": 2}
    path, out = write(tmp_path, base, **{"optim.lr": [0.1, 1e30, 0.05]}), tmp_path / "out"
    kill_after(start(path, out), out, 8)
    assert len(list(out.iterdir())) == 1
    assert not complete(out)
    assert sweep.main([str(path), "--out", str(out), "--dry-run"]) == 0
    assert [line.split()[2] for line in capsys.readouterr().out.splitlines()[:3]] == ["stopped", "not", "not"]

    # The exit code is the failing trial's; the failure is printed when it happens and again at the end, with its log.
    assert sweep.main([str(path), "--out", str(out)]) == 65
    said = capsys.readouterr()
    assert "3 trial(s)" in said.out
    assert "FAILED     2 of 3" in said.out
    assert "loss or gradient not finite" in said.out.split("failed     2")[1]
    assert "imnet-sweep: 1 of 3 trials failed; the same command tries them again" in said.err
    assert len(complete(out)) == 2
    first = json.loads((out / complete(out)[0] / "run.json").read_text())
    assert first["config_hash"][:8] in complete(out)[0]
    (resumed,) = (log.parent for log in out.glob("*/trial.log") if "resuming   at step" in log.read_text())
    assert load(resumed).recipe["optim"]["lr"] == 0.1  # resumed, not started anew
    (failed,) = (log.parent for log in out.glob("*/trial.log") if log.parent.name not in complete(out))
    kept = json.loads((failed / "trial.json").read_text())
    assert (kept["code"], kept["number"], kept["values"]) == (65, 2, {"optim.lr": 1e30})

    # No file of a complete trial is written again.
    before = stamps(out, complete(out))
    for number in ("1", "3"):
        assert sweep.main([str(path), "--out", str(out), "--trial", number]) == 0
        assert "complete already" in capsys.readouterr().out
    assert stamps(out, complete(out)) == before
    page = (out / "report.html").read_text()
    assert "Accuracy, training and validation" in page
    assert "Loss, training and validation" in page


@pytest.mark.slow
def test_ten_runs_killed_twice_end_in_the_page_with_both_plots(tmp_path, capsys):
    axes = {"optim.lr": [0.2, 0.1, 0.05, 0.02, 0.01], "optim.weight_decay": [0.0, 1e-3]}
    path, out = write(tmp_path, **axes), tmp_path / "out"
    first = kill_after(start(path, out, "--jobs", "2"), out, 60)
    before = stamps(out, first)
    second = kill_after(start(path, out, "--jobs", "2"), out, 80)
    assert len(second) < 10
    assert set(first) <= set(second)
    assert sweep.main([str(path), "--out", str(out), "--jobs", "2"]) == 0
    assert stamps(out, first) == before
    said = capsys.readouterr().out
    assert f"{len(second)} complete, {10 - len(second)} to run; 2 at once" in said
    assert len(complete(out)) == 10
    for name in complete(out):
        run = load(out / name)
        assert run.finished
        assert [line.epoch for line in run.evals] == [1, 2, 3]
        steps = [line.step for line in run.train]
        assert steps == sorted(set(steps)), "a line twice: the run did not go on where it was"
        assert len(run.train_top1) == len(run.train_loss) == len(run.vals) == 3
    page = (out / "report.html").read_text()
    for title in ("Accuracy, training and validation", "Loss, training and validation", "Search"):
        assert title in page
    assert page.count('class="swatch"') == 20  # ten configurations, ten runs
    table = said[said.index("configuration") :].splitlines()
    assert len(table) == 12
    assert sweep.main([str(path), "--out", str(out)]) == 0
    assert "complete already: 10 trial(s)" in capsys.readouterr().out


@pytest.mark.slow
def test_two_sweeps_at_once_share_the_trials(tmp_path):
    path, out = write(tmp_path, **{"optim.lr": [0.1, 0.05, 0.02, 0.01]}), tmp_path / "out"
    both = [start(path, out), start(path, out)]
    said = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert len(complete(out)) == 4
    assert "FAILED" not in "".join(said)
    for log in out.glob("*/trial.log"):
        assert log.read_text().count("epoch 3/3  test") == 1, "trained twice"


@pytest.mark.slow
def test_one_signal_saves_every_trial_and_the_same_command_goes_on(tmp_path):
    path, out = write(tmp_path, **{"optim.lr": [0.1, 0.05]}), tmp_path / "out"
    process = start(path, out, "--jobs", "2", "--seeds", "2")
    while lines_of(out) < 8:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75
    assert not any(writer(folder) for folder in out.iterdir())
    codes = [json.loads((folder / "trial.json").read_text())["code"] for folder in out.iterdir()]
    assert codes == [75, 75]
    process = start(path, out, "--jobs", "2", "--seeds", "2")
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 0
    assert len(complete(out)) == 4
    assert "±" in said.split("configuration")[1]


@pytest.mark.slow
def test_a_folder_that_is_moved_ends_the_sweep_and_it_goes_on_from_there(tmp_path):
    path, out = write(tmp_path, **{"optim.lr": [0.1]}), tmp_path / "out"
    first = start(path, out, stderr=subprocess.PIPE)
    end = time.monotonic() + 60
    while not list(out.glob("*/checkpoints/step-????????")):
        assert time.monotonic() < end, "the trial saves nothing"
        time.sleep(0.005)
    out.rename(tmp_path / "moved")
    errors = first.communicate(timeout=60)[1]
    assert first.returncode == 74
    assert errors.count("\n") == 1
    assert "trial.log: cannot be read: No such file or directory; was the folder moved?" in errors
    assert not out.exists()
    assert start(path, tmp_path / "moved").wait(60) == 0
    assert len(complete(tmp_path / "moved")) == 1
