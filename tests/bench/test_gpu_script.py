"""`python -m bench.gpu`: the dry run of every part as a user starts it, and what goes on where it stopped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.gpu import recipe as gpu_recipe
from bench.gpu import script as gpu
from bench.gpu import table as gpu_table
from bench.gpu.parts import PARTS, gpu_test_files
from bench.gpu.rows import DEVICE_LOST, PartFile, Setting, UnfinishedError, run_tasks
from bench.gpu.steps import NETS
from imnet.models.catalog import CATALOG

ROOT = Path(__file__).resolve().parents[2]
ABOUT = {"device": "CPU, dry run: no GPU figure"}


def setting(folder, **changes):
    return Setting(**{"device": "cpu", "dry": True, "out": folder, "runs": folder / "runs"} | changes)


def part_file(folder, part="kernels"):
    return PartFile(folder, part, True, ABOUT)


@pytest.fixture(scope="module")
def dry(tmp_path_factory):
    """One dry run of the parts that compute; nvcc takes half a minute, and tests marked gpu are collected anyway."""
    out = tmp_path_factory.mktemp("gpu") / "out"
    command = [sys.executable, "-m", "bench.gpu", "--dry", "--skip", "build", "--skip", "tests", "--out", str(out)]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return out, done.stdout


def test_every_part_runs_dry_and_reports_no_time(dry):
    out, printed = dry
    for part in [p for p in PARTS if p not in ("build", "tests")]:
        values = json.loads((out / f"{part}.json").read_text())
        assert values["complete"], values
        assert values["dry"]
        assert values["rows"]
        # The interpreter of some Triton releases does not know the newest numpy; nothing else may fail.
        failed = [r for r in values["rows"] if "error" in r and "only 0-dimensional arrays" not in r["error"]]
        assert not failed
        for row in values["rows"]:
            assert not any(row.get(k) for k in ("us", "gb_per_s", "images_per_s", "mfu", "seconds")), row
    table = printed[printed.index("== checks") :]
    assert len(table.splitlines()) <= gpu_table.MAX_LINES
    assert "not measured" in table


def test_dry_rows_hold_every_family_tier_and_variant(dry):
    out, _ = dry
    checks = json.loads((out / "checks.json").read_text())["rows"]
    pytest.importorskip("triton", reason="triton is not installed")
    assert {r["name"].split(" ")[0] for r in checks if r["variant"] == "triton"} == {
        "augment", "spectral", "shake_shake", "sgd_ema"}  # fmt: skip
    steps = json.loads((out / "steps.json").read_text())["rows"]
    assert {"eager", "graphs", "compile"} <= {r["variant"] for r in steps}


def test_a_dry_run_cannot_become_a_result(dry, tmp_path):
    with pytest.raises(SystemExit, match="got a dry run; allowed: a run on a GPU"):
        gpu.main(["--merge", str(dry[0]), str(tmp_path / "x.json")])
    assert not (tmp_path / "x.json").exists()


def test_parts_of_one_device_are_merged(tmp_path):
    for part in ("kernels", "steps"):
        file = PartFile(tmp_path, part, False, {"device": "NVIDIA H200"})
        file.add(f"row of {part}", "eager", {"us": 3.0})
    file.finish()
    gpu_table.merge(tmp_path, tmp_path / "to" / "merged.json")
    merged = json.loads((tmp_path / "to" / "merged.json").read_text())
    assert merged["benchmark"] == "gpu"
    assert [r["part"] for r in merged["rows"]] == ["kernels", "steps"]
    assert merged["complete"] == {"kernels": False, "steps": True}
    PartFile(tmp_path, "tests", False, {"device": "NVIDIA H100"}).finish()
    with pytest.raises(SystemExit, match="NVIDIA H100 and NVIDIA H200"):
        gpu_table.merge(tmp_path, tmp_path / "merged.json")


def test_rows_are_on_disk_at_once_and_a_second_call_goes_on(tmp_path):
    made = []

    def work(number):
        def run():
            on_disk = json.loads((tmp_path / "kernels.json").read_text())
            assert [r["name"] for r in on_disk["rows"]] == [f"row {i}" for i in range(number)]
            assert on_disk["running"] == [f"row {number}", "eager"]
            made.append(number)
            if number == 1:
                raise RuntimeError("two\nlines")
            return {"us": float(number)}

        return run

    tasks = [(f"row {i}", "eager", work(i)) for i in range(4)]
    assert run_tasks(part_file(tmp_path), tasks[:2], setting(tmp_path, deadline=time.monotonic() + 60)) == 0
    assert run_tasks(part_file(tmp_path), tasks, setting(tmp_path)) == 0
    assert made == [0, 1, 2, 3]
    values = json.loads((tmp_path / "kernels.json").read_text())
    assert values["complete"]
    assert values["rows"][1]["error"] == "RuntimeError: two lines"


def test_no_row_begins_after_the_deadline(tmp_path):
    tasks = [("row", "eager", lambda: pytest.fail("begun"))]
    assert run_tasks(part_file(tmp_path), tasks, setting(tmp_path, deadline=time.monotonic() - 1)) == 0
    assert not part_file(tmp_path).complete


def test_a_process_that_died_is_known_by_its_row(tmp_path):
    part_file(tmp_path).begin("a kernel", "cuda")
    file = part_file(tmp_path)
    assert file.rows == [{"part": "kernels", "name": "a kernel", "variant": "cuda", "error": "the process ended here"}]
    assert not file.complete


def test_a_row_that_was_cut_off_is_tried_once_more(tmp_path):
    for _ in range(2):
        file = part_file(tmp_path)
        assert not file.has("slow", "compile")
        file.begin("slow", "compile")
        gpu.note_cut(tmp_path / "kernels.json")
    assert [r["error"][:11] for r in part_file(tmp_path).rows] == ["ended twice"]


def test_a_part_beyond_its_time_is_ended_with_what_it_started(tmp_path, monkeypatch):
    """The worker here is a shell that starts another process and waits."""
    pids = tmp_path / "pids"
    command = f"sleep 600 & echo $! > {pids}; wait"
    plain = subprocess.Popen
    monkeypatch.setattr(gpu.subprocess, "Popen", lambda _, **options: plain(["sh", "-c", command], **options))
    values = gpu.parse(["--dry", "--out", str(tmp_path)])
    values.runs = tmp_path / "runs"
    part_file(tmp_path).begin("slow", "compile")
    assert gpu.start_worker("kernels", values, 1, 2) is None
    state = Path(f"/proc/{int(pids.read_text())}/stat")
    assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"
    assert json.loads((tmp_path / "kernels.json").read_text())["paused"] == "out of time at slow, compile"


def test_a_device_that_is_lost_ends_the_process_for_another(tmp_path, monkeypatch):
    monkeypatch.setattr("bench.gpu.rows.clean_up", lambda device: False)
    tasks = [("row", "cuda", lambda: {"us": 1.0}), ("next", "cuda", lambda: pytest.fail("begun"))]
    assert run_tasks(part_file(tmp_path), tasks, setting(tmp_path)) == DEVICE_LOST
    assert [r["name"] for r in part_file(tmp_path).rows] == ["row"]


def test_work_that_is_not_finished_leaves_the_part_open(tmp_path):
    def unfinished():
        raise UnfinishedError("SIGTERM: saved at step 7")

    assert run_tasks(part_file(tmp_path), [("run", "in full", unfinished)], setting(tmp_path)) == 0
    values = json.loads((tmp_path / "kernels.json").read_text())
    assert (values["complete"], values["rows"], values["paused"]) == (False, [], "SIGTERM: saved at step 7")


def test_a_library_older_than_its_sources_is_not_built(tmp_path, monkeypatch):
    import torch
    from imnet_kernels import build

    from bench.gpu.parts import built

    monkeypatch.setattr(build, "PACKAGE", tmp_path)
    monkeypatch.setattr(build, "csrc", lambda: ROOT / "csrc")
    assert not built()
    library = tmp_path / build.CUDA_MODULE.format(torch.__version__)
    library.write_bytes(b"")
    assert built()
    os.utime(library, (1, 1))
    assert not built()


def test_files_of_another_device_are_refused(tmp_path):
    part_file(tmp_path).finish()
    with pytest.raises(SystemExit, match=r"is of CPU, dry run.*; allowed: NVIDIA H200; give another --out"):
        PartFile(tmp_path, "kernels", False, {"device": "NVIDIA H200"})


def test_a_recipe_is_stopped_in_time_and_goes_on(tmp_path):
    """The training process gets its signal at once, saves, and a later call ends the run."""
    early = setting(tmp_path, deadline=time.monotonic() + gpu_recipe.STOP_S + 1)
    late = setting(tmp_path)
    # Either it has saved, or its signal handler did not stand yet.
    with pytest.raises((UnfinishedError, RuntimeError), match=r"saved at step|exit code -15"):
        gpu_recipe._work(early)
    found = gpu_recipe._work(late)
    assert found["epochs"] == 2
    assert 0 <= found["top1"] <= 1
    assert found["seconds"] is None


def test_the_table_of_targets_is_about_networks_that_exist():
    """FLOPs of a training image are three times the catalogue's forward pass, at the catalogue's size."""
    for net in NETS:
        entry = CATALOG[net.model]
        if entry.image_px == net.px:
            assert 3 * entry.forward_flops / 1e9 == pytest.approx(net.gflop, rel=0.04), net
        assert net.target < net.compute_limit
        assert net.compute_limit == pytest.approx(790e3 / net.gflop, rel=0.01), net


def test_files_with_gpu_tests_are_found():
    names = {p.name for p in gpu_test_files()}
    assert {"test_contract.py", "test_gpu_step.py"} <= names


@pytest.mark.parametrize(("text", "wanted"), [("9m", 540), ("90", 90), ("1.5m", 90), ("30s", 30)])
def test_budget(text, wanted):
    assert gpu.seconds(text) == wanted


@pytest.mark.parametrize("argv", [["--budget", "fast"], ["--part", "9"], ["--part", "nothing"]])
def test_mistakes_end_with_one_line(argv, capsys):
    with pytest.raises(SystemExit):
        gpu.main(argv)
    assert "allowed: " in capsys.readouterr().err.splitlines()[-1]
