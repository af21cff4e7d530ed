"""Peers: the code that a user would write without imnet.

For the data path (packed pixels -> normalised batches with pad 4, flip, cutout 16) a peer is ``peer(images) -> call``;
a call goes once through ``images``, uint8 (N, H, W, C), in batches of 256. ``check`` raises SystemExit if a peer's
normalised images, without augmentation, differ from ours. For the kernels see ``of_kernel``.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from imnet_kernels.family import Case, Family
from imnet_kernels.spectral.reference import matrix
from torch import Tensor

from .clock import Call

BATCH, PAD_PX, CUTOUT_PX = 256, 4, 16
MEAN, STD = 0.5, 0.25
Columns = dict[str, Call]


def check(name: str, got: Tensor, images: np.ndarray) -> None:
    """SystemExit unless ``got`` (B, C, H, W) is (x / 255 - MEAN) / STD of the first B images, to half a bf16 step."""
    wanted = (torch.from_numpy(np.array(images[: len(got)])).permute(0, 3, 1, 2).float() / 255 - MEAN) / STD
    if got.shape != wanted.shape or float((got.float() - wanted).abs().max()) > 2**-7:
        raise SystemExit(f"gate: {name} does not give the normalised images; no time is reported")


class _Samples(torch.utils.data.Dataset):
    """A data set that transforms one image at a time with torchvision v2, as in torchvision's reference scripts."""

    def __init__(self, images: np.ndarray, augmented: bool) -> None:
        from torchvision.transforms import v2

        self.images = torch.from_numpy(images).permute(0, 3, 1, 2)
        channels, side = self.images.shape[1:3]
        share = (CUTOUT_PX / side) ** 2
        before = [v2.RandomCrop(side, padding=PAD_PX), v2.RandomHorizontalFlip()] if augmented else []
        after = [v2.RandomErasing(p=1.0, scale=(share, share), ratio=(1.0, 1.0))] if augmented else []
        norm = [v2.ToDtype(torch.float32, scale=True), v2.Normalize([MEAN] * channels, [STD] * channels)]
        self.transform = v2.Compose([*before, *norm, *after])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.transform(self.images[index])


def torchvision(images: np.ndarray, workers: int = 2) -> Call:
    """torchvision v2 in a DataLoader. Its workers end with each call, so that their processor time can be counted."""

    how: dict[str, Any] = {"num_workers": workers, "multiprocessing_context": "fork"} if workers else {}

    def batches(augmented: bool) -> Iterator[Tensor]:
        loader = torch.utils.data.DataLoader(_Samples(images, augmented), BATCH, shuffle=augmented, **how)
        for batch in loader:
            yield batch.to(torch.bfloat16, memory_format=torch.channels_last)

    check("torchvision v2", next(batches(False)), images)
    return lambda: sum(len(batch) for batch in batches(True))


def eager(images: np.ndarray) -> Call:
    """Batches from a uint8 tensor in memory, augmented with plain tensor operations."""
    store, (side, channels) = torch.from_numpy(images), (images.shape[1], images.shape[3])
    steps = torch.arange(side)

    def batch(ids: Tensor, augmented: bool) -> Tensor:
        picked = store[ids]
        if augmented:
            wide = torch.nn.functional.pad(picked, (0, 0, PAD_PX, PAD_PX, PAD_PX, PAD_PX), value=127)
            top, left = torch.randint(0, 2 * PAD_PX + 1, (2, len(ids), 1))
            columns = torch.where(torch.rand(len(ids), 1) < 0.5, steps.flip(0), steps) + left
            rows = (torch.arange(len(ids))[:, None, None], (steps + top)[:, :, None], columns[:, None, :])
            picked = wide[rows]
        out = (picked.float() / 255 - MEAN) / STD
        if augmented:
            y, x = torch.randint(0, side, (2, len(ids), 1))
            inside = ((steps - y).abs() <= CUTOUT_PX // 2)[:, :, None] & ((steps - x).abs() <= CUTOUT_PX // 2)[:, None]
            out = out.masked_fill(inside[..., None], 0.0)
        return out.to(torch.bfloat16).permute(0, 3, 1, 2)

    check("eager", batch(torch.arange(8), False), images)

    def call() -> None:
        order = torch.randperm(len(store))
        for start in range(0, len(store), BATCH):
            assert batch(order[start : start + BATCH], True).shape[1] == channels

    return call


def dali(images: np.ndarray, device: str = "cpu", threads: int = 1) -> Call:
    """DALI's crop_mirror_normalize and erase with fp16 output (it has no bf16), fed with batches of bytes from Python.

    With ``device`` "cuda" DALI also copies the bytes to the GPU.
    """
    from nvidia.dali import fn, pipeline_def, types

    side, channels = images.shape[1], images.shape[3]
    on_gpu = device == "cuda"

    def feed(augmented: bool) -> Iterator[np.ndarray]:
        while True:
            order = np.random.permutation(len(images)) if augmented else np.arange(len(images))
            for start in range(0, len(images), BATCH):
                yield images[order[start : start + BATCH]]

    where = {"num_threads": threads, "device_id": 0 if on_gpu else None}

    @pipeline_def(batch_size=BATCH, exec_dynamic=True, **where)  # pyright: ignore
    def graph(augmented: bool):
        source = iter(feed(augmented))
        x = fn.external_source(source=source, layout="HWC", batch=True)
        x = x.gpu() if on_gpu else x
        more: dict[str, Any] = {}
        if augmented:
            x = fn.pad(x, axes=(0, 1), shape=(side + PAD_PX, side + PAD_PX), fill_value=127)
            more = {"mirror": fn.random.coin_flip(), "crop": (side, side), "out_of_bounds_policy": "pad"}
            more |= {f"crop_pos_{axis}": fn.random.uniform(range=(0.0, 1.0)) for axis in "xy"}
        norm = {"mean": [255 * MEAN] * channels, "std": [255 * STD] * channels, "dtype": types.DALIDataType.FLOAT16}
        x = fn.crop_mirror_normalize(x, output_layout="HWC", **norm, **more)
        if augmented:
            anchor = fn.random.uniform(range=(0.0, float(side - CUTOUT_PX)), shape=(2,))
            x = fn.erase(x, anchor=anchor, shape=[float(CUTOUT_PX)] * 2, axes=(0, 1), fill_value=0.0)
        return x

    def first(augmented: bool) -> tuple[Any, np.ndarray]:
        pipe: Any = graph(augmented)
        pipe.build()
        return pipe, np.array(pipe.run()[0].as_cpu().as_array())

    check("DALI", torch.from_numpy(first(False)[1]).permute(0, 3, 1, 2), images)
    pipe, _ = first(True)

    def call() -> None:
        for _ in range(0, len(images), BATCH):
            pipe.run()

    return call


def has(module: str) -> bool:
    parent = module.split(".")[0]
    return importlib.util.find_spec(parent) is not None and importlib.util.find_spec(module) is not None


def of_kernel(family: Family, case: Case, dtype: torch.dtype) -> Columns:
    """The peers of a kernel case on a CPU, by name. augment has none here: its peers are those of the data path."""
    if family.name == "spectral":
        return spectral_forms(case, dtype)
    if family.name == "shake_shake":
        return shake_forms(*(leaf.detach() for leaf in family.make(case, dtype, "cpu").leaves))
    if family.name == "sgd_ema":
        return {f"torch {form} + EMA": optimiser(case, form, "cpu") for form in ("foreach", "fused")}
    return {}


def spectral_forms(case: Case, dtype: torch.dtype) -> Columns:
    """Spectral bands as a strided convolution with fixed weights, in eager PyTorch."""
    r, (batch, channels, height, width) = case.options["r"], case.options["shape"]
    s = r * r
    images = torch.randint(0, 256, (batch, channels, height, width), dtype=torch.uint8)
    images = images.to(memory_format=torch.channels_last)
    weights = matrix(r, tuple(range(s)), torch.float32, images.device).view(s, 1, r, r)

    def convolution() -> Tensor:
        planes = images.reshape(batch * channels, 1, height, width).float()
        bands = F.conv2d(planes, weights, stride=r).to(dtype)
        return bands.view(batch, channels, s, height // r, width // r).transpose(1, 2)

    return {"eager conv2d": convolution}


def shake_forms(x1: Tensor, x2: Tensor, residual: Tensor) -> Columns:
    """The forward pass as eager operations in the dtype of the given tensors.

    The tensors should be laid out as in the other columns: the place of a tensor in memory alone can cost a third.
    """
    a = torch.rand(x1.shape[0], 1, 1, 1).to(x1.dtype)
    return {
        "eager": lambda: residual + (a * x1 + (1 - a) * x2),
        "eager lerp": lambda: torch.lerp(x2, x1, a).add_(residual),
    }


def optimiser(case: Case, form: str, device: str) -> Call:
    """torch's SGD with the flag ``form`` ("foreach" or "fused"), then the moving average as a foreach operation."""
    params = [torch.randn(shape, device=device) for shape in case.options["shapes"]]
    for p in params:
        p.grad = torch.randn_like(p)
    averages = [p.clone() for p in params]
    sgd = torch.optim.SGD(params, 1e-3, 0.9, weight_decay=5e-4, nesterov=True, **{form: True})

    def run() -> None:
        with torch.no_grad():
            sgd.step()
            torch._foreach_lerp_(averages, params, 1e-3)

    return run
