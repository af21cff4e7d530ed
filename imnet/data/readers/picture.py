"""One encoded picture -> uint8 pixels, with Pillow: refused in one line when it is empty, cut, huge or no picture."""

from __future__ import annotations

import io
import struct
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import Image, UnidentifiedImageError

FILTERS = {
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "hamming": Image.Resampling.HAMMING,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF")
# ImageNet-1K's largest picture has 40 million pixels.
MAX_PIXELS = 120_000_000
# The ones Pillow turns into RGB or L without loss of range; 16-bit and float pictures would be clipped.
_MODES = ("RGB", "L", "CMYK", "YCbCr", "P", "PA", "RGBA", "LA", "1", "RGBX")


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


def decode(data: bytes, rule: ResizeRule) -> np.ndarray:
    """uint8 (size_px, size_px, channels); BadPictureError when ``data`` is not a whole, decent picture."""
    with _loaded(data) as picture:
        mode = "RGB" if rule.channels == 3 else "L"
        plain = picture if picture.mode == mode else picture.convert(mode)
        return _resized(plain, rule)


def check(data: bytes) -> None:
    """BadPictureError when ``data`` is not a whole, decent picture (it is decoded and thrown away)."""
    _loaded(data).close()


def _loaded(data: bytes) -> Image.Image:
    picture = opened(data)
    try:
        picture.load()
    except (OSError, SyntaxError, ValueError, IndexError, struct.error, EOFError) as error:
        raise BadPictureError(f"picture is damaged: {error}") from error
    return picture


def opened(data: bytes) -> Image.Image:
    """The picture with its header read, nothing decoded; BadPictureError when it is no picture or too large a one."""
    if not data:
        raise BadPictureError("picture is empty (0 bytes)")
    with warnings.catch_warnings():
        # Pillow warns above 89 Mpixel; our own limit below decides.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            picture = Image.open(io.BytesIO(data), formats=FORMATS)
        except UnidentifiedImageError as error:
            raise BadPictureError(f"not a picture ({', '.join(FORMATS)}): starts with {data[:8].hex()}") from error
        except Image.DecompressionBombError as error:
            raise BadPictureError(f"picture is too large; allowed {MAX_PIXELS} pixels") from error
        except (OSError, SyntaxError, ValueError, IndexError, struct.error, EOFError) as error:
            raise BadPictureError(f"picture header is damaged: {error}") from error
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise BadPictureError(f"picture has {width} x {height} pixels; allowed {MAX_PIXELS} in all")
    if picture.mode not in _MODES:
        raise BadPictureError(f"picture mode is {picture.mode}; allowed {', '.join(_MODES)}")
    return picture


def _resized(picture: Image.Image, rule: ResizeRule) -> np.ndarray:
    size = rule.size_px
    if rule.shorter_px is not None:
        scale = rule.shorter_px / min(picture.size)
        width, height = (max(rule.shorter_px, round(side * scale)) for side in picture.size)
        picture = picture.resize((width, height), FILTERS[rule.filter])
        left, top = (width - size) // 2, (height - size) // 2
        picture = picture.crop((left, top, left + size, top + size))
    elif picture.size != (size, size):
        picture = picture.resize((size, size), FILTERS[rule.filter])
    return np.asarray(picture, dtype=np.uint8).reshape(size, size, rule.channels)
