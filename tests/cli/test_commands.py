"""What the commands print and refuse, how options combine into a recipe, and that --help and --list import no torch."""

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass, field, fields

import pytest

import imnet
from imnet import cli, options, recipes, sweep
from imnet.data import tool
from imnet.recipe import Recipe, replace
from imnet.recipe_json import config_hash, from_dict, to_dict


@pytest.mark.parametrize("argv", [["--help"], ["--list"], ["--list", "models"], ["--list", "data"], ["--print-config"]])
def test_asking_does_not_import_torch(argv):
    code = f"import sys; from imnet.cli import train_main; train_main({argv!r}); assert 'torch' not in sys.modules"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=root())
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) >= 3


def root():
    from pathlib import Path

    return Path(imnet.__file__).resolve().parents[1]


def test_importing_imnet_does_not_import_torch():
    code = "import sys, imnet; imnet.recipes['quickstart']; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root())


@pytest.mark.parametrize("name", list(imnet.recipes))
def test_every_recipe_goes_through_json_and_a_configuration_file(name, tmp_path):
    recipe = imnet.recipes[name]
    assert from_dict(json.loads(json.dumps(to_dict(recipe)))) == recipe
    path = tmp_path / "config.yaml"
    path.write_text(options.dump_config(recipe, options.RunOptions()))
    request = options.parse(["--config", str(path)])
    assert request.recipe == recipe


def test_flags_win_over_the_file_and_the_file_over_the_recipe(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("recipe: fashion-mnist/wrn28_10\nepochs: 3\noptim:\n  lr: 0.5\nprecision: fp32\n")
    request = options.parse(["--config", str(path), "--epochs", "4"])
    assert (request.recipe.epochs, request.recipe.optim.lr, request.recipe.optim.nesterov) == (4, 0.5, True)
    assert request.options.precision == "fp32"


def test_the_canonical_line_resolves_to_the_paper(capsys):
    request = options.parse(["--model", "wrn36_5", "--gpus", "2"])
    assert request.recipe == imnet.recipes["imagenet64/wrn36_5"]
    import torch

    if torch.cuda.device_count() < 2:
        assert cli.train_main(["--model", "wrn36_5", "--gpus", "2"]) == 69
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "found" in error


def test_variants_of_optimiser_and_schedule_are_switched_by_kind():
    request = options.parse(["--optim.kind", "adamw", "--optim.lr", "0.001", "--schedule.kind", "step"])
    assert request.recipe.optim.kind == "adamw"
    assert request.recipe.schedule.kind == "step"
    assert request.recipe.optim.weight_decay == imnet.recipes["quickstart"].optim.weight_decay


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--data.drop_last", "false"], False),
        (["--data.drop_last=false"], False),
        (["--data.drop_last", "true"], True),
        (["--no-data.drop_last"], False),
        (["--data.drop_last"], True),
    ],
)
def test_a_switch_takes_a_word_as_well(words, expected):
    assert options.parse([*words, "--epochs", "3"]).recipe.data.drop_last is expected


def test_short_names():
    recipe = options.parse(["--lr", "0.5", "--num-classes", "4", "--data", "synthetic", "--batch-size", "7"]).recipe
    assert (recipe.optim.lr, recipe.data.num_classes, recipe.data.name, recipe.data.batch_images) == (
        0.5, 4, "synthetic", 7)  # fmt: skip


def test_an_option_of_the_network_has_the_type_that_it_looks_like():
    assert options.parse(["--model_options.width", "8"]).recipe.model_options == {"width": 8}
    words = ["--model-options", '{"width": 8}', "--model_options.head_scale=0.5"]
    assert options.parse(words).recipe.model_options == {"width": 8, "head_scale": 0.5}


def test_another_network_leaves_out_what_was_meant_for_the_recipes_own():
    request = options.parse(["--recipe", "tiny-imagenet/resnet18_64", "--model", "timm:resnet18"])
    assert request.recipe.model_options == {}
    assert request.notes == (
        "timm:resnet18 has no zero_init_last_bn = True (model_options of tiny-imagenet/resnet18_64): left out",
    )
    request = options.parse(["--recipe", "tiny-imagenet/resnet18_64", "--model", "resnet34_64"])
    assert request.recipe.model_options == {"zero_init_last_bn": True}
    assert not request.notes


def test_a_folder_of_data_that_is_not_read_is_said():
    (note,) = options.parse(["--data-dir", "photos"]).notes
    assert note.startswith("shapes reads nothing of --data-dir photos; imnet-train photos")
    words = ["--recipe", "fashion-mnist/wrn28_10", "--data-dir", "photos"]
    assert options.parse(words).notes == ()
    assert len(options.parse([*words, "--data", "synthetic"]).notes) == 1


def test_an_optimiser_that_nobody_builds_is_refused():
    from torch import nn

    from imnet import optim
    from imnet.errors import UsageError
    from imnet.recipe_json import KINDS

    @dataclass(frozen=True, kw_only=True)
    class Lion:
        kind = "lion"
        lr: float = 0.1
        weight_decay: float = 0.0
        decay_norms: bool = True

    with pytest.raises(UsageError, match="got optimiser lion; allowed: sgd, adamw, adamcpr"):
        optim.build(nn.Linear(2, 2), Lion())
    assert set(KINDS["optim"].values()) == set(optim.BUILDERS)


def test_provenance_does_not_change_the_identity_but_a_value_does():
    recipe = imnet.recipes["fashion-mnist/wrn28_10"]
    assert config_hash(replace(recipe, source="x", published=None), "fp32") == config_hash(recipe, "fp32")
    assert config_hash(replace(recipe, seed=1), "fp32") != config_hash(recipe, "fp32")
    assert config_hash(recipe, "bf16") != config_hash(recipe, "fp32")


# Hashes of the first version: if one changed, existing run folders would no longer be found.
FIRST = {
    "quickstart": "40b5c103",
    "fashion-mnist/wrn28_10": "3366afc0",
    "imagenet64/davit_tiny": "c4f60222",
    "spectral/resnet34_21k_sub36": "dde57429",
    "tiny-imagenet/resnet50_augmented": "fce4e5e5",
}


@pytest.mark.parametrize("name", FIRST)
def test_run_folders_keep_the_names_of_the_first_version(name):
    assert config_hash(recipes[name], "bf16").startswith(FIRST[name])


def test_a_later_field_counts_only_where_it_is_set():
    @dataclass(frozen=True, kw_only=True)
    class Wider(Recipe):
        sam_rho: float = field(default=0.0, metadata={"later": True})

    old = recipes["quickstart"]
    new = Wider(**{f.name: getattr(old, f.name) for f in fields(old)})
    assert config_hash(new, "bf16") == config_hash(old, "bf16")
    assert config_hash(replace(new, sam_rho=0.1), "bf16") != config_hash(old, "bf16")


def test_dry_run_counts_what_the_facts_say(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.train_main(["--model", "wrn36_5", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "37,633,464 parameters" in out
    assert "14.108 GFLOP an image forward, 42.321 forward and backward" in out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "copies"),
    [
        ("", 3),
        ("--optim.momentum 0 --optim.nesterov false", 2),
        ("--optim.kind adamw --lr 0.001", 4),
        ("--optim.kind lion --lr 0.001", 3),
    ],
)
def test_dry_run_counts_what_the_optimiser_keeps(words, copies, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = f"--recipe fashion-mnist/wrn28_10 --ema-decay null --data synthetic {words}"
    assert cli.train_main([*words.split(), "--dry-run"]) == 0
    assert f"{copies * 4 * 36_478_906 / 2**30:.2f} weights and optimiser" in capsys.readouterr().out


def test_doctor_names_every_kernel_family(capsys):
    assert cli.train_main(["--doctor"]) == 0
    out = capsys.readouterr().out
    for word in ("torch", "DALI", "precision", "augment", "shake_shake", "spectral", "sgd_ema"):
        assert word in out


def test_train_evaluate_report_from_the_command_line_and_from_python(tmp_path, capsys):
    small = ["--data.train_images", "96", "--data.test_images", "30", "--data.image_px", "16", "--batch-size", "32"]
    folder = tmp_path / "a run, with ünicode"
    argv = [*small, "--epochs", "2", "--out", str(folder), "--precision", "fp32", "--threads", "1"]
    assert cli.train_main(argv) == 0
    for name in ("config.yaml", "run.json", "metrics.jsonl", "report.html", "evaluation.json", "worst.png"):
        assert (folder / name).stat().st_size > 0
    run = imnet.load_run(folder)
    last = [r for r in run.metrics if r["kind"] == "eval"][-1]
    assert {"kind", "step", "epoch", "loss", "top1", "top5", "seconds"} <= set(last)
    assert run.info["status"] == "complete"
    assert run.evaluate(device_name="cpu").top1 == last["top1"]
    capsys.readouterr()
    assert cli.eval_main([str(folder)]) == 0
    assert "flip TTA" in capsys.readouterr().out
    assert json.loads((folder / "evaluation.json").read_text())["top1_flip"] is not None
    assert cli.train_main(["--config", str(folder / "config.yaml")]) == 0
    assert "complete already" in capsys.readouterr().out
    second = imnet.train(replace(run.recipe, seed=1), out=tmp_path / "b", precision="fp32", threads=1)
    assert second.model()(__import__("torch").zeros(2, 3, 16, 16)).shape == (2, 10)
    assert cli.report_main([str(folder), str(tmp_path / "b"), "--out", str(tmp_path / "c.html")]) == 0
    assert (tmp_path / "c.html").exists()


@pytest.mark.parametrize("harm", ["flip", "remove"])
def test_an_older_checkpoint_does_not_pass_for_the_last(tmp_path, capsys, harm):
    folder = tmp_path / "run"
    quick = ["--data.train_images", "256", "--data.test_images", "64", "--data.image_px", "16", "--epochs", "2"]
    assert cli.train_main([*quick, "--device", "cpu", "--threads", "1", "--out", str(folder)]) == 0
    evaluation = (folder / "evaluation.json").read_bytes()
    newest = sorted((folder / "checkpoints").glob("step-*"))[-1]
    if harm == "remove":
        shutil.rmtree(newest)
    else:
        weights = newest / "model.safetensors"
        content = bytearray(weights.read_bytes())
        content[len(content) // 2] ^= 1
        weights.write_bytes(content)
    capsys.readouterr()
    assert cli.eval_main([str(folder)]) == 65
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert newest.name in said or "the last step, 4, is gone" in said
    assert (folder / "evaluation.json").read_bytes() == evaluation


@pytest.mark.parametrize("main", [cli.eval_main, cli.report_main])
def test_a_folder_that_is_no_run(main, tmp_path, capsys):
    assert main([str(tmp_path)]) == 65
    assert capsys.readouterr().err.count("\n") == 1
    assert main([]) == 2
    assert capsys.readouterr().err.count("\n") == 1


LONG = "n" * 300


@pytest.mark.parametrize(
    ("main", "words"),
    [
        (cli.eval_main, [LONG]),
        (cli.export_main, [LONG, "--to", "onnx"]),
        (cli.predict_main, [LONG, "picture.png"]),
        (cli.report_main, [LONG]),
        (sweep.main, [LONG]),
        (tool.main, ["inspect", LONG]),
        (tool.main, ["pack", LONG, "store"]),
    ],
)
def test_a_path_that_cannot_be_looked_at_is_one_line_in_every_command(main, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(words) in (65, 74)
    told = capsys.readouterr().err
    assert "File name too long" in told
    assert told.count("\n") == 1
    for debugged in (["--debug", *words], [*words, "--debug"]):
        assert main(debugged) in (65, 74)
        assert "Traceback" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
