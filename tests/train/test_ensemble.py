"""Spectral ensembles: a band ends with the same bytes as a run of it alone, however the bands are spread over ranks."""

import dataclasses
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
from PIL import Image

from imnet import cli, data, ensemble
from imnet.data.pipelines import transforms
from imnet.errors import UsageError
from imnet.options import parse
from imnet.recipe import SGD, Augment, Cosine, Data, Recipe
from imnet.recipe_json import dump_config
from imnet.run import Run
from imnet.runfolder import bands_in
from imnet.start import train

from .conftest import finished, options, run_in_process, start_ranks
from .test_kills import kill
from .test_resume import digests

BANDS = Recipe(
    name="bands",
    model="speednet",
    model_options={"width": 8},
    data=Data(
        name="shapes", image_px=16, num_classes=4, batch_images=16, train_images=150, test_images=21, val_images=30
    ),
    augment=Augment(crop_pad_px=1, hflip="random", mean=(0.5,), spectral_r=2, spectral_std=(2.1, 0.2, 0.1, 0.2)),
    optim=SGD(lr=0.05, momentum=0.9, weight_decay=5e-4),
    schedule=Cosine(warmup_epochs=0.5),
    epochs=2,
    ema_decay=0.9,
    mixup_alpha=0.2,
    seed=5,
)


def how(out, bands="all", **changes):
    return options(out, bands=bands, checkpoint_every_steps=4, **changes)


def of_bands(folder):
    return {band: digests(path) for band, path in bands_in(folder).items()}


def start(folder, bands, ranks, recipe=BANDS, **changes):
    """Starts the ranks of one launch; without ``bands`` they train band 3 alone."""
    chosen = options(folder, bands=None, checkpoint_every_steps=4, **changes) if bands is None else (
        how(folder, bands, **changes))  # fmt: skip
    recipe = ensemble.of_band(BANDS, 3) if bands is None else recipe
    return start_ranks(run_in_process, *[(recipe, chosen)] * ranks)


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """The folder of an ensemble of all four bands, trained in one process."""
    folder = tmp_path_factory.mktemp("together")
    assert train(BANDS, how(folder)) == (0, folder)
    return folder


@pytest.mark.parametrize("band", [pytest.param(0, marks=pytest.mark.slow), 3])
def test_a_band_alone_is_the_same_run(together, tmp_path, band):
    alone = ensemble.of_band(BANDS, band)
    train(alone, options(tmp_path, checkpoint_every_steps=4))
    assert digests(tmp_path) == digests(together / f"band-{band}")
    ours, theirs = Run(together / f"band-{band}"), Run(tmp_path)
    assert ours.recipe == theirs.recipe == alone
    assert ours.info["config_hash"] == theirs.info["config_hash"]
    assert ours.report.is_file()


@pytest.mark.parametrize(("bands", "changes"), [
    ("3,1", {"pipeline": "host", "workers": 2}),
    pytest.param("0,2", {"pipeline": "torch", "workers": 2}, marks=pytest.mark.slow),
], ids=["host", "torch"])  # fmt: skip
def test_neither_the_other_bands_nor_the_pipeline_matter(together, tmp_path, bands, changes):
    train(BANDS, how(tmp_path, bands, **changes))
    whole = of_bands(together)
    assert of_bands(tmp_path) == {int(band): whole[int(band)] for band in sorted(bands.split(","))}


def test_without_the_compiled_kernels_too(tmp_path, monkeypatch):
    """The reference kernel multiplies matrices, whose rounding can depend on the number of bands."""
    from imnet_kernels import tier

    train(BANDS, how(tmp_path / "both", "1,2", kernels="spectral=reference"))
    train(
        ensemble.of_band(BANDS, 2), options(tmp_path / "alone", checkpoint_every_steps=4, kernels="spectral=reference")
    )
    tier.set("auto")
    assert digests(tmp_path / "both" / "band-2") == digests(tmp_path / "alone")


@pytest.mark.parametrize(("bands", "ranks"), [("all", 2), pytest.param("0,1,3", 2, marks=pytest.mark.slow)])
def test_ranks_share_the_bands(together, tmp_path, bands, ranks):
    assert finished(start(tmp_path, bands, ranks)) == [0] * ranks
    whole = of_bands(together)
    assert of_bands(tmp_path) == {band: whole[band] for band in bands_in(tmp_path)}
    assert len(bands_in(tmp_path)) == (4 if bands == "all" else 3)


@pytest.mark.slow
def test_several_ranks_a_band_are_those_ranks_on_it_alone(tmp_path):
    assert finished(start(tmp_path / "ensemble", "0,3", 4)) == [0] * 4
    assert finished(start(tmp_path / "alone", None, 2)) == [0] * 2
    assert digests(tmp_path / "ensemble" / "band-3") == digests(tmp_path / "alone")
    assert Run(tmp_path / "ensemble" / "band-0").info["num_ranks"] == 2


@pytest.mark.slow
def test_the_launcher_starts_ranks_and_says_what_to_do_next(together, tmp_path, capfd):
    # The recipe is in a file, since the ranks parse the words of the command again.
    recipe = dataclasses.replace(BANDS, name="spectral/resnet34_sub4")
    config = tmp_path / "bands.yaml"
    config.write_text(dump_config(recipe, how(None)))
    assert cli.train_main(["--config", str(config), "--procs", "2", "--out", str(tmp_path / "out")]) == 0
    said = capfd.readouterr().out
    assert said.count("ensemble   4 of 4 bands, a network each, over 2 ranks: 0 1 | 2 3\n") == 1
    assert said.count("\nrecipe     ") == 1
    assert "4 of 4 bands complete; imnet-eval" in said
    found, whole = of_bands(tmp_path / "out"), of_bands(together)
    assert {b: f[1] for b, f in found.items()} == {b: f[1] for b, f in whole.items()}


def test_an_image_is_made_once_for_all_bands(tmp_path, monkeypatch, capsys):
    calls = []

    def counted(images, r, bands, **more):
        calls.append(tuple(bands))
        return spectral(images, r, bands, **more)

    spectral = transforms.spectral
    monkeypatch.setattr(transforms, "spectral", counted)
    recipe = dataclasses.replace(BANDS, data=dataclasses.replace(BANDS.data, val_images=None), epochs=1, ema_decay=None)
    train(recipe, how(tmp_path, "0,1,3"))
    assert calls.count((0, 1, 3)) == 9  # the warm-up reuses the first of the nine batches
    assert {c for c in calls if len(c) == 1} == {(0,), (1,), (3,)}  # evaluation is per band
    train(recipe, how(tmp_path, "2"))
    assert "1 of 1 bands complete, and 3 of the 3 others there; imnet-eval" in capsys.readouterr().out


@pytest.mark.slow
def test_ranks_that_decode_for_each_other_change_nothing(tmp_path):
    """With encoded pictures and random crops, each of two ranks on one machine decodes half of each batch."""
    made = data.load("shapes", image_px=24, num_classes=4, train_images=64, test_images=16)
    for part, split in (("train", made.train), ("val", made.test)):
        for i, (pixels, label) in enumerate(zip(split.images, split.labels, strict=True)):
            path = tmp_path / "pictures" / part / f"class{label}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    crops = dataclasses.replace(BANDS.augment, crop_pad_px=0, crop_scale=(0.4, 1.0), crop_px=16)
    source = dataclasses.replace(
        BANDS.data, name="folder", image_px=24, train_images=None, test_images=None, val_images=8
    )
    recipe = dataclasses.replace(BANDS, data=source, augment=crops)
    more = {"data_dir": str(tmp_path / "pictures"), "pipeline": "host", "workers": 2}
    train(recipe, how(tmp_path / "one", **more))
    assert finished(start(tmp_path / "two", "all", 2, recipe, **more)) == [0, 0]
    assert of_bands(tmp_path / "two") == of_bands(tmp_path / "one")
    assert not list(Path("/dev/shm").glob("imnet-*"))


def test_bands_that_stand_elsewhere_catch_up(together, tmp_path):
    folder = tmp_path / "ensemble"
    shutil.copytree(together, folder)
    shutil.rmtree(folder / "band-1")
    newest = sorted((folder / "band-2" / "checkpoints").glob("step-*"))
    shutil.rmtree(newest[-1])
    assert newest[-2].name != newest[-1].name
    train(BANDS, how(folder))
    assert of_bands(folder) == of_bands(together)


def test_a_band_goes_on_alone_and_with_others(together, tmp_path):
    train(BANDS, how(tmp_path, "1,3"))
    assert list(bands_in(tmp_path)) == [1, 3]
    shutil.rmtree(sorted((tmp_path / "band-1" / "checkpoints").glob("step-*"))[-1])
    shutil.rmtree(sorted((tmp_path / "band-3" / "checkpoints").glob("step-*"))[-1])
    train(ensemble.of_band(BANDS, 3), options(tmp_path / "band-3", checkpoint_every_steps=4))
    assert digests(tmp_path / "band-3") == digests(together / "band-3")
    train(BANDS, how(tmp_path))
    assert of_bands(tmp_path) == of_bands(together)


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_no_kill_changes_the_weights(together, tmp_path, ranks):
    """An ensemble that is killed and stopped at random must end with the same weights, and each log line once."""
    numbers, hits, rng = [signal.SIGKILL, signal.SIGTERM], 0, random.Random()
    for number in numbers:
        processes = start(tmp_path, "all", ranks)
        while all(p.is_alive() for p in processes) and not list(tmp_path.glob("band-*/checkpoints/step-????????")):
            time.sleep(0.002)
        hits += kill(processes, number, rng.uniform(0, 0.3))
    assert hits or of_bands(tmp_path) == of_bands(together)
    assert finished(start(tmp_path, "all", ranks)) == [0] * ranks
    assert of_bands(tmp_path) == of_bands(together)


def test_a_stop_leaves_all_bands_at_most_a_step_apart(tmp_path):
    (process,) = start(tmp_path, "all", 1)
    while process.is_alive() and not list(tmp_path.glob("band-0/checkpoints/step-????????")):
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGTERM)
    process.join(60)
    assert process.exitcode in (75, 0)
    newest = [sorted((path / "checkpoints").glob("step-????????"))[-1].name for path in bands_in(tmp_path).values()]
    steps = [int(name.removeprefix("step-")) for name in newest]
    assert len(steps) == 4
    assert max(steps) - min(steps) <= 1


def test_another_configuration_is_refused_by_the_band_it_is_of(together):
    with pytest.raises(UsageError, match="band 0: the folder holds a run of another configuration"):
        train(dataclasses.replace(BANDS, label_smoothing=0.1), how(together))


@pytest.mark.parametrize(("words", "told"), [
    ("--bands 0,4", "got bands = 0,4 of 4; allowed: 0..3"),
    ("--bands 1,1", "each once"),
    ("--bands two", "got bands = 'two'"),
    ("--bands 0,1 --band 1", "got --band 1 with --bands 0,1"),
    ("--recipe quickstart --bands all", "which sees whole images"),
    ("--procs 6 --device cpu", "got 6 ranks for 4 band(s); allowed: up to 4, or a multiple of it; take 4 ranks"),
    ("--procs 6 --device cpu --dry-run", "got 6 ranks for 4 band(s)"),
    ("--procs 3 --device cpu --bands 0,1", "got 3 ranks for 2 band(s)"),
    ("--out {together}/band-1", "holds the run of one network"),
    ("--band 1 --out {together}", "the folder holds an ensemble; --bands trains them"),
])  # fmt: skip
def test_what_cannot_be_is_one_line(together, words, told, capsys):
    argv = ["--recipe", "spectral/resnet34_sub4", *words.format(together=together).split()]
    assert cli.train_main(argv) == 2
    said = capsys.readouterr().err
    assert told in said
    assert said.count("\n") == 1


def asked(*argv):
    return parse(["--recipe", "spectral/resnet34_sub4", *argv]).options.bands


def test_all_bands_where_none_is_named(tmp_path):
    assert asked() == "all"
    assert asked("--bands", "0,1,3") == "0,1,3"
    assert asked("--bands", "2") == "2"
    assert asked("--band", "0") is None
    assert asked("--augment.spectral_band=0") is None
    assert parse([]).options.bands is None
    request = parse(["--recipe", "spectral/resnet34_sub4"])
    whole, one = tmp_path / "whole.yaml", tmp_path / "one.yaml"
    whole.write_text(dump_config(request.recipe, request.options))
    one.write_text(dump_config(request.recipe, dataclasses.replace(request.options, bands=None)))
    assert parse(["--config", str(whole)]).options.bands == "all"
    assert parse(["--config", str(whole), "--band", "3"]).options.bands is None
    assert parse(["--config", str(one)]).options.bands is None
    assert parse(["--config", str(one), "--bands", "1,2"]).options.bands == "1,2"
    one.write_text("recipe: spectral/resnet34_sub4\nepochs: 3\n")
    assert parse(["--config", str(one)]).options.bands == "all"


def test_bands_are_shared_out_evenly():
    assert ensemble.shares((0, 1, 3), 2) == [(0,), (1, 3)]
    assert ensemble.shares(range(16), 3) == [tuple(range(5)), tuple(range(5, 10)), tuple(range(10, 16))]
    assert ensemble.shares((0, 3), 6) == [(0,)] * 3 + [(3,)] * 3


def test_the_dry_run_counts_all_bands(capsys, tmp_path):
    argv = ["--recipe", "spectral/resnet34_sub16", "--dry-run", "--device", "cpu", "--data-dir", str(tmp_path)]
    assert cli.train_main([*argv, "--procs", "4"]) == 0
    said = capsys.readouterr().out
    assert "16 of 16 bands, a network each, over 4 ranks: 0 1 2 3 | 4 5 6 7 | 8 9 10 11 | 12 13 14 15" in said
    assert f"{16 * 21_789_992:,} parameters" in said
    assert "runs/spectral-resnet34_sub16-ensemble-" in said
    assert cli.train_main([*argv, "--band", "3"]) == 0
    said = capsys.readouterr().out
    assert "ensemble " not in said.replace("ensemble of all bands", "")
    assert "band 3 of 16" in said
