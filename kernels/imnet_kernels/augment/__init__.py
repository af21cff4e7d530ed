"""One pass from the uint8 store to the training batch: gather, pad-crop, flip, normalise, cutout, cast, channels_last.

Why a family: Inductor can neither draw counter-based random numbers per sample nor turn gather, crop and flip into one
read of the uint8 store. The eager form moves 30 to 45 bytes per element where 3 suffice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real

import torch
from torch import Tensor

from .. import calls, tier
from . import reference
from .reference import Spec, empty_batch

__all__ = ["augment"]

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_PAD_MODES = ("zero", "reflect")
_HFLIPS = ("none", "random", "alternating")


def augment(
    store: Tensor,
    ids: Tensor,
    *,
    seed: int,
    epoch: int,
    pad_px: int = 0,
    pad_mode: str = "zero",
    hflip: str = "none",
    hflip_p: float = 0.5,
    cutout_px: int = 0,
    cutout_inside: bool = False,
    mean: float | Sequence[float] | Tensor,
    std: float | Sequence[float],
    dtype: torch.dtype = torch.float32,
    sample_ids: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Return the augmented, normalised batch (B, C, H, W) in ``dtype``, channels_last, on the store's device.

    store (N, H, W, C) uint8 contiguous; ids (B,) int64, positions in the store. Every random choice is a pure function
    of (seed, epoch, sample id). sample_ids (B,) int64 are the sample ids if the store holds a shard (default: ids).

    pad_px, pad_mode: crop H x W at a uniform offset from the image padded by pad_px. "zero" pads with the pixel value 0
        before normalisation (as torchvision does); "reflect" mirrors the image without repeating the edge.
    hflip: "none"; "random" with probability hflip_p; "alternating": mirrored every second epoch, phase by (seed, id).
    cutout_px, cutout_inside: a square set to 0 AFTER normalisation in every image. inside False: its centre is uniform
        over the image (0 .. W inclusive for even sizes) and the square is clipped; True: it always lies in the image.
    mean, std: of x / 255, per channel or one number. mean may be an (H, W, C) fp32 mean image, subtracted at the source
        pixel; zero padding is then 0 after normalisation. mean=0, std=1/255 gives the raw values 0 .. 255.
    out: a (B, C, H, W) channels_last tensor of ``dtype`` to write to and return, so that a loop can reuse its buffers.
    Raises TypeError or ValueError before any memory is touched.
    """
    key = _whole("seed", seed), _whole("epoch", epoch)
    pad, cutout = _whole("pad_px", pad_px), _whole("cutout_px", cutout_px)
    spec = Spec(*key, pad, pad_mode, hflip, float(hflip_p), cutout, bool(cutout_inside))
    _check_tensors(store, ids, sample_ids)
    _check_spec(spec, store.shape[1], store.shape[2], dtype)
    call = (store, ids, ids if sample_ids is None else sample_ids, *_scale_shift(mean, std, store), spec, dtype)
    if out is not None:
        _check_out(out, store, ids, dtype)
        # The data loop's path: no custom op, no copy.
        return tier.implementation("augment", store.device.type).augment(*call, out=out)
    if type(store) is Tensor and calls.unobserved():
        return tier.implementation("augment", store.device.type).augment(*call)
    return (reference.augment if tier.choose("augment", store.device.type) == "reference" else _op_call)(*call)


def _check_out(out: Tensor, store: Tensor, ids: Tensor, dtype: torch.dtype) -> None:
    shape = (ids.numel(), store.shape[3], store.shape[1], store.shape[2])
    strided = out.permute(0, 2, 3, 1).is_contiguous() if out.dim() == 4 else False
    if tuple(out.shape) != shape or out.dtype != dtype or out.device != store.device or not strided:
        got = f"{out.dtype} {tuple(out.shape)} on {out.device}"
        raise ValueError(f"out is {got}; allowed {dtype} {shape} channels_last on {store.device}; make it so")


def _check_tensors(store: Tensor, ids: Tensor, sample_ids: Tensor | None) -> None:
    if store.dtype != torch.uint8 or store.dim() != 4 or not store.is_contiguous():
        got = f"{store.dtype} {tuple(store.shape)}, strides {store.stride()}"
        raise TypeError(f"store is {got}; allowed contiguous torch.uint8 (N, H, W, C); call .contiguous()")
    for name, tensor in (("ids", ids), ("sample_ids", ids if sample_ids is None else sample_ids)):
        if tensor.dtype != torch.int64 or tensor.dim() != 1 or tensor.device != store.device:
            got = f"{tensor.dtype} {tuple(tensor.shape)} on {tensor.device}"
            raise TypeError(f"{name} are {got}; allowed torch.int64 (B,) on {store.device}; call .to(store.device)")
    if sample_ids is not None and sample_ids.shape != ids.shape:
        raise ValueError(f"sample_ids have {sample_ids.numel()} entries, ids {ids.numel()}; pass one name per position")
    if ids.device.type == "cpu" and ids.numel() and not torch.compiler.is_compiling() and not _host_checks():
        # On CUDA this check would be a host sync, under torch.compile a graph break. The CUDA and Triton kernels write
        # NaN for a bad id instead, and the host kernel checks the ids itself.
        low, high = (int(v) for v in torch.aminmax(ids))
        if low < 0 or high >= store.shape[0]:
            raise ValueError(
                f"ids span {low} .. {high}; allowed 0 .. {store.shape[0] - 1}; pass positions in the store"
            )


def _host_checks() -> bool:
    return tier.choose("augment", "cpu") == "host"


def _whole(name: str, value: int) -> int:
    if value != int(value):
        raise ValueError(f"{name} = {value}; allowed whole numbers; round it")
    return int(value)


def _check_spec(spec: Spec, height: int, width: int, dtype: torch.dtype) -> None:
    limit = min(height, width)
    if not 0 <= spec.seed < 1 << 64 or not 0 <= spec.epoch < 1 << 32:
        raise ValueError(
            f"seed {spec.seed}, epoch {spec.epoch}; allowed 0 .. 2^64 - 1, 0 .. 2^32 - 1; pass smaller ones"
        )
    if spec.pad_mode not in _PAD_MODES:
        raise ValueError(f"pad_mode = {spec.pad_mode!r}; allowed {_PAD_MODES}; pass one of them")
    if not 0 <= spec.pad_px < max(limit, 1):
        raise ValueError(f"pad_px = {spec.pad_px}; allowed 0 .. {limit - 1} for {height} x {width}; pass a smaller one")
    if spec.hflip not in _HFLIPS:
        raise ValueError(f"hflip = {spec.hflip!r}; allowed {_HFLIPS}; pass one of them")
    if not 0.0 <= spec.hflip_p <= 1.0:
        raise ValueError(f"hflip_p = {spec.hflip_p}; allowed 0 .. 1; pass a probability")
    if not 0 <= spec.cutout_px <= limit:
        raise ValueError(
            f"cutout_px = {spec.cutout_px}; allowed 0 .. {limit} for {height} x {width}; pass a smaller one"
        )
    if dtype not in _DTYPES:
        raise TypeError(f"dtype = {dtype}; allowed {_DTYPES}; pass one of them")


def _scale_shift(
    mean: float | Sequence[float] | Tensor, std: float | Sequence[float], store: Tensor
) -> tuple[Tensor, Tensor]:
    """fp32 scale (C,) and shift (C,) or (H, W, C) on the store's device: the normalised value is x * scale + shift."""
    num_channels = store.shape[3]
    std_key = _per_channel("std", std, num_channels)
    if not isinstance(mean, Tensor) or mean.dim() < 2:
        values = mean.tolist() if isinstance(mean, Tensor) else mean
        return _constants(_per_channel("mean", values, num_channels), std_key, store.device)
    if mean.shape != store.shape[1:] or mean.dtype != torch.float32 or mean.device != store.device:
        got = f"{mean.dtype} {tuple(mean.shape)} on {mean.device}"
        raise TypeError(f"mean is {got}; allowed torch.float32 {tuple(store.shape[1:])} on {store.device}; convert it")
    scale, _ = _constants((0.0,) * num_channels, std_key, store.device)
    return scale, calls.once(_mean_image_shift, mean, scale)


def _mean_image_shift(mean: Tensor, scale: Tensor) -> Tensor:
    return mean.mul(-255.0 * scale)


def _per_channel(name: str, value: float | Sequence[float], num_channels: int) -> tuple[float, ...]:
    values = (float(value),) * num_channels if isinstance(value, (int, float, Real)) else tuple(float(v) for v in value)
    if len(values) != num_channels:
        raise ValueError(f"{name} has {len(values)} numbers; allowed {num_channels}, one per channel; pass that many")
    if name == "std" and any(not 0 < v < math.inf for v in values):
        raise ValueError(f"std = {values}; allowed numbers above 0; pass the standard deviation of x / 255")
    if not all(abs(v) < math.inf for v in values):
        raise ValueError(f"mean = {values}; allowed finite numbers; pass the mean of x / 255")
    return values


@calls.constant
def _constants(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    scale = torch.tensor([1.0 / (255.0 * s) for s in std], dtype=torch.float32)
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], dtype=torch.float32)
    return scale.to(device), shift.to(device)


_SIGN = 1 << 63


@torch.library.custom_op("imnet::augment", mutates_args=())
def augment_op(
    store: Tensor,
    ids: Tensor,
    sample_ids: Tensor,
    scale: Tensor,
    shift: Tensor,
    seed: int,
    epoch: int,
    pad_px: int,
    pad_mode: str,
    hflip: str,
    hflip_p: float,
    cutout_px: int,
    cutout_inside: bool,
    dtype: torch.dtype,
) -> Tensor:
    """See reference.augment. ``seed`` is passed as a signed number, because an op's int is a signed 64-bit integer."""
    spec = Spec(seed % (2 * _SIGN), epoch, pad_px, pad_mode, hflip, hflip_p, cutout_px, cutout_inside)
    return tier.implementation("augment", store.device.type).augment(store, ids, sample_ids, scale, shift, spec, dtype)


@augment_op.register_fake
def _(store, ids, sample_ids, scale, shift, seed, epoch, pad_px, pad_mode, hflip, hflip_p, cutout_px, inside, dtype):
    return empty_batch(store, ids, dtype)


def _op_call(
    store: Tensor, ids: Tensor, sample_ids: Tensor, scale: Tensor, shift: Tensor, spec: Spec, dtype: torch.dtype
):
    """Call the custom op with the arguments of reference.augment."""
    seed = spec.seed - 2 * _SIGN if spec.seed >= _SIGN else spec.seed
    return augment_op(store, ids, sample_ids, scale, shift, seed, *spec[1:], dtype)
