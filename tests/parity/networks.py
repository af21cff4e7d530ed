"""The documents' networks in plain PyTorch, for the plain trainers. Nothing here is imported from imnet."""

import torch
import torch.nn.functional as F
from torch import nn


def conv(inputs, outputs, kernel=3, stride=1):
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


def initialise(net, zero_bias=True):
    """He et al. 2015, by fan-out; the Torch-7 networks (WRN, Shake-Shake) also start linear biases at 0."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if isinstance(module, nn.Linear) and zero_bias:
            nn.init.zeros_(module.bias)


class WideBlock(nn.Module):
    """BN-ReLU-conv twice; if the shape changes, the skip is a 1x1 convolution of the activated input."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), conv(inputs, outputs, stride=stride)
        self.norm2, self.conv2 = nn.BatchNorm2d(outputs), conv(outputs, outputs)
        self.skip = None if inputs == outputs and stride == 1 else conv(inputs, outputs, 1, stride)

    def forward(self, x):
        activated = self.norm1(x).relu()
        out = self.conv2(self.norm2(self.conv1(activated)).relu())
        return out + (x if self.skip is None else self.skip(activated))


class WideResNet(nn.Module):
    """Zagoruyko and Komodakis 2016: ``groups`` of ``blocks``; each group doubles the channels and halves the map."""

    def __init__(self, groups, blocks, k, channels, classes):
        super().__init__()
        width, layers = 16, []
        for group in range(groups):
            for block in range(blocks):
                layers.append(WideBlock(width, 16 * k * 2**group, 2 if group and not block else 1))
                width = 16 * k * 2**group
        self.stem, self.body = conv(channels, 16), nn.Sequential(*layers)
        self.norm, self.head = nn.BatchNorm2d(width), nn.Linear(width, classes)
        initialise(self)

    def forward(self, x):
        return self.head(self.norm(self.body(self.stem(x))).relu().mean((2, 3)))


def uniform(images):
    """Returns a random number in 0..1 per image, (B, 1, 1, 1), with which Shake-Shake mixes its branches."""
    return torch.rand(len(images), 1, 1, 1)


class ShakeBlock(nn.Module):
    """Gastaldi 2017: x + a * left + (1 - a) * right; the backward pass uses another random number b in place of a."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.left, self.right = (
            nn.Sequential(
                conv(inputs, outputs, stride=stride), nn.BatchNorm2d(outputs), nn.ReLU(), conv(outputs, outputs),
                nn.BatchNorm2d(outputs),
            ) for _ in range(2)
        )  # fmt: skip
        self.narrow = inputs != outputs
        if self.narrow:
            self.even, self.odd = conv(inputs, outputs // 2, 1), conv(inputs, outputs // 2, 1)
            self.norm = nn.BatchNorm2d(outputs)
        self.stride = stride

    def skip(self, activated):
        """Half the channels see every second pixel, the others every second pixel of the map shifted up and left."""
        moved = F.pad(activated[:, :, 1:, 1:], (0, 1, 0, 1))
        step = self.stride
        halves = [self.even(activated[:, :, ::step, ::step]), self.odd(moved[:, :, ::step, ::step])]
        return self.norm(torch.cat(halves, 1))

    def forward(self, x):
        activated = x.relu()
        left, right = self.left(activated), self.right(activated)
        skip = self.skip(activated) if self.narrow else x
        if not self.training:
            return skip + (left + right) / 2
        a, b = uniform(x), uniform(x)
        backward = b * left + (1 - b) * right
        return skip + backward + (a * left + (1 - a) * right - backward).detach()


class ShakeShake(nn.Module):
    """Three stages of four blocks; the stem and the first stage have ``width`` channels."""

    def __init__(self, width, channels, classes):
        super().__init__()
        self.stem, self.norm = conv(channels, width), nn.BatchNorm2d(width)
        sizes = [(width, 1)] * 4 + [(2 * width, 2)] + [(2 * width, 1)] * 3 + [(4 * width, 2)] + [(4 * width, 1)] * 3
        before = [width, *(outputs for outputs, _ in sizes)]
        self.body = nn.Sequential(*(ShakeBlock(i, o, s) for i, (o, s) in zip(before, sizes, strict=False)))
        self.head = nn.Linear(4 * width, classes)
        initialise(self)

    def forward(self, x):
        return self.head(self.body(self.norm(self.stem(x))).relu().mean((2, 3)))


class BasicBlock(nn.Module):
    """conv-BN-ReLU-conv-BN plus skip, then ReLU; if the shape changes, the skip is a 1x1 convolution and BN."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1, self.norm1 = conv(inputs, outputs, stride=stride), nn.BatchNorm2d(outputs)
        self.conv2, self.norm2 = conv(outputs, outputs), nn.BatchNorm2d(outputs)
        same = inputs == outputs and stride == 1
        self.skip = None if same else nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))

    def forward(self, x):
        out = self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))
        return (out + (x if self.skip is None else self.skip(x))).relu()


class ResNet(nn.Module):
    """He et al. 2016 for ImageNet: stem 7x7 at stride 2, max-pool, four stages; (2, 2, 2, 2) is ResNet-18."""

    def __init__(self, blocks, classes):
        super().__init__()
        width, layers = 64, []
        for stage, count in enumerate(blocks):
            for block in range(count):
                layers.append(BasicBlock(width, 64 * 2**stage, 2 if stage and not block else 1))
                width = 64 * 2**stage
        self.stem, self.norm = conv(3, 64, 7, 2), nn.BatchNorm2d(64)
        self.body, self.head = nn.Sequential(*layers), nn.Linear(width, classes)
        initialise(self, zero_bias=False)

    def forward(self, x):
        x = F.max_pool2d(self.norm(self.stem(x)).relu(), 3, 2, 1)
        return self.head(self.body(x).mean((2, 3)))
