"""torchvision's ResNets with each batch norm, and the addition and ReLU that follow it, in one call.

He, Zhang, Ren and Sun, "Deep Residual Learning for Image Recognition", CVPR 2016 (arXiv 1512.03385).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models import resnet as torchvision

from .layers import norm_relu, normed


class BasicBlock(torchvision.BasicBlock):
    """3x3-BN-ReLU-3x3-BN, plus skip, ReLU."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, H / stride, W / stride)."""
        out = self.conv2(norm_relu(self.bn1, self.conv1(x)))
        return normed(self.bn2, out, relu=True, residual=_skip(self.downsample, x))


class Bottleneck(torchvision.Bottleneck):
    """1x1-BN-ReLU-3x3-BN-ReLU-1x1-BN, plus skip, ReLU."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, H / stride, W / stride)."""
        out = norm_relu(self.bn2, self.conv2(norm_relu(self.bn1, self.conv1(x))))
        return normed(self.bn3, self.conv3(out), relu=True, residual=_skip(self.downsample, x))


class ResNet(torchvision.ResNet):
    """Stem with BN-ReLU, max-pool, four stages, mean, linear."""

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) -> logits (B, num_classes)."""
        x = self.maxpool(norm_relu(self.bn1, self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def _skip(downsample: nn.Module | None, x: Tensor) -> Tensor:
    if isinstance(downsample, nn.Sequential):
        conv, norm = downsample
        return normed(norm, conv(x))
    return x if downsample is None else downsample(x)


FUSED: dict[type[nn.Module], type[nn.Module]] = {
    torchvision.BasicBlock: BasicBlock,
    torchvision.Bottleneck: Bottleneck,
    torchvision.ResNet: ResNet,
}


def fuse_norms(network: nn.Module) -> None:
    """Change torchvision's ResNets and their blocks to the classes above; parameters and names stay the same."""
    for module in network.modules():
        # Only the forward method differs, so changing the class of the module is enough.
        module.__class__ = FUSED.get(type(module), type(module))
