"""The outlines and textures that ``shapes`` draws, as functions of position inside a figure of radius 1."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

TEXTURES = ("solid", "striped", "checked", "halved")


def _planes(x: np.ndarray, y: np.ndarray, count: int) -> list[np.ndarray]:
    """The position along each outward normal of a regular polygon. Normals are rounded to 6 digits, so that they do not
    depend on the last bit of libm."""
    angles = [2 * math.pi * i / count for i in range(count)]
    return [round(math.cos(a), 6) * x + round(math.sin(a), 6) * y for a in angles]


def _disc(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.sqrt(x * x + y * y) - 0.9


def _square(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(x), np.abs(y)) - 0.75


def _triangle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    first, second, third = _planes(x, y, 3)
    return np.maximum(np.maximum(first, second), third) - 0.55


def _cross(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = np.abs(x), np.abs(y)
    return np.minimum(np.maximum(x - 0.28, y - 1), np.maximum(y - 0.28, x - 1))


def _ring(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.abs(np.sqrt(x * x + y * y) - 0.75) - 0.2


def _star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A pentagram: a point is inside if it is inside at least four of the five lines, i.e. if the second largest
    distance is negative."""
    largest, *others = _planes(x, y, 5)
    second = np.full_like(largest, -np.inf)
    for plane in others:
        second = np.maximum(second, np.minimum(largest, plane))
        largest = np.maximum(largest, plane)
    return second - 0.36


def _bar(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(x) - 1, np.abs(y) - 0.32)


def _crescent(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    bite = x - 0.45
    return np.maximum(np.sqrt(x * x + y * y) - 0.95, 0.75 - np.sqrt(bite * bite + y * y))


def _half_disc(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    raised = y + 0.35
    return np.maximum(np.sqrt(x * x + raised * raised) - 0.95, -raised)


def _frame(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.abs(np.maximum(np.abs(x), np.abs(y)) - 0.65) - 0.17


OUTLINES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "disc": _disc, "square": _square, "triangle": _triangle, "cross": _cross, "ring": _ring, "star": _star, "bar": _bar,
    "crescent": _crescent, "half disc": _half_disc, "frame": _frame,
}  # fmt: skip
"""Functions that return the distance of (x, y) to an outline, in radii of the figure; fp32, shaped as x, negative
inside."""


def texture_mask(texture: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The opacity, 1 or 0.25, at (x, y) (B, H, W) for TEXTURES[texture] (B,); (1, 1, 1) of 1 if all are solid."""
    if not texture.any():
        return np.ones((1, 1, 1), dtype=np.float32)
    stripe = np.floor(x * 2.5) % 2
    check = (np.floor(x * 2) + np.floor(y * 2)) % 2
    half = (x + y > 0).astype(np.float32)
    which = texture[:, None, None]
    off = np.where(which == 1, stripe, np.where(which == 2, check, np.where(which == 3, half, 0)))
    return 1 - 0.75 * off
