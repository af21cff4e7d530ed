"""Draws one picture in its spectral bands, for the report page of the spectral system."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from imnet_kernels.spectral import reference
from PIL import Image, UnidentifiedImageError

from imnet import data, report
from imnet.errors import DataError

SIDES_PX = {2: 224, 4: 224, 6: 336}
"""Side of the whole picture by r, as the document crops it."""
FINER = 4


def sheets(picture: Path | None) -> list[tuple[str, bytes]]:
    """(title, PNG) for sub4, sub16 and sub36; draws a picture if none is given. DataError if it cannot be read."""
    return [(f"One picture in its {r * r} bands (sub{r * r})", sheet(picture, r)) for r in SIDES_PX]


def sheet(picture: Path | None, r: int) -> bytes:
    """PNG of the r * r bands in reading order, each with its number and its standard deviation.

    Band 0 is the picture at 1/r of its side. The others are signed: grey is 0, and each has its own contrast.
    """
    side = SIDES_PX[r]
    pixels = _drawn(side) if picture is None else _read(picture, side)
    images = torch.from_numpy(pixels).permute(2, 0, 1)[None].double() / 255
    bands = reference.spectral(images, r, tuple(range(r * r)), None, None, torch.float64)[0]
    shown = [_shown(band.permute(1, 2, 0).numpy(), k, r) for k, band in enumerate(bands)]
    captions = [f"band {k} deviation {float(band.std()):.3g}" for k, band in enumerate(bands)]
    return report.contact_sheet(np.stack(shown), captions, columns=r)


def _shown(band: np.ndarray, k: int, r: int) -> np.ndarray:
    if k == 0:
        grey = band / (2 * r * r)
    else:
        grey = 0.5 + 0.5 * band / max(float(np.quantile(np.abs(band), 0.995)), 1e-12)
    return (255 * grey.clip(0, 1)).round().astype(np.uint8)


def _drawn(side: int) -> np.ndarray:
    """A star, drawn FINER times larger and reduced: otherwise its noise would fill every band but the first."""
    found = data.load("shapes", image_px=FINER * side, num_classes=10, train_images=6, test_images=1)
    return np.array(Image.fromarray(found.train.pictures([5])[0]).resize((side, side), Image.Resampling.BOX))


def _read(picture: Path, side: int) -> np.ndarray:
    """The middle square of a picture, resized: uint8 (side, side, 3)."""
    try:
        with Image.open(picture) as image:
            rgb = image.convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        raise DataError(f"is no picture that can be read: {error}", file=picture) from error
    edge = min(rgb.size)
    left, top = (rgb.width - edge) // 2, (rgb.height - edge) // 2
    square = rgb.crop((left, top, left + edge, top + edge))
    return np.array(square.resize((side, side), Image.Resampling.BILINEAR))
