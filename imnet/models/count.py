"""Parameters and FLOPs of a network, without running it: everything happens on the meta device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode


def num_params(network: nn.Module) -> int:
    """Number of parameters; shared ones once, buffers not."""
    return sum(p.numel() for p in network.parameters())


def flops(network: nn.Module, input_shape: Sequence[int]) -> int:
    """Forward FLOPs of one image of ``input_shape`` (C, H, W): 2 per multiply-add, convolutions and matrix products.

    Works for networks on any device and leaves them as they are. A training step costs about three times as much.
    """
    state = [*network.named_parameters(), *network.named_buffers()]
    on_meta = {name: torch.empty_like(tensor, device="meta") for name, tensor in state}
    # Two images: BatchNorm in training mode refuses one image on a 1 x 1 map.
    images = torch.empty(2, *input_shape, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        functional_call(network, on_meta, (images,))
    return counter.get_total_flops() // 2
