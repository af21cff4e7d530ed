"""Training on a folder of one's own pictures: the settings chosen and why, resuming, evaluation, and mistakes."""

import json
import tarfile
import zipfile

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

import imnet
from imnet import hubs, options, own, weights
from imnet.cli import predict_main, train_main
from imnet.data.tool import main as data_main
from imnet.errors import DataError, UsageError
from imnet.models import build
from imnet.models.head import head_name
from tests.data import making

COUNTS = {"cat": 20, "dog": 31, "owl": 4}


def draw(path, seed, size, mode="RGB"):
    """Save a noisy picture whose colour shows its class."""
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 60, (size[1], size[0], 3), dtype=np.uint8)
    base[..., sum(map(ord, path.parent.name)) % 3] += 150
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(base).convert(mode).save(path)


def folder_of(root, size=(40, 30), parts=("",)):
    for part in parts:
        for name, count in COUNTS.items():
            for i in range(count):
                draw(root / part / name / f"{i:03}.png", 1000 * len(part) + i, size)
    return root


@pytest.fixture(autouse=True)
def away(tmp_path, monkeypatch):
    """Gives each test its own cache and no hub, so that the chosen settings do not depend on the machine."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(hubs, "is_here", lambda source: False)

    def refuse(source):
        raise UsageError("away")

    monkeypatch.setattr(hubs, "check_fetchable", refuse)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def photos(tmp_path):
    return folder_of(tmp_path / "photos")


def ask(*words):
    return options.parse([*map(str, words), "--device", "cpu"])


@pytest.mark.parametrize("line", ["photos", "--data photos", "--data=photos", "--epochs 3 photos", "--epochs=3 photos"])
def test_a_path_alone_or_behind_data_is_the_users_own_set(photos, line):
    found = ask(*line.split())
    d = found.recipe.data
    assert (d.name, d.num_classes, d.channels, d.hold_out) == ("folder", 3, 3, 0.1)
    assert found.options.data_dir == "photos"
    assert found.recipe.name.startswith("own/photos-")
    assert found.recipe.weights is None
    assert any("random" in line for line in found.reasons)


def test_every_value_can_be_overridden(photos):
    words = "photos --schedule.kind onecycle --optim.kind adamw --lr 0.002 --batch-size 8 --model wrn10_1".split()  # noqa: SIM905
    found = ask(*words).recipe
    assert (found.schedule.kind, found.optim.kind, found.optim.lr) == ("onecycle", "adamw", 0.002)
    assert (found.data.batch_images, found.model) == (8, "wrn10_1")


def test_names_of_sets_stay_names(photos, tmp_path):
    (tmp_path / "shapes").mkdir()
    assert ask("--data", "shapes").recipe.data.name == "shapes"
    assert ask("--data", "./photos").recipe.data.name == "folder"
    store = f"packed:{tmp_path}/store"
    assert ask("--recipe", "tiny-imagenet/resnet18_64", "--data", store).recipe.data.name == store


def test_home_is_where_a_tilde_points(photos, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for words in (["~/photos"], ["--data", "~/photos"]):
        assert ask(*words).options.data_dir == str(photos)


def test_small_pictures_are_packed_and_large_ones_cut_from_whole(photos, tmp_path):
    small = ask("photos").recipe
    assert (small.data.image_px, small.augment.crop_scale, small.model) == (32, None, "speednet")
    assert own.recipe(photos, gpu=True)[0].model == "resnet18_64"
    large = ask(folder_of(tmp_path / "large", (300, 200))).recipe
    assert (large.data.image_px, large.augment.crop_px, large.augment.resize_eval_px) == (96, 96, 110)
    assert large.augment.crop_scale == (0.2, 1.0)
    assert large.model == "resnet18"


def test_a_test_part_of_its_own_judges(tmp_path):
    found = ask(folder_of(tmp_path / "parts", parts=("train", "val")))
    assert found.recipe.data.hold_out == 0.0
    assert "55 images judge" in found.reasons[0]


def test_a_zip_gives_the_recipe_of_its_folder(photos, tmp_path):
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for path in sorted(photos.rglob("*.png")):
            archive.write(path, path.relative_to(tmp_path))
    folder, archive = ask("photos").recipe, ask("photos.zip").recipe
    assert folder.name != archive.name
    assert imnet.replace(archive, name=folder.name, source=folder.source) == folder


def test_weights_that_are_here_are_fine_tuned(photos, monkeypatch):
    pytest.importorskip("timm")
    monkeypatch.setattr(hubs, "is_here", lambda source: source.startswith("timm:"))
    found = ask("photos").recipe
    assert (found.weights, found.model) == ("timm:resnet18.a1_in1k", "timm:resnet18")
    assert (found.optim.kind, found.body_lr) == ("adamw", 0.1)
    assert found.augment.mean == weights.IMAGENET_MEAN
    tv = ask("photos", "--weights", "torchvision:ResNet50_Weights.IMAGENET1K_V2").recipe
    assert tv.model == "torchvision:resnet50"
    made, _ = own.recipe(photos, gpu=True)
    assert made.weights == "timm:resnet50.a1_in1k"


def test_two_folders_of_one_name_do_not_share_a_run(photos, tmp_path):
    other = folder_of(tmp_path / "else" / "photos")
    assert own.name_of(photos) != own.name_of(other)
    assert own.name_of(photos) == own.name_of(tmp_path / "else" / ".." / "photos")


def test_a_named_recipe_takes_the_datas_counts(photos):
    found = ask("--recipe", "tiny-imagenet/resnet18_64", "photos").recipe
    assert (found.data.num_classes, found.data.name, found.data.hold_out) == (3, "folder", 0.1)
    assert (found.model, found.epochs, found.published) == ("resnet18_64", 100, None)
    grey = ask("--recipe", "fashion-mnist/speedrun", "photos").recipe
    assert (grey.data.channels, grey.data.split, len(grey.augment.mean)) == (3, None, 1)


def test_three_commands_from_a_folder_to_a_prediction(photos, tmp_path, capsys):
    """Trains on the folder, resumes with the same command and with the run's config.yaml, and predicts."""
    command = "photos --device cpu --epochs 2 --model speednet --out run --precision fp32".split()  # noqa: SIM905
    assert train_main(command) == 0
    said = capsys.readouterr().out
    assert "your data  55 images of 3 classes, about 30 px; 10% of each class judges" in said
    assert "time       about" in said
    run = imnet.load_run("run")
    assert (run.info["data"]["train_images"], run.info["data"]["test_images"]) == (49, 6)
    assert run.info["data"]["class_names"] == ["cat", "dog", "owl"]
    assert train_main(command) == 0
    assert "complete already" in capsys.readouterr().out
    assert train_main(["--config", "run/config.yaml"]) == 0
    assert "complete already" in capsys.readouterr().out
    assert predict_main(["run", "photos/owl", "--json", "--device", "cpu"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [len(row["top"]) for row in rows] == [3] * 4


def test_fine_tuning_from_a_file_begins_with_its_weights(photos, tmp_path, capsys):
    torch.manual_seed(5)
    donor = build("wrn10_1", 7)
    save_file(donor.state_dict(), tmp_path / "donor.safetensors")
    assert train_main(["photos", "--device", "cpu", "--weights", "donor.safetensors"]) == 2
    assert "give it: --model NAME" in capsys.readouterr().err
    words = ["photos", "--device", "cpu", "--weights", "donor.safetensors", "--model", "wrn10_1", "--epochs", "1"]
    assert train_main([*words, "--freeze", "all-but-head", "--out", "run", "--precision", "fp32"]) == 0
    said = capsys.readouterr().out
    assert "2 new (" in said
    mine, head = imnet.load_run("run").model().state_dict(), head_name(donor)
    assert all(torch.equal(mine[k], v) for k, v in donor.state_dict().items() if not k.startswith(head))
    again = ask("photos", "--weights", "run")
    assert again.recipe.model == "wrn10_1"


def test_print_config_is_yaml_with_the_reasons_as_comments(photos, capsys):
    assert train_main(["photos", "--device", "cpu", "--print-config"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("# your data")
    assert yaml.safe_load(said)["data"]["num_classes"] == 3


def test_a_dry_run_counts_what_training_holds_out_of_each_class(tmp_path, capsys):
    for i, count in enumerate((3, 3, 16)):  # a tenth of all 22 would be 2
        for j in range(count):
            draw(tmp_path / "set" / f"class{i}" / f"{j}.png", i, (40, 40))
    assert train_main(["set", "--device", "cpu", "--dry-run"]) == 0
    assert "18 train, 4 test, 3 classes" in capsys.readouterr().out


@pytest.mark.parametrize("packed", [False, True])
def test_pixels_that_are_not_square_are_refused_with_what_helps(tmp_path, capsys, packed):
    (tmp_path / "in").mkdir()
    for part in ("train", "t10k"):
        making.write_idx(np.zeros((8, 8, 10), dtype=np.uint8), tmp_path / "in" / f"{part}-images-idx3-ubyte")
        making.write_idx(np.arange(8, dtype=np.uint8) % 2, tmp_path / "in" / f"{part}-labels-idx1-ubyte")
    assert not packed or data_main(["pack", "in", "store"]) == 0
    for more in ([], ["--dry-run"]):
        assert train_main(["store" if packed else "in", "--device", "cpu", "--epochs", "1", *more]) == 65
        assert "8 x 10 pixels; allowed: squares; resize them first" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("packed", [False, True])
def test_one_class_alone_is_refused(tmp_path, capsys, packed):
    for i in range(2):
        draw(tmp_path / "in" / "train" / "cat" / f"{i}.png", i, (8, 8))
    assert not packed or data_main(["pack", "in", "store"]) == 0
    assert train_main(["store" if packed else "in", "--device", "cpu", "--dry-run"]) == 65
    assert "one class only (cat)" in capsys.readouterr().err


def test_a_dry_run_writes_nothing(photos, tmp_path, capsys):
    before = sorted(tmp_path.rglob("*"))
    assert train_main(["photos", "--device", "cpu", "--dry-run"]) == 0
    assert "49 train, 6 test" in capsys.readouterr().out
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["nothing"], 2, "no such file or folder"),
        (["empty"], 65, "no known data set here"),
        (["one"], 65, "pictures need one folder a class"),
        (["texts"], 65, "no known data set"),
        (["few", "--epochs", "1"], 65, "none can be held out"),
        (["few", "--epochs", "1", "--dry-run"], 65, "few: one picture a class: none can be held out"),
        (["photos", "photos"], 2, "one place of data"),
        (["photos", "--weights", "nothing.pth"], 2, "nothing.pth"),
        (["photos", "--data.hold_out", "1"], 2, "hold_out"),
        (["photos", "--model", "timm:resnet10t", "--data.channels", "1"], 2, "whose images have 3; leave it out"),
        (["parts", "--data.hold_out", "0.2", "--epochs", "1"], 2, "with a test part"),
    ],
)
def test_mistakes_are_one_line(photos, tmp_path, capsys, words, code, says):
    (tmp_path / "empty").mkdir()
    for place in ("one/cat", "few/cat", "few/dog"):
        draw(tmp_path / place / "0.png", 0, (40, 30))
    (tmp_path / "texts" / "a").mkdir(parents=True)
    (tmp_path / "texts" / "a" / "b.txt").write_text("no picture")
    if words[0] == "parts":
        folder_of(tmp_path / "parts", parts=("train", "val"))
    assert train_main([*words, "--device", "cpu"]) == code
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("imnet-train")]
    assert len(errors) == 1
    assert says in errors[0]


def test_pictures_that_cannot_be_opened_are_said(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "bad" / name).mkdir(parents=True)
        (tmp_path / "bad" / name / "x.jpg").write_bytes(b"no picture")
    with pytest.raises(DataError, match="none of 2 pictures can be opened; the first: not a picture"):
        own.look(tmp_path / "bad")


def test_bad_pictures_are_left_out_counted_and_told(photos, tmp_path, capfd):
    """Up to a limit, which packing before the training can raise; every run reports them again."""
    words = [str(photos), "--epochs", "1", "--batch-size", "16", "--device", "cpu", "--precision", "fp32"]
    words += ["--model", "speednet", "--model_options.width", "8", "--out", str(tmp_path / "run")]
    (photos / "dog/000.png").write_bytes(b"no picture")
    assert train_main(words) == 65
    assert "--on-bad-image skip" in capfd.readouterr().err
    skip = [*words, "--on-bad-image", "skip"]
    for epochs in (1, 2):
        assert train_main([*skip, "--epochs", str(epochs), "--allow-change"]) == 0
        info = json.loads((tmp_path / "run/run.json").read_text())["data"]
        assert info["train_images"] + info["test_images"] == sum(COUNTS.values()) - 1
        assert "cannot be decoded, left out: 1 of train" in capfd.readouterr().out
    assert imnet.load_run(tmp_path / "run").evaluate(device_name="cpu").num_images == info["test_images"]
    (photos / "dog/001.png").write_bytes(b"nor this")
    assert train_main([*skip, "--out", str(tmp_path / "other")]) == 65
    hint = capfd.readouterr().err.strip().splitlines()[-1].partition("; mend them, or ")[2].split()
    assert hint == ["imnet-data", "pack", "--max-bad", "2"]
    store = str(tmp_path / "store")
    assert data_main([*hint[1:], "--on-bad-image", "skip", str(photos), store]) == 0
    assert train_main([store, *words[1:], "--out", str(tmp_path / "packed")]) == 0


@pytest.mark.parametrize(
    ("words", "said"), [([], "40 px: as your pictures are"), (["--size", "40"], "40 px, as they are")]
)
def test_a_store_of_anything_is_trained_from(tmp_path, words, said, capfd):
    """A store packed from shards has other names than one packed from folders; its pictures give the image size."""
    with tarfile.open(tmp_path / "train-0.tar", "w") as tar:
        for i in range(24):
            draw(tmp_path / "drawn" / "ab"[i % 2] / f"{i}.png", i, (40, 40))
            tar.add(tmp_path / "drawn" / "ab"[i % 2] / f"{i}.png", f"{i:03}.png")
            (tmp_path / "label").write_text(str(i % 2))
            tar.add(tmp_path / "label", f"{i:03}.cls")
    store = str(tmp_path / "store")
    assert data_main(["pack", str(tmp_path / "train-0.tar"), store, *words]) == 0
    assert (
        train_main(
            [store, "--epochs", "1", "--batch-size", "8", "--model", "speednet", "--device", "cpu", "--out", "run"]
        )
        == 0
    )
    assert f"images     {said}" in capfd.readouterr().out
    assert imnet.load_run("run").recipe.data.image_px == 40
