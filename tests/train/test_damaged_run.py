"""A damaged run.json, metrics.jsonl or checkpoint gives one line that names it, and nothing is trained or lost."""

import dataclasses
import functools
import json
import shutil

import pytest
import torch

from imnet.errors import DataError, IOFailure, UsageError
from imnet.recipe_json import to_dict
from imnet.run import Run
from imnet.start import train

from .conftest import TINY, options

RUN = {"status": "complete", "config_hash": "0", "recipe": {}, "precision": "fp32", "device": "cpu"}


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The folders of two complete runs of the same network with different seeds."""
    at = tmp_path_factory.mktemp("two")
    other = dataclasses.replace(TINY, seed=8)
    return train(TINY, options(at / "run"))[1], train(other, options(at / "other"))[1]


@pytest.fixture
def folder(two, tmp_path):
    """A copy of the first of them."""
    return shutil.copytree(two[0], tmp_path / "run")


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """A function that returns the folder of a run of TINY with a change, trained for one epoch."""

    @functools.cache
    def trained(**change):
        recipe = dataclasses.replace(TINY, epochs=1, **change)
        return train(recipe, options(tmp_path_factory.mktemp("foreign")))[1]

    return trained


@pytest.mark.parametrize(
    ("holds", "said"),
    [
        (None, "it holds a NoneType, must be an object"),
        ([RUN], "it holds a list"),
        ({}, "status is missing or no text"),
        (RUN | {"recipe": 3}, "recipe is missing or no object"),
        (RUN | {"weights": 3}, "weights is missing or no object"),
        (RUN | {"before": {}}, "before is missing or no list"),
        (RUN | {"before": [3]}, r"before\[0\]\.config_hash is missing or no text"),
        (RUN | {"kernels": {"augment": "host"}}, "kernels.augment is missing or no object"),
        (RUN | {"best": {"since": None}}, "best.since is missing or no number"),
        (RUN | {"num_ranks": "two"}, "num_ranks is missing or no whole number"),
        (
            RUN | {"data": {"class_names": {}}},
            "data.class_names is missing or no list",
        ),
    ],
)
def test_a_run_json_that_holds_something_else_is_one_line_and_nothing_is_trained_anew(tmp_path, holds, said):
    (tmp_path / "run.json").write_text(json.dumps(holds))
    for take in (Run, lambda path: train(TINY, options(path))):
        with pytest.raises(IOFailure, match=f"run.json is unreadable: {said}.*; put a copy back"):
            take(tmp_path)
    assert not (tmp_path / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("holds", "said"),
    [
        ({"zzz": 1}, r"got unknown recipe\.zzz"),
        (to_dict(TINY) | {"augment": [1]}, r"got augment = \[1\]; allowed: a mapping"),
        (to_dict(TINY) | {"optim": {"kind": ["sgd"]}}, r"got optim\.kind = \['sgd'\]; allowed: sgd"),
        (to_dict(TINY) | {"epochs": -1}, r"got epochs = -1; allowed: 1 or more"),
    ],
)
def test_a_recipe_that_cannot_be_read_is_named(tmp_path, holds, said):
    (tmp_path / "run.json").write_text(json.dumps(RUN | {"recipe": holds}))
    with pytest.raises(DataError, match=f"recipe in run.json cannot be read: {said}"):
        Run(tmp_path)


@pytest.mark.parametrize("where", ["recipe", "before"])
def test_a_run_goes_on_with_a_change_only_from_a_recipe_that_can_be_read(folder, where):
    path = folder / "run.json"
    info = json.loads(path.read_text())
    info["recipe"]["data"]["hold_out"] = 7
    if where == "before":
        info["before"] = [{key: info[key] for key in ("config_hash", "recipe", "precision")} | {"train_images": 1}]
        info["config_hash"] = "0"
    path.write_text(json.dumps(info))
    kept = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    longer = dataclasses.replace(TINY, epochs=TINY.epochs + 1)
    with pytest.raises(DataError, match=r"recipe in run\.json cannot be read: got data\.hold_out = 7"):
        train(longer, options(folder, allow_change=True))
    assert kept == {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("change", [{"model": "wrn16_1"}, {"seed": 8}], ids=["another network", "another seed"])
def test_the_weights_of_another_run_are_not_taken_for_the_runs_own(folder, foreign, change):
    shutil.rmtree(folder / "checkpoints")
    shutil.copytree(foreign(**change) / "checkpoints", folder / "checkpoints")
    for which in ("last", 1):
        with pytest.raises(DataError, match=r"step-0+8: the checkpoint is of a configuration that run\.json does not"):
            Run(folder).model(which)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("[3]", "line 1 holds a list"),
        ('{"kind": "train", "step": [1]}', r"line 1: step is \[1\], must be a number"),
        ('{"kind": {}, "step": 1}', "line 1: kind is {}, must be text"),
        ('{"kind": "eval"', "line 1 is not JSON"),
    ],
)
def test_a_damaged_line_of_the_metrics_is_named_and_none_after_it_is_lost(folder, line, said):
    path = folder / "metrics.jsonl"
    whole = path.read_text()
    path.write_text(f"{line}\n{whole}")
    with pytest.raises(DataError, match=said):
        Run(folder).model()
    path.write_text(whole + line[:-1])  # cut short, as by a kill
    assert len(Run(folder).metrics) == len(whole.splitlines())
    path.unlink()
    assert Run(folder).metrics == []


@pytest.mark.parametrize("left", [None, {}, {"name": "shapes", "fingerprint": "0"}])
def test_a_run_json_that_does_not_say_of_its_data_is_one_line_wherever_that_is_asked(folder, left):
    info = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(info | {"data": left}))
    longer = dataclasses.replace(TINY, epochs=TINY.epochs + 1)
    for ask in (lambda: Run(folder).evaluate(), lambda: train(longer, options(folder, allow_change=True))):
        with pytest.raises(DataError, match=r"run\.json does not say of its data: .*train_images; put a copy back"):
            ask()
    assert Run(folder).model() is not None  # loading weights does not need the data


EMPTY, HALF, FOREIGN = "empty", "half", "foreign"


def put(folder, kind, name, foreign):
    """Puts a checkpoint into ``folder`` that its run did not save, or did not save completely."""
    at = folder / "checkpoints" / name
    if kind == EMPTY:
        at.mkdir()
    else:
        shutil.copytree(
            foreign / "checkpoints/step-00000024" if kind == FOREIGN else folder / "checkpoints/step-00000024", at
        )
    if kind == HALF:
        (at / "state.json").unlink()


@pytest.mark.parametrize("kind", [EMPTY, HALF, FOREIGN])
def test_what_lies_behind_a_complete_runs_last_step_is_not_missed(two, folder, kind):
    """The training command would save nothing more there, so the advice to run it again would help nobody."""
    weights = Run(folder).model().state_dict()
    put(folder, kind, "step-00000999", two[1])
    for which in ("last", 3):
        found = Run(folder).model(which).state_dict()
        assert all(torch.equal(found[name], weights[name]) for name in weights)
    assert train(TINY, options(folder))[0] == 0
    (folder / "run.json").write_text((folder / "run.json").read_text().replace('"complete"', '"running"'))
    if kind != FOREIGN:  # for an incomplete run it may be the newest
        with pytest.raises(DataError, match="the newest checkpoint is damaged"):
            Run(folder).model()


@pytest.mark.parametrize("allowed", [False, True])
@pytest.mark.parametrize("change", [{"seed": 8}, {"seed": 8, "data": dataclasses.replace(TINY.data, val_images=32)}])
def test_training_does_not_go_on_from_another_runs_checkpoint(folder, foreign, allowed, change):
    """A DataError whatever else differs, because --allow-change would not help."""
    shutil.rmtree(folder / "checkpoints")
    shutil.copytree(foreign(**change) / "checkpoints", folder / "checkpoints")
    with pytest.raises(
        DataError, match=r"step-0+\d+: the checkpoint is of a configuration .*; put a copy of the run's"
    ):
        train(TINY, options(folder, allow_change=allowed))


@pytest.mark.parametrize("change", [{}, {"epochs": TINY.epochs + 1}])
def test_a_complete_run_whose_checkpoints_are_gone_is_not_trained_anew_over_its_figures(folder, change):
    shutil.rmtree(folder / "checkpoints")
    kept = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    with pytest.raises(UsageError, match="the run is complete, and its checkpoints are gone; choose another --out"):
        train(dataclasses.replace(TINY, **change), options(folder, allow_change=True))
    assert kept == {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    started = dataclasses.replace(TINY, weights=str(folder))
    run = Run(folder)
    for ask in (run.model, lambda: run.model("best"), lambda: train(started, options(folder / "new"))):
        with pytest.raises(DataError, match="the run is complete, and its checkpoints are gone; put a copy back"):
            ask()


def test_a_run_that_starts_again_because_it_has_no_checkpoint_says_so(folder, capfd):
    """A run that was killed before its first checkpoint looks the same."""
    shutil.rmtree(folder / "checkpoints")
    (folder / "run.json").write_text((folder / "run.json").read_text().replace('"complete"', '"running"'))
    assert train(TINY, options(folder))[0] == 0
    assert "resuming   from the first step, since the folder has no checkpoint" in capfd.readouterr().out


def test_a_damaged_evaluation_is_written_again_as_its_error_says(folder):
    path = folder / "evaluation.json"
    whole = path.read_text()
    path.write_text(whole[:30])
    with pytest.raises(DataError, match=r"evaluation\.json: is not JSON .*; remove it: the training's command or"):
        train(TINY, options(folder))
    path.unlink()
    assert train(TINY, options(folder))[0] == 0
    assert path.read_text() == whole


@pytest.mark.parametrize(("part", "value"), [("augment", {"mean": [0.6]}), ("seed", 8)])
def test_a_value_of_the_recipe_that_is_not_the_one_trained_with_judges_no_image(folder, part, value):
    """It reads well, but images prepared by it would be judged wrongly, and an order by it would not be the run's."""
    path = folder / "run.json"
    info = json.loads(path.read_text())
    info["recipe"][part] = info["recipe"][part] | value if isinstance(value, dict) else value
    path.write_text(json.dumps(info))
    longer = dataclasses.replace(TINY, epochs=TINY.epochs + 1)
    uses = (Run(folder).model, Run(folder).evaluate, lambda: train(longer, options(folder, allow_change=True)))
    for use in uses:
        with pytest.raises(DataError, match=r"recipe in run\.json is not the one that was trained: its hash is not"):
            use()
    path.write_text(json.dumps(info | {"recipe": to_dict(TINY)}))
    assert Run(folder).model() is not None
