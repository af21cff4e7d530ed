"""10-crop in imnet-eval: crops equal torchvision's and figures those of a plain loop, for every form of a set."""

import dataclasses
import io

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as tv

from imnet import cli, data, models, tencrop
from imnet.errors import UsageError
from imnet.recipe import Augment, replace
from imnet.run import Run
from imnet.start import train

from .conftest import TINY, options

MEAN, STD = 0.5, 0.25


@pytest.mark.parametrize("size", [(12, 12), (13, 18), (21, 11), (11, 11), (14, 17), (16, 12)])
def test_the_crops_are_torchvisions(size):
    image = torch.arange(3 * size[0] * size[1]).view(3, *size)
    assert torch.equal(tencrop.crops(image, 11), torch.stack(tv.ten_crop(image, 11)))


def by_hand(net, pictures, labels, resize, crop):
    """Returns [top-1, top-5, loss] of a loop over pictures, (H, W, 3) uint8 each, with torchvision's functions."""
    right = five = loss = 0.0
    for pixels, label in zip(pictures, labels, strict=True):
        image = resize(torch.from_numpy(np.array(pixels)).permute(2, 0, 1))
        batch = (torch.stack(tv.ten_crop(image, crop)).float() / 255 - MEAN) / STD
        with torch.no_grad():
            mean = net(batch).softmax(1).mean(0)
        right += int(mean.argmax() == label)
        five += int(label in mean.topk(min(5, len(mean))).indices)
        loss -= float(mean[label].log())
    return [value / len(labels) for value in (right, five, loss)]


def agree(result, want):
    assert [result.top1, result.top5] == want[:2]
    assert result.loss == pytest.approx(want[2], rel=1e-4)


@pytest.mark.parametrize("resized", [pytest.param(None, marks=pytest.mark.slow), 20])
def test_a_run_on_stored_pixels_and_its_command(resized, tmp_path, capsys):
    augment = Augment(crop_px=12, resize_eval_px=resized, hflip="random", mean=(MEAN,), std=(STD,))
    more = dataclasses.replace(TINY.data, num_classes=8)  # more classes than the five of top-5
    recipe = dataclasses.replace(TINY, data=more, augment=augment, epochs=1, ema_decay=None)
    folder = tmp_path / "run"
    train(recipe, options(folder))
    capsys.readouterr()
    assert cli.eval_main([str(folder), "--no-flip", "--ten-crop", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    run = Run(folder)
    test = data.load("shapes", image_px=16, num_classes=8, train_images=256, test_images=101).test
    result = tencrop.evaluate(run)

    def resize(image):
        size = [resized or 16] * 2
        return tv.resize(image.float(), size, antialias=True).round().to(torch.uint8) if resized else image

    agree(result, by_hand(run.model(), test.images, test.labels, resize, 12))
    assert tencrop.told(result) in out
    assert result.num_images == 101
    halved = tencrop.evaluate(run, precision="bf16")
    assert halved.loss == pytest.approx(result.loss, rel=0.05)
    assert halved.loss != result.loss
    assert cli.eval_main([str(folder), "--no-flip", "--ten-crop", "--device", "cpu", "--precision", "bf16"]) == 0
    assert tencrop.told(halved) in capsys.readouterr().out


def test_pictures_kept_encoded_of_any_shape(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    from imnet.data.base import EncodedSplit
    from imnet.device import Place

    generator = np.random.default_rng(0)
    shapes = [(30, 41), (25, 25), (44, 29), (60, 24), (24, 41), (26, 43)]
    pictures = [generator.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes]

    def encoded(i):
        out = io.BytesIO()
        Image.fromarray(pictures[i]).save(out, "PNG")
        return out.getvalue()

    labels = np.array([0, 1, 2, 3, 0, 1])
    split = EncodedSplit(read=encoded, labels=labels, image_px=16, file=tmp_path / "x", sizes=np.ones(6, np.int64))
    augment = Augment(crop_scale=(0.3, 1.0), crop_px=14, resize_eval_px=20, mean=(MEAN,), std=(STD,))
    recipe = dataclasses.replace(TINY, augment=augment)
    torch.manual_seed(0)
    net = models.build("wrn10_1", 4).eval()
    place = Place(torch.device("cpu"), "fp32", "test")
    with ThreadPoolExecutor(2) as pool, torch.no_grad():
        views = tencrop._views(recipe, split, torch.arange(6), 14, pool)
        scores = tencrop._log_probabilities(recipe, net, views, place)
    loss, top1, top5 = (tencrop._counts(scores, torch.from_numpy(labels)) / 6).tolist()

    def resize(image):
        return tv.pil_to_tensor(tv.resize(tv.to_pil_image(image), 20))

    want = by_hand(net, pictures, labels, resize, 14)
    assert [top1, top5] == want[:2]
    assert loss == pytest.approx(want[2], rel=1e-4)


@pytest.mark.parametrize(
    "augment", [Augment(), Augment(resize_px=24), Augment(crop_px=16), Augment(crop_px=24, resize_px=24)]
)
def test_nothing_around_the_crop_is_refused_with_the_reason(augment):
    with pytest.raises(UsageError, match="nothing lies around it"):
        tencrop.check(dataclasses.replace(TINY, augment=augment))


def test_refused_before_anything_is_evaluated(tmp_path, capsys):
    folder = tmp_path / "run"
    train(replace(TINY, epochs=1), options(folder))
    before = (folder / "evaluation.json").stat().st_mtime_ns
    capsys.readouterr()
    assert cli.eval_main([str(folder), "--ten-crop"]) == 2
    said = capsys.readouterr()
    assert "sees the whole test image of 16 px" in said.err
    assert said.out == ""
    assert (folder / "evaluation.json").stat().st_mtime_ns == before
