"""--allow-change resumes a run if its state can be taken over, and refuses the rest before the folder changes."""

import dataclasses
import json
import shutil

import pytest

from imnet import fields, load_run
from imnet.errors import UsageError
from imnet.metrics import read_metrics
from imnet.recipe import SGD, AdamW, Augment, Constant, Data, Recipe
from imnet.recipe_json import config_hash
from imnet.start import train

from .conftest import options
from .test_resume import digests

BASE = Recipe(
    name="change",
    model="speednet",
    model_options={"width": 8},
    data=Data(name="shapes", image_px=12, num_classes=4, batch_images=16, train_images=128, test_images=20),
    augment=Augment(hflip="random", mean=(0.5,), std=(0.25,)),
    optim=SGD(lr=0.05, momentum=0.9),
    schedule=Constant(),
    epochs=2,
    seed=3,
)
LONGER = dataclasses.replace(BASE, epochs=4)


def changed(recipe=LONGER, *, part=None, **values):
    if part is None:
        return dataclasses.replace(recipe, **values)
    return dataclasses.replace(recipe, **{part: dataclasses.replace(getattr(recipe, part), **values)})


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """The folder of a complete run of two epochs of 8 steps, with the checkpoints of steps 15 and 16."""
    folder = tmp_path_factory.mktemp("kept") / "run"
    train(BASE, options(folder, checkpoint_every_steps=3))
    return folder


@pytest.fixture
def folder(kept, tmp_path):
    return shutil.copytree(kept, tmp_path / "run")


@pytest.fixture
def within(folder):
    """The same run as if it was stopped at step 15, 112 images into its second epoch."""
    shutil.rmtree(folder / "checkpoints" / "step-00000016")
    run = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(run | {"status": "running"}))
    return folder


def content(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# docs/runs.md lists more of them, which test_runs_table.py runs.
REFUSED = {
    "another network": (changed(model="wrn10_1", model_options={}), "weights are of another network"),
    "more classes": (changed(part="data", num_classes=5), "weights are of another network"),
    "grey": (changed(part="data", channels=1), "weights are of another network"),
    "another optimiser": (changed(optim=AdamW(lr=0.01)), "optim.kind was sgd, is adamw"),
    "other groups": (changed(part="optim", decay_norms=False), "optim.decay_norms was True, is False"),
    "frozen": (changed(freeze="all-but-head"), "freeze was None, is all-but-head"),
    "other rates": (changed(body_lr=0.1), "body_lr was 1, is below 1"),
    "nothing left, other batches": (changed(BASE, part="data", batch_images=32), "2 are trained already"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_change_that_cannot_be_leaves_the_folder_as_it_was(folder, kind, capsys):
    recipe, words = REFUSED[kind]
    before = content(folder)
    with pytest.raises(UsageError, match=words):
        train(recipe, options(folder, allow_change=True))
    assert content(folder) == before
    train(BASE, options(folder))
    assert "complete already" in capsys.readouterr().out


def test_without_the_flag_a_longer_run_is_refused_with_the_way_to_extend_it(folder):
    with pytest.raises(UsageError, match=r"epochs was 2, is 4.*or extend it: --allow-change"):
        train(LONGER, options(folder))


def test_a_run_of_a_version_that_hashed_whole_numbers_otherwise_goes_on(tmp_path, monkeypatch, capsys):
    """Older versions kept the 1 of ``lr: 1`` as it is, whose hash is not that of 1.0."""
    with monkeypatch.context() as older:
        older.setattr(fields, "_with_fractions", lambda held, _: held)
        train(changed(BASE, part="optim", lr=1), options(tmp_path))
    now = changed(BASE, part="optim", lr=1)
    train(now, options(tmp_path))
    assert "complete already" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "checkpoints" / "step-00000016")
    (tmp_path / "evaluation.json").unlink()
    train(now, options(tmp_path))
    assert "resuming   at step 8 of 16" in capsys.readouterr().out
    assert load_run(tmp_path).info["config_hash"] == config_hash(now, "fp32")


def test_an_extended_run_is_the_longer_run(folder, tmp_path, capsys):
    """With a constant schedule, two epochs extended to four must end in the weights of four epochs at once."""
    train(LONGER, options(tmp_path / "whole"))
    capsys.readouterr()
    train(LONGER, options(folder, allow_change=True))
    said = capsys.readouterr().out
    assert "changed    epochs was 2, is 4" in said
    assert "schedule   constant over 4 epochs, entered at epoch 2: lr 0.05 from here (the last step had 0.05)" in said
    assert digests(folder)[:2] == digests(tmp_path / "whole")[:2]
    assert load_run(folder).info["before"][0]["recipe"]["epochs"] == 2
    train(LONGER, options(folder))  # without the flag: the folder belongs to the longer run now
    assert "complete already" in capsys.readouterr().out
    assert "allow_change: false" in (folder / "config.yaml").read_text()


@pytest.mark.parametrize(("batch", "steps"), [(8, 64), (128, 4), (24, 20)])
def test_another_batch_size_goes_on_at_the_same_image(folder, batch, steps, capsys):
    """A batch size of 24 leaves 8 images of each epoch out."""
    train(changed(part="data", batch_images=batch), options(folder, allow_change=True))
    assert f"step 16 is step {steps // 2} now: epoch 2, by the images seen" in capsys.readouterr().out
    rows = read_metrics(folder / "metrics.jsonl")
    epochs = [row["epoch"] for row in rows]
    assert epochs == sorted(epochs)
    assert (rows[-1]["step"], rows[-1]["epoch"]) == (steps, 4)
    run = load_run(folder)
    assert run.evaluate(device_name="cpu").top1 == rows[-1]["top1"]
    seconds = [row["seconds"] for row in rows]
    assert seconds == sorted(seconds)


@pytest.mark.parametrize(("batch", "step"), [(8, 16 + 14), (56, 2 + 2)])
def test_within_an_epoch_the_new_batches_begin_where_the_old_ones_ended(within, batch, step, capsys):
    train(changed(part="data", batch_images=batch), options(within, allow_change=True))
    assert f"step 15 is step {step} now" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        (changed(part="data", batch_images=32), "no number of batches of 32 ends at; take a --batch-size that divides"),
        (changed(part="data", sampler="balanced"), "whose order the data and the seed decide, and the sampler"),
        (changed(seed=4), "whose order the data and the seed decide"),
        (changed(part="data", train_images=100), "whose order the data and the seed decide"),
    ],
)
def test_within_an_epoch_what_would_lose_or_repeat_images_is_refused(within, recipe, words):
    before = content(within)
    with pytest.raises(UsageError, match=words):
        train(recipe, options(within, allow_change=True))
    assert content(within) == before


def test_the_average_may_begin_and_end(folder, capsys):
    train(changed(ema_decay=0.9), options(folder, allow_change=True))
    assert "EMA begins at the weights of this moment" in capsys.readouterr().out
    train(changed(epochs=5), options(folder, allow_change=True))
    assert load_run(folder).info["status"] == "complete"
    assert [e["recipe"]["epochs"] for e in load_run(folder).info["before"]] == [2, 4]


def test_other_data_and_another_seed_at_the_edge_of_an_epoch(folder):
    recipe = changed(changed(seed=4), part="data", train_images=96, test_images=30)
    train(recipe, options(folder, allow_change=True))
    assert read_metrics(folder / "metrics.jsonl")[-1]["step"] == 4 * 6


def test_a_run_that_dies_before_its_first_new_checkpoint_goes_on_again(folder, monkeypatch):
    """run.json has the new batch size, but all checkpoints count steps of the old one and are converted once more."""
    from imnet.trainer import Trainer

    def die(self):
        raise KeyboardInterrupt

    recipe = changed(part="data", batch_images=32)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_fit", die)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, options(folder, allow_change=True))
    train(recipe, options(folder, checkpoint_every_steps=1))
    assert read_metrics(folder / "metrics.jsonl")[-1]["step"] == 16
    assert load_run(folder).model() is not None
    newest = sorted(p.name for p in (folder / "checkpoints").iterdir())
    assert newest == ["step-00000015", "step-00000016"]
    for name in newest:  # both are from the new run, although the old one had these step numbers too
        state = json.loads((folder / "checkpoints" / name / "state.json").read_text())
        assert state["config_hash"] == load_run(folder).info["config_hash"]


def test_an_evaluation_of_an_earlier_step_does_not_make_a_run_complete(within, capsys):
    """imnet-eval may have written evaluation.json before the run had ended."""
    assert (within / "evaluation.json").exists()
    train(BASE, options(within))
    assert "complete already" not in capsys.readouterr().out
    assert read_metrics(within / "metrics.jsonl")[-1]["step"] == 16
