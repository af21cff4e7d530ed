"""The cases of the comparison: imnet-train's arguments and the plain trainer ("peer") that must be as accurate."""

import shutil
import zipfile
from dataclasses import dataclass, field

NUM_CLASSES = 10
ARCHIVE = "tiny-imagenet-200-small.zip"
TEN_CLASSES = f"--data folder --num-classes {NUM_CLASSES} --data.image_px 64"


@dataclass(frozen=True)
class Case:
    """``words``: imnet-train's arguments besides the seed; ``peer``, ``options``: the plain trainer's module and its
    options; ``fault``, ``faulty``: a change of these that must cost accuracy, in words and as options."""

    system: str
    what: str
    words: str
    peer: str
    fault: str
    faulty: dict
    options: dict = field(default_factory=dict)
    command: str = "imnet.cli"

    @property
    def data(self):
        """The key of the folder that the case reads, one of the two that ``lay_out`` returns."""
        return "fashion-mnist" if self.peer == "fashion_mnist" else "pictures"


CASES = {
    "imagenet64": Case(
        "imagenet64 (000)",
        "WRN-12-1, 10 classes of Tiny ImageNet at 64 px, 4 epochs of 640 images, 500 to judge",
        f"--recipe imagenet64/wrn36_5 --model wrn12_1 {TEN_CLASSES} --batch-size 32 --lr 0.05 --epochs 4 "
        "--data.train_images 640 --schedule.every_epochs 1",
        "imagenet64",
        "a hundredth of the learning rate",
        {"lr": 0.0005},
    ),
    "wrn": Case(
        "fashion-mnist (002)",
        "WRN-10-1, 4 epochs of 4,000 images, 8,000 to judge",
        "--recipe fashion-mnist/wrn28_10 --model wrn10_1 --data.train_images 4000 --data.test_images 8000 "
        "--batch-size 64 --epochs 4 --schedule.milestones_epochs [1,2,3]",
        "fashion_mnist",
        "no momentum",
        {"momentum": 0.0, "nesterov": False},
        {"net": "wrn"},
    ),
    "shake": Case(
        "fashion-mnist (002)",
        "Shake-Shake 26 2x8d, Cutout, 2 epochs of 3,000 images, 3,000 to judge",
        "--recipe fashion-mnist/shake_shake26_2x64d --model shake_shake26_2x8d --data.train_images 3000 "
        "--data.test_images 3000 --batch-size 64 --epochs 2",
        "fashion_mnist",
        "no momentum",
        {"momentum": 0.0},
        {"net": "shake", "train_images": 3000, "test_images": 3000, "epochs": 2},
        command="tests.parity.narrow",
    ),
    "tiny_imagenet": Case(
        "tiny-imagenet (003)",
        "ResNet-18, 10 classes at 36 px cut to 32, 4 epochs of 1,000 images, 500 to judge",
        f"--recipe tiny-imagenet/resnet18_augmented {TEN_CLASSES} --augment.resize_px 36 --augment.crop_px 32 "
        "--epochs 4",
        "tiny_imagenet",
        "a hundredth of the learning rate",
        {"lr": 0.001},
    ),
    "spectral": Case(
        "spectral (004)",
        "ResNet-18 on band 1 of sub4, 10 classes of Tiny ImageNet at 64 px, 4 epochs of 1,000 images, 500 to judge",
        f"--recipe spectral/resnet34_sub4 --model resnet18 --band 1 {TEN_CLASSES} --augment.crop_scale null "
        "--augment.crop_px null --augment.resize_eval_px null --batch-size 32 --epochs 4",
        "spectral",
        "a hundredth of the learning rate",
        {"lr": 0.0001},
    ),
}


def lay_out(shared, folder):
    """Make ``folder/pictures/train|val/<class>/`` from the archive's first ten classes; returns each set's folder."""
    made = folder / "pictures"
    if not made.is_dir():
        half = folder / "half-made"
        with zipfile.ZipFile(shared / ARCHIVE) as archive:
            for target, member in members(archive).items():
                (half / target).parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, open(half / target, "wb") as file:
                    shutil.copyfileobj(source, file)
        half.rename(made)
    return {"pictures": made, "fashion-mnist": shared / "fashion-mnist"}


def members(archive):
    """Returns {path of each picture of the ten classes: its name in the archive}."""
    root = "tiny-imagenet-200/"
    wanted = sorted(archive.read(f"{root}wnids.txt").decode().split())[:NUM_CLASSES]
    rows = [line.split("\t")[:2] for line in archive.read(f"{root}val/val_annotations.txt").decode().splitlines()]
    found = {f"val/{wnid}/{name}": f"{root}val/images/{name}" for name, wnid in rows if wnid in wanted}
    for name in archive.namelist():
        parts = name.split("/")
        if parts[1] == "train" and parts[2] in wanted and name.endswith(".JPEG"):
            found[f"train/{parts[2]}/{parts[-1]}"] = name
    return found
