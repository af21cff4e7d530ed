"""The graph that DALI runs: it brings pixels to the device, or decodes, crops and resizes encoded pictures there.

DALI draws nothing at random itself: a feed has the choices for its batch, so that no state of DALI has to be saved. All
other augmentation is done afterwards on the same device by the code that the pipelines share (``batches.Finish``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from nvidia.dali import Pipeline, pipeline_def, types
from nvidia.dali import fn as operators
from torch import Tensor

from imnet.augmentation import Augment
from imnet.data.base import AnySplit, EncodedSplit
from imnet.data.pipelines import transforms
from imnet.data.pipelines.batches import as_tensor
from imnet.data.pipelines.dali_pictures import Pictures, box_resize, box_resize_on_device
from imnet.data.pipelines.draws import Key

Node = Any  # a DataNode
# By the stubs every operator returns a node or a list of nodes, so that a type checker would reject any use of it.
fn: Any = operators
Values = np.ndarray | list[np.ndarray]
LINEAR = types.DALIInterpType.INTERP_LINEAR
_TYPES = {
    "uint8": types.DALIDataType.UINT8, "int32": types.DALIDataType.INT32, "float32": types.DALIDataType.FLOAT,
}  # fmt: skip


@dataclass(frozen=True)
class Feed:
    """The inputs of one batch by name (``values``). ``ids`` (B,) int64 were asked for, ``names`` (B,) were taken."""

    ids: Tensor
    names: Tensor
    values: dict[str, Values] = field(repr=False)

    def __len__(self) -> int:
        return len(self.ids)


class Feeds:
    """``feed(ids, epoch)`` for one split, for training or for evaluation, and the properties of the graph's output."""

    def __init__(
        self, split: AnySplit, augment: Augment, seed: int, train: bool, pictures: Pictures | None,
        device_id: int | None,
    ):  # fmt: skip
        """``device_id`` is the index of the GPU, or None for the CPU."""
        self.augment, self.seed, self.train, self.pictures = augment, seed, train, pictures
        self.device_id, self.on_gpu = device_id, device_id is not None
        self.images = None if isinstance(split, EncodedSplit) else as_tensor(split.images)
        self.sized = pictures is not None and pictures.sized(train)
        """Whether the graph's images already have the network's input size."""
        self.side_px = split.image_shape[0] if pictures is None else pictures.side_px(train)
        """Side of the images that the graph returns."""

    def feed(self, ids: Tensor, epoch: int) -> Feed:
        """The feed of ``ids`` (B,) int64 on the CPU; DataError for a picture that cannot be decoded."""
        if self.pictures is None:
            assert self.images is not None
            return Feed(ids, ids, {"image": self.images.index_select(0, ids % len(self.images)).numpy()})
        data, names = self.pictures.encoded(ids, epoch, self.train)
        values: dict[str, Values] = {"image": data}
        if self.sized:
            values |= self._parts(self.pictures.sizes(names), Key(names, self.seed, epoch))
        dense = {k: np.ascontiguousarray(v) if isinstance(v, np.ndarray) else v for k, v in values.items()}
        return Feed(ids, names, dense)

    def _parts(self, size: Tensor, key: Key) -> dict[str, Values]:
        """The part of each picture of ``size`` (B, 2) that becomes the image: a random box, or the centre."""
        a, side = self.augment, self.side_px
        if self.train:
            assert a.crop_scale is not None
            box = transforms.draw_resized_crop(size[:, 0], size[:, 1], a.crop_scale, key)
            parts: dict[str, Values] = {"box_at": box[:, :2].int().numpy(), "box_size": box[:, 2:].int().numpy()}
            return parts | resampling(torch.zeros(size.shape), box[:, 2:] / side, box[:, 2:], side)
        assert a.resize_eval_px is not None
        # The same rule as ResizeRule of the readers.
        resized = (a.resize_eval_px * size // size.min(1, keepdim=True).values).double()
        top_left = ((resized - side) / 2).round()
        return resampling(top_left * size / resized, size / resized, size, side)


def resampling(first: Tensor, scale: Tensor, size: Tensor, side_px: int) -> dict[str, Values]:
    """Inputs for a resize in which output pixel o of an axis lies at ``first + (o + 0.5) * scale`` in the source.

    ``first``, ``scale`` and the source's ``size`` are (B, 2). DALI's filter repeats the border, whereas ours and
    Pillow's normalises the weights inside the image to sum 1. The graph therefore pads the image with a margin of 0 and
    multiplies the result by the sum of all weights over that of the weights inside.
    """
    scale = scale.double()
    margin = scale.clamp(min=1).ceil() + 1
    start, stop = first + margin, first + margin + scale * side_px
    values: dict[str, Values] = {"margin_at": (-margin).int().numpy(), "margin_size": (size + 2 * margin).int().numpy()}
    values["part_at"], values["part_end"] = start.float().numpy(), stop.float().numpy()
    lack = [_lacking(first[:, k].double(), scale[:, k], size[:, k], side_px).float().numpy() for k in (0, 1)]
    values["lack_y"], values["lack_x"] = lack[0][:, :, None, None], lack[1][:, None, :, None]
    return values


def _lacking(first: Tensor, scale: Tensor, size: Tensor, side_px: int) -> Tensor:
    """(B, side): the sum of the triangle filter's weights divided by the sum of those inside the image; 1 except near
    the borders."""
    reach, out = scale.clamp(min=1)[:, None], torch.ones((len(first), side_px), dtype=torch.float64)
    near = int(((reach + 1 - first[:, None].clamp(max=0)) / scale[:, None]).max().ceil()) + 1
    at_borders = torch.arange(side_px)
    at_borders = at_borders[(at_borders < near) | (at_borders >= side_px - near)]
    center = first[:, None] + (at_borders + 0.5) * scale[:, None]
    taps = torch.arange(int(2 * reach.max().ceil()) + 3, dtype=torch.float64)
    at = (center - reach).floor()[..., None] + taps
    weights = (1 - ((at + 0.5 - center[..., None]) / reach[..., None]).abs()).clamp(min=0)
    inside = (at >= 0) & (at < size[:, None, None])
    out[:, at_borders] = weights.sum(2) / (weights * inside).sum(2)
    return out


def build(
    feeds: Feeds, first: Feed, source: Callable[[], list[Values]], *, max_images: int, threads: int, depth: int
) -> Pipeline:
    """Build DALI's pipeline. ``source`` returns the values of a feed like ``first``, or raises StopIteration."""
    names = list(first.values)
    samples = [values[0] for values in first.values.values()]
    options: dict[str, Any] = {
        "num_outputs": len(names), "batch": True, "no_copy": not feeds.on_gpu,
        "dtype": [_TYPES[np.asarray(x).dtype.name] for x in samples], "ndim": [np.ndim(x) for x in samples],
    }  # fmt: skip

    about: dict[str, Any] = {"batch_size": max_images, "num_threads": threads, "prefetch_queue_depth": depth}

    @pipeline_def(**about, device_id=feeds.device_id)  # pyright: ignore[reportArgumentType]
    def graph() -> Node:
        inputs = fn.external_source(source, **options)
        return images(feeds, {name: inputs[i] for i, name in enumerate(names)})

    made: Pipeline = graph()  # pyright: ignore[reportAssignmentType, reportCallIssue]
    made.build()
    return made


def images(feeds: Feeds, p: Mapping[str, Node]) -> Node:
    """The part of the graph from the inputs to images, uint8 (H, W, C) each."""
    if feeds.pictures is None:
        return _on_device(p["image"], feeds)
    device = "mixed" if feeds.on_gpu else "cpu"
    rgb: dict[str, Any] = {"device": device, "output_type": types.DALIImageType.RGB, "adjust_orientation": False}
    if feeds.on_gpu:
        rgb["jpeg_fancy_upsampling"] = True  # as libjpeg does
    if feeds.sized and feeds.train:
        return _resized(decoded_box(p, rgb), feeds, p)
    x, side = fn.decoders.image(p["image"], **rgb), feeds.side_px
    if feeds.sized:
        return _resized(x, feeds, p)
    if not feeds.on_gpu:
        return fn.python_function(x, function=lambda picture: box_resize(picture, side), output_layouts=["HWC"])
    from nvidia.dali.plugin.pytorch import fn as torch_fn

    return torch_fn.torch_python_function(
        x, function=lambda picture: box_resize_on_device(picture, side), device="gpu", output_layouts=["HWC"]
    )


def decoded_box(p: Mapping[str, Node], rgb: Mapping[str, Any]) -> Node:
    """Decodes only the box of each picture. Whether that is faster on a GPU than whole pictures is not measured."""
    return fn.decoders.image_slice(p["image"], start=p["box_at"], shape=p["box_size"], axes=[0, 1], **rgb)


def _resized(x: Node, feeds: Feeds, p: Mapping[str, Node]) -> Node:
    """Resizes to uint8 of ``side_px`` square, bilinear with antialiasing; see ``resampling``."""
    margin = {"start": p["margin_at"], "shape": p["margin_size"], "out_of_bounds_policy": "pad", "fill_values": 0}
    x = fn.slice(x, axes=[0, 1], **margin)
    x = fn.resize(
        x, resize_y=feeds.side_px, resize_x=feeds.side_px, roi_start=p["part_at"], roi_end=p["part_end"],
        interp_type=LINEAR, antialias=True, dtype=types.DALIDataType.FLOAT,
    )  # fmt: skip
    # The cast rounds; it may round halves differently from our pipelines, which round them to even.
    lack = _on_device(p["lack_y"], feeds) * _on_device(p["lack_x"], feeds)
    return fn.reshape(fn.cast(x * lack, dtype=types.DALIDataType.UINT8), layout="HWC")


def _on_device(x: Node, feeds: Feeds) -> Node:
    return x.gpu() if feeds.on_gpu else x
