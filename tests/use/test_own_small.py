"""Users are told if their pictures are much smaller than the network's input, to which a recipe enlarges them."""

import pytest

from imnet.cli import train_main
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
