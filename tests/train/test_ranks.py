"""Several gloo ranks on the CPU train as one rank does; signals, failures and lost ranks end cleanly in one line."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from imnet import ranks as launcher
from imnet import runfolder
from imnet.metrics import read_metrics
from imnet.ranks import run_ranks
from imnet.trainer import Trainer
from tests.train import ranks_script
from tests.train.conftest import command, finished, skip_if_ignored, start_launcher, start_ranks, wait_for_save

ROOT = Path(__file__).resolve().parents[2]
ENV = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"}


def run(folder, procs=1, micro=0):
    if procs == 1:
        assert ranks_script.trained(folder, procs, micro) == 0
    else:
        assert run_ranks(ranks_script.trained_and_aborting, (folder, procs, micro), procs, 0) == 0
    rows = read_metrics(folder / "metrics.jsonl")
    newest = sorted((folder / "checkpoints").iterdir())[-1]
    return rows, load_file(newest / "model.safetensors")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return run(tmp_path_factory.mktemp("one"))


BOTH = [pytest.param(procs, micro, marks=pytest.mark.slow) for procs, micro in ((3, 0), (2, 10))]


@pytest.mark.parametrize(("procs", "micro"), [(2, 0), (1, 10), *BOTH])
def test_ranks_and_accumulation_give_the_one_rank_curve(alone, tmp_path, procs, micro):
    rows, weights = run(tmp_path, procs, micro)
    expected_rows, expected = alone
    assert len(rows) == len(expected_rows) == 3 * 5 + 3
    for row, wanted in zip(rows, expected_rows, strict=True):
        assert row["step"] == wanted["step"]
        assert row["loss"] == pytest.approx(wanted["loss"], rel=2e-5)
        if row["kind"] == "eval":
            assert (row["top1"], row["top5"]) == (wanted["top1"], wanted["top5"])
    for name, tensor in expected.items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-4, atol=1e-6)
    found = json.loads((tmp_path / "evaluation.json").read_text())
    assert sum(row[0] for row in found["bins"]) == sum(found["support"]) == found["num_images"]
    assert sum(row[2] for row in found["bins"]) == _hits(found["confusion"])
    if (procs, micro) == (2, 0):  # the run is complete: every rank ends
        assert finished(start_ranks(ranks_script.trained, *[(tmp_path, procs, micro)] * procs)) == [0, 0]
        assert read_metrics(tmp_path / "metrics.jsonl") == rows


def _hits(confusion):
    return sum(n for t, p, n in zip(*(confusion[k] for k in ("true", "predicted", "images")), strict=True) if t == p)


def test_a_signal_to_the_launcher_saves_and_exits_75(tmp_path):
    words = [*TWO[3:], "--epochs", "4000", "--data.train_images", "64", "--out", str(tmp_path / "run")]
    process = start_launcher(words, tmp_path / "errors")
    wait_for_save(tmp_path / "run", process)
    os.kill(process.pid, signal.SIGTERM)
    codes, errors = finished([process]), (tmp_path / "errors").read_text()
    assert codes == [75], errors
    assert errors.count("\n") == 1
    assert "SIGTERM: saved at step" in errors


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGHUP, marks=pytest.mark.slow)])
def test_ranks_save_when_their_launcher_is_gone(tmp_path, number):
    """The folder stays locked as long as rank 0 lives."""
    import psutil

    skip_if_ignored(number)
    words = [*TWO[3:], "--epochs", "4000", "--data.train_images", "64", "--out", str(tmp_path / "run")]
    process = start_launcher(words, tmp_path / "errors")
    wait_for_save(tmp_path / "run", process)
    ranks = psutil.Process(process.pid).children()
    assert len(ranks) == 2
    os.kill(process.pid, number)
    codes = finished([process])
    assert not psutil.wait_procs(ranks, timeout=60)[1]
    errors = (tmp_path / "errors").read_text()
    assert codes == [75 if number == signal.SIGHUP else -number], errors
    assert runfolder.writer(tmp_path / "run") is None
    assert "Traceback" not in errors


@pytest.mark.parametrize("number", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_a_rank_that_stands_still_is_named_and_nobody_waits_for_it(tmp_path, number):
    """A rank that is stopped for a shorter time is waited for."""
    import psutil

    words = [*TWO[3:], "--epochs", "4000", "--data.train_images", "64", "--max-restarts", "0"]
    process = start_launcher([*words, "--out", str(tmp_path / "run")], tmp_path / "errors", before=be_less_patient)
    wait_for_save(tmp_path / "run", process)
    ranks = sorted(psutil.Process(process.pid).children(), key=lambda rank: rank.pid)
    ranks[number].suspend()
    time.sleep(1)
    ranks[number].resume()
    time.sleep(0.6)
    ranks[number].suspend()
    began = time.monotonic()
    assert finished([process]) == [69]
    assert time.monotonic() - began > 2.5  # it is waited for anew
    assert (tmp_path / "errors").read_text() == (
        f"imnet-train: rank {number} was stopped (SIGSTOP) and did not go on for 3 s; the same command goes on\n"
    )
    assert not psutil.wait_procs(ranks, timeout=5)[1]


def be_less_patient():
    launcher.FROZEN_S = 3


SMALL = ["--data.train_images", "4000", "--data.test_images", "33", "--data.image_px", "12", "--batch-size", "4"]
SMALL += ["--epochs", "2", "--precision", "fp32", "--threads", "1", "--model-options", '{"width": 8}']
TWO = [sys.executable, "-m", "imnet.cli", "--device", "cpu", "--procs", "2", *SMALL]


def press_ctrl_c(folder, delay_s):
    """Sends SIGINT to the whole process group, as a terminal does; returns (exit code, output)."""
    command = {"env": ENV, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen([*TWO, "--out", str(folder)], start_new_session=True, **command) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("warm-up"):
                time.sleep(delay_s)
                os.killpg(process.pid, signal.SIGINT)
                break
        return process.wait(60), process.stdout.read()


@pytest.mark.parametrize("number", [0, *(pytest.param(n, marks=pytest.mark.nightly) for n in range(1, 50))])
def test_ctrl_c_saves_with_several_ranks(tmp_path, number):
    code, said = press_ctrl_c(tmp_path, 0.5 + 0.17 * (number % 10))
    assert code == 75, said
    assert len(list(tmp_path.glob("checkpoints/step-????????"))) == 1
    assert "SIGINT: saved at step" in said
    assert said.count("imnet-train:") == 1


def test_a_mistake_is_one_line_and_its_exit_code_whichever_rank_meets_it(tmp_path):
    words = [*TWO[3:], "--out", str(tmp_path / "run"), "--data.image_px", "8"]
    assert finished([start_launcher(words, tmp_path / "errors")]) == [2]
    said = "imnet-train: image_px is 8 for data set shapes; allowed 12 or more\n"
    assert (tmp_path / "errors").read_text() == said


def test_an_output_that_cannot_be_written_is_one_line_of_several_ranks_too(tmp_path):
    process = start_launcher([*TWO[3:], "--out", str(tmp_path / "run")], tmp_path / "errors", "/dev/full")
    codes, errors = finished([process]), (tmp_path / "errors").read_text()
    assert errors == "imnet-train: output not written: No space left on device; free some space there\n"
    assert codes == [74]


def test_an_unexpected_error_shows_its_traceback_once(tmp_path):
    process = start_launcher([*TWO[3:], "--out", str(tmp_path / "run")], tmp_path / "errors", before=have_a_fault)
    codes, errors = finished([process]), (tmp_path / "errors").read_text()
    assert codes == [1]
    assert errors.count("Traceback") == 1
    assert errors.rstrip().endswith("ZeroDivisionError: a fault of ours")
    assert "frame #" not in errors


def have_a_fault():
    def fail(_):
        raise ZeroDivisionError("a fault of ours")

    Trainer.run = fail


def test_what_happens_after_a_run_is_complete_does_not_make_it_fail(tmp_path):
    """Here every rank would abort at the end of its script. ``run`` has the same of ranks that were started here."""
    words = ["--device", "cpu", *SMALL, "--data.train_images", "64", "--epochs", "1", "--out", str(tmp_path)]
    assert finished(start_ranks(train_and_abort, (words,), (words,))) == [0, 0]


def train_and_abort(words):
    command("train_main", words)
    os.abort()


def trained(folder, *words, size=2):
    """Trains in ``folder``/run with that many ranks; returns their exit codes and all that they wrote to stderr."""
    words = [*TWO[3:], "--procs", str(size), "--out", str(folder / "run"), *words]
    codes = finished(start_ranks(command, *[("train_main", words, folder / "errors")] * size))
    return codes, (folder / "errors").read_text()


def test_ranks_may_be_more_than_test_images(tmp_path):
    few = ["--data.test_images", "1", "--data.train_images", "64", "--epochs", "1"]
    assert trained(tmp_path, *few) == ([0, 0], "")


@pytest.mark.slow
def test_a_rank_without_images_takes_part_in_a_weighted_and_mixed_loss(tmp_path):
    """The last batch has two images for three ranks, but all must take part in the same collectives."""
    few = ["--data.train_images", "18", "--data.image_px", "16", "--batch-size", "8"]
    mixed = ["--no_data.drop_last", "--class-weights", "balanced", "--mixup-alpha", "0.2"]
    assert trained(tmp_path, *few, *mixed, size=3) == ([0, 0, 0], "")


@pytest.mark.parametrize("kind", ["sgd", pytest.param("adamw", marks=pytest.mark.slow)])
def test_a_step_that_is_not_finite_is_left_out_by_all_ranks(tmp_path, kind):
    """Torch's fused optimisers skip a step only if the flag is 1; the sum of all ranks' flags did not stop them."""
    words = ["--optim.kind", kind, "--lr", "1e25", "--optim-backend", "torch", "--on-nonfinite", "skip:99"]
    words += ["--data.train_images", "128", "--batch-size", "32", "--epochs", "2"]
    codes, errors = trained(tmp_path, *words)
    assert codes == [0, 0], errors
    assert json.loads((tmp_path / "run" / "run.json").read_text())["skipped_steps"] > 1
    newest = max((tmp_path / "run" / "checkpoints").glob("step-*"))
    for name in ("model", "state"):
        values = load_file(newest / f"{name}.safetensors").items()
        assert [key for key, value in values if not value.isfinite().all()] == []


def test_a_killed_rank_is_restarted_and_ends_in_the_same_weights(tmp_path):
    import psutil

    base = [*TWO[3:], "--data.train_images", "256", "--batch-size", "8", "--checkpoint-every-steps", "2"]
    process = start_launcher([*base, "--max-restarts", "3", "--out", str(tmp_path / "killed")], tmp_path / "errors")
    wait_for_save(tmp_path / "killed", process)
    max(psutil.Process(process.pid).children(), key=lambda rank: rank.pid).kill()
    whole = start_ranks(command, *[("train_main", [*base, "--out", str(tmp_path / "whole")])] * 2)
    assert finished([process, *whole]) == [0, 0, 0]
    assert (tmp_path / "errors").read_text() == "imnet: rank 1 was killed by SIGKILL; all start again (1 of 3)\n"
    newest = [sorted((tmp_path / name / "checkpoints").iterdir())[-1] for name in ("whole", "killed")]
    assert newest[0].name == newest[1].name
    for name in ("model.safetensors", "state.safetensors"):
        assert (newest[0] / name).read_bytes() == (newest[1] / name).read_bytes()


@pytest.mark.parametrize("cause", ["refused", pytest.param("killed", marks=pytest.mark.slow)])
def test_of_ranks_that_others_started_one_that_loses_another_says_so_in_a_line(tmp_path, cause):
    """Under torchrun or srun each rank prints its own error; that of rank 1 must refer to the other's as the cause."""
    folder, files = tmp_path / "run", [tmp_path / "0", tmp_path / "1"]
    if cause == "refused":
        folder.touch()
    words = ["--device", "cpu", *SMALL, "--epochs", "400", "--out", str(folder)]
    ranks = start_ranks(command, *[("train_main", words, file) for file in files])
    if cause == "killed":
        wait_for_save(folder, ranks[0])
        ranks[0].kill()
    codes, errors = finished(ranks), [file.read_text() for file in files]
    assert codes == [74 if cause == "refused" else -signal.SIGKILL, 69], errors
    assert errors[1].splitlines()[-1] == (
        "imnet-train: rank 1 of 2 has lost its connection to another rank; what that one said is the cause; the same "
        "command goes on"
    )
    assert "Traceback" not in errors[1]


@pytest.mark.slow
def test_ranks_of_a_machine_whose_name_has_no_address(tmp_path):
    """A laptop in a foreign network may be such a machine; gloo's warning, one per rank, must not reach stderr."""
    nameless = ["unshare", "--uts", "sh", "-c", 'hostname no-such-host && exec "$@"', "sh"]
    if subprocess.run([*nameless, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this user may not give a process another host name")
    words = [*nameless, *TWO, "--data.train_images", "64", "--epochs", "1", "--out", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=ENV)
    assert done.stderr == ""
