"""`python -m bench.gpu`: a dry run of every part as a user starts it, result files, and continuing a stopped run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from imnet_kernels import tier

from bench import whole
from bench.gpu import __main__ as gpu
from bench.gpu import commands, files, processes
from bench.gpu.files import ResultFile
from bench.gpu.plan import Row, Setting, UnfinishedError
from bench.gpu.steps import NETS
from imnet.cli import train_main
from imnet.errors import DataError, UsageError
from imnet.models.catalog import CATALOG

ROOT = Path(__file__).resolve().parents[2]
ABOUT = {"device": "NVIDIA H200", "git_sha": "abc", "date": "2026-11-27", "gpu": "NVIDIA H200"}
DATA = Path(os.environ.get("IMNET_DATA", ROOT.parent / "shared" / "data"))


def row(part="kernels", name="row", variant="eager", cost_s=1.0, **changes):
    return Row(part, name, variant, cost_s, lambda limit_s: {"us": 1.0}, **changes)


@pytest.fixture(scope="module")
def dry(tmp_path_factory):
    """One dry run of every part except "tests", whose tests (marked gpu) pytest collects anyway, and "recipes", whose
    training is that of "commands"."""
    out = tmp_path_factory.mktemp("gpu") / "out"
    command = [sys.executable, "-m", "bench.gpu", "--dry", "--budget", "6m", "--out", str(out)]
    command += ["--skip", "tests", "--skip", "recipes"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (path,) = out.glob("*.json")
    return path, json.loads(path.read_text())["rows"], done.stdout


def test_every_part_runs_dry_and_reports_no_time(dry):
    _, rows, printed = dry
    assert {r["part"] for r in rows} == {*gpu.PARTS, "build"} - {"tests", "recipes"}
    # In some Triton releases the interpreter fails with the newest numpy; no other failure is allowed.
    failed = [r for r in rows if "error" in r and "only 0-dimensional arrays" not in r["error"]]
    assert not failed
    skipped = [r["skipped"] for r in rows if "skipped" in r]
    assert not [why for why in skipped if "not installed" not in why]
    for r in rows:
        assert not any(r.get(k) for k in ("us", "gb_per_s", "images_per_s", "mfu", "seconds", "wall_s", "step_ms")), r
    assert "## On a GPU: CPU, dry run: no GPU figure" in printed
    assert "not measured" in printed


def test_a_dry_run_has_a_row_of_a_whole_recipe(tmp_path, monkeypatch):
    """The training itself runs here; that of "commands" is a process of its own."""

    def train(words, env, limit_s, kill_s):
        assert (env["TRITON_INTERPRET"], limit_s, kill_s) == ("1", 58.0, 59.0)
        return train_main(words), "", ""

    monkeypatch.setattr(commands, "_train", train)
    (row,) = commands.recipe_rows(Setting(dry=True, scratch=tmp_path))
    assert row.key == ("recipes", "quickstart", "in full")
    found = row.work(60.0)
    assert (found["recipe"], found["epochs"], len(found["curve"])) == ("quickstart", 1, 1)
    monkeypatch.setattr(commands, "_train", lambda *given: (commands.REQUEUE, "", "saved"))
    with pytest.raises(UnfinishedError, match="saved"):
        row.work(60.0)


def test_dry_rows_hold_every_family_tier_and_variant(dry):
    _, rows, _ = dry
    assert {"eager", "captured", "captured + our kernels", "compiled", "compiled + captured"} == {
        r["variant"] for r in rows if r["part"] == "steps"
    }
    profiles = {r["variant"]: r for r in rows if r["part"] == "profile"}
    assert set(profiles) == {"captured", "captured + our kernels", "compiled + captured"}
    for r in profiles.values():
        assert 0 < len(r["top"]) <= 15
        assert any(k["flops"] and k["bytes"] for k in r["top"])
    pytest.importorskip("triton", reason="triton is not installed")
    families = {r["name"].split(" ")[0] for r in rows if r["part"] == "checks" and r["variant"] == "triton"}
    assert families == set(tier.FAMILIES)


def test_a_dry_run_cannot_become_a_result(dry, tmp_path, capsys):
    assert gpu.main(["--merge", str(dry[0].parent), str(tmp_path / "x.json")]) == 2
    assert "got a dry run; allowed: a run on a GPU" in capsys.readouterr().err
    assert not (tmp_path / "x.json").exists()


OTHER = '{"benchmark": "step", "rows": []}'


@pytest.mark.parametrize("content", [None, "", "{", "[1]", OTHER])
def test_what_is_no_result_file_is_one_line_and_is_kept(content, tmp_path, capsys):
    path = tmp_path / "nvidia-h200.json"
    if content is not None:
        path.write_text(content)
    for source in (path, tmp_path):
        assert gpu.main(["--merge", str(source), str(tmp_path / "to" / "x.json")]) == 65
        assert capsys.readouterr().err.count("\n") == 1
    if content:
        with pytest.raises(UsageError, match="imnet has not written"):
            ResultFile(tmp_path, False, ABOUT)
        assert path.read_text() == content
    assert not (tmp_path / "to").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine with a GPU measures on it")
@pytest.mark.parametrize("words", [["--part", "floor"], ["--worker", "0"]])
def test_a_machine_without_a_gpu_is_one_line(words, tmp_path, capsys, monkeypatch):
    """The worker prints nothing, because the process that started it reports the error."""
    monkeypatch.setattr(os, "environ", os.environ.copy())  # the command adds to it
    assert gpu.main(["--out", str(tmp_path / "out"), "--scratch", str(tmp_path / "scratch"), *words]) == 69
    said = [] if "--worker" in words else ["bench.gpu: got no CUDA GPU; allowed: a machine with one, or --dry"]
    assert capsys.readouterr().err.splitlines() == said


def test_files_of_one_device_are_merged(tmp_path):
    file = ResultFile(tmp_path, False, ABOUT)
    file.add(("steps", "net", "captured"), {"images_per_s": 5.0, "took_s": 3.0})
    for case, figures in (("a", {"error_forward": 1e-3, "graph_replay_equal": True}), ("b", {"error": "no"})):
        file.add(("checks", f"augment {case}", "cuda"), figures)
    file.add(("kernels", "copy", "torch"), {"skipped": "no time"})
    target = tmp_path / "to" / "merged.json"
    files.merge(tmp_path, target)
    merged = json.loads(target.read_text())
    assert merged["fingerprint"] == ABOUT
    checks, steps = merged["rows"]
    assert (checks["of"], checks["agree"], checks["error_forward"], checks["graph_replays_equal"]) == (2, 1, 1e-3, 1)
    assert checks["failed"] == ["augment b: no"]
    assert steps == {"part": "steps", "name": "net", "variant": "captured", "images_per_s": 5.0}
    ResultFile(tmp_path, False, ABOUT | {"device": "NVIDIA H100"}).add(("tests", "a", "b"), {})
    with pytest.raises(UsageError, match="NVIDIA H100 and NVIDIA H200"):
        files.merge(tmp_path, target)


def test_rows_are_on_disk_at_once_and_a_second_call_goes_on(tmp_path, monkeypatch):
    file = ResultFile(tmp_path, False, ABOUT)
    file.add(row(name="done").key, {"us": 1.0})
    file.add(row(name="failed").key, {"error": "no"})
    file.add(row(name="left out").key, {"skipped": "no time"})
    file.begin(row(name="at work"))
    on_disk = json.loads(file.path.read_text())
    assert [r["name"] for r in on_disk["rows"]] == ["done", "failed", "left out"]
    assert on_disk["running"] == ["kernels", "at work", "eager"]
    again = ResultFile(tmp_path, False, ABOUT | {"git_sha": "def"})
    assert [(r["name"], r.get("error")) for r in again.rows][1:] == [
        ("failed", "no"),
        ("at work", "everything ended here"),
    ]
    monkeypatch.setattr(gpu, "known", lambda: {("kernels", "in results", "eager")})
    names = ("in results", "failed", "done", "left out", "new")
    assert [r.name for r in gpu.in_order([row(name=n) for n in names], again)] == [
        "left out", "new", "in results", "failed"]  # fmt: skip
    again.add(row(name="failed").key, {"us": 2.0})
    assert [r.get("git_sha") for r in again.rows if r["name"] in ("done", "failed")] == [None, "def"]
    assert not ResultFile(tmp_path, False, ABOUT | {"device": "another card"}).rows


def worker(tmp_path, code):
    script = tmp_path / "worker.py"
    script.write_text(code)
    return processes.Worker([sys.executable, str(script)], dict(os.environ))


WORKER = """
import json, os, sys, time, subprocess
def say(values):
    os.write(int(sys.argv[1]), json.dumps(values).encode() + b"\\n")
say({"device": "fake"})
for line in sys.stdin:
    (part, name, variant), limit = json.loads(line)
    if name == "dies":
        os._exit(7)
    if name == "hangs":
        subprocess.Popen(["sleep", "600"])
        time.sleep(600)
    say({"us": 1.0})
"""


def test_a_row_that_dies_or_hangs_costs_itself_only(tmp_path):
    one = worker(tmp_path, WORKER)
    assert one.ready() == {"device": "fake"}
    assert one.run(row(), 10) == {"us": 1.0}
    assert "exit code 7" in one.run(row(name="dies"), 10)["error"]
    assert one.run(row(), 10) == {"us": 1.0}
    start = time.monotonic()
    assert one.run(row(name="hangs"), 1.0)["error"] == "ended after 1 s; stated cost 1 s"
    assert time.monotonic() - start < 4
    assert one.process is None
    assert one.run(row(), 10) == {"us": 1.0}
    one.close()


def test_the_background_is_ended_in_time_and_says_why(tmp_path):
    jobs = processes.Jobs(tmp_path, dict(os.environ), time.monotonic() + 2)
    say = "import sys; sys.exit('no compiler')"
    jobs.start([("bad", [sys.executable, "-c", say]), ("good", [sys.executable, "-c", ""]), ("slow", ["sleep", "60"])])
    assert jobs.running() >= {"slow"}
    while jobs.running():
        time.sleep(0.05)
    assert jobs.failed() == {"bad": "exit code 1: no compiler", "slow": "not ready after 2 s"}
    assert set(jobs.took_s) == {"bad", "good", "slow"}


def test_a_library_older_than_its_sources_is_not_built(tmp_path, monkeypatch):
    from imnet_kernels import build

    monkeypatch.setattr(build, "PACKAGE", tmp_path)
    monkeypatch.setattr(build, "csrc", lambda: ROOT / "csrc")
    assert not gpu.built()
    library = tmp_path / build.CUDA_MODULE.format(torch.__version__)
    library.write_bytes(b"")
    assert gpu.built()
    os.utime(library, (1, 1))
    assert not gpu.built()


def test_recipes_are_named_in_order_and_a_run_has_figures(tmp_path):
    names = commands.recipe_names()
    assert names[: len(commands.FAST)] == list(commands.FAST)
    assert names[:2] == ["fashion-mnist/speedrun_gpu", "fashion-mnist/wrn28_10_fast"]
    later = [commands.predicted_s(name) for name in names[len(commands.FAST) :]]
    assert later == sorted(later)
    assert commands.predicted_s("fashion-mnist/nothing_fast") < 5
    assert 300 < commands.predicted_s("fashion-mnist/wrn28_10") < 1200
    run = {"status": "complete", "device": "cuda", "precision": "bf16", "seconds": 9.0, "kernels": {}}
    run["recipe"] = {"name": "r", "epochs": 2, "seed": 3, "schedule": {"kind": "onecycle"}, "published": None}
    (tmp_path / "run.json").write_text(json.dumps(run))
    (tmp_path / "metrics.jsonl").write_text('{"kind": "eval", "epoch": 2, "top1": 0.5}\n')
    found = whole.figures(tmp_path)
    assert (found["recipe"], found["seconds"], found["top1"], found["curve"]) == ("r", 9.0, 0.5, [[2, 0.5]])
    (tmp_path / "run.json").write_text(json.dumps(run | {"status": "running"}))
    with pytest.raises(DataError, match="the run is running"):
        whole.figures(tmp_path)


@pytest.mark.skipif(not list(DATA.rglob("train-images-idx3-ubyte*")), reason="no Fashion-MNIST files here")
@pytest.mark.slow
def test_a_run_is_stopped_in_time_and_goes_on(tmp_path):
    """The training process saves and exits with 75, or dies of the signal if its handler is not installed yet."""
    words = ["--recipe", "fashion-mnist/speedrun", "--data-dir", str(DATA / "fashion-mnist"), "--out", str(tmp_path)]
    words += ["--device", "cpu", "--threads", "1"]
    code, _, last = commands._train(words, processes.environment(True), 12.0, 60.0)
    assert code in (commands.REQUEUE, -15), last


def test_the_networks_of_steps_exist():
    assert all(net.model in CATALOG for net in NETS)
    assert len({net.label for net in NETS}) == len(NETS)


def test_files_with_gpu_tests_are_found():
    names = {p.name for p in commands.gpu_test_files()}
    assert {"test_contract.py", "test_gpu_step.py"} <= names


def test_a_part_that_is_not_there_is_said(tmp_path):
    setting = Setting(dry=False, scratch=tmp_path, data_dir=str(tmp_path))
    with pytest.raises(processes.UnavailableError, match="no fashion-mnist files"):
        commands._prompt_to_summary(commands.LONG, 1, setting, 10.0)


@pytest.mark.parametrize(("text", "wanted"), [("9m", 540), ("90", 90), ("1.5m", 90), ("30s", 30)])
def test_budget(text, wanted):
    assert gpu.seconds(text) == wanted


@pytest.mark.parametrize("argv", [["--budget", "fast"], ["--part", "nothing"]])
def test_mistakes_end_with_one_line(argv, capsys):
    with pytest.raises(SystemExit):
        gpu.main(argv)
    error = capsys.readouterr().err.splitlines()[-1]
    assert "allowed: " in error or "choose from" in error


def test_compilations_share_the_cores_of_a_job(monkeypatch):
    monkeypatch.setattr(gpu, "num_cores", lambda: 5)  # usable cores of a larger machine, as in a container
    assert gpu._compiler_env({})["TORCHINDUCTOR_COMPILE_THREADS"] == "1"
