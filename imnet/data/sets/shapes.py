"""``shapes``: a generated data set that needs no download and has the same bytes on every platform.

A class is a shape; above ten classes also its texture, then its colour, the background's colour, and a second small
shape with its colour. Position, size, rotation, lighting, noise and every colour that is not part of the class are
random: a linear classifier cannot learn it, a small convolutional network can.

Pixels are computed only with +, -, *, /, sqrt, min, max and comparisons, each rounded once by IEEE 754, and random
numbers are raw Philox words. Without libm there are no last-bit differences between platforms or numpy versions. A
Python number combined with an fp32 array is fp32 too, by numpy's rules.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from imnet.data.base import DataSet, Split, make
from imnet.data.sets import Request, dataset, require, require_memory
from imnet.data.sets.shape_kinds import OUTLINES, TEXTURES, texture_mask
from imnet.errors import UsageError

KINDS = tuple(OUTLINES)
_DEFAULT_PX = 32
_DEFAULT_TRAIN_IMAGES = 10_000
_DEFAULT_TEST_IMAGES = 2_000
_CHUNK_IMAGES = 256
_PARAMS = 32
_PALETTE = np.array(
    [[0.90, 0.15, 0.15], [0.15, 0.80, 0.20], [0.25, 0.35, 0.95], [0.95, 0.85, 0.15], [0.85, 0.25, 0.85],
     [0.20, 0.85, 0.85]],
    dtype=np.float32,
)  # fmt: skip
_COLOURS = ("red", "green", "blue", "yellow", "magenta", "cyan")
_RADIX = (len(KINDS), len(TEXTURES), len(_COLOURS), len(_COLOURS), len(KINDS), len(_COLOURS))
MAX_CLASSES = int(np.prod(_RADIX))


@dataset
def shapes(request: Request) -> DataSet:
    """10,000 training and 2,000 test images, 32 px RGB, 10 balanced classes, unless the request says otherwise.

    Allowed are ``image_px`` >= 12, ``num_classes`` from 2 to MAX_CLASSES, and 1 or 3 ``channels``. Image i has class i
    mod num_classes and does not depend on the number of images. ``split`` is accepted, because any recipe runs with
    ``--data shapes``, and changes nothing.
    """
    require("hold_out", request.hold_out or None, None, "shapes")
    num_classes, image_px = request.num_classes or 10, request.image_px or _DEFAULT_PX
    channels = request.channels or 3
    _check(num_classes, image_px, channels)
    counts = (request.train_images or _DEFAULT_TRAIN_IMAGES, request.test_images or _DEFAULT_TEST_IMAGES)
    train, test = (render(n, image_px, num_classes, request.seed, s, channels) for s, n in enumerate(counts))
    return make("shapes", train, test, tuple(class_name(i, num_classes) for i in range(num_classes)))


def _check(num_classes: int, image_px: int, channels: int) -> None:
    if not 2 <= num_classes <= MAX_CLASSES:
        raise UsageError(f"num_classes is {num_classes} for data set shapes; allowed 2..{MAX_CLASSES}")
    if image_px < 12:
        raise UsageError(f"image_px is {image_px} for data set shapes; allowed 12 or more")
    if channels not in (1, 3) or (channels == 1 and num_classes > _RADIX[0] * _RADIX[1]):
        allowed = f"3, or 1 with at most {_RADIX[0] * _RADIX[1]} classes (the others differ by colour)"
        raise UsageError(f"channels is {channels} for data set shapes with {num_classes} classes; allowed {allowed}")


def class_digits(label: np.ndarray) -> np.ndarray:
    """The mixed-radix digits (N, 6) of labels (N,): kind, texture, colour, background, second kind, its colour."""
    digits = np.empty((*np.shape(label), len(_RADIX)), dtype=np.int64)
    rest = np.asarray(label, dtype=np.int64)
    for place, radix in enumerate(_RADIX):
        digits[..., place] = rest % radix
        rest = rest // radix
    return digits


def class_name(label: int, num_classes: int) -> str:
    """A name of as many words as ``num_classes`` requires: ``star``, ``striped star``, ``red striped star`` ..."""
    kind, texture, colour, ground, second, second_colour = class_digits(np.asarray(label)).tolist()
    used = _digits_used(num_classes)
    words = ([_COLOURS[colour]] if used > 2 else []) + ([TEXTURES[texture]] if used > 1 else []) + [KINDS[kind]]
    words += ["on", _COLOURS[ground]] if used > 3 else []
    words += ["by", *([_COLOURS[second_colour]] if used > 5 else []), KINDS[second]] if used > 4 else []
    return " ".join(words)


def _digits_used(num_classes: int) -> int:
    """The number of digits that distinguish ``num_classes`` classes; the other digits are free."""
    place, span = 1, _RADIX[0]
    while span < num_classes:
        span *= _RADIX[place]
        place += 1
    return place


def render(count: int, image_px: int, num_classes: int, seed: int, stream: int, channels: int = 3) -> Split:
    """Draw ``count`` images, uint8 (count, image_px, image_px, channels); train and test have different ``stream``."""
    shape = (count, image_px, image_px, channels)
    require_memory(shape, "shapes")
    labels = np.arange(count, dtype=np.int64) % num_classes
    images = np.empty(shape, dtype=np.uint8)
    used = _digits_used(num_classes)
    for start in range(0, count, _CHUNK_IMAGES):
        stop = min(start + _CHUNK_IMAGES, count)
        pixels = _paint(*_scene(labels[start:stop], used, _uniform(seed, stream, start, stop - start)), image_px)
        pixels += _noise(seed, stream, start, pixels.shape)
        np.clip(pixels, 0.0, 255.0, out=pixels)
        pixels = pixels[:, 1:2] if channels == 1 else pixels
        images[start:stop] = np.floor(pixels + 0.5).astype(np.uint8).transpose(0, 2, 3, 1)
    return Split(images, labels)


def _words(seed: int, stream: int, purpose: int, start: int, count: int) -> np.ndarray:
    bits = np.random.Philox(key=[seed & (2**64 - 1), stream * 2 + purpose], counter=[0, start, 0, 0])
    return np.asarray(bits.random_raw(count), dtype=np.uint64)


def _uniform(seed: int, stream: int, start: int, count: int) -> np.ndarray:
    """Uniform fp32 (count, _PARAMS) in [0, 1), each from 24 bits of a raw word, so that every value is exact."""
    words = _words(seed, stream, 0, start, count * _PARAMS)
    return ((words >> np.uint64(40)).astype(np.float32) * 2.0**-24).reshape(count, _PARAMS)


def _noise(seed: int, stream: int, start: int, shape: tuple[int, ...]) -> np.ndarray:
    """Triangular noise in grey levels, fp32 of ``shape`` (B, 3, H, W), with a standard deviation of about 10."""
    count = int(np.prod(shape, dtype=np.int64))
    pairs = _words(seed, stream, 1, start, (count + 3) // 4).astype("<u8", copy=False).view("<u2")[:count]
    total = (pairs & np.uint16(255)).astype(np.int16) + (pairs >> np.uint16(8)).astype(np.int16) - np.int16(255)
    return (total.astype(np.float32) * 0.1).reshape(shape)


@dataclass(frozen=True)
class _Figure:
    """One shape per image: kind and texture, centre and radius in units of the image side, cosine and sine of its
    rotation, and colour (B, 3) in 0..1."""

    kind: np.ndarray
    texture: np.ndarray
    x: np.ndarray
    y: np.ndarray
    radius: np.ndarray
    cos: np.ndarray
    sin: np.ndarray
    colour: np.ndarray


def _scene(labels: np.ndarray, used: int, u: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[_Figure]]:
    """Labels (B,) and uniforms (B, _PARAMS) -> (background colour (B, 3), gradient of the light (B, 2), figures); free
    digits are random or absent."""
    digits = class_digits(labels)
    ground = 0.15 + 0.7 * u[:, 0:3]
    if used > 2:
        ground = 0.05 + 0.25 * u[:, 0:3]
    if used > 3:
        ground = 0.35 * _PALETTE[digits[:, 3]] + 0.08 * u[:, 0:3]
    colour = _contrast(ground, u[:, 3:6])
    if used > 2:
        colour = _PALETTE[digits[:, 2]] + 0.1 * (u[:, 3:6] - 0.5)
    texture = digits[:, 1] if used > 1 else np.zeros_like(labels)
    second = used > 4
    radius = 0.20 + 0.10 * u[:, 6] if second else 0.22 + 0.18 * u[:, 6]
    low, span = radius, (0.65 if second else 1.0) - 2 * radius
    cos, sin = _direction(u[:, 9], u[:, 10])
    main = _Figure(digits[:, 0], texture, low + span * u[:, 7], low + span * u[:, 8], radius, cos, sin, colour)
    slope = 0.3 * (u[:, 11:13] - 0.5)
    return ground, slope, [main, _second(digits, used, u)] if second else [main]


def _second(digits: np.ndarray, used: int, u: np.ndarray) -> _Figure:
    """The small figure in the lower right corner."""
    cos, sin = _direction(u[:, 13], u[:, 14])
    free = (u[:, 18] * len(_COLOURS)).astype(np.int64)
    colour = _PALETTE[digits[:, 5] if used > 5 else free]
    x, y = (0.80 + 0.05 * (u[:, place] - 0.5) for place in (15, 16))
    radius = 0.13 + 0.03 * u[:, 17]
    return _Figure(digits[:, 4], np.zeros_like(digits[:, 4]), x, y, radius, cos, sin, colour)


def _contrast(ground: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Colours (B, 3) that differ from ``ground`` by at least 0.3 in green and are otherwise free."""
    colour = u.copy()
    away = 0.3 + 0.2 * u[:, 1]
    colour[:, 1] = np.where(ground[:, 1] < 0.5, ground[:, 1] + away, ground[:, 1] - away)
    return colour


def _direction(u: np.ndarray, quadrant: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cosine and sine of a random angle without libm: the rational half-angle formulas for one quadrant, then a random
    quadrant."""
    square = u * u
    cos, sin = (1 - square) / (1 + square), 2 * u / (1 + square)
    turn = (quadrant * 4).astype(np.int64)
    return np.choose(turn, (cos, -sin, -cos, sin)), np.choose(turn, (sin, cos, -sin, -cos))


def _paint(ground: np.ndarray, slope: np.ndarray, figures: list[_Figure], image_px: int) -> np.ndarray:
    """The images before noise, fp32 (B, 3, image_px, image_px) in 0..255 before clipping."""
    axis = (np.arange(image_px, dtype=np.float32) + 0.5) / image_px
    light = slope[:, :1, None] * (axis - 0.5) + slope[:, 1:, None] * (axis[:, None] - 0.5)
    pixels = np.repeat(ground[:, :, None, None], image_px, axis=2).repeat(image_px, axis=3)
    for figure in figures:
        cover = _cover(figure, axis, image_px)[:, None]
        pixels += cover * (figure.colour[:, :, None, None] - pixels)
    pixels += light[:, None]
    pixels *= 255
    return pixels


def _cover(figure: _Figure, axis: np.ndarray, image_px: int) -> np.ndarray:
    """The share of each pixel that the figure covers, fp32 (B, H, W) in 0..1, with a soft edge of one pixel."""
    cover = np.empty((len(figure.x), image_px, image_px), dtype=np.float32)
    scale = 1 / figure.radius[:, None, None]
    for kind in np.unique(figure.kind):
        rows = np.flatnonzero(figure.kind == kind)
        dx = axis[None, None, :] - figure.x[rows, None, None]
        dy = axis[None, :, None] - figure.y[rows, None, None]
        cos, sin, size = figure.cos[rows, None, None], figure.sin[rows, None, None], scale[rows]
        across, along = (cos * dx + sin * dy) * size, (cos * dy - sin * dx) * size
        inside = 0.5 - OUTLINES[KINDS[kind]](across, along) * (image_px / size)
        np.clip(inside, 0.0, 1.0, out=inside)
        cover[rows] = inside * texture_mask(figure.texture[rows], across, along)
    return cover
