"""The preprocessing and augmentation of a recipe, as a frozen value. Standard library only; imported from
``imnet.recipe`` elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from imnet.fields import COUNT, COUNT_OR_NONE, FINITE, NOT_NEGATIVE, POSITIVE, SHARE, Range, about, check, check_ranges


@dataclass(frozen=True, kw_only=True)
class Augment:
    """The operations on a training image, in this order: pad and crop, flip, resize, crop, TrivialAugmentWide or
    RandAugment, colour jitter, spectral band, normalise, cutout, random erasing. A test image is resized,
    centre-cropped, reduced to a spectral band and normalised.

    Padding is 0 (or the mirrored image) before normalisation; cutout fills 0 after it.
    Everything random is a pure function of (seed, epoch, sample id).
    """

    crop_pad_px: int = field(
        default=0, metadata=about("padding on every side before the random crop, in pixels", COUNT_OR_NONE)
    )
    crop_pad_mode: Literal["zero", "reflect"] = field(
        default="zero", metadata=about("pad with black (zero) or with the mirrored image")
    )
    hflip: Literal["none", "random", "alternating"] = field(
        # Jordan 2024: a random half is mirrored in even epochs, the other half in odd ones.
        default="none",
        metadata=about("mirror images; alternating: each image every second epoch"),
    )
    hflip_p: float = field(default=0.5, metadata=about("with random: share of the images that are mirrored", SHARE))
    cutout_px: int = field(
        default=0, metadata=about("cutout: side of a box that is filled with the mean", COUNT_OR_NONE)
    )
    cutout_inside: bool = field(default=False, metadata=about("keep the whole cutout box inside the image"))
    mean: tuple[float, ...] | Literal["image"] = field(
        default=(0.0,),
        metadata=about("mean of x/255: one value, one per channel, or image: the training set's mean image", FINITE),
    )
    std: tuple[float, ...] = field(
        default=(1.0,), metadata=about("standard deviation of x/255: one value, or one per channel", POSITIVE)
    )
    resize_px: int | None = field(
        # Bilinear, antialiased, rounded to whole levels.
        default=None,
        metadata=about("resize images to this side before the crop (bilinear)", COUNT),
    )
    resize_eval_px: int | None = field(
        default=None, metadata=about("the same for test images (default: resize_px)", COUNT)
    )
    crop_px: int | None = field(
        default=None, metadata=about("side of the random crop in training and the centre crop in evaluation", COUNT)
    )
    crop_scale: tuple[float, ...] | None = field(
        # Szegedy 2015, at aspect ratios 3/4..4/3, before everything else. Encoded pictures are cropped from their full
        # resolution; in evaluation their shorter side is resized to resize_eval_px and the middle crop_px is taken.
        default=None,
        metadata=about("random crop of this share of the area (least, most), resized to crop_px", POSITIVE),
    )
    color_jitter: tuple[float, ...] = field(
        # In random order; 0.1 means factors 0.9..1.1, or a hue rotated by up to 0.1.
        default=(0.0, 0.0, 0.0, 0.0),
        metadata=about("largest change of brightness, contrast, saturation and hue", NOT_NEGATIVE),
    )
    trivial_augment: bool = field(
        # arXiv 2103.10158: one of 14 operations per image, at one of 31 strengths.
        default=False,
        metadata=about("TrivialAugmentWide, bilinear"),
    )
    rand_augment_ops: int = field(
        # arXiv 1909.13719, as in torchvision: operations from TrivialAugmentWide's list, all of the same strength.
        default=0,
        metadata=about(
            "RandAugment: operations per image, usually 2, bilinear; 0 = off", Range(low=0, high=16), later=True
        ),
    )
    rand_augment_magnitude: int = field(
        default=9, metadata=about("RandAugment: strength of the operations, 0 to 30", Range(low=0, high=30), later=True)
    )
    random_erasing_p: float = field(
        # arXiv 1708.04896, as in torchvision: 2 to 33 % of the area, aspect ratios 0.3 to 3.3.
        default=0.0,
        metadata=about("share of the images in which a random box is filled with the mean", SHARE, later=True),
    )
    spectral_r: int | None = field(
        default=None,
        metadata=about("2, 4, 6: the network sees one of r*r polyphase DCT bands, at 1/r of the pixels", COUNT),
    )
    spectral_band: int = field(default=0, metadata=about("band to train on, from 0", COUNT_OR_NONE))
    spectral_std: tuple[float, ...] = field(
        default=(1.0,), metadata=about("replaces std: one value per band of x/255, or one for all", POSITIVE)
    )

    def __post_init__(self) -> None:
        check_ranges(self, "augment.")
        check(
            self.hflip != "alternating" or self.hflip_p == 0.5,
            f"augment.hflip alternating with hflip_p = {self.hflip_p}",
            "0.5",
            "alternating flips exactly half; use --augment.hflip random for another share",
        )
        jitter = self.color_jitter
        ok = len(jitter) == 4 and jitter[3] <= 0.5
        check(ok, f"augment.color_jitter = {jitter}", "four numbers from 0, the last at most 0.5", "0 means none")
        ok = not (self.trivial_augment and self.rand_augment_ops)
        check(ok, "augment.trivial_augment with augment.rand_augment_ops", "one of them", "leave one of them out")
        ok = self.rand_augment_ops or self.rand_augment_magnitude == 9
        check(
            bool(ok),
            "augment.rand_augment_magnitude without operations",
            "both, or neither",
            "set --augment.rand_augment_ops 2",
        )
        scale = self.crop_scale
        ok = scale is None or (len(scale) == 2 and scale[0] <= scale[1] <= 1)
        check(ok, f"augment.crop_scale = {scale}", "two shares of the area, 0 < least <= most <= 1", "null means none")
        ok = scale is None or (self.crop_px is not None and self.resize_px is None)
        check(ok, "augment.crop_scale without crop_px, or with resize_px", "crop_scale and crop_px", "set crop_px only")
        self._check_bands()

    def _check_bands(self) -> None:
        bands = self.num_bands
        ok = self.spectral_r in (None, 2, 4, 6)
        check(ok, f"augment.spectral_r = {self.spectral_r}", "2, 4, 6 or null", "null means the image itself")
        got = f"augment.spectral_band = {self.spectral_band} of {bands or 'no'} bands"
        do = "choose another --band" if bands else "set --augment.spectral_r, or take a spectral recipe"
        check(0 <= self.spectral_band < max(bands, 1), got, f"0..{max(bands - 1, 0)}", do)
        ok = len(self.spectral_std) in (1, bands or 1)
        allowed = f"1 or {bands} numbers" if bands else "one number without spectral_r"
        check(ok, f"augment.spectral_std of {len(self.spectral_std)} values", allowed, "give one a band")

    @property
    def num_bands(self) -> int:
        """Number of spectral bands of an image (an ensemble has a network for each); 0 if networks see whole images."""
        return (self.spectral_r or 0) ** 2

    def mean_per_channel(self, channels: int) -> tuple[float, ...]:
        """``mean`` as one value for each channel; ValueError for the mean image, which is computed from the data."""
        if isinstance(self.mean, str):
            raise ValueError("got augment.mean = image; allowed: numbers; compute the mean image of the training set")
        return self.mean * channels if len(self.mean) == 1 else self.mean

    @property
    def transforms(self) -> bool:
        """Whether anything is done to a training image beyond pad-crop, flip, normalise and cutout."""
        return self.transforms_eval or self.recolors

    @property
    def recolors(self) -> bool:
        """Whether training images get colour jitter, TrivialAugmentWide or RandAugment (which also change geometry)."""
        return bool(self.trivial_augment or self.rand_augment_ops or any(self.color_jitter))

    @property
    def transforms_eval(self) -> bool:
        """Whether a test image is changed in any way beyond normalising it."""
        return any((self.resize_px, self.resize_eval_px, self.crop_px, self.spectral_r))

    @property
    def test_px(self) -> int | None:
        """Side to which test images are resized before a crop; None if they keep their own."""
        return self.resize_eval_px or self.resize_px

    @property
    def of_cut_images(self) -> Augment:
        """What remains to be done to images that are resized and cropped already."""
        return replace(self, crop_scale=None, crop_px=None, resize_px=None, resize_eval_px=None)

    def output_px(self, image_px: int) -> int:
        """Side of a training image of ``image_px`` after all operations."""
        return (self.crop_px or self.resize_px or image_px) // (self.spectral_r or 1)

    def check_fits(self, image_px: int, channels: int) -> None:
        """Raise ValueError unless all operations are possible on images of ``image_px`` with ``channels``."""
        self._check_channels(channels)
        # With more padding, some crops would contain nothing of the image. Random resized crops come before it.
        padded = self.crop_px if self.crop_scale is not None and self.crop_px is not None else image_px
        got, allowed = f"augment.crop_pad_px = {self.crop_pad_px}", f"under {padded}, the side of the images"
        check(self.crop_pad_px < padded, got, allowed, "pad less")
        sides = {"training": self.resize_px or image_px, "test": self.test_px or image_px}
        for which, side in sides.items():
            ok = self.crop_px is None or self.crop_px <= side
            got, allowed = f"augment.crop_px = {self.crop_px}", f"at most {side}, the side of the {which} images"
            enlarges = which == "training" and self.crop_scale is not None
            check(ok or enlarges, got, allowed, "crop less or resize to more")
            seen = self.crop_px or side
            got, allowed = f"{seen} px with augment.spectral_r = {self.spectral_r}", f"multiples of {self.spectral_r}"
            check(seen % (self.spectral_r or 1) == 0, got, allowed, "set --augment.crop_px")
        size = self.output_px(image_px)
        where = "data.image_px" if size == image_px else "the input size"
        got = f"augment.cutout_px = {self.cutout_px}"
        check(self.cutout_px <= size, got, f"at most {where} = {size}", "make the box smaller")
        got = "a cutout or random erasing with augment.spectral_r"
        ok = not self.spectral_r or not (self.cutout_px or self.random_erasing_p)
        check(ok, got, "one of both", "a box has no place in a band; leave one of them out")

    def _check_channels(self, channels: int) -> None:
        allowed = "1" if channels == 1 else f"1 or {channels}"
        do = f"set --augment.mean and --augment.std to one value a channel, of which data.channels = {channels}"
        if self.mean != "image":
            ok = len(self.mean) in (1, channels)
            check(ok, f"augment.mean of {len(self.mean)} values", allowed, do)
        got = "augment.mean = image with resize, crop, color_jitter, trivial_augment, rand_augment or spectral_r"
        check(self.mean != "image" or not self.transforms, got, "numbers", "give one value a channel")
        ok = len(self.std) in (1, channels)
        check(ok, f"augment.std of {len(self.std)} values", allowed, do)
        got = f"data.channels = {channels} with trivial_augment, rand_augment or color_jitter"
        check(channels == 3 or not self.recolors, got, "3", "leave the colours alone")
