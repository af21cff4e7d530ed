"""What the kernels are compared with: the forms that a user would write without them."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from imnet_kernels.family import Case
from imnet_kernels.spectral.reference import matrix
from torch import Tensor

from .timing import cpu_seconds

Columns = dict[str, Callable[[], Any]]


class _Samples(torch.utils.data.Dataset):
    """The per-sample pipeline: torchvision v2 on a uint8 image, as its references write it."""

    def __init__(self, store: Tensor, pad_px: int, cutout_px: int) -> None:
        from torchvision.transforms import v2

        num_channels, side = store.shape[3], store.shape[1]
        share = (cutout_px / side) ** 2
        self.images = store.permute(0, 3, 1, 2)
        self.transform = v2.Compose(
            [
                v2.RandomCrop(side, padding=pad_px),
                v2.RandomHorizontalFlip(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize([0.5] * num_channels, [0.25] * num_channels),
                v2.RandomErasing(p=1.0, scale=(share, share), ratio=(1.0, 1.0)),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.transform(self.images[index])


def torchvision_seconds_per_image(shape: tuple[int, int, int, int], num_workers: int, num_images: int) -> float:
    """CPU seconds an image, workers included, of torchvision v2 in a DataLoader, batches of 256 cast to bf16."""
    store = torch.randint(0, 256, (num_images, *shape[1:]), dtype=torch.uint8)
    start = cpu_seconds(children=True)
    loader = torch.utils.data.DataLoader(_Samples(store, 4, 16), batch_size=256, num_workers=num_workers)
    for batch in loader:
        batch.to(torch.bfloat16, memory_format=torch.channels_last)
    del loader
    return (cpu_seconds(children=True) - start) / num_images


def spectral_forms(case: Case, dtype: torch.dtype) -> Columns:
    """The two eager forms: the reference's matrix product, and a strided convolution with fixed weights."""
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
    """The forward as eager operations in the tensors' own dtype, which are the other columns' too: where a tensor lies
    in memory alone can be worth a third.
    """
    a = torch.rand(x1.shape[0], 1, 1, 1).to(x1.dtype)
    return {
        "eager": lambda: residual + (a * x1 + (1 - a) * x2),
        "eager lerp": lambda: torch.lerp(x2, x1, a).add_(residual),
    }


def shake_backward_forms(grad: Tensor) -> Columns:
    """The backward as eager operations in the gradient's own dtype."""
    a = torch.rand(grad.shape[0], 1, 1, 1).to(grad.dtype)
    return {"eager": lambda: (a * grad, (1 - a) * grad)}


def optimisers(case: Case) -> Columns:
    """torch.optim.SGD, foreach and fused, each followed by AveragedModel's moving average."""
    columns: Columns = {}
    for name, keys in (("torch foreach + EMA", {"foreach": True}), ("torch fused + EMA", {"fused": True})):
        module = torch.nn.ParameterList([torch.randn(shape) for shape in case.options["shapes"]])
        for p in module:
            p.grad = torch.randn_like(p)
        optimizer = torch.optim.SGD(
            module.parameters(), lr=1e-3, momentum=0.9, nesterov=True, weight_decay=5e-4, **keys
        )
        update = torch.optim.swa_utils.get_ema_multi_avg_fn(0.999)
        average = torch.optim.swa_utils.AveragedModel(copy.deepcopy(module), multi_avg_fn=update)

        def step(optimizer=optimizer, average=average, module=module) -> None:
            optimizer.step()
            average.update_parameters(module)

        columns[name] = step
    return columns


def dali_forms(case: Case, dtype: torch.dtype) -> Columns:
    """augment by DALI on the CPU, to fp32 and in a bf16 row to fp16 too; none without it or where it cannot."""
    if not _installed("nvidia.dali"):
        return {}
    from . import kernels_dali

    if not kernels_dali.takes(case):
        return {}
    wanted = (torch.float32,) if dtype == torch.float32 else (torch.float32, torch.float16)
    return {name: run for each in wanted for name, run in kernels_dali.augment_column(case, each).items()}


def absent_peers() -> dict[str, str]:
    """Peers of the targets that are not installed here: their columns read "not measured"."""
    peers = {"DALI CPU": "nvidia.dali", "ffcv": "ffcv"}
    return {name: "not measured: not installed" for name, module in peers.items() if not _installed(module)}


def _installed(module: str) -> bool:
    parent = module.split(".")[0]
    return importlib.util.find_spec(parent) is not None and importlib.util.find_spec(module) is not None
