"""Networks stay in channels_last from the first convolution to the head, forward and backward: otherwise every layer
would copy its maps into another layout."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from imnet.models import build
from imnet.models.densenet import DenseNetBC
from imnet.models.dpn import DualPathNet
from imnet.models.shake_shake import ShakeShake26
from imnet.models.wrn import LasagneWideResNet

OURS = {
    "wrn": (lambda: build("wrn10_2", 5), 8),
    "wrn_lasagne": (lambda: LasagneWideResNet(12, 1, 5), 8),
    "densenet": (lambda: DenseNetBC(16, 4, 5), 8),
    "dpn": (lambda: DualPathNet((8, 16, 32), (2, 4, 8), 3, 5), 8),
    "shake_shake": (lambda: ShakeShake26(4, 4, 5), 8),
    "shake_shake_stem16": (lambda: ShakeShake26(4, 16, 5), 8),
    "speednet": (lambda: build("speednet", 5), 28),
    "speednet_pool_stem": (lambda: build("speednet", 5, last_residuals=1, pool_stem=True), 28),
}
# Network -> (pixels, how many maps torchvision's own code writes in NCHW). ResNet: the gradient of the global pool,
# (B, 512, H, W). AlexNet and VGG: the map that the classifier flattens, and its gradient, if larger than one pixel.
THEIRS = {
    "resnet18": (64, 1),
    "resnet18_64": (16, 1),
    "resnet34_56": (16, 1),
    "resnet50": (64, 1),
    "alexnet_56": (56, 0),
    "alexnet_112": (112, 2),
    "vgg16_bn_56": (56, 0),
}


class OtherLayouts(TorchDispatchMode):
    """Collects the operations that write a map (B, C > 1, H * W > 1) in memory that is not channels_last."""

    def __init__(self):
        super().__init__()
        self.num_maps, self.found = 0, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if not isinstance(tensor, torch.Tensor) or tensor.dim() != 4 or tensor.shape[1] == 1:
                continue
            if tensor.shape[2:].numel() == 1 or tensor._is_view() or torch._debug_has_internal_overlap(tensor):
                continue
            self.num_maps += 1
            if not tensor.is_contiguous(memory_format=torch.channels_last):
                self.found.append(f"{function} {tuple(tensor.shape)} {tensor.stride()}")
        return out


def other_layouts(network, px, channels, dtype):
    network = network.to(memory_format=torch.channels_last).train()
    images = torch.randn(2, channels, px, px).to(memory_format=torch.channels_last)
    with OtherLayouts() as layouts:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = network(images).float().square().sum()
        loss.backward()
    assert layouts.num_maps > 20
    for name, parameter in network.named_parameters():
        if parameter.dim() == 4:
            assert parameter.grad.is_contiguous(memory_format=torch.channels_last), name
    return layouts.found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", OURS)
def test_ours_write_no_other_layout(name, dtype):
    make, px = OURS[name]
    assert other_layouts(make(), px, 3, dtype) == []


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n == "vgg16_bn_56" else n for n in THEIRS])
def test_theirs_write_no_more_than_known(name):
    px, allowed = THEIRS[name]
    found = other_layouts(build(name, 5), px, 3, torch.float32)
    assert len(found) == allowed, found


@pytest.mark.parametrize("name", ["davit_tiny", "davit_tiny_custom_conv"])
def test_convolutions_of_davit_read_and_write_channels_last(name):
    """Only convolutions are checked: DaViT itself works on (B, H, W, C) maps between them and copies its windows."""
    network = build(name, 5).to(memory_format=torch.channels_last)
    seen = []

    def note(module, inputs, output):
        seen.extend(m.is_contiguous(memory_format=torch.channels_last) for m in (inputs[0], output))

    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(note)
    network(torch.randn(2, 3, 32, 32).to(memory_format=torch.channels_last))
    assert len(seen) > 40
    assert all(seen)


def test_the_counter_sees_a_hidden_copy():
    """Negative control: a single NCHW copy inside a network must be found."""

    class Hidden(torch.nn.Module):
        def forward(self, x):
            return x.contiguous()

    network = build("wrn10_2", 5)
    network.blocks.insert(1, Hidden())
    assert any("clone" in written for written in other_layouts(network, 8, 3, torch.float32))
