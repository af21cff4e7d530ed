"""Spectral ensembles trained on the first 20 classes of the small Tiny ImageNet: fusion must beat every single band."""

import json
import zipfile

import pytest

from imnet import cli

ARCHIVE = "tiny-imagenet-200-small.zip"
WORDS = """
    --model wrn10_1 --data folder --num-classes 20 --data.image_px 64 --batch-size 32 --lr 0.1 --epochs 20
    --data.val_images 300 --data.val_stratified --augment.crop_pad_px 4
    --augment.crop_scale null --augment.crop_px null --augment.resize_eval_px null --eval-every-epochs 10
    --device cpu --precision fp32 --threads 1
"""


@pytest.fixture(scope="module")
def twenty(tmp_path_factory):
    """A function that unpacks train/<class>/ and val/<class>/ of the first 20 classes: 2,000 and 1,000 pictures."""

    def unpack(archive):
        folder = tmp_path_factory.mktemp("twenty")
        with zipfile.ZipFile(archive) as z:
            root = next(name for name in z.namelist() if name.endswith("wnids.txt")).removesuffix("wnids.txt")
            wnids = sorted(z.read(f"{root}wnids.txt").decode().split())[:20]
            rows = [line.split("\t")[:2] for line in z.read(f"{root}val/val_annotations.txt").decode().splitlines()]
            members = {f"val/{wnid}/{name}": f"{root}val/images/{name}" for name, wnid in rows if wnid in wnids}
            for name in z.namelist():
                part = name.removeprefix(root).split("/")
                if part[0] == "train" and part[1] in wnids and name.endswith(".JPEG"):
                    members[f"train/{part[1]}/{part[-1]}"] = name
            for to, name in members.items():
                (folder / to).parent.mkdir(parents=True, exist_ok=True)
                (folder / to).write_bytes(z.read(name))
        assert len(members) == 3000
        return folder

    return unpack


@pytest.mark.slow
@pytest.mark.parametrize("sub", ["sub4", "sub16"])
def test_the_fused_ensemble_beats_its_best_band(shared, twenty, tmp_path, sub):
    """Every rule chosen on held-out images must beat the best band by 3 points. Takes 3 and 6 minutes of one core."""
    folder, data = tmp_path / "ensemble", twenty(shared / ARCHIVE)
    argv = ["--recipe", f"spectral/resnet34_{sub}", "--data-dir", str(data), "--out", str(folder), *WORDS.split()]
    assert cli.train_main(argv) == 0
    assert cli.eval_main([str(folder), "--device", "cpu"]) == 0
    rules = json.loads((folder / "fusion.json").read_text())["rules"]
    bands = [rule["test"]["top1"] for rule in rules if rule["name"].startswith("band")]
    held_out = [rule["test"]["top1"] for rule in rules if rule["chosen_on"] == "held-out images"]
    assert len(bands) == (4 if sub == "sub4" else 16)
    assert len(held_out) == 3
    assert min(held_out) > max(bands) + 0.03
