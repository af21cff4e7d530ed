"""Parameters and FLOPs of a network, without running it: everything happens on the meta device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode


def num_params(network: nn.Module) -> int:
    """Number of parameters; shared ones once, buffers not."""
    return sum(p.numel() for p in network.parameters())


def flops(network: nn.Module, input_shape: Sequence[int], *, backward: bool = False) -> int:
    """FLOPs of one image of ``input_shape`` (C, H, W): 2 per multiply-add, convolutions and matrix products.

    Of the forward pass, or with ``backward`` of both passes: three times as many, less that of the images,
    which nobody asks for. Works for networks on any device and leaves them as they are.
    """
    state = {name: torch.empty_like(p, device="meta", requires_grad=True) for name, p in network.named_parameters()}
    state |= {name: torch.empty_like(b, device="meta") for name, b in network.named_buffers()}
    # Two images: BatchNorm in training mode refuses one image on a 1 x 1 map.
    images = torch.empty(2, *input_shape, device="meta")
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(backward):
        logits = functional_call(network, state, (images,))
        if backward:
            logits.sum().backward()
    return counter.get_total_flops() // 2


def activation_bytes(network: nn.Module, input_shape: Sequence[int]) -> int:
    """fp32 bytes that an image of ``input_shape`` (C, H, W) leaves for the backward pass; the network is a meta one."""
    seen: dict[int, Tensor] = {}
    params = {id(p) for p in network.parameters()}

    def note(tensor: Tensor) -> Tensor:
        if id(tensor) not in params and tensor.dim() == 4:
            seen[id(tensor)] = tensor  # kept alive, so that an id means one tensor
        return tensor

    images = torch.empty(2, *input_shape, device="meta")
    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        network.train()(images)
    return sum(t.numel() * t.element_size() for t in seen.values()) // 2
