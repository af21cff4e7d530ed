"""A dry run refuses what the run would refuse, with the same line, and before it reads data or writes anything."""

import re

import pytest
import torch
from PIL import Image

from imnet.cli import train_main
from imnet.resources import num_cores

TINY = ["--data", "shapes", "--data.train_images", "33", "--data.test_images", "10", "--batch-size", "16",
        "--epochs", "1", "--device", "cpu"]  # fmt: skip
THEIRS = ["--model", "torchvision:densenet121", "--data.image_px", "32"]
TIMM = ["--recipe", "quickstart", "--model", "timm:resnet18"]


def both(words, folder, capsys):
    """Returns stderr of the run and of its dry run, which must both end with exit code 2."""
    told = []
    for more in ((), ("--dry-run",)):
        assert train_main([*TINY, *words, "--out", str(folder / "run"), *more]) == 2
        told.append(capsys.readouterr().err)
    assert not (folder / "run" / "run.json").exists()
    return told


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--freeze", "9"], "got freeze = 9; allowed: all-but-head, or 1..1"),
        (["--data.hold_out", "0.5"], "hold_out is 0.5 for data set shapes"),
        (["--data.image_px", "16", "--recipe", "quickstart", "--model", "torchvision:resnet18", "--no-data.drop_last"],
         "got a last batch of which a pass has one image"),
    ],
)  # fmt: skip
def test_the_same_line_as_the_run(words, expected, tmp_path, capsys):
    run, dry = both(words, tmp_path, capsys)
    assert expected in run
    assert (run, run.count("\n")) == (dry, 1)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--sync-bn", "--procs", "2", "--micro-batch-images", "4", "--no-data.drop_last", "--data.train_images", "25"],
         "got --sync-bn with micro-batches of 4 images"),
        (["--sync-bn", "--procs", "2", "--compile"], "got --compile with --sync-bn on CPU ranks"),
        (["--procs", "16", "--recipe", "quickstart", "--model", "torchvision:resnet18", "--data.image_px", "16"],
         "got batches of which a pass has one image"),
    ],
)  # fmt: skip
def test_what_ranks_would_refuse_is_refused_without_them(words, expected, tmp_path, capsys):
    assert train_main([*TINY, *words, "--dry-run"]) == 2
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "option", "value"),
    [
        ("timm:resnet18", "drop_rate", "2"),
        ("timm:resnet18", "features_only", "true"),
        ("torchvision:densenet121", "drop_rate", "1.5"),
        ("torchvision:googlenet", "aux_logits", "true"),
    ],
)
def test_what_others_networks_refuse_only_when_they_see_images(model, option, value, tmp_path, capsys):
    pytest.importorskip("timm")
    words = ["--recipe", "quickstart", "--model", model, f"--model_options.{option}", value]
    # The folder holds no data: the options must be refused before the data are looked for.
    words += ["--data", "fashion-mnist", "--data-dir", str(tmp_path), "--data.image_px", "28", "--data.channels", "1"]
    run, dry = both(words, tmp_path, capsys)
    assert option in run
    assert "check the options" in run
    assert (run, run.count("\n")) == (dry, 1)


def test_holding_out_of_a_set_that_has_a_test_part_is_refused_before_it_is_packed(tmp_path, capsys):
    for name in ("train/a/0", "train/b/1", "test/a/2", "test/b/3"):
        path = tmp_path / "set" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (int(path.stem) * 60, 0, 0)).save(path)
    asked = [str(tmp_path / "set"), "--recipe", "quickstart", "--device", "cpu", "--data.hold_out", "0.5", "--dry-run"]
    assert train_main(asked) == 2
    assert "got hold_out = 0.5 for a set with a test part" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="plans for GPUs that are not here")
@pytest.mark.parametrize("asked", [["--gpus", "2"], ["--device", "cuda"], ["--gpus", "2", "--precision", "fp16"]])
def test_a_plan_for_gpus_is_one_also_where_there_are_none(asked, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = [*asked, *TINY[:-2]]
    assert train_main([*words, "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert f"machine      NOT HERE: got {' '.join(asked[:2])}, found 0 usable GPUs" in told
    assert "precision    fp16 (asked for)" in told or "precision    bf16 (as GPUs have it from Ampere on" in told
    assert "pipeline     auto (for GPUs that are not here)" in told
    assert train_main(words) == 69
    assert "found 0 usable GPUs" in capsys.readouterr().err


def test_images_held_out_count_in_the_memory_that_the_pipeline_is_chosen_by(tmp_path, capsys):
    words = ["--data", "synthetic", "--data.image_px", "64", "--data.train_images", "1600", "--data.val_images", "800"]
    words += ["--data.test_images", "10", "--batch-size", "400", "--epochs", "1", "--device", "cpu"]
    words += ["--model-options.width", "8", "--augment.crop_px", "16"]
    for more in (["--dry-run"], []):
        assert train_main([*words, "--out", str(tmp_path / "run"), *more]) == 0
        assert re.search(r"pipeline +resident \(0\.02 GiB fit cpu\)", capsys.readouterr().out)


def test_more_processes_than_cores_are_said(tmp_path, capsys):
    many = num_cores() + 1
    words = [*TINY[:-2], "--data.train_images", "4096", "--batch-size", "4096"]
    words += ["--out", str(tmp_path / "run"), "--dry-run", "--procs"]
    assert train_main([*words, str(many)]) == 0
    assert f"note         {many} processes take turns on {many - 1} core(s)" in capsys.readouterr().out
    assert train_main([*words, str(many - 1)]) == 0
    assert "take turns" not in capsys.readouterr().out
