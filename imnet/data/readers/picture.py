"""Decodes one picture to uint8 pixels with Pillow; an empty, truncated, huge or unknown one is a one-line error."""

from __future__ import annotations

import io
import struct
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError, features

from imnet.data.readers.rule import LFS_POINTER

# Every worker would repeat Pillow's warnings (corrupt EXIF, pictures above 89 Mpixel). They are not needed: real damage
# is an error here, and MAX_PIXELS limits the size.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

FILTERS = {name: Image.Resampling[name.upper()] for name in ("box", "bilinear", "hamming", "bicubic", "lanczos")}
# Formats that Pillow may have been built without. A phone's MPO is opened as the JPEG that it begins with.
_OPTIONAL = (("AVIF", "avif"), ("JPEG2000", "jpg_2000"))
FORMATS = (
    *("JPEG", "PNG", "BMP", "DIB", "WEBP", "GIF", "TIFF", "PPM"),
    *(name for name, feature in _OPTIONAL if features.check(feature)),
)
# A damaged header may claim any size, for which memory would be reserved. The limit is three times the largest picture
# of ImageNet-1K, which has 40 million pixels.
MAX_PIXELS = 120_000_000
# Modes that Pillow converts to RGB or L without loss of range; 16-bit and float pictures would be clipped.
_MODES = ("RGB", "L", "CMYK", "YCbCr", "P", "PA", "RGBA", "LA", "1", "RGBX")

# The errors that Pillow raises for damaged pictures.
_DAMAGE = (OSError, SyntaxError, ValueError, IndexError, struct.error, EOFError, RuntimeError)
# Every picture with an EXIF orientation contains one of these (AVIF: a rotation or a mirror, which Pillow reports as an
# orientation). Without them EXIF is not read, which would take as long as decoding a small picture.
_EXIF = (b"Exif", b"eXIf", b"EXIF", b"exif", b"irot", b"imir")


class BadPictureError(ValueError):
    """The reason why a picture was refused; the caller adds its place."""


@dataclass(frozen=True)
class ResizeRule:
    """How pictures become size_px x size_px: resized without keeping the aspect ratio, as ImageNet-64's authors did, or
    with ``shorter_px`` resized to that shorter side and centre-cropped."""

    size_px: int
    filter: str = "box"
    channels: int = 3
    shorter_px: int | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of the result."""
        return self.size_px, self.size_px, self.channels

    @property
    def mode(self) -> str:
        """The Pillow mode that pictures are converted to first."""
        return "RGB" if self.channels == 3 else "L"


def decode(data: bytes, rule: ResizeRule) -> np.ndarray:
    """Decode to uint8 (size_px, size_px, channels); BadPictureError if ``data`` is not a complete, valid picture."""
    with _loaded(data) as picture:
        plain = picture if picture.mode == rule.mode else picture.convert(rule.mode)
        return _resized(plain, rule)


def rgb(data: bytes) -> Image.Image:
    """The whole picture as RGB; BadPictureError if ``data`` is not a complete, valid picture."""
    return _loaded(data).convert("RGB")


def check(data: bytes) -> None:
    """Decode the picture and discard it; BadPictureError if ``data`` is not a complete, valid picture."""
    _loaded(data).close()


def _loaded(data: bytes) -> Image.Image:
    picture = opened(data)
    try:
        picture.load()
    except _DAMAGE as error:
        raise BadPictureError(f"picture is damaged: {error}") from error
    return picture


def opened(data: bytes) -> Image.Image:
    """The picture with only its header read; BadPictureError if it is not a picture, too large or of another mode."""
    if not data:
        raise BadPictureError("picture is empty (0 bytes)")
    try:
        picture = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise BadPictureError(_unidentified(data)) from error
    except Image.DecompressionBombError as error:
        raise BadPictureError(f"picture is too large; allowed {MAX_PIXELS} pixels") from error
    except _DAMAGE as error:
        raise BadPictureError(f"picture header is damaged: {error}") from error
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise BadPictureError(f"picture has {width} x {height} pixels; allowed {MAX_PIXELS} in all")
    if picture.mode not in _MODES:
        raise BadPictureError(f"picture mode is {picture.mode}; allowed {', '.join(_MODES)}")
    return picture


def _unidentified(data: bytes) -> str:
    """The reason why Pillow does not recognise these bytes as a picture."""
    if data.startswith(LFS_POINTER):
        return "a Git LFS pointer, not the picture: git lfs pull"
    bits = _jpeg_bits(data)
    if bits not in (None, 8):
        return f"JPEG of {bits} bits a channel; allowed 8"
    return f"not a picture ({', '.join(FORMATS)}): starts with {data[:8].hex()}"


def _jpeg_bits(data: bytes) -> int | None:
    """Bits per channel of a JPEG, from its frame header; None if there is none."""
    at = 2 if data[:2] == b"\xff\xd8" else len(data)
    while at + 5 <= len(data) and data[at] == 0xFF:
        kind = data[at + 1]
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
            return data[at + 4]
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big") if kind != 0xFF else 1
    return None


def is_turned(data: bytes) -> bool:
    """Whether a valid picture has an EXIF orientation to rotate or mirror it, which no pipeline here applies, DALI
    included. False for TIFF, which Pillow itself rotates."""
    if not any(word in data for word in _EXIF):
        return False
    picture = opened(data)
    try:
        return picture.format != "TIFF" and picture.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)
    except (*_DAMAGE, KeyError, TypeError):
        return False  # damaged EXIF counts as none


def to_shorter_side(picture: Image.Image, shorter_px: int, filter: str) -> Image.Image:
    """Resize the whole picture to a shorter side of ``shorter_px``; BadPictureError if the result would be too large.

    The longer side is rounded down, as in torchvision's Resize and timm.
    """
    width, height = (shorter_px * side // min(picture.size) for side in picture.size)
    if width * height > MAX_PIXELS:
        got = f"picture of {picture.width} x {picture.height} becomes {width} x {height}"
        raise BadPictureError(f"{got} with its shorter side at {shorter_px}; allowed {MAX_PIXELS} pixels")
    return picture.resize((width, height), FILTERS[filter])


def _resized(picture: Image.Image, rule: ResizeRule) -> np.ndarray:
    size = rule.size_px
    if rule.shorter_px is not None:
        picture = to_shorter_side(picture, rule.shorter_px, rule.filter)
        # As torchvision's CenterCrop: halves of a pixel are rounded to even.
        left, top = (round((side - size) / 2) for side in picture.size)
        picture = picture.crop((left, top, left + size, top + size))
    elif picture.size != (size, size):
        picture = picture.resize((size, size), FILTERS[rule.filter])
    return np.asarray(picture, dtype=np.uint8).reshape(rule.shape)
