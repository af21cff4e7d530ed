"""One encoded picture -> uint8 pixels, with Pillow: refused in one line when it is empty, cut, huge or no picture."""

from __future__ import annotations

import io
import struct
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError, features

from imnet.data.readers.rule import LFS_POINTER

# What Pillow says aside (corrupt EXIF, pictures above 89 Mpixel) would be repeated by every worker; what matters is an
# error here, and the size has a limit of our own.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

FILTERS = {name: Image.Resampling[name.upper()] for name in ("box", "bilinear", "hamming", "bicubic", "lanczos")}
# Those whose decoder this Pillow was built with; a phone's MPO opens as the JPEG that it begins with.
_OPTIONAL = (("AVIF", "avif"), ("JPEG2000", "jpg_2000"))
FORMATS = (
    *("JPEG", "PNG", "BMP", "DIB", "WEBP", "GIF", "TIFF", "PPM"),
    *(name for name, feature in _OPTIONAL if features.check(feature)),
)
# A damaged header may claim any size, and memory would be reserved for it. Three times ImageNet-1K's largest picture,
# which has 40 million pixels, is where that ends.
MAX_PIXELS = 120_000_000
# The ones Pillow turns into RGB or L without loss of range; 16-bit and float pictures would be clipped.
_MODES = ("RGB", "L", "CMYK", "YCbCr", "P", "PA", "RGBA", "LA", "1", "RGBX")

# What Pillow raises for a damaged picture, as it comes.
_DAMAGE = (OSError, SyntaxError, ValueError, IndexError, struct.error, EOFError, RuntimeError)
# One of them is in every picture that has such a note; a small picture is decoded in the time of looking for it.
_EXIF = (b"Exif", b"eXIf", b"EXIF", b"exif")


class BadPictureError(ValueError):
    """Why a picture was refused, without its place: the caller knows that."""


@dataclass(frozen=True)
class ResizeRule:
    """How pictures become size_px x size_px: straight (aspect ratio not kept), as ImageNet-64's authors did, or,
    with ``shorter_px``, shorter side to that many pixels, then the centre."""

    size_px: int
    filter: str = "box"
    channels: int = 3
    shorter_px: int | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of what pictures become."""
        return self.size_px, self.size_px, self.channels

    @property
    def mode(self) -> str:
        """Pillow's word for the colours that pictures are turned into first."""
        return "RGB" if self.channels == 3 else "L"


def decode(data: bytes, rule: ResizeRule) -> np.ndarray:
    """uint8 (size_px, size_px, channels); BadPictureError when ``data`` is not a whole, decent picture."""
    with _loaded(data) as picture:
        plain = picture if picture.mode == rule.mode else picture.convert(rule.mode)
        return _resized(plain, rule)


def rgb(data: bytes) -> Image.Image:
    """The whole picture as RGB; BadPictureError where it is none."""
    return _loaded(data).convert("RGB")


def check(data: bytes) -> None:
    """BadPictureError when ``data`` is not a whole, decent picture (it is decoded and thrown away)."""
    _loaded(data).close()


def _loaded(data: bytes) -> Image.Image:
    picture = opened(data)
    try:
        picture.load()
    except _DAMAGE as error:
        raise BadPictureError(f"picture is damaged: {error}") from error
    return picture


def opened(data: bytes) -> Image.Image:
    """The picture with its header read, nothing decoded; BadPictureError when it is no picture or too large a one."""
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
    """Why Pillow sees no picture in these bytes."""
    if data.startswith(LFS_POINTER):
        return "a Git LFS pointer, not the picture: git lfs pull"
    bits = _jpeg_bits(data)
    if bits not in (None, 8):
        return f"JPEG of {bits} bits a channel; allowed 8"
    return f"not a picture ({', '.join(FORMATS)}): starts with {data[:8].hex()}"


def _jpeg_bits(data: bytes) -> int | None:
    """Bits a channel of a JPEG, from its frame header; None where there is none."""
    at = 2 if data[:2] == b"\xff\xd8" else len(data)
    while at + 5 <= len(data) and data[at] == 0xFF:
        kind = data[at + 1]
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
            return data[at + 4]
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big") if kind != 0xFF else 1
    return None


def is_turned(data: bytes) -> bool:
    """Whether a camera has noted in a good picture (EXIF) that it is to be turned or mirrored, which nobody here does:
    neither the pixels nor DALI's. A TIFF is turned by Pillow itself."""
    if not any(word in data for word in _EXIF):
        return False
    picture = opened(data)
    try:
        return picture.format != "TIFF" and picture.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)
    except (*_DAMAGE, KeyError, TypeError):
        return False  # a damaged note is none


def to_shorter_side(picture: Image.Image, shorter_px: int, filter: str) -> Image.Image:
    """The whole picture with its shorter side made ``shorter_px``; BadPictureError where that is too much.

    The longer side is rounded down, as torchvision's Resize and timm do.
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
        # torchvision's CenterCrop: halves of a pixel to the even side.
        left, top = (round((side - size) / 2) for side in picture.size)
        picture = picture.crop((left, top, left + size, top + size))
    elif picture.size != (size, size):
        picture = picture.resize((size, size), FILTERS[rule.filter])
    return np.asarray(picture, dtype=np.uint8).reshape(rule.shape)
