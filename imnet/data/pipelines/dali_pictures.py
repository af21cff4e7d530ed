"""Encoded pictures for DALI's decoders: JPEGs unchanged, all other formats decoded by Pillow first."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from imnet.augmentation import Augment
from imnet.data.base import EncodedSplit
from imnet.data.pipelines.encoded import Decoder
from imnet.data.readers.picture import BadPictureError, check, opened, rgb

_END_OF_IMAGE = b"\xff\xd9"


class Pictures(Decoder):
    """``encoded(ids, epoch, train)`` returns the bytes for DALI; damaged pictures are refused or left out as by Pillow.

    DALI fills a truncated JPEG with grey without an error. A JPEG without an end marker is therefore decoded by Pillow
    first.
    """

    def __init__(self, split: EncodedSplit, augment: Augment, seed: int, on_bad: str):
        super().__init__(split, augment, seed, on_bad)
        self.by_pillow: set[int] = set()
        """Indices of pictures that Pillow can decode and DALI cannot."""
        self._headers = np.zeros((len(split), 3), dtype=np.int32)
        """Height, width and number of bytes (0 unless DALI decodes the JPEG unchanged) of each picture, so that the
        header of a JPEG is read only once per run."""

    def encoded(self, ids: Tensor, epoch: int, train: bool) -> tuple[list[np.ndarray], Tensor]:
        """The bytes of each picture, uint8 (n,), and the ids (B,) int64 that were taken."""
        found = [self.picture(i, epoch, train) for i in ids.tolist()]
        return [data for data, _ in found], torch.tensor([number for _, number in found], dtype=torch.int64)

    def sizes(self, names: Tensor) -> Tensor:
        """Heights and widths (B, 2) int64 of pictures that ``encoded`` has returned."""
        return torch.from_numpy(self._headers[names.numpy() % len(self.split), :2]).long()

    def _decoded(self, i: int, epoch: int, train: bool) -> np.ndarray:
        """Returns the bytes that DALI will decode, in place of pixels."""
        i %= len(self.split)
        if i in self.bad:
            raise BadPictureError(self.bad[i])
        data = self.split.read(i)
        if len(data) != self._headers[i, 2] or i in self.by_pillow or not data.endswith(_END_OF_IMAGE):
            data = self._looked_at(i, data)
        return np.frombuffer(data, dtype=np.uint8)

    def _looked_at(self, i: int, data: bytes) -> bytes:
        """The bytes to give to DALI, after Pillow has read the header, or has decoded the picture if necessary."""
        with opened(data) as picture:
            width, height = picture.size
            plain = picture.format == "JPEG" and picture.mode in ("RGB", "L") and i not in self.by_pillow
        self._headers[i] = height, width, len(data) if plain else 0
        if not plain:
            return _uncompressed(rgb(data))
        if not data.endswith(_END_OF_IMAGE):
            check(data)
        return data

    def blame(self, names: Tensor) -> bool:
        """Called after DALI has failed on these ids. Notes the pictures that Pillow cannot decode either; if there are
        none, all of them will be decoded by Pillow from now on.

        Returns False if Pillow has decoded them all before, so that nothing more can be done.
        """
        before = len(self.bad) + len(self.by_pillow)
        numbers = (names % len(self.split)).tolist()
        for i in numbers:
            try:
                check(self.split.read(i))
            except BadPictureError as error:
                self._note(i, error)
        if len(self.bad) + len(self.by_pillow) == before:
            self.by_pillow.update(numbers)
        return len(self.bad) + len(self.by_pillow) > before


def _uncompressed(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, "PPM")
    return out.getvalue()


def box_resize(picture: np.ndarray, side_px: int) -> np.ndarray:
    """uint8 (H, W, 3) -> (side, side, 3) with Pillow's BOX filter, which DALI does not have."""
    if picture.shape[:2] == (side_px, side_px):
        return picture
    image = Image.fromarray(np.ascontiguousarray(picture))
    return np.asarray(image.resize((side_px, side_px), Image.Resampling.BOX))


def box_resize_on_device(picture: Tensor, side_px: int) -> Tensor:
    """As ``box_resize``, on any device and in fp32. Pillow rounds between its two passes, so that some values differ by
    one level."""
    height, width = picture.shape[:2]
    down, across = (_box_weights(n, side_px).to(picture.device) for n in (height, width))
    x = torch.einsum("oh,hwc->owc", down, picture.float())
    x = torch.einsum("pw,owc->opc", across, x)
    return x.add_(0.5).floor_().clamp_(0, 255).to(torch.uint8)


def _box_weights(size_px: int, side_px: int) -> Tensor:
    """Weights (side, size) fp32: an output pixel is the mean of the source pixels whose centres lie in its interval."""
    scale = size_px / side_px
    reach = max(scale, 1.0) / 2
    center = (torch.arange(side_px, dtype=torch.float64)[:, None] + 0.5) * scale
    offset = torch.arange(size_px, dtype=torch.float64) + 0.5 - center
    weights = ((offset > -reach) & (offset <= reach)).double()
    return (weights / weights.sum(1, keepdim=True)).float()
