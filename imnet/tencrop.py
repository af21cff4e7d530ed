"""10-crop evaluation: averages the probabilities over the four corners and the middle of an image and of its mirror
image (Krizhevsky 2012).

It uses the area around the middle crop, so the test images must be larger than the network's input.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imnet import device
from imnet.data.base import AnySplit, EncodedSplit
from imnet.data.pipelines import transforms
from imnet.data.pipelines.batches import Batches, as_tensor
from imnet.data.readers.picture import BadPictureError, rgb, to_shorter_side
from imnet.errors import DataError, UsageError
from imnet.evaluate import Evaluation
from imnet.from_recipe import load_data
from imnet.recipe import Recipe
from imnet.run import Run
from imnet.scores import Confusion

PICTURES_AT_ONCE = 64


def check(recipe: Recipe) -> int:
    """The side of the crops in px. UsageError if the middle crop is the whole image."""
    a = recipe.augment
    side = a.test_px or recipe.data.image_px
    if a.crop_px is None or a.crop_px >= side:
        what = f"got --ten-crop for a network that sees the whole test image of {side} px: nothing lies around it"
        raise UsageError(what, hint="train with an --augment.crop_px below the store's images, e.g. 224 of 256")
    return a.crop_px


def crops(levels: Tensor, side: int) -> Tensor:
    """(..., H, W) -> (10, ..., side, side): the four corners and the middle of the image, then of the mirrored image.

    If the middle cannot be exact, that of the mirrored image is not the mirrored middle crop.
    """
    from torchvision.transforms.functional import ten_crop  # takes seconds, and few evaluations need it

    return torch.stack(ten_crop(levels, [side, side]))


@torch.no_grad()
def evaluate(
    run: Run, *, data_dir: str | None = None, device_name: str = "auto", precision: str | None = None
) -> Evaluation:  # fmt: skip
    """Evaluate a run's newest weights on its test split, without a confusion matrix. ``precision`` defaults to the
    run's on the run's device. Writes nothing."""
    side = check(run.recipe)
    options = run.options(data_dir, device_name, precision)
    place = device.resolve(options)
    test = load_data(run.recipe, options).test
    net = run.model().to(place.device).to(memory_format=torch.channels_last)
    sums = torch.zeros(3, dtype=torch.float64)
    with device.threads(options) as threads, ThreadPoolExecutor(threads) as pool:
        for rows in torch.arange(len(test)).split(PICTURES_AT_ONCE):
            made = _views(run.recipe, test, rows, side, pool)
            labels = torch.from_numpy(test.labels[rows.numpy()])
            sums += _counts(_log_probabilities(run.recipe, net, made, place), labels)
    loss, top1, top5 = (sums / len(test)).tolist()
    return Evaluation(len(test), top1, top5, loss, confusion=Confusion([], [], []), support=[], bins=[])


def told(result: Evaluation) -> str:
    """The line that imnet-eval prints."""
    return f"10 crops averaged: top-1 {result.top1:.4%}, top-5 {result.top5:.4%}"


def _views(recipe: Recipe, split: AnySplit, rows: Tensor, side: int, pool: ThreadPoolExecutor) -> Tensor:
    """The ten crops of the n pictures at ``rows``, uint8 (10, n, side, side, C)."""
    a = recipe.augment
    if isinstance(split, EncodedSplit) and a.crop_scale is not None and a.resize_eval_px is not None:
        shorter = a.resize_eval_px
        made = pool.map(lambda i: crops(_whole(split, i, shorter), side), rows.tolist())
        return torch.stack(list(made), 1).permute(0, 1, 3, 4, 2)
    images = as_tensor(split.pictures(rows.tolist())).permute(0, 3, 1, 2)
    if a.test_px:
        images = transforms.resize(images.float(), a.test_px).to(torch.uint8)
    return crops(images, side).permute(0, 1, 3, 4, 2)


def _whole(split: EncodedSplit, i: int, shorter_px: int) -> Tensor:
    """Picture i, resized to a shorter side of ``shorter_px``, uint8 (3, H, W)."""
    try:
        picture = to_shorter_side(rgb(split.read(i)), shorter_px, "bilinear")
    except BadPictureError as error:
        hint = "10 crops need every picture; leave --ten-crop out"
        raise DataError(f"picture {i}: {error}", file=split.file, hint=hint) from error
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def _log_probabilities(recipe: Recipe, net: nn.Module, views: Tensor, place: device.Place) -> Tensor:
    """Log of the mean probability over the first axis of ``views``, fp32 (n, outputs) on the CPU."""
    store = views.flatten(0, 1).contiguous().to(place.device)
    made = Batches(store, recipe.augment.of_cut_images, seed=0, dtype=place.dtype, mean=None)
    images, _ = made.batch(torch.arange(len(store)), 0, False)
    with place.autocast:
        logits = net(images)
    scores = logits.float().log_softmax(1).view(*views.shape[:2], -1)
    return (scores.logsumexp(0) - math.log(len(views))).cpu()


def _counts(scores: Tensor, labels: Tensor) -> Tensor:
    """fp64 (3,): the sum of losses, the number of top-1 hits and that of top-5 hits."""
    best = scores.topk(min(5, scores.shape[1]))
    right = (best.indices == labels[:, None]) & ~best.values.isnan()
    loss = F.nll_loss(scores, labels, reduction="sum")
    return torch.stack([loss.double(), right[:, 0].sum().double(), right.sum().double()])
