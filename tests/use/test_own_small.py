"""One's own pictures with values from elsewhere: of another side than the network reads, beside another place of data,
with a configuration file, and with a network that the named recipe does not have."""

import numpy as np
import pytest

from imnet.cli import train_main
from imnet.errors import UsageError
from imnet.options import parse
from tests.data.making import write_idx
from tests.use.test_own import folder_of

SMALL = "note       your pictures, about 16 px, are enlarged to {} px, which {} reads\n"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--recipe", "tiny-imagenet/resnet18_baseline"], SMALL.format(224, "resnet18")),
        (["--recipe", "quickstart", "--data.image_px", "33"], SMALL.format(33, "speednet")),
        (["--recipe", "quickstart"], ""),  # 32 px, which is only twice the side
        (["--model", "speednet"], ""),  # a recipe made for the pictures
        (["--model", "speednet", "--data.image_px", "64"], SMALL.format(64, "speednet")),
    ],
)
def test_pictures_of_less_than_half_the_side_are_said_to_be_enlarged(words, expected, tmp_path, capfd):
    photos = folder_of(tmp_path / "photos", size=(20, 16))
    assert train_main([str(photos), *words, "--batch-size", "8", "--device", "cpu", "--dry-run"]) == 0
    said = "".join(line for line in capfd.readouterr().out.splitlines(True) if "enlarged" in line)
    assert said == expected


@pytest.mark.parametrize(
    ("side", "said"),
    [
        (24, "32 px: your pictures, about 24 px, scaled up to the smallest side that is chosen"),
        (32, "32 px: as your pictures are"),
        (44, "40 px: as your pictures are, in steps of 8"),
        (100, "96 px: what a CPU does in minutes"),
    ],
)
def test_the_line_of_the_side_says_what_becomes_of_the_pictures(side, said, tmp_path, capfd):
    photos = folder_of(tmp_path / "photos", size=(side, side))
    assert train_main([str(photos), "--model", "speednet", "--batch-size", "8", "--device", "cpu", "--dry-run"]) == 0
    assert f"images     {said}\n" in capfd.readouterr().out


@pytest.mark.parametrize("side", [1, 4])
def test_pixels_that_the_chosen_network_cannot_see_are_one_line(side, tmp_path, capfd):
    for part in ("train", "t10k"):
        write_idx(np.zeros((8, side, side), np.uint8), tmp_path / f"{part}-images-idx3-ubyte")
        write_idx(np.arange(8, dtype=np.uint8) % 2, tmp_path / f"{part}-labels-idx1-ubyte")
    assert train_main([str(tmp_path), "--device", "cpu", "--out", str(tmp_path / "run")]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert f"speednet cannot see images of {side} px" in line


@pytest.mark.parametrize("width", [24, 120])
def test_a_side_that_is_asked_for_is_the_one_that_the_network_reads(width, tmp_path):
    """Large pictures are cropped, so that the crops must have the side, too."""
    photos = str(folder_of(tmp_path / "photos", size=(width, width)))
    request = parse([photos, "--model", "speednet", "--data.image_px", "40", "--batch-size", "8", "--device", "cpu"])
    assert (request.recipe.data.image_px, request.recipe.input_px) == (40, 40)
    assert request.recipe.augment.resize_eval_px == (46 if width > 96 else None)
    assert request.reasons[-1] == "images     40 px, as asked"
    assert request.notes == ()


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ("tiny-imagenet/resnet18_baseline", "the network reads 224 px, as --augment.resize_px says"),
        ("spectral/resnet34_sub4", "the network reads 224 px, as --augment.crop_px says"),
        ("quickstart", ""),
    ],
)
def test_a_side_that_the_network_does_not_read_is_said_to_be_that_of_the_store(recipe, said):
    notes = parse(["--recipe", recipe, "--data.image_px", "48"]).notes
    assert notes == ((f"data.image_px = 48 is the side of the images as stored; {said}",) if said else ())


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return str(folder_of(tmp_path_factory.mktemp("own") / "photos"))


@pytest.mark.parametrize(
    "words", [["--data", "shapes"], ["--data=fashion-mnist"], ["--data-dir", "."], ["--data.name", "folder"]]
)
@pytest.mark.parametrize("first", [True, False])
def test_a_second_place_of_data_is_refused(photos, words, first):
    """Only one of them would be read, and nothing would say which."""
    with pytest.raises(UsageError, match=r"photos' and --data(-dir)?; allowed: one place of data; leave --data"):
        parse([photos, *words] if first else [*words, photos])


@pytest.mark.parametrize(
    "values",
    [
        {"recipe": "fashion-mnist/wrn28_10", "epochs": 3},
        {"recipe": "fashion-mnist/speedrun_long", "model": "resnet18_64"},  # which has no width
        {"model": "resnet18_64"},  # nor is it given that of the network that would be chosen
        {"model": "wrn10_1", "device": "cpu", "epochs": 3},
    ],
)
def test_a_file_and_options_choose_the_same_recipe_for_the_pictures(photos, tmp_path, values):
    (tmp_path / "few.yaml").write_text("".join(f"{name}: {value}\n" for name, value in values.items()))
    read = parse([photos, "--config", str(tmp_path / "few.yaml"), "--batch-size", "8"])
    typed = parse([photos, *(f"--{name}={value}" for name, value in values.items()), "--batch-size", "8"])
    assert (read.recipe, read.notes, read.reasons) == (typed.recipe, typed.notes, typed.reasons)
    assert read.recipe.model == values.get("model", "wrn28_10")
    assert values.get("recipe", "").replace("/", "-") in read.recipe.name


@pytest.mark.parametrize("name", ["weights", "model", "device"])
def test_an_empty_word_in_a_file_is_said_for_pictures_too(photos, tmp_path, name):
    (tmp_path / "few.yaml").write_text(f'{name}: ""\n')
    for more in ([], ["--model", "wrn10_1"] if name == "weights" else []):
        with pytest.raises(UsageError, match=f"got {name} = ''"):
            parse([photos, "--config", str(tmp_path / "few.yaml"), *more])
