"""imnet-eval on images that are not the run's own, in every form that imnet reads."""

import csv
import json
import os
import shutil
import tarfile
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import imnet
from imnet.classifier import Classifier
from imnet.cli import eval_main, export_main
from imnet.data.judged import images_at
from imnet.data.tool import main as data_main
from imnet.errors import DataError
from imnet.from_recipe import build_network
from imnet.judge import judge_images
from imnet.options import parse
from imnet.run_options import RunOptions
from tests.train.conftest import command, finished, start_ranks
from tests.use.judging import CPU, Plain, agrees, beside, evaluated


def zipped(folder, to):
    return shutil.make_archive(str(to / "set"), "zip", folder)


def tarred(folder, to):
    with tarfile.open(to / "set.tar", "w") as tar:
        tar.add(folder, "set")
    return to / "set.tar"


def packed(folder, to):
    assert data_main(["pack", str(folder), str(to / "store"), "--size", "16"]) == 0
    return to / "store"


def kept_encoded(folder, to):
    assert data_main(["pack", str(folder), str(to / "store")]) == 0
    return to / "store" / "train.imnet"


def as_it_is(folder, to):
    return folder


@pytest.mark.parametrize("form", [as_it_is, zipped, tarred, packed, kept_encoded])
def test_the_same_pictures_in_any_form_give_the_runs_own_figures(run, folder, tmp_path, capsys, form):
    own = (run.path / "evaluation.json").read_bytes()
    table = tmp_path / "all.csv"
    out = evaluated(
        [run.path, "--data", form(folder, tmp_path), "--split", "train", *CPU, "--out", table, "--no-flip"], capsys
    )
    assert (run.path / "evaluation.json").read_bytes() == own
    found, wanted = beside(run), json.loads(own)
    for name in ("num_images", "top1", "top5", "balanced_accuracy", "confusion", "support"):
        assert found[name] == wanted[name], name
    assert found["loss"] == pytest.approx(wanted["loss"], rel=1e-5)
    assert (found["about"]["split"], found["about"]["weights"]) == ("train", run.weights_id())
    assert f"top-1      {wanted['top1']:.4%}" in out
    assert "matched by name" not in out
    assert out.endswith(f"report     {run.report}\n")
    rows = list(csv.DictReader(table.open(newline="")))
    if form not in (packed, kept_encoded):
        assert all(row["image"].endswith(".png") and f"/{row['label']}/" in row["image"] for row in rows)
    assert "Other evaluations" in (run.path / "report.html").read_text()


def test_a_subset_of_the_classes_is_fine_and_said(run, folder, split, tmp_path, capsys):
    names = list(run.info["data"]["class_names"])
    few = sorted(names)[2:5]
    for name in few:
        shutil.copytree(folder / name, tmp_path / "few" / "test" / name)
    out = evaluated([run.path, "--data", tmp_path / "few" / "test", *CPU], capsys)
    assert f"3 of the network's {len(names)}" in out
    assert list(run.path.glob("evaluation-test-*.json"))
    rows = [i for i, label in enumerate(split.labels) if names[label] in few]
    plain = Plain(run.classifier().logits(split.images[rows]).numpy(), split.labels[rows], len(names))
    agrees(beside(run), plain)


def test_classes_that_the_network_has_not_are_named(run, folder, tmp_path, capsys):
    shutil.copytree(folder, tmp_path / "more")
    first = next(path for path in sorted(folder.rglob("*.png")))
    for name in ("zebra", "okapi"):
        (tmp_path / "more" / name).mkdir()
        shutil.copy(first, tmp_path / "more" / name)
    before = sorted(path.name for path in run.path.iterdir())
    assert eval_main([str(run.path), "--data", str(tmp_path / "more"), *CPU]) == 65
    said = capsys.readouterr().err
    assert "2 of 12 classes are none of the network's 10: okapi, zebra" in said
    assert said.count("\n") == 1
    assert sorted(path.name for path in run.path.iterdir()) == before


def test_an_exported_file_judges_another_set_and_writes_the_table_alone(run, folder, tmp_path, capsys):
    file, table = tmp_path / "model.safetensors", tmp_path / "t.csv"
    assert export_main([str(run.path), "--to", "safetensors", "--out", str(file)]) == 0
    out = evaluated([file, "--data", folder, *CPU, "--out", table], capsys)
    wanted = json.loads((run.path / "evaluation.json").read_text())
    assert f"top-1      {wanted['top1']:.4%}" in out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors", "t.csv"]
    assert eval_main([str(file), *CPU]) == 2
    assert "add --data PATH" in capsys.readouterr().err
    assert eval_main([str(file), "--data", str(folder), "--checkpoint", "best", *CPU]) == 2
    assert "got --checkpoint best for a file, which holds one" in capsys.readouterr().err


def test_a_damaged_picture_is_named(run, folder, tmp_path, capsys):
    shutil.copytree(folder, tmp_path / "set")
    victim = sorted((tmp_path / "set").rglob("*.png"))[3]
    victim.write_bytes(b"\x89PNG\r\n")
    assert eval_main([str(run.path), "--data", str(tmp_path / "set"), *CPU]) == 65
    said = capsys.readouterr().err
    assert victim.name in said
    assert said.count("\n") == 1


def test_pictures_of_other_sizes_and_colours_are_made_as_predict_makes_them(run, tmp_path):
    """This also holds if the images are given as pixels, and for a network of grey images."""
    rng = np.random.default_rng(0)
    card = replace(run.classifier().card, channels=1, class_names=("a", "b"), num_outputs=2,
                   augment=replace(run.recipe.augment, mean=(0.5,), std=(0.25,)))  # fmt: skip
    data = replace(run.recipe.data, channels=1, num_classes=2)
    network = build_network(replace(run.recipe, data=data, augment=card.augment))
    model = Classifier(network, card)
    for i in range(8):
        where = tmp_path / "set" / "ba"[i % 2]
        where.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20 + i, 31, 3), dtype=np.uint8)).save(where / f"{i}.png")
    images = images_at(tmp_path / "set")
    found, mirrored = judge_images(model, images, RunOptions(device="cpu", precision="fp32"), 3, flip=True)
    told = model.predict([images.name(i) for i in range(8)], top=1)
    assert found.predictions is not None
    assert [row["top"][0][0] for row in told] == [card.class_names[i] for i in found.predictions.predicted]
    assert [row["top"][0][1] for row in told] == pytest.approx(found.predictions.probability.tolist(), rel=1e-4)
    assert mirrored is not None
    assert mirrored.loss != found.loss
    wide = replace(images, read=lambda i: np.asarray(Image.open(images.name(i)).convert("RGB")))
    again, _ = judge_images(model, wide, RunOptions(device="cpu", precision="fp32"), flip=False)
    assert again.predictions is not None
    assert again.predictions.loss.tolist() == pytest.approx(found.predictions.loss.tolist(), rel=1e-4)


def test_names_that_two_classes_share_are_matched_by_the_whole_list_alone(run, folder):
    model, images = run.classifier(), images_at(folder)
    twice = (*model.card.class_names[:-1], model.card.class_names[0])
    model.card = replace(model.card, class_names=twice)
    with pytest.raises(DataError, match="share a name"):
        judge_images(model, replace(images, class_names=twice[::-1]), RunOptions(device="cpu"), flip=False)
    found, _ = judge_images(
        model, replace(images, class_names=twice), RunOptions(device="cpu", precision="fp32"), flip=False
    )
    assert sum(found.support) == len(images)


@pytest.mark.parametrize("other", [pytest.param(False, marks=pytest.mark.slow), True])
def test_ranks_that_find_other_weights_judge_with_those_of_the_first(run, folder, other, tmp_path, capsys):
    """A run may save between the looks of two ranks, which would then evaluate their shares with different weights."""
    first, later = tmp_path / "first", tmp_path / "later"
    for path in (first, later):
        shutil.copytree(run.path, path)
    options = {"device": "cpu", "precision": "fp32", "threads": 1, "allow_change": True}
    imnet.train(replace(run.recipe, epochs=4), out=later, **options)
    images = ["--data", str(folder)] if other else []

    def figures(told):
        return [line for line in told.splitlines() if line.startswith(("top-1", "top-5", "loss", "flip"))]

    def alone(path):
        capsys.readouterr()  # drops the output of the training
        assert eval_main([str(path), *images, *CPU]) == 0
        return figures(capsys.readouterr().out)

    words = ([str(path), *images, *CPU] for path in (first, later))
    files = [tmp_path / "told by the first", tmp_path / "told by the other"]
    rows = [("eval_main", asked, os.devnull, told) for asked, told in zip(words, files, strict=True)]
    assert finished(start_ranks(command, *rows)) == [0, 0]
    assert figures(files[0].read_text()) == alone(first) != alone(later)


def test_a_home_that_there_is_not_is_no_such_folder(run, capsys):
    assert eval_main([str(run.path), "--data=~nobodys/pictures", *CPU]) == 65
    assert capsys.readouterr().err.startswith("imnet-eval: ~nobodys/pictures: no such file or folder")


@pytest.fixture(scope="module")
def of_two_classes(tmp_path_factory):
    """The folder of a run on pictures of the classes a and b."""
    own = coloured(tmp_path_factory.mktemp("own"), "ab")
    recipe = parse([str(own), "--model", "speednet", "--model-options.width", "8", "--device", "cpu"]).recipe
    data = replace(recipe.data, image_px=8, batch_images=8)
    out = tmp_path_factory.mktemp("of two") / "run"
    return imnet.train(replace(recipe, data=data, epochs=1), data_dir=own, device="cpu", out=out).path


def coloured(root, classes):
    for name in classes:
        (root / name).mkdir(parents=True)
        for i in range(12):
            Image.new("RGB", (8, 8), (20 * i, 0, 0)).save(root / name / f"{i}.png")
    return root


@pytest.mark.parametrize("there", ["with a test part", "of three classes"])
def test_another_set_in_place_of_the_runs_own_is_told_apart_without_options_of_the_training(
    there, of_two_classes, tmp_path, capsys
):
    """The hints of a training name options (--data.hold_out, --num-classes) that imnet-eval has not."""
    kinds = {"with a test part": ("train/a", "train/b", "test/a", "test/b"), "of three classes": "abc"}
    other = coloured(tmp_path / "other", kinds[there])
    assert eval_main([str(of_two_classes), *CPU, "--data-dir", str(other)]) == 65
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert "the run's own data: " in told
    assert told.endswith("give the set as it was by --data-dir; imnet-eval RUN --data PATH judges on another one")


def test_a_folder_that_a_set_does_not_read_is_said(run, tmp_path, capsys):
    said = f"note       shapes reads nothing of --data-dir {tmp_path}\n"
    assert said in evaluated([run.path, *CPU, "--no-flip", "--data-dir", tmp_path], capsys)
    assert "reads nothing" not in evaluated([run.path, *CPU, "--no-flip"], capsys)


def test_an_export_says_if_it_reads_nothing_of_the_data(run, tmp_path, capsys):
    args = [str(run.path), "--to", "safetensors", "--out", str(tmp_path / "x.safetensors")]
    assert export_main([*args, "--data-dir", "elsewhere"]) == 0
    assert "note       a network without a mean image reads nothing of --data-dir elsewhere" in capsys.readouterr().out
    assert export_main(args) == 0
    assert "note" not in capsys.readouterr().out
