"""What a DALI graph is fed: the pixels or encoded pictures of a batch, and the choices drawn for each of its images.

DALI draws nothing itself, so there is no state of it to save. A feed is a dictionary from a name to the values of the
batch; ``dali_graph`` builds its inputs from the names, types and shapes of the first feed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from imnet_kernels.augment.reference import Spec, choices
from torch import Tensor

from imnet.augmentation import Augment
from imnet.data.base import AnySplit, EncodedSplit
from imnet.data.pipelines import transforms
from imnet.data.pipelines.batches import as_tensor
from imnet.data.pipelines.dali_pictures import Pictures
from imnet.data.pipelines.draws import Key
from imnet.data.pipelines.recolor import OPERATIONS, draw_jitter, inverse_matrices, rounds

Values = np.ndarray | list[np.ndarray]
HUE = 3


@dataclass(frozen=True)
class Feed:
    """The inputs of one batch; ``names`` are the ids (B,) int64 that were taken, ``ids`` those asked for."""

    ids: Tensor
    names: Tensor
    values: dict[str, Values] = field(repr=False)

    def __len__(self) -> int:
        return len(self.ids)


class Feeds:
    """``feed(ids, epoch)`` of one split, for training or for evaluation."""

    def __init__(self, split: AnySplit, augment: Augment, seed: int, train: bool, pictures: Pictures | None):
        self.augment, self.seed, self.train, self.pictures = augment, seed, train, pictures
        self.images = None if isinstance(split, EncodedSplit) else as_tensor(split.images)
        self.size = split.image_shape[:2]
        self.sized = train and augment.crop_scale is not None
        if pictures is not None:
            self.sized = pictures.sized(train)
        self.recolor = train and augment.recolors

    @property
    def side(self) -> tuple[int, int]:
        """(H, W) once the image is resized and cropped."""
        a = self.augment
        resized = a.resize_px if self.train else a.resize_eval_px or a.resize_px
        side = a.crop_px or (None if self.sized else resized)
        return (side, side) if side else (self.size[0], self.size[1])

    @property
    def before_crop(self) -> tuple[int, int]:
        """(H, W) after the resizing, before the crop."""
        a = self.augment
        if self.sized:
            return self.side
        side = a.resize_px if self.train else a.resize_eval_px or a.resize_px
        return (side, side) if side else (self.size[0], self.size[1])

    def feed(self, ids: Tensor, epoch: int) -> Feed:
        """The feed of ``ids`` (B,) int64 on the CPU; DataError for a picture that cannot be decoded."""
        values: dict[str, Values] = {}
        if self.pictures is None:
            assert self.images is not None
            names, values["image"] = ids, self.images.index_select(0, ids % len(self.images)).numpy()
        else:
            values["image"], names = self.pictures.encoded(ids, epoch, self.train)
        key = Key(names, self.seed, epoch)
        self._sizes(values, key)
        if self.train:
            self._moves(values, key)
            self._colors(values, key)
        dense = {k: np.ascontiguousarray(v) if isinstance(v, np.ndarray) else v for k, v in values.items()}
        return Feed(ids, names, dense)

    def _sizes(self, values: dict[str, Values], key: Key) -> None:
        """Which part of each image becomes what the graph goes on with, and how it is resampled."""
        a, side = self.augment, self.side
        size = torch.tensor([self.size]).expand(len(key.ids), 2)
        if self.pictures is not None and self.sized:
            size = self.pictures.sizes(key.ids)
        if not self.sized:
            side = self.before_crop
            if side != self.size:
                values |= resampling(torch.zeros(size.shape), size / torch.tensor(side), size, side)
        elif self.train:
            assert a.crop_scale is not None
            box = transforms.draw_resized_crop(size[:, 0], size[:, 1], a.crop_scale, key)
            values["box_at"], values["box_size"] = box[:, :2].int().numpy(), box[:, 2:].int().numpy()
            values |= resampling(torch.zeros(size.shape), box[:, 2:] / torch.tensor(side), box[:, 2:], side)
        else:
            assert a.resize_eval_px is not None
            # As the readers' ResizeRule has it, in the same double arithmetic.
            ratio = a.resize_eval_px / size.min(1, keepdim=True).values.double()
            resized = (size * ratio).round().clamp(min=a.resize_eval_px)
            top_left = (resized - torch.tensor(side)) // 2
            values |= resampling(top_left * size / resized, size / resized, size, side)

    def _moves(self, values: dict[str, Values], key: Key) -> None:
        """Where the padded image, the crop and the erased box lie, and whether the image is mirrored."""
        a = self.augment
        height, width = self.side if self.sized else self.size
        flips = {"hflip": a.hflip, "hflip_p": a.hflip_p}
        drawn = choices(key.ids, height, width, Spec(key.seed, key.epoch, a.crop_pad_px, a.crop_pad_mode, **flips))
        if a.crop_pad_px:
            margin = 0 if a.crop_pad_mode == "reflect" else a.crop_pad_px
            values["shift"] = (torch.stack([drawn.dy, drawn.dx], 1) - margin).int().numpy()
        if a.hflip != "none":
            values["flip"] = drawn.flip.int().numpy()
        if a.crop_px and not self.sized:
            at = transforms.draw_crop(*self.before_crop, a.crop_px, key)
            values["crop_at"] = torch.stack(at, 1).int().numpy()
        if a.cutout_px:
            height, width = self.side
            spec = Spec(key.seed, key.epoch, cutout_px=a.cutout_px, cutout_inside=a.cutout_inside)
            box = choices(key.ids, height, width, spec)
            start = torch.stack([box.y0, box.x0], 1)
            stop = torch.minimum(start + a.cutout_px, torch.tensor([height, width]))
            start = start.clamp(min=0)
            values["cut_at"], values["cut_size"] = start.float().numpy(), (stop - start).float().numpy()

    def _colors(self, values: dict[str, Values], key: Key) -> None:
        a = self.augment
        for number, (code, strength) in enumerate(rounds(a, self.side, key)):
            drawn = operation_values(code, strength, self.side)
            values |= {f"{name}{number}": value for name, value in drawn.items()}
        if any(a.color_jitter):
            values |= jitter_values(*draw_jitter(a.color_jitter, key), bool(a.color_jitter[HUE]))


def resampling(first: Tensor, scale: Tensor, size: Tensor, side: tuple[int, int]) -> dict[str, Values]:
    """How to resize so that output pixel o of an axis lies at ``first + (o + 0.5) * scale`` of the source's ``size``.

    first, scale, size (B, 2). DALI's filter repeats the border, ours and Pillow's has the weights inside sum to 1:
    so the graph puts a margin of 0 around the image, and multiplies by what the weights inside lack.
    """
    scale = scale.double()
    margin = scale.clamp(min=1).ceil() + 1
    start, stop = first + margin, first + margin + scale * torch.tensor(side)
    values: dict[str, Values] = {"margin_at": (-margin).int().numpy(), "margin_size": (size + 2 * margin).int().numpy()}
    values["part_at"], values["part_end"] = start.float().numpy(), stop.float().numpy()
    lack = [_lacking(first[:, k].double(), scale[:, k], size[:, k], side[k]).float().numpy() for k in (0, 1)]
    values["lack_y"], values["lack_x"] = lack[0][:, :, None, None], lack[1][:, None, :, None]
    return values


def _lacking(first: Tensor, scale: Tensor, size: Tensor, side: int) -> Tensor:
    """(B, side) sum of the triangle filter's weights over that of those inside the image."""
    reach = scale.clamp(min=1)[:, None]
    center = first[:, None] + (torch.arange(side, dtype=torch.float64) + 0.5) * scale[:, None]
    taps = torch.arange(int(2 * reach.max().ceil()) + 3, dtype=torch.float64)
    at = (center - reach).floor()[..., None] + taps
    weights = (1 - ((at + 0.5 - center[..., None]) / reach[..., None]).abs()).clamp(min=0)
    inside = (at >= 0) & (at < size[:, None, None])
    return weights.sum(2) / (weights * inside).sum(2)


def operation_values(code: Tensor, strength: Tensor, side: tuple[int, int]) -> dict[str, Values]:
    """The operation drawn for each image, its family as a number, and what each family needs to know."""
    is_in: Callable[..., Tensor] = lambda *names: torch.isin(code, torch.tensor([OPERATIONS.index(n) for n in names]))  # noqa: E731
    family = torch.zeros_like(code)
    for number, names in enumerate(FAMILIES, 1):
        family[is_in(*names)] = number
    height, width = side
    center = torch.tensor([width / 2, height / 2])
    matrix = inverse_matrices(code, strength, height, width)
    # DALI counts pixels from the image's corner, the matrices from its centre.
    matrix[:, :, 2] += center - (matrix[:, :, :2] * center).sum(2)
    values: dict[str, Values] = {"family": family.int().numpy(), "matrix": matrix.numpy()}
    values["amount"] = strength.float().numpy()
    values["of_mean"] = is_in("Contrast").float().numpy()
    values["of_grey"] = is_in("Color").float().numpy()
    return values


FAMILIES = (
    ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"),
    ("Brightness", "Color", "Contrast"), ("Sharpness",), ("Posterize",), ("Solarize",), ("AutoContrast",),
    ("Equalize",),
)  # fmt: skip


def jitter_values(factors: Tensor, order: Tensor, with_hue: bool) -> dict[str, Values]:
    """For each of the four places in the order: whether it turns the hue, else factor and base of a blend."""
    factor = factors.gather(1, order)
    values: dict[str, Values] = {}
    for place in range(4):
        kind = order[:, place]
        hue = kind == HUE
        if with_hue:
            values[f"hue{place}"] = hue.numpy()
        mine = factor[:, place]
        values[f"factor{place}"] = (mine if with_hue else torch.where(hue, 1.0, mine)).numpy()
        values[f"mean{place}"], values[f"grey{place}"] = ((kind == k).float().numpy() for k in (1, 2))
    return values
