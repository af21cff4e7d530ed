"""A DALI pipeline of what a recipe does to its images, from a feed of ``dali_feeds`` to the batch; for CPU and GPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from nvidia.dali import Pipeline, pipeline_def, types

from imnet.augmentation import Augment
from imnet.data.pipelines.dali_color import Node, color_jitter, fn, operate
from imnet.data.pipelines.dali_feeds import HUE, Feed, Feeds, Values
from imnet.data.pipelines.dali_pictures import box_resize, box_resize_on_device

LINEAR = types.DALIInterpType.INTERP_LINEAR
_TYPES = {
    "uint8": types.DALIDataType.UINT8, "int32": types.DALIDataType.INT32, "bool": types.DALIDataType.BOOL,
    "float32": types.DALIDataType.FLOAT,
}  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """What the graph does. ``side`` and ``before_crop`` are (H, W) as in ``Feeds``, ``source`` that of pixels as they
    are stored (or that pictures are made first); ``mean_image`` (H, W, C) fp32 of x/255 or None."""

    augment: Augment
    train: bool
    sized: bool
    encoded: bool
    source: tuple[int, int]
    before_crop: tuple[int, int]
    side: tuple[int, int]
    channels: int
    half: bool
    device_id: int | None
    mean_image: np.ndarray | None = None

    @property
    def on_gpu(self) -> bool:
        return self.device_id is not None


def plan(feeds: Feeds, channels: int, *, half: bool, device_id: int | None, mean: np.ndarray | None) -> Plan:
    """``half``: the batch in fp16 rather than fp32 (DALI has no bf16)."""
    return Plan(
        feeds.augment, feeds.train, feeds.sized, feeds.pictures is not None, (feeds.size[0], feeds.size[1]),
        feeds.before_crop, feeds.side, channels, half, device_id, mean,
    )  # fmt: skip


def build(
    plan: Plan, first: Feed, source: Callable[[], list[Values]], *, max_images: int, threads: int, depth: int
) -> Pipeline:
    """The built pipeline; ``source`` gives the values of a feed like ``first``, or raises StopIteration."""
    names = list(first.values)
    samples = [values[0] for values in first.values.values()]
    options: dict[str, Any] = {
        "num_outputs": len(names), "batch": True, "no_copy": not plan.on_gpu,
        "dtype": [_TYPES[np.asarray(x).dtype.name] for x in samples], "ndim": [np.ndim(x) for x in samples],
    }  # fmt: skip

    about: dict[str, Any] = {"batch_size": max_images, "num_threads": threads, "prefetch_queue_depth": depth}
    about |= {"device_id": plan.device_id, "enable_conditionals": plan.train and plan.augment.recolors}

    @pipeline_def(**about)
    def graph() -> Node:
        inputs = fn.external_source(source, **options)
        return batch(plan, {name: inputs[i] for i, name in enumerate(names)})

    made: Pipeline = graph()  # pyright: ignore[reportAssignmentType, reportCallIssue]
    made.build()
    return made


def batch(plan: Plan, p: Mapping[str, Node]) -> Node:
    """The inputs -> (H, W, C) images: normalised fp32 or fp16, or uint8 levels where a band is still to be made."""
    a = plan.augment
    x = _pictures(plan, p) if plan.encoded else fn.reshape(_on_device(p["image"], plan), layout="HWC")
    if plan.train and plan.sized:
        if not plan.encoded:
            x = fn.slice(x, start=p["box_at"], shape=p["box_size"], axes=[0, 1])
        x = _resized(x, plan, p, plan.side)
    if plan.mean_image is not None:
        return _minus_mean_image(x, plan, p)
    mirror = p.get("flip") if plan.train else None
    if "shift" in p:
        x = _padded_crop(x, plan, p["shift"], plan.side if plan.sized else plan.source)
    changes_size = not plan.sized and (plan.before_crop != plan.source or a.crop_px is not None)
    if mirror is not None and (changes_size or a.recolors or a.spectral_r):
        x, mirror = fn.flip(x, horizontal=mirror), None
    if changes_size:
        x = _cropped(_resized(x, plan, p, plan.before_crop) if plan.before_crop != plan.source else x, plan, p)
    for number in range(sum(name.startswith("family") for name in p)):
        x = operate(x, p, number, plan.side, plan.on_gpu)
    if plan.train and any(a.color_jitter):
        x = color_jitter(x, p, bool(a.color_jitter[HUE]), plan.on_gpu)
    if a.spectral_r:
        return x
    return _cut(_normalised(x, plan, mirror), p)


def _pictures(plan: Plan, p: Mapping[str, Node]) -> Node:
    """Bytes -> uint8 (H, W, 3): a box of the picture, its middle, or all of it made ``source`` square."""
    device = "mixed" if plan.on_gpu else "cpu"
    rgb: dict[str, Any] = {"device": device, "output_type": types.DALIImageType.RGB, "adjust_orientation": False}
    if plan.on_gpu:
        rgb["jpeg_fancy_upsampling"] = True  # as libjpeg does it
    if plan.sized and plan.train:
        return fn.decoders.image_slice(p["image"], start=p["box_at"], shape=p["box_size"], axes=[0, 1], **rgb)
    x = fn.decoders.image(p["image"], **rgb)
    if plan.sized:
        return _resized(x, plan, p, plan.side)
    side = plan.source[0]
    if not plan.on_gpu:
        return fn.python_function(x, function=lambda picture: box_resize(picture, side), output_layouts=["HWC"])
    from nvidia.dali.plugin.pytorch import fn as torch_fn

    return torch_fn.torch_python_function(
        x, function=lambda picture: box_resize_on_device(picture, side), device="gpu", output_layouts=["HWC"]
    )


def _resized(x: Node, plan: Plan, p: Mapping[str, Node], side: tuple[int, int]) -> Node:
    """uint8 levels of ``side``, bilinear with antialiasing: see ``dali_feeds.resampling``."""
    margin = {"start": p["margin_at"], "shape": p["margin_size"], "out_of_bounds_policy": "pad", "fill_values": 0}
    x = fn.slice(x, axes=[0, 1], **margin)
    x = fn.resize(
        x, resize_y=side[0], resize_x=side[1], roi_start=p["part_at"], roi_end=p["part_end"], interp_type=LINEAR,
        antialias=True, dtype=types.DALIDataType.FLOAT,
    )  # fmt: skip
    # The cast rounds; halves may go to another neighbour than ours, which go to the even one.
    lack = _on_device(p["lack_y"], plan) * _on_device(p["lack_x"], plan)
    return fn.reshape(fn.cast(x * lack, dtype=types.DALIDataType.UINT8), layout="HWC")


def _cropped(x: Node, plan: Plan, p: Mapping[str, Node]) -> Node:
    """The drawn crop, or in evaluation the middle, as torchvision rounds it."""
    if plan.augment.crop_px is None:
        return x
    start = p.get("crop_at")
    if start is None:
        start = [round((size - plan.augment.crop_px) / 2) for size in plan.before_crop]
    return fn.slice(x, start=start, shape=list(plan.side), axes=[0, 1])


def _padded_crop(x: Node, plan: Plan, shift: Node, size: tuple[int, int]) -> Node:
    """The image moved: 0, or its mirrored self, comes in."""
    pad = plan.augment.crop_pad_px
    if plan.augment.crop_pad_mode == "reflect":
        for axis in (0, 1):
            way = {"horizontal": axis, "vertical": 1 - axis}
            low, high = (fn.slice(x, start=[at], shape=[pad], axes=[axis]) for at in (1, size[axis] - pad - 1))
            x = fn.cat(fn.flip(low, **way), x, fn.flip(high, **way), axis=axis)
    shape = list(size)
    return fn.slice(x, start=shift, shape=shape, axes=[0, 1], out_of_bounds_policy="pad", fill_values=0)


def _normalised(x: Node, plan: Plan, mirror: Node | None) -> Node:
    a, channels = plan.augment, plan.channels
    std = a.std * channels if len(a.std) == 1 else a.std
    return fn.crop_mirror_normalize(
        x, dtype=types.DALIDataType.FLOAT16 if plan.half else types.DALIDataType.FLOAT, output_layout="HWC",
        mean=[255 * m for m in a.mean_per_channel(channels)], std=[255 * s for s in std],
        **({} if mirror is None else {"mirror": mirror}),
    )  # fmt: skip


def _minus_mean_image(x: Node, plan: Plan, p: Mapping[str, Node]) -> Node:
    """The mean is the source pixel's, so it goes first and what is padded is 0 after it."""
    mean = types.Constant(np.ascontiguousarray(plan.mean_image), device="cpu")
    x = fn.cast(x, dtype=types.DALIDataType.FLOAT) * (1.0 / 255) - _on_device(mean, plan)
    std = plan.augment.std * plan.channels if len(plan.augment.std) == 1 else plan.augment.std
    scale = types.Constant(np.array([1 / s for s in std], dtype=np.float32), device="cpu")
    x = fn.reshape(x * _on_device(scale, plan), layout="HWC")
    if "shift" in p:
        x = _padded_crop(x, plan, p["shift"], plan.source)
    if "flip" in p:
        x = fn.flip(x, horizontal=p["flip"])
    x = _cut(x, p)
    return fn.cast(x, dtype=types.DALIDataType.FLOAT16) if plan.half else x


def _cut(x: Node, p: Mapping[str, Node]) -> Node:
    if "cut_at" not in p:
        return x
    return fn.erase(x, anchor=p["cut_at"], shape=p["cut_size"], axes=[0, 1], fill_value=0.0)


def _on_device(x: Node, plan: Plan) -> Node:
    return x.gpu() if plan.on_gpu else x
