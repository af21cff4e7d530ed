"""What a recipe does to its images, as a frozen value. A leaf: standard library only; ``imnet.recipe`` hands it on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


def check(ok: bool, got: str, allowed: str, do: str) -> None:
    """ValueError in the form got / allowed / do, unless ``ok``."""
    if not ok:
        raise ValueError(f"got {got}; allowed: {allowed}; {do}")


@dataclass(frozen=True, kw_only=True)
class Augment:
    """What happens to a training image, in this order: pad and crop, flip, resize, crop, TrivialAugmentWide, colour
    jitter, spectral band, normalise, cutout. A test image is resized, centre-cropped, made a band and normalised.

    Padding is 0 (or the mirrored image) before normalisation; cutout fills 0 after it.
    Everything random is a pure function of (seed, epoch, sample id).
    """

    crop_pad_px: int = 0
    crop_pad_mode: Literal["zero", "reflect"] = "zero"
    hflip: Literal["none", "random", "alternating"] = "none"
    """``alternating``: a random half is mirrored in even epochs, the other half in odd ones (Jordan 2024)."""
    hflip_p: float = 0.5
    cutout_px: int = 0
    cutout_inside: bool = False
    mean: tuple[float, ...] | Literal["image"] = (0.0,)
    """Per channel, of x/255; one value serves every channel; ``image`` = the mean image of the training set."""
    std: tuple[float, ...] = (1.0,)
    resize_px: int | None = None
    """Side to resize to: bilinear, antialiased, rounded to whole levels."""
    resize_eval_px: int | None = None
    """The same of test images; None = ``resize_px``."""
    crop_px: int | None = None
    """Side of a random crop (of the middle one in evaluation): what the network then sees."""
    crop_scale: tuple[float, ...] | None = None
    """A crop of this share of the image's area (smallest, largest), at aspect ratios 3/4..4/3, is made crop_px square,
    before everything else (Szegedy 2015). Of pictures kept encoded it is cut from the whole picture; in evaluation
    their shorter side is made ``resize_eval_px`` and the middle ``crop_px`` is taken."""
    color_jitter: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)
    """Brightness, contrast, saturation, hue, in random order; 0.1 means factors 0.9..1.1, or a hue turned by +-0.1."""
    trivial_augment: bool = False
    """TrivialAugmentWide (arXiv 2103.10158): one of 14 operations an image, bilinear, 31 strengths."""
    spectral_r: int | None = None
    """The network sees band ``spectral_band`` of the r*r polyphase DCT bands, at 1/r of the pixels."""
    spectral_band: int = 0
    spectral_std: tuple[float, ...] = (1.0,)
    """Of each of the r*r bands of x/255 (or one for all), in place of ``std``; ``mean`` stays that of the pixels."""

    def __post_init__(self) -> None:
        for name in ("crop_pad_px", "cutout_px"):
            value = getattr(self, name)
            check(value >= 0, f"augment.{name} = {value}", "0 or more", "0 means none")
        for name in ("resize_px", "resize_eval_px", "crop_px"):
            value = getattr(self, name)
            check(value is None or value >= 1, f"augment.{name} = {value}", "1 or more, or null", "null means none")
        check(0 <= self.hflip_p <= 1, f"augment.hflip_p = {self.hflip_p}", "0..1", "use --augment.hflip none for 0")
        check(
            self.hflip != "alternating" or self.hflip_p == 0.5,
            f"augment.hflip alternating with hflip_p = {self.hflip_p}",
            "0.5",
            "alternating flips exactly half; use --augment.hflip random for another share",
        )
        check(all(s > 0 for s in self.std), f"augment.std = {self.std}", "positive numbers", "use 1.0 for none")
        jitter = self.color_jitter
        ok = len(jitter) == 4 and min(jitter) >= 0 and jitter[3] <= 0.5
        check(ok, f"augment.color_jitter = {jitter}", "four numbers from 0, the last at most 0.5", "0 means none")
        scale = self.crop_scale
        ok = scale is None or (len(scale) == 2 and 0 < scale[0] <= scale[1] <= 1)
        check(ok, f"augment.crop_scale = {scale}", "two shares of the area, 0 < least <= most <= 1", "null means none")
        ok = scale is None or (self.crop_px is not None and self.resize_px is None)
        check(ok, "augment.crop_scale without crop_px, or with resize_px", "crop_scale and crop_px", "set crop_px only")
        self._check_bands()

    def _check_bands(self) -> None:
        bands = (self.spectral_r or 0) ** 2
        ok = self.spectral_r in (None, 2, 4, 6)
        check(ok, f"augment.spectral_r = {self.spectral_r}", "2, 4, 6 or null", "null means the image itself")
        got = f"augment.spectral_band = {self.spectral_band} of {bands or 'no'} bands"
        do = "choose another --band" if bands else "set --augment.spectral_r, or take a spectral recipe"
        check(0 <= self.spectral_band < max(bands, 1), got, f"0..{max(bands - 1, 0)}", do)
        ok = len(self.spectral_std) in (1, bands) and all(s > 0 for s in self.spectral_std)
        allowed = f"1 or {bands} positive numbers" if bands else "one positive number without spectral_r"
        check(ok, f"augment.spectral_std of {len(self.spectral_std)} values", allowed, "give one a band")

    def mean_per_channel(self, channels: int) -> tuple[float, ...]:
        """``mean`` of each of ``channels``; ValueError for the mean image, which is computed from the data."""
        if isinstance(self.mean, str):
            raise ValueError("got augment.mean = image; allowed: numbers; compute the mean image of the training set")
        return self.mean * channels if len(self.mean) == 1 else self.mean

    @property
    def transforms(self) -> bool:
        """Whether anything is done to a training image beyond pad-crop, flip, normalise and cutout."""
        return bool(self.transforms_eval or self.recolors)

    @property
    def recolors(self) -> bool:
        """Whether training images change their colours or, by TrivialAugmentWide, their geometry."""
        return bool(self.trivial_augment or any(self.color_jitter))

    @property
    def transforms_eval(self) -> bool:
        """Whether anything is done to a test image beyond normalising it."""
        return any((self.resize_px, self.resize_eval_px, self.crop_px, self.spectral_r))

    def output_px(self, image_px: int) -> int:
        """Side of a training image when all is done to one of ``image_px``."""
        return (self.crop_px or self.resize_px or image_px) // (self.spectral_r or 1)

    def check_fits(self, image_px: int, channels: int) -> None:
        """ValueError unless all of this can be done to images of ``image_px`` with ``channels``."""
        self._check_channels(channels)
        reflect = self.crop_pad_mode == "reflect" and self.crop_pad_px >= image_px
        got, allowed = f"augment.crop_pad_px = {self.crop_pad_px}", f"under {image_px} for reflect"
        check(not reflect, got, allowed, "pad less")
        sides = {"training": self.resize_px or image_px, "test": self.resize_eval_px or self.resize_px or image_px}
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
        ok = not self.spectral_r or not self.cutout_px
        check(ok, f"{got} with augment.spectral_r", "0", "a box has no place in a band; leave one of them out")

    def _check_channels(self, channels: int) -> None:
        if self.mean != "image":
            ok = len(self.mean) in (1, channels)
            check(ok, f"augment.mean of {len(self.mean)} values", f"1 or {channels}", "one value a channel")
        got = "augment.mean = image with resize, crop, color_jitter, trivial_augment or spectral_r"
        check(self.mean != "image" or not self.transforms, got, "numbers", "give one value a channel")
        ok = len(self.std) in (1, channels)
        check(ok, f"augment.std of {len(self.std)} values", f"1 or {channels}", "one a channel")
        got = f"data.channels = {channels} with augment.trivial_augment or color_jitter"
        check(channels == 3 or not self.recolors, got, "3", "leave the colours alone")
