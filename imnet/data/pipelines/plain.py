"""The reference pipeline: one image at a time with torchvision's own functions. The others are tested against it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from imnet_kernels.augment.reference import Spec, choices
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from imnet.augmentation import Augment
from imnet.data.base import EncodedSplit
from imnet.data.pipelines import transforms
from imnet.data.pipelines.batches import as_tensor
from imnet.data.pipelines.draws import Key
from imnet.data.pipelines.host import Prepared
from imnet.data.pipelines.recolor import OPERATIONS, draw_jitter, rounds

BILINEAR = InterpolationMode.BILINEAR
_JITTER = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)


class Plain(Prepared):
    """Applies torchvision v2 image by image, in threads; the random choices are those of every pipeline."""

    kind = "torch"

    @property
    def where(self) -> str:
        return f"one by one through torchvision in {self.setting.workers} thread(s)"

    def made(self, ids: Tensor, epoch: int, train: bool) -> tuple[Tensor, Tensor]:
        images, taken = self._images(ids, epoch, train)
        return self._batch(images, taken, epoch, train), taken

    def _images(self, ids: Tensor, epoch: int, train: bool) -> tuple[list[Tensor], Tensor]:
        """Images, uint8 (C, H, W) each, with no augmentation but a random resized crop, and the ids that were taken."""
        a, split = self.setting.augment, self.split
        if isinstance(split, EncodedSplit):
            assert self.decoder is not None
            found = [self.decoder.picture(i, epoch, train) for i in ids.tolist()]
            return [tv.pil_to_tensor(Image.fromarray(x)) for x, _ in found], torch.tensor([i for _, i in found])
        images = [as_tensor(split.images[i % len(split)]).permute(2, 0, 1) for i in ids.tolist()]
        if a.crop_scale is None or not train:
            return images, ids
        height, width = (torch.full((len(ids),), side) for side in split.image_shape[:2])
        boxes = transforms.draw_resized_crop(height, width, a.crop_scale, Key(ids, self.setting.seed, epoch)).tolist()
        assert a.crop_px is not None
        size = [a.crop_px, a.crop_px]
        crops = [tv.crop(x, *box).float() for x, box in zip(images, boxes, strict=True)]
        return [tv.resize(x, size, BILINEAR, antialias=True).round().to(torch.uint8) for x in crops], ids

    def _sized(self, train: bool) -> bool:
        if self.decoder is not None:
            return self.decoder.sized(train)
        return train and self.setting.augment.crop_scale is not None

    def _batch(self, images: list[Tensor], ids: Tensor, epoch: int, train: bool) -> Tensor:
        a, s = self.setting.augment, self.setting
        draws = Draws(ids, a, images[0].shape[1:], s.seed, epoch, self._sized(True)) if train else None
        if a.spectral_r:
            levels = torch.stack([self._levels(x, draws, i) for i, x in enumerate(images)]).float()
            mean, std = transforms.band_statistics(a, levels.shape[1], s.bands)
            return transforms.band(levels, a, mean, std, s.dtype, s.bands)
        make = self._minus_mean_image if s.mean is not None else self._normalised
        batch = torch.stack([make(x, draws, i) for i, x in enumerate(images)])
        return batch.to(s.dtype, memory_format=torch.channels_last)

    def _normalised(self, image: Tensor, draws: Draws | None, i: int) -> Tensor:
        a = self.setting.augment
        levels = self._levels(image, draws, i)
        mean, std = a.mean_per_channel(len(levels)), a.std * len(levels) if len(a.std) == 1 else a.std
        x = tv.normalize(tv.to_dtype(levels, torch.float32, scale=True), list(mean), list(std))
        return x if draws is None else draws.cut(x, i)

    def _levels(self, image: Tensor, draws: Draws | None, i: int) -> Tensor:
        """uint8 (C, H, W) -> uint8 (C, h, w): everything before the normalisation."""
        a = self.setting.augment
        if draws is not None:
            image = draws.crop_flip(image, i)
        side = a.resize_px if draws is not None else a.test_px
        sized = self._sized(draws is not None)
        if side and not sized:
            # In fp32 as on the devices: torchvision's uint8 path has fixed-point weights.
            image = tv.resize(image.float(), [side, side], BILINEAR, antialias=True).round().to(torch.uint8)
        if draws is None:
            return tv.center_crop(image, [a.crop_px, a.crop_px]) if a.crop_px and not sized else image
        return draws.recolored(draws.cropped(image, i), i)

    def _minus_mean_image(self, image: Tensor, draws: Draws | None, i: int) -> Tensor:
        """The mean image belongs to the source's pixels, so it is subtracted first, and padding is 0 afterwards."""
        assert self.setting.mean is not None
        x = image.float() / 255 - self.setting.mean.cpu().permute(2, 0, 1)
        x = x if draws is None else draws.crop_flip(x, i)
        x = x / torch.tensor(self.setting.augment.std)[:, None, None]
        return x if draws is None else draws.cut(x, i)


class Draws:
    """The random choices for all images of a batch, drawn at once; each method applies those of image ``i``."""

    def __init__(self, ids: Tensor, augment: Augment, size: Sequence[int], seed: int, epoch: int, sized: bool):
        a, key = augment, Key(ids, seed, epoch)
        self.augment, self.crop_px = a, None if sized else a.crop_px
        pad_flip = {"pad_px": a.crop_pad_px, "pad_mode": a.crop_pad_mode, "hflip": a.hflip, "hflip_p": a.hflip_p}
        first = choices(ids, size[0], size[1], Spec(seed, epoch, **pad_flip))
        self.dy, self.dx, self.flip = first.dy.tolist(), first.dx.tolist(), first.flip.tolist()
        before = (a.resize_px, a.resize_px) if a.resize_px else size
        side = (self.crop_px, self.crop_px) if self.crop_px else before
        box = choices(ids, side[0], side[1], Spec(seed, epoch, cutout_px=a.cutout_px, cutout_inside=a.cutout_inside))
        self.y0, self.x0 = box.y0.tolist(), box.x0.tolist()
        if self.crop_px:
            top, left = transforms.draw_crop(before[0], before[1], self.crop_px, key)
            self.top, self.left = top.tolist(), left.tolist()
        self.rounds = [[*zip(c.tolist(), s.tolist(), strict=True)] for c, s in rounds(a, side, key)]
        if any(a.color_jitter):
            factors, order = draw_jitter(a.color_jitter, key)
            self.factors, self.order = factors.tolist(), order.tolist()

    def crop_flip(self, image: Tensor, i: int) -> Tensor:
        a, (height, width) = self.augment, image.shape[1:]
        if a.crop_pad_px:
            mode = "constant" if a.crop_pad_mode == "zero" else "reflect"
            padded = tv.pad(image, [a.crop_pad_px] * 4, padding_mode=mode)
            image = tv.crop(padded, self.dy[i], self.dx[i], height, width)
        return tv.horizontal_flip(image) if self.flip[i] else image

    def cropped(self, image: Tensor, i: int) -> Tensor:
        side = self.crop_px
        return tv.crop(image, self.top[i], self.left[i], side, side) if side else image

    def recolored(self, image: Tensor, i: int) -> Tensor:
        for drawn in self.rounds:
            code, strength = drawn[i]
            image = _OPERATIONS[OPERATIONS[code]](image, strength)
        if any(self.augment.color_jitter):
            for kind in self.order[i]:
                image = _JITTER[kind](image, self.factors[i][kind])
        return image

    def cut(self, image: Tensor, i: int) -> Tensor:
        side = self.augment.cutout_px
        if not side:
            return image
        top, left = max(self.y0[i], 0), max(self.x0[i], 0)
        bottom, right = (min(at + side, n) for at, n in zip((self.y0[i], self.x0[i]), image.shape[1:], strict=True))
        return tv.erase(image, top, left, bottom - top, right - left, torch.zeros(()))


def _affine(image: Tensor, shift: tuple[int, int] = (0, 0), shear: tuple[float, float] = (0.0, 0.0)) -> Tensor:
    center = [0.0, 0.0] if any(shear) else None
    degrees = [math.degrees(math.atan(s)) for s in shear]
    return tv.affine(image, 0.0, list(shift), 1.0, degrees, BILINEAR, center=center)


_OPERATIONS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "Identity": lambda x, _: x,
    "ShearX": lambda x, s: _affine(x, shear=(s, 0.0)),
    "ShearY": lambda x, s: _affine(x, shear=(0.0, s)),
    "TranslateX": lambda x, s: _affine(x, shift=(int(s), 0)),
    "TranslateY": lambda x, s: _affine(x, shift=(0, int(s))),
    "Rotate": lambda x, s: tv.rotate(x, s, BILINEAR),
    "Brightness": lambda x, s: tv.adjust_brightness(x, 1 + s),
    "Color": lambda x, s: tv.adjust_saturation(x, 1 + s),
    "Contrast": lambda x, s: tv.adjust_contrast(x, 1 + s),
    "Sharpness": lambda x, s: tv.adjust_sharpness(x, 1 + s),
    "Posterize": lambda x, s: tv.posterize(x, int(s)),
    "Solarize": lambda x, s: tv.solarize(x, 255 * s),
    "AutoContrast": lambda x, _: tv.autocontrast(x),
    "Equalize": lambda x, _: tv.equalize(x),
}
