"""The meaning of a grid file, tested without training: trials, seeds, draws, ids, the Slurm script, GPUs and cores."""

import contextlib
import json
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from imnet import sweep
from imnet.errors import DeviceError, UsageError
from imnet.recipe_json import config_hash
from imnet.recipes import RECIPES
from imnet.runfolder import RunFolder
from imnet.sweep import grid, jobs, sbatch

TINY = {"base": {"recipe": "quickstart", "epochs": 1}, "grid": {"optim.lr": [0.1, 0.01]}}


def write(tmp_path, **parts):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(parts))
    return path


def read(tmp_path, number=None, more=(), **parts):
    return grid.trials(grid.read(write(tmp_path, **parts)), number, more)[0]


def test_every_combination_once_with_its_own_hash(tmp_path):
    axes = {"optim.lr": [0.1, 0.01], "data.batch_images": [64, 128, 256], "augment.hflip": ["none", "random"]}
    found = read(tmp_path, base={"recipe": "quickstart", "precision": "fp32", "model_options": {"width": 8}}, grid=axes)
    assert [trial.number for trial in found] == list(range(1, 13))
    seen = {(t.recipe.optim.lr, t.recipe.data.batch_images, t.recipe.augment.hflip) for t in found}
    assert len(seen) == 12
    assert all(trial.recipe.model_options == {"width": 8} for trial in found)
    assert [trial.id for trial in found] == [config_hash(trial.recipe, "fp32")[:8] for trial in found]
    assert len({trial.name for trial in found}) == 12


def test_the_id_does_not_depend_on_how_a_value_is_written_or_where_it_runs(tmp_path):
    (a,) = read(tmp_path, base={"optim.weight_decay": 10, "lr": "1e-3"})
    (b,) = read(tmp_path, base={"lr": 0.001, "device": "cpu", "threads": 1}, grid={"optim.weight_decay": [10.0]})
    (c,) = read(tmp_path, more=["--optim.lr", "0.001", "--no-compile"], base={"optim.weight_decay": 1.0e1})
    assert a.name == b.name == c.name
    assert read(tmp_path, base={"lr": 0.002})[0].name != a.name


def test_an_axis_of_one_option_of_the_network_goes_before_the_base_and_mappings_are_an_axis_too(tmp_path):
    base = {"recipe": "quickstart", "model_options": {"width": 4}}
    found = read(tmp_path, base=base, grid={"model_options.width": [4, 8]})
    assert [trial.recipe.model_options for trial in found] == [{"width": 4}, {"width": 8}]
    assert [trial.label for trial in found] == ["model_options.width 4", "model_options.width 8"]
    parts = {"base": {"recipe": "quickstart"}, "grid": {"model_options": [{"width": 4}, {"width": 8}]}}
    assert [trial.recipe.model_options for trial in read(tmp_path, **parts)] == [{"width": 4}, {"width": 8}]
    with pytest.raises(UsageError, match=r"got --model_options\.width for every trial"):
        read(tmp_path, more=["--model_options.width", "16"], **parts)


def test_seeds_of_the_file_and_of_the_command(tmp_path):
    def seeds(number, **parts):
        return [trial.recipe.seed for trial in read(tmp_path, number, **(TINY | parts))]

    assert seeds(None) == [0, 0]
    assert seeds(2) == [0, 0, 1, 1]
    assert seeds(None, seeds=[7, 9]) == [7, 7, 9, 9]
    assert seeds(1, seeds=[7, 9]) == [7, 7]
    assert seeds(4, seeds=[7, 9]) == [7, 7, 9, 9, 10, 10, 11, 11]
    # Seeds count up from the recipe's own, so that the first run is the one without --seeds.
    own = read(tmp_path, 3, base={"recipe": "fashion-mnist/wrn28_10"})
    assert [trial.recipe.seed for trial in own] == [40000, 40001, 40002]
    assert own[0].name == read(tmp_path, base={"recipe": "fashion-mnist/wrn28_10"})[0].name


SEARCH = {
    "optim.lr": {"low": 1e-4, "high": 1.0, "log": True},
    "optim.momentum": {"low": 0.5, "high": 0.9},
    "data.batch_images": {"low": 16, "high": 19},
    "augment.hflip": ["none", "random", "alternating"],
}


def test_random_search_is_a_function_of_its_seed(tmp_path):
    def draws(number, seed, values=SEARCH):
        path = write(tmp_path, random={"draws": number, "seed": seed, "values": values})
        return list(grid.read(path).points)

    random.seed(1)
    first = draws(40, 3)
    random.seed(2)
    assert draws(40, 3) == first
    assert draws(40, 4) != first
    # More draws or another axis do not change the other draws.
    assert draws(10, 3) == first[:10]
    fewer = draws(10, 3, {name: SEARCH[name] for name in ("optim.momentum", "optim.lr")})
    assert [row["optim.lr"] for row in fewer] == [row["optim.lr"] for row in first[:10]]
    lr = [row["optim.lr"] for row in first]
    assert all(1e-4 <= value <= 1 for value in lr)
    assert 10 <= sum(value < 1e-2 for value in lr) <= 30  # about half, on a logarithmic scale
    assert all(0.5 <= row["optim.momentum"] < 0.9 for row in first)
    assert {row["data.batch_images"] for row in first} == {16, 17, 18, 19}
    assert {row["augment.hflip"] for row in first} == {"none", "random", "alternating"}
    code = f"from imnet.sweep import grid; print(grid._draw({SEARCH['optim.lr']}, 'optim.lr', '3:0:optim.lr', None))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) == first[0]["optim.lr"]


@pytest.mark.parametrize(("low", "high"), [("1e-4", "1e0"), ("1E-4", "1"), ("0.0001", "1e+0")])
def test_bounds_are_numbers_however_they_are_written(tmp_path, low, high):
    text = f"random: {{draws: 9, values: {{lr: {{low: {low}, high: {high}, log: true}}}}}}\ngrid: {{epochs: [1]}}"
    (tmp_path / "grid.yaml").write_text(text)
    drawn = [point["optim.lr"] for point in grid.read(tmp_path / "grid.yaml").points]
    assert drawn == [
        grid._draw({"low": 1e-4, "high": 1.0, "log": True}, "", f"0:{i}:optim.lr", tmp_path) for i in range(9)
    ]
    (tmp_path / "grid.yaml").write_text("grid: {lr: [1e-2, 0.01]}")
    found, twice = grid.trials(grid.read(tmp_path / "grid.yaml"))
    assert ([trial.label for trial in found], twice) == (["optim.lr 0.01"], 1)


def test_the_example_of_the_help_is_a_grid(tmp_path, capsys):
    path = tmp_path / "example.yaml"
    path.write_text(grid.EXAMPLE)
    assert len(grid.read(path).points) == 40
    found, _ = grid.trials(grid.read(path), 1)
    assert (len(found), {trial.recipe.seed for trial in found}) == (40, {1})
    with pytest.raises(SystemExit):
        sweep.main(["--help"])
    assert grid.EXAMPLE in capsys.readouterr().out


def test_what_comes_twice_is_run_once(tmp_path):
    path = write(tmp_path, random={"draws": 12, "values": {"augment.hflip": ["none", "random"]}})
    found, twice = grid.trials(grid.read(path))
    assert (len(found), twice) == (2, 10)
    assert [trial.number for trial in found] == [1, 2]


@pytest.mark.parametrize("name", grid.names())
def test_shipped_grids_are_of_recipes_and_the_documents_numbers(name):
    found, twice = grid.trials(grid.read(grid.find(name)))
    expected = {"fob-adamw": 36, "fob-adamcpr": 36, "tiny-imagenet": 10, "fashion-mnist": 5, "fashion-mnist-fast": 5}
    assert (len(found), twice) == (expected[name], 0)
    if name.startswith("fob"):
        assert {t.recipe.optim.lr for t in found} == {1e-2, 1e-3, 1e-4}
        assert {t.recipe.seed for t in found} == {1, 2, 3}
        assert {t.recipe.data.batch_images for t in found} == {2048}
    if name == "fob-adamcpr":
        # warm_start_steps are fractions of the warm-up, which is 1 % of 80 epochs of 1,281,167 / 2048 steps.
        warm_up = round(0.8 * (1_281_167 // 2048))
        assert warm_up == 500
        assert {t.recipe.optim.warm_start_steps for t in found} == {int(k * warm_up) for k in (0.125, 0.25, 0.5, 1)}
    if name == "tiny-imagenet":
        assert {t.recipe.name for t in found} == {n for n in RECIPES if n.endswith(("_baseline", "_augmented"))}
        assert {(t.recipe.data.val_images, t.recipe.data.val_seed) for t in found} == {(10_000, 123)}


@pytest.mark.parametrize("gpus", [1, 4])
def test_the_slurm_script_is_whole(tmp_path, gpus, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "a folder's"
    place.mkdir()
    more = ["--data-dir", "/data/with space", "--gpus", str(gpus)]
    found = read(place, more=more, **TINY)
    text = sbatch.script("mine", found, [str(place / "mine.yaml"), "--out", "runs/x"], more, 3)
    script = tmp_path / "sweep.sh"
    script.write_text(text)
    subprocess.run(["bash", "-n", script], check=True)
    directives = dict(
        line.removeprefix("#SBATCH --").partition("=")[::2] for line in text.splitlines() if "#SBATCH" in line
    )
    assert directives["array"] == "1-2%3"
    assert directives["gpus-per-task"] == str(gpus)
    assert directives["signal"] == "TERM@120"
    # Fake srun and scontrol record their arguments: the trial's words must arrive unchanged.
    srun = '#!/bin/bash\nprintf "%s\\n" "$@" > seen\necho $SRUN_CPUS_PER_TASK > cores\nexit ${CODE}\n'
    (tmp_path / "srun").write_text(srun)
    (tmp_path / "scontrol").write_text('#!/bin/bash\necho "$@" > requeued\n')
    for name in ("srun", "scontrol"):
        (tmp_path / name).chmod(0o755)
    job = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_JOB_ID": "77"}
    assert subprocess.run(["bash", script], env=job | {"CODE": "75"}, check=False).returncode == 75
    assert (tmp_path / "requeued").read_text() == "requeue 77_2\n"
    seen = (tmp_path / "seen").read_text().splitlines()
    # Since Slurm 22.05, srun gives a task one core unless srun itself gets the number.
    assert (tmp_path / "cores").read_text().strip() == directives["cpus-per-task"]
    assert seen[1:] == ["imnet-sweep", str(place / "mine.yaml"), "--out", "runs/x", "--trial", "2", "--", *more]
    (tmp_path / "requeued").unlink()
    assert subprocess.run(["bash", script], env=job | {"CODE": "65"}, check=False).returncode == 65
    assert not (tmp_path / "requeued").exists()


@pytest.mark.parametrize("name", ["my grid", "50%x", "it's", "two\nlines", "$HOME `date`", "größe-1.5"])
def test_a_jobs_name_is_a_word_whatever_the_grid_is_called(tmp_path, name):
    """Slurm reads a directive up to the end of its line and puts the name into the log file's, where %x is expanded."""
    (job,) = re.findall("^#SBATCH --job-name=(.*)$", sbatch.script(name, read(tmp_path, **TINY), [], [], None), re.M)
    assert re.fullmatch(r"imnet-[\w.-]+", job)


@pytest.mark.parametrize(
    ("jobs_asked", "gpus", "visible", "expected"),
    [
        (None, None, None, ["0", "1", "2", "3"]),
        (2, None, "2,3,5,7", ["2", "3"]),
        (6, None, "2,3,5,7", ["2", "3", "5", "7", "2", "3"]),
        (None, 2, "2,3,5,7", ["2,3", "5,7"]),
        (None, 3, None, ["0,1,2"]),
    ],
)
def test_a_trial_a_visible_gpu(tmp_path, monkeypatch, jobs_asked, gpus, visible, expected):
    """No GPU is needed: the visible GPUs of a trial are an environment variable of its process."""
    monkeypatch.setattr("imnet.device.num_gpus", lambda: 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = read(tmp_path, more=["--gpus", str(gpus)] if gpus else [], **TINY)
    assert [slot.gpus for slot in jobs.slots(jobs_asked, found)] == expected


def test_trials_share_the_cores_and_five_gpus_of_four_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("imnet.device.num_gpus", lambda: 4)
    with pytest.raises(DeviceError, match="a trial asks for 5 GPUs, and 4 are visible"):
        jobs.slots(None, read(tmp_path, more=["--gpus", "5"], **TINY))
    monkeypatch.setattr(jobs.os, "sched_getaffinity", lambda _: range(8))
    on_cpu = read(tmp_path, more=["--device", "cpu"], **TINY)
    assert [slot.words for slot in jobs.slots(3, on_cpu)] == [("--threads=2",)] * 3
    assert jobs.slots(None, on_cpu) == [jobs.Slot(None)]
    chosen = read(tmp_path, more=["--device", "cpu", "--threads", "5"], **TINY)
    assert jobs.slots(3, chosen) == [jobs.Slot(None)] * 3
    on_gpus = read(tmp_path, more=["--gpus", "2"], base=TINY["base"], grid={"optim.lr": [0.1, 0.2, 0.3]})
    assert jobs.slots(None, on_gpus) == [jobs.Slot(gpus, ("--threads=2",)) for gpus in ("0,1", "2,3")]
    assert jobs.slots(None, on_gpus[:1]) == [jobs.Slot(gpus) for gpus in ("0,1", "2,3")]


def finish(folder):
    folder.mkdir(parents=True)
    texts = {"status": "complete", "config_hash": "0", "precision": "fp32", "device": "cpu"}
    (folder / "run.json").write_text(json.dumps(texts | {"recipe": {}}))
    (folder / "evaluation.json").write_text("{}")


def test_an_ensemble_is_complete_when_every_band_that_is_wanted_is(tmp_path):
    base = {"recipe": "spectral/resnet34_sub4"}
    (whole,), (two,) = read(tmp_path, base=base), read(tmp_path, base=base | {"bands": "0,3"})
    (alone,) = read(tmp_path, base=base | {"band": 0})
    folder = tmp_path / whole.name
    assert whole.name == two.name == f"spectral-resnet34_sub4-ensemble-{alone.id}"
    assert alone.name == f"spectral-resnet34_sub4-{alone.id}"  # another folder, since it holds a single run
    assert jobs.state(whole, tmp_path) == "not run"
    for band in (0, 3):
        finish(folder / f"band-{band}")
    for code, state in ((0, "stopped"), (75, "stopped"), (65, "failed"), (-9, "failed"), (None, "stopped")):
        (folder / "trial.json").write_text(json.dumps({"code": code}))
        assert jobs.state(whole, tmp_path) == state
        assert jobs.state(two, tmp_path) == "complete"
    for band in (1, 2):
        finish(folder / f"band-{band}")
    assert jobs.state(whole, tmp_path) == "complete"


def test_a_band_that_is_written_keeps_its_ensemble_from_being_started(tmp_path):
    (trial,) = read(tmp_path, base={"recipe": "spectral/resnet34_sub4"})
    with contextlib.closing(RunFolder(tmp_path / trial.name / "band-2")):
        assert jobs.state(trial, tmp_path) == "running"
        told = []
        started = jobs.Sweep(tmp_path, [jobs.Slot(None)], lambda word, *_: told.append(word))
        started.waiting = [trial]
        assert started._start_ready()
        assert (told, started.running, started.waiting) == (["elsewhere"], {}, [trial])


def test_numbers_as_slurm_writes_them():
    assert sbatch.spans([1, 2, 3, 7, 9, 10]) == "1-3,7,9-10"
    assert sbatch.spans([5]) == "5"


def test_asking_reads_no_torch(tmp_path):
    code = (
        "import sys; from imnet import sweep\n"
        "for words in (['--list'], ['fashion-mnist', '--dry-run'], ['fashion-mnist', '--sbatch']): sweep.main(words)\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "fob-adamcpr" in done.stdout
    assert not list(tmp_path.iterdir())


def test_the_shipped_grids_are_in_the_package():
    import tomllib

    root = Path(__file__).resolve().parents[2]
    data = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert data["imnet.sweep.grids"] == ["*.yaml"]
    with pytest.raises(UsageError):
        grid.find("nothing")
