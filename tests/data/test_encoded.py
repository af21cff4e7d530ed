"""Pictures kept encoded are decoded, cropped and resized on the fly exactly as torchvision does with Pillow images."""

import io
import math
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional as tv

from imnet import data, recipes
from imnet.data import pipelines
from imnet.data.base import EncodedSplit, Split
from imnet.data.order import Order
from imnet.data.pipelines import Setting, transforms
from imnet.data.pipelines.batches import mean_image
from imnet.data.pipelines.draws import Key
from imnet.data.readers.picture import ResizeRule, decode
from imnet.data.tool import main as imnet_data
from imnet.errors import UsageError
from imnet.recipe import Augment
from tests.data.making import class_files, picture, write_tree

CPU = torch.device("cpu")
PAD_FLIP = Augment(crop_pad_px=2, hflip="random", cutout_px=5, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
RANDOM_CROP = Augment(crop_px=20, crop_scale=(0.08, 1.0), resize_eval_px=24)
SIZES = ((40, 30), (23, 61), (20, 20), (90, 17), (33, 32))


def encoded_split(pictures, image_px=24):
    return EncodedSplit(
        pictures.__getitem__, np.arange(len(pictures)) % 3, image_px, Path("x.imnet"), np.array([*map(len, pictures)])
    )


@pytest.fixture(scope="module")
def pictures():
    found = [picture(i, *SIZES[i % 5]) for i in range(30)]
    found[3], found[7] = picture(3, 40, 30, "L"), picture(7, 30, 40, "RGB", "PNG")
    return found


def setting(augment, split, **changes):
    order = Order(len(split), 8, 5, drop_last=False)
    return Setting(augment=augment, seed=5, dtype=torch.float32, order=order, **{"device": CPU, **changes})


def batches(kind, split, augment, epoch=1, **changes):
    return list(pipelines.build(kind, split, setting(augment, split, **changes)).epoch(epoch))


@pytest.mark.parametrize("kind", ["host", "torch"])
def test_without_a_crop_they_are_the_pixels_that_packing_makes(tmp_path, kind):
    files = write_tree(tmp_path / "src", class_files("train", 5) | class_files("val", 3, seed=50))
    for target, size in (("pixels", ["--size", "24"]), ("encoded", [])):
        assert imnet_data(["pack", str(files), str(tmp_path / target), *size]) == 0
    packed = data.load(f"packed:{tmp_path / 'pixels'}")
    kept = data.load(f"packed:{tmp_path / 'encoded'}", image_px=24)
    assert isinstance(kept.train, EncodedSplit)
    assert kept.image_shape == packed.image_shape == (24, 24, 3)
    for got, want in zip(
        batches(kind, kept.train, PAD_FLIP, workers=3), batches("resident", packed.train, PAD_FLIP), strict=True
    ):
        assert torch.equal(got[1], want[1])
        torch.testing.assert_close(got[0], want[0], rtol=0, atol=0 if kind == "host" else 1e-6)
    ids = torch.arange(9).split(4)
    streams = [pipelines.build(k, s.test, setting(PAD_FLIP, s.test)).stream(ids, 0, False)
               for k, s in ((kind, kept), ("resident", packed))]  # fmt: skip
    for got, want in zip(*streams, strict=True):
        torch.testing.assert_close(got[0], want[0], rtol=0, atol=1e-6)
    assert np.array_equal(kept.test.pictures([4, 0]), packed.test.pictures([4, 0]))


@pytest.mark.parametrize("kind", ["host", "torch"])
def test_resized_crops_are_torchvisions_of_the_drawn_boxes(kind, pictures):
    split = encoded_split(pictures)
    order = Order(30, 8, 5).epoch(1)
    got = torch.cat([x for x, _ in batches(kind, split, RANDOM_CROP, workers=2)])
    labels = torch.cat([y for _, y in batches(kind, split, RANDOM_CROP)])
    assert torch.equal(labels, order % 3)
    for image, i in zip(got, order.tolist(), strict=True):
        whole = Image.open(io.BytesIO(pictures[i])).convert("RGB")
        size = (torch.tensor([whole.height]), torch.tensor([whole.width]))
        box = transforms.draw_resized_crop(*size, (0.08, 1.0), Key(torch.tensor([i]), 5, 1))[0].tolist()
        want = tv.pil_to_tensor(tv.resized_crop(whole, *box, [20, 20]))
        assert torch.equal(image.mul(255).round().to(torch.uint8), want)


@pytest.mark.parametrize("kind", ["host", "torch"])
def test_evaluation_is_shorter_side_then_the_middle(kind, pictures):
    split = encoded_split(pictures)
    stream = pipelines.build(kind, split, setting(RANDOM_CROP, split)).stream(torch.arange(30).split(30), 0, False)
    for image, coded in zip(next(stream)[0], pictures, strict=True):
        whole = Image.open(io.BytesIO(coded)).convert("RGB")
        want = tv.center_crop(tv.pil_to_tensor(tv.resize(whole, 24)), 20)
        assert torch.equal(image.mul(255).round().to(torch.uint8), want)


@pytest.mark.parametrize("side", [15, 16, 17])
def test_the_middle_is_torchvisions_at_every_shape(side):
    """Tries odd and even margins, and sizes whose resized longer side is not a whole number of pixels."""
    noise = np.random.default_rng(0)
    for width, height in [(40, 27), (41, 27), (42, 27), (43, 27), (27, 44), (27, 45), (27, 46), (31, 31), (99, 20)]:
        picture = Image.fromarray(noise.integers(0, 256, (height, width, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        found = decode(buffer.getvalue(), ResizeRule(side, "bilinear", shorter_px=20))
        assert np.array_equal(found, np.asarray(tv.center_crop(tv.resize(picture, 20), side))), (width, height)


@pytest.mark.parametrize("size", [(40, 40), (30, 90), (500, 20), (7, 7)])
def test_boxes_fit_and_are_spread_as_torchvisions(size):
    count = 6000
    height, width = (torch.full((count,), side) for side in size)
    box = transforms.draw_resized_crop(height, width, (0.08, 1.0), Key(torch.arange(count), 1, 2)).double()
    top, left, h, w = box.unbind(1)
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (h >= 1).all()
    assert (w >= 1).all()
    assert (top + h <= size[0]).all()
    assert (left + w <= size[1]).all()
    torch.manual_seed(0)
    image = torch.zeros(3, *size)
    theirs = torch.tensor([RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(count)])
    for ours, other in zip(box.unbind(1), theirs.double().unbind(1), strict=True):
        error = math.sqrt((ours.var() + other.var()) / count)
        assert abs(ours.mean() - other.mean()) <= 5 * error + 1e-9
        assert abs(ours.std() - other.std()) <= 0.05 * (other.std() + 0.1)


def test_batched_resized_crop_is_pillows():
    images = torch.from_numpy(np.random.default_rng(2).integers(0, 256, (40, 31, 44, 3), dtype=np.uint8))
    height, width = torch.full((40,), 31), torch.full((40,), 44)
    box = transforms.draw_resized_crop(height, width, (0.05, 1.0), Key(torch.arange(40), 9, 0))
    got = transforms.resized_crop(images, box, 16)
    for image, (top, left, h, w), out in zip(images, box.tolist(), got, strict=True):
        crop = Image.fromarray(image.numpy()).crop((left, top, left + w, top + h))
        want = np.asarray(crop.resize((16, 16), Image.Resampling.BILINEAR)).astype(int)
        # Pillow rounds to whole levels between its two passes.
        assert np.abs(out.numpy().astype(int) - want).max() <= 1


@pytest.mark.parametrize("kind", ["host", "torch"])
def test_resized_crops_of_pixel_sets(kind):
    images = np.random.default_rng(3).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    split = Split(images, np.arange(20) % 3)
    augment = replace(PAD_FLIP, crop_px=24, crop_scale=(0.2, 0.9), color_jitter=(0.1, 0.1, 0.1, 0.0))
    for got, want in zip(batches(kind, split, augment), batches("resident", split, augment), strict=True):
        assert got[0].shape[2:] == (24, 24)
        assert ((got[0] - want[0]).abs() > 1e-5).float().mean() <= (0.01 if kind == "torch" else 0)


def test_what_pictures_of_many_sizes_cannot_do(pictures):
    split = encoded_split(pictures)
    assert pipelines.choose("auto", [split, split], CPU) == ("host", "pictures are kept encoded")
    with pytest.raises(UsageError, match="allowed: host, dali, torch"):
        pipelines.build("resident", split, setting(PAD_FLIP, split))
    with pytest.raises(UsageError, match="store of pixels"):
        mean_image(split)
    with pytest.raises(ValueError, match="crop_scale without crop_px"):
        Augment(crop_scale=(0.1, 1.0))
    with pytest.raises(ValueError, match="two shares"):
        Augment(crop_scale=(0.5, 0.1), crop_px=8)


@pytest.mark.parametrize("kind", ["host", "torch"])
def test_a_training_on_encoded_pictures(tmp_path, kind):
    from imnet import train

    files = class_files("train", 60) | class_files("val", 3, seed=5000)
    write_tree(tmp_path / "src", files)
    assert imnet_data(["pack", str(tmp_path / "src"), str(tmp_path / "set")]) == 0
    changed = {"name": "packed", "image_px": 24, "num_classes": 3, "batch_images": 64, "channels": 3}
    base = recipes["quickstart"]
    recipe = replace(
        base, name="crops", model="wrn10_1", epochs=1, augment=replace(RANDOM_CROP, hflip="random"),
        data=replace(base.data, train_images=None, test_images=None, **changed),
    )  # fmt: skip
    run = train(
        recipe, out=tmp_path / "run", data_dir=tmp_path / "set", pipeline=kind, workers=2, device="cpu",
        precision="fp32",
    )  # fmt: skip
    assert run.info["pipeline"]["kind"] == kind
    assert run.metrics[-1]["kind"] == "eval"
    assert 0 < run.metrics[-1]["loss"] < 3


@pytest.mark.parametrize(("name", "band"), [("sub4", 0), ("sub4", 3), ("sub16", 5), ("sub36", 35)])
def test_bands_of_imagenets_random_crops_have_deviation_one(shared, name, band):
    """Checks the recipes' band deviations, measured on ImageNet-1K, with the pipeline's crops of the sample."""
    with zipfile.ZipFile(shared("imagenet-1k-sample.zip")) as archive:
        names = [name for name in sorted(archive.namelist()) if name.lower().endswith((".jpeg", ".jpg"))]
        split = encoded_split([archive.read(name) for name in names])
    augment = replace(recipes[f"spectral/resnet34_{name}"].augment, spectral_band=band)
    found = torch.cat([x for x, _ in batches("host", split, augment, workers=2)])
    assert found.shape[1:] == (3, *([{"sub4": 112}.get(name, 56)] * 2))
    assert 0.85 < float(found.std()) < 1.15
