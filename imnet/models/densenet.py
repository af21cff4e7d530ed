"""DenseNet-BC for small images.

Huang, Liu, van der Maaten and Weinberger, "Densely Connected Convolutional Networks", CVPR 2017 (arXiv 1608.06993).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from imnet_kernels import dense_stage, tier
from imnet_kernels.calls import unobserved
from imnet_kernels.dense_stage import Layer
from torch import nn

from ..errors import UsageError
from .layers import Rate, conv1x1, conv3x3, global_mean, he_init, is_plain, norm_relu, tensors_of
from .registry import model


def _dropped(module: Bottleneck | Transition, x: torch.Tensor) -> torch.Tensor:
    return F.dropout(x, module.drop_rate, module.training) if module.drop_rate else x


class Bottleneck(nn.Module):
    """BN-ReLU-1x1(4 growth)-BN-ReLU-3x3(growth): features (B, C, H, W) -> new features (B, growth, H, W)."""

    def __init__(self, in_channels: int, growth: int, drop_rate: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv1x1(in_channels, 4 * growth)
        self.bn2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = conv3x3(4 * growth, growth)
        self.drop_rate = drop_rate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        squeezed = _dropped(self, self.conv1(norm_relu(self.bn1, x)))
        return _dropped(self, self.conv2(norm_relu(self.bn2, squeezed)))

    @property
    def tensors(self) -> Layer:
        """The layer's tensors, as imnet_kernels.dense_stage takes them."""
        return Layer(tensors_of(self.bn1), self.conv1.weight, tensors_of(self.bn2), self.conv2.weight)


class DenseStage(nn.Module):
    """``num_layers`` bottlenecks, each reading all features so far: (B, C, H, W) -> (B, C + num_layers * k, H, W).

    In plain PyTorch the running concatenation is the fastest form measured (training step of densenet_bc100_12, one
    x86-64 core, torch 2.15, channels_last, batch 64, CPU time, best of 5 interleaved, 2026-11): 1.86 s; with a list
    concatenated in every layer 2.08 s; with the concatenation recomputed in backward 2.11 s; with one buffer grown in
    place 3.89 s, because batch norm and convolution need dense input and copy every slice of it. The faster tiers of
    imnet_kernels.dense_stage use such a buffer, with kernels that read its slices in place.
    """

    def __init__(self, in_channels: int, growth: int, num_layers: int, drop_rate: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Bottleneck(in_channels + i * growth, growth, drop_rate) for i in range(num_layers))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if tier.choose("dense_stage", x.device.type) != "reference" and self._fits(x):
            layers = [layer.tensors for layer in self._bottlenecks()]
            norms = self._norms()
            torch._foreach_add_([norm.get_buffer("num_batches_tracked") for norm in norms], 1)
            return dense_stage(x, layers, momentum=norms[0].momentum or 0.0, eps=norms[0].eps)
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return x

    def _bottlenecks(self) -> list[Bottleneck]:
        return [layer for layer in self.layers if isinstance(layer, Bottleneck)]

    def _norms(self) -> list[nn.BatchNorm2d]:
        return [norm for layer in self._bottlenecks() for norm in (layer.bn1, layer.bn2)]

    def _fits(self, x: torch.Tensor) -> bool:
        """Whether the kernel may replace the layers: no hooks, torch's own layers with alike norms, in training mode,
        without dropout, and in the precision of ``x``."""
        layers, norms = self._bottlenecks(), self._norms()
        convs = [conv for layer in layers for conv in (layer.conv1, layer.conv2)]
        kind = x.device.type
        precision = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else convs[0].weight.dtype
        alike = len({(norm.momentum, norm.eps) for norm in norms}) == 1 and not any(layer.drop_rate for layer in layers)
        plain = all(map(is_plain, norms)) and all(type(conv) is nn.Conv2d for conv in convs)
        return unobserved() and alike and plain and x.dtype == precision


class Transition(nn.Module):
    """BN-ReLU-1x1-average pool of 2x2: (B, C, H, W) -> (B, out_channels, H / 2, W / 2)."""

    def __init__(self, in_channels: int, out_channels: int, drop_rate: float) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(in_channels)
        self.conv = conv1x1(in_channels, out_channels)
        self.drop_rate = drop_rate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(_dropped(self, self.conv(norm_relu(self.bn, x))), 2)


class DenseNetBC(nn.Module):
    """DenseNet-BC-``depth`` with growth k: images (B, in_channels, H, W) -> logits (B, num_classes).

    Stem 3x3 to 2k channels; three stages of (depth - 4) / 6 bottlenecks; transitions keep half the channels, rounded
    down; BN-ReLU, global mean, linear. As in the paper, dropout follows every convolution but the stem; in
    torchvision's networks it follows only the 3x3 ones.
    """

    def __init__(
        self, depth: int, growth: int, num_classes: int, in_channels: int = 3, *, drop_rate: Rate = 0.0
    ) -> None:
        super().__init__()
        num_layers, rest = divmod(depth - 4, 6)
        if rest or num_layers < 1 or growth < 1:
            raise UsageError(f"DenseNet-BC depth={depth}, growth={growth}", hint="allowed: depth 6n + 4, growth >= 1")
        width = 2 * growth
        self.stem = conv3x3(in_channels, width)
        stages: list[nn.Module] = []
        for stage in range(3):
            stages.append(DenseStage(width, growth, num_layers, drop_rate))
            width += num_layers * growth
            if stage < 2:
                stages.append(Transition(width, width // 2, drop_rate))
                width //= 2
        self.stages = nn.Sequential(*stages)
        self.bn = nn.BatchNorm2d(width)
        self.head = nn.Linear(width, num_classes)
        he_init(self)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.stages(self.stem(images))
        return self.head(global_mean(norm_relu(self.bn, features)))


@model(options_of=DenseNetBC)
def densenet_bc100_12(num_classes: int, in_channels: int = 3, **options) -> DenseNetBC:
    """DenseNet-BC with 100 layers, growth 12 and 24 -> 216 -> 108 -> 300 -> 150 -> 342 channels."""
    return DenseNetBC(100, 12, num_classes, in_channels, **options)
