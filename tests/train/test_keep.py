"""Which checkpoints are kept, the EMA's warm-up, what is evaluated at the end, and checkpoints of other runs."""

import copy
import dataclasses
import json
import shutil

import pytest
import torch

import imnet
from imnet import checkpoint, weights
from imnet.capture import CapturedStep, NotCapturableError
from imnet.cli import eval_main
from imnet.errors import DataError, UsageError
from imnet.metrics import read_metrics
from imnet.recipe import SGD
from imnet.run_options import RunOptions
from imnet.start import train

from .conftest import TINY, options
from .test_merged_sgd import batch, make_step
from .test_resume import digests


def steps(folder):
    return [int(path.name[5:]) for path in sorted(folder.glob("step-*"))]


@pytest.mark.parametrize(
    ("keep", "stay"),
    [("2", [5, 6]), ("last", [6]), ("best", [2, 6]), ("best,last", [2, 6]), ("best,2", [2, 5, 6]),
     ("3,last", [4, 5, 6]), ("9", [1, 2, 3, 4, 5, 6]), ("best,4", [2, 3, 4, 5, 6])],
)  # fmt: skip
def test_what_stays_of_six(tmp_path, keep, stay):
    """Step 2 is the earliest best: step 5 was not evaluated, and step 1 was evaluated on other images."""
    named = {"model": {"w": torch.zeros(2)}}
    for step, top1 in enumerate((0.9, 0.5, 0.4, 0.5, None, 0.2), 1):
        data = "others" if step == 1 else "ours"
        state = {"step": step, "epoch": step, "top1": top1, "data_fingerprint": data, "config_hash": "c"}
        checkpoint.save(tmp_path, step, named, state, RunOptions(keep=keep).keeps)
        newest = checkpoint.load(tmp_path)
        assert newest is not None
        assert newest.state["step"] == step
    assert steps(tmp_path) == stay


@pytest.mark.parametrize(("keep", "stay"), [("last", [2, 6, 8]), ("best", [2, 4, 6, 8]), ("2", [2, 5, 6, 8])])
def test_another_runs_checkpoint_is_neither_counted_nor_deleted(tmp_path, keep, stay):
    """Foreign checkpoints on the same images: all are better; step 5 is where this run will save, step 8 is later.
    Step 4 is from this run's earlier configuration (--allow-change) and the best one of this run."""
    named = {"model": {"w": torch.zeros(2)}}
    common = {"data_fingerprint": "same images"}
    for step in (2, 5, 8):
        state = common | {"step": step, "epoch": step, "top1": 0.9, "config_hash": "other"}
        checkpoint.save(tmp_path, step, named, state, (9, False))
    kept = {step: (tmp_path / f"step-{step:08}" / "MANIFEST.json").read_bytes() for step in (2, 5, 8)}
    for step, top1 in {3: 0.1, 4: 0.5, 5: 0.4, 6: 0.2}.items():
        now = "ours" if step > 4 else "before"
        state = common | {"step": step, "epoch": step, "top1": top1, "config_hash": now}
        checkpoint.save(tmp_path, step, named, state, RunOptions(keep=keep).keeps, [now, "before"])
    assert steps(tmp_path) == stay
    for step, content in kept.items():
        place = tmp_path / ("foreign-step-00000005" if step == 5 else f"step-{step:08}")
        assert (place / "MANIFEST.json").read_bytes() == content
    found = checkpoint.load(tmp_path, ("ours", "before"))
    assert found is not None
    assert found.state["step"] == 6
    with pytest.raises(DataError, match=r"run\.json does not know"):
        checkpoint.load(tmp_path, ("a third",))


def test_weights_are_not_taken_from_another_runs_checkpoint(averaging, tmp_path):
    """The folder has no other checkpoints."""
    folder = tmp_path / "run"
    shutil.copytree(averaging.path, folder)
    run = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(run | {"config_hash": "another"}))
    for use in (lambda: weights.read(str(folder)), imnet.load_run(folder).model):
        with pytest.raises(DataError, match=r"run\.json does not know"):
            use()


@pytest.mark.parametrize("damage", ["weights", "state", "empty folder"])
@pytest.mark.parametrize(("keep", "stay"), [("last", [10]), ("2", [8, 10]), ("best,last", [8, 10])])
def test_damaged_ones_of_later_steps_take_no_place_of_what_is_saved_after_them(tmp_path, keep, stay, damage):
    """A run resumes from step 8, because steps 12 and 16 are damaged, and is stopped at step 10."""
    named, best = {"model": {"w": torch.zeros(2)}}, {4: 0.1, 8: 0.5, 12: 0.9, 16: 0.9, 10: None}
    for step, top1 in best.items():
        state = {"step": step, "epoch": step / 4, "top1": top1, "data_fingerprint": "ours", "config_hash": "c"}
        path = checkpoint.save(tmp_path, step, named, state, RunOptions(keep=keep if step == 10 else "9").keeps)
        for file in sorted(path.iterdir()) if step > 10 else ():
            if damage == "empty folder":
                file.unlink()
            elif file.name == {"weights": "model.safetensors", "state": "state.json"}[damage]:
                file.write_bytes(file.read_bytes()[:-1])
    assert steps(tmp_path) == stay
    found = checkpoint.load(tmp_path, ("c",))
    assert found is not None
    assert found.state["step"] == 10


@pytest.mark.parametrize("keep", ["", "0", "newest", "best;last", "-1", "2,", "1.5"])
def test_other_words_are_refused(keep):
    with pytest.raises(ValueError, match=r"allowed: (best, last, a number|a word)"):
        RunOptions(keep=keep)


@pytest.fixture(scope="module")
def averaging(tmp_path_factory):
    """A run with EMA warm-up and all its checkpoints, whose best epoch is not its last."""
    folder = tmp_path_factory.mktemp("averaging") / "run"
    recipe = dataclasses.replace(TINY, epochs=4, ema_warmup=True)
    return imnet.train(recipe, **vars(options(folder, eval_every_epochs=1, keep="best,99", checkpoint_every_steps=3)))


def test_the_best_stays_and_says_what_it_was_chosen_on(averaging, tmp_path, capsys):
    """The best epoch is saved although no checkpoint is due, and evaluating it again gives exactly its accuracy."""
    folder = tmp_path / "run"
    train(averaging.recipe, options(folder, eval_every_epochs=1, keep="best", checkpoint_every_epochs=100))
    rows = [row for row in read_metrics(folder / "metrics.jsonl") if row["kind"] == "eval"]
    best = max(rows, key=lambda row: row["top1"])
    assert steps(folder / "checkpoints") == sorted({best["step"], rows[-1]["step"]})
    run = imnet.load_run(folder)
    assert run.info["best"] == {"top1": best["top1"], "epoch": best["epoch"], "chosen_on": "test set"}
    assert run.evaluate(which="best", device_name="cpu").top1 == best["top1"]
    capsys.readouterr()
    gone = next(row["epoch"] for row in rows[:-1] if row["epoch"] != best["epoch"])
    assert eval_main([str(folder), "--checkpoint", str(gone), "--device", "cpu"]) == 65
    assert f"no checkpoint of epoch {gone} is kept" in capsys.readouterr().err


def test_a_best_that_was_not_kept_is_not_replaced_by_another(averaging, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(averaging.path, folder)
    best = imnet.load_run(folder).info["best"]["epoch"]
    shutil.rmtree(folder / "checkpoints" / f"step-{8 * best:08}")
    assert eval_main([str(folder), "--checkpoint", "best", "--device", "cpu"]) == 65
    assert f"no checkpoint of the best, epoch {best} is kept" in capsys.readouterr().err


def test_held_out_images_are_named_as_what_chose(tmp_path):
    from PIL import Image

    for i in range(24):
        where = tmp_path / "in" / "ab"[i % 2]
        where.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (i * 10, 255 * (i % 2), 0)).save(where / f"{i}.png")
    data = dataclasses.replace(TINY.data, name="folder", num_classes=2, hold_out=0.25, batch_images=6,
                               train_images=None, test_images=None)  # fmt: skip
    recipe = dataclasses.replace(TINY, data=data, epochs=1)
    run = imnet.train(recipe, **vars(options(tmp_path / "run", data_dir=str(tmp_path / "in"))))
    assert run.info["best"]["chosen_on"] == "held-out images"
    assert "selected on the held-out images" in run.report.read_text()


def test_raw_weights_are_judged_beside_their_average(averaging):
    compared = averaging.info["last_epoch"]
    last = [row for row in averaging.metrics if row["kind"] == "eval"][-1]
    assert compared["averaged"]["top1"] == last["top1"]
    found = checkpoint.load(averaging.path / "checkpoints")
    assert found is not None
    network = averaging.model()
    network.load_state_dict(found.tensors["model"])
    averaging.model = lambda which="last": network
    raw = averaging.evaluate(device_name="cpu")
    del averaging.model
    assert compared["raw"] == pytest.approx(raw.figures())
    assert compared["raw"]["loss"] != compared["averaged"]["loss"]
    from imnet import report

    assert f"top-1, raw weights {100 * raw.top1:.2f} %" in report.summary(averaging.path)
    assert f"{100 * raw.top1:.2f} %" in averaging.report.read_text()


@pytest.mark.parametrize("backend", ["torch", "imnet"])
@pytest.mark.parametrize("decay", [0.9, 0.3])
def test_the_averages_decay_warms_up(backend, decay):
    """The average of 30 steps equals the plain recursion with the decay min(decay, (1 + t) / (10 + t))."""
    recipe = dataclasses.replace(TINY, optim=SGD(lr=0.01, momentum=0.9), ema_warmup=True)
    step, _ = make_step(backend, recipe)
    averaged = copy.deepcopy(step.net)
    step.add_ema(averaged, decay)
    wanted = {name: p.detach().double().clone() for name, p in step.net.named_parameters()}
    for t in range(30):
        step([batch(t)], 8, t, 0.01)
        d = min(decay, (1 + t) / (10 + t))
        for name, p in step.net.named_parameters():
            wanted[name] = d * wanted[name] + (1 - d) * p.detach().double()
    for name, p in averaged.named_parameters():
        torch.testing.assert_close(p.double(), wanted[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("backend", ["torch", "imnet"])
def test_a_run_that_warms_up_resumes_to_the_bit(averaging, tmp_path, backend):
    """Resumes within the first epochs, in which every step has a different decay."""
    whole, folder, recipe = averaging.path, tmp_path / "run", averaging.recipe
    how = {"eval_every_epochs": 1, "keep": "best,99", "checkpoint_every_steps": 3, "optim_backend": backend}
    if backend != "torch":
        whole, recipe = tmp_path / "whole", dataclasses.replace(recipe, epochs=2)
        train(recipe, options(whole, **how))
    shutil.copytree(whole, folder)
    for path in (folder / "checkpoints").glob("step-*"):
        if int(path.name[5:]) > 6:
            shutil.rmtree(path)
    info = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(info | {"status": "running"}))
    train(recipe, options(folder, **how))
    assert digests(folder) == digests(whole)


def test_a_graph_cannot_hold_a_decay_that_changes():
    step, averaged = make_step("torch", dataclasses.replace(TINY, ema_warmup=True))
    step.graph = CapturedStep(step)
    with pytest.raises(NotCapturableError, match="another decay every step"):
        step.add_ema(averaged, 0.9)
    with pytest.raises(ValueError, match="ema_warmup without ema_decay"):
        dataclasses.replace(TINY, ema_decay=None, ema_warmup=True)
    assert issubclass(NotCapturableError, UsageError)
