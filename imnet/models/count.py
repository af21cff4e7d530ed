"""Parameters, FLOPs and memory of a network, mostly counted on the meta device, i.e. without computing anything."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


def num_params(network: nn.Module) -> int:
    """Number of parameters. Shared ones count once, buffers do not count."""
    return sum(p.numel() for p in network.parameters())


class _NormsAreShapes(TorchFunctionMode):
    """Batch norms on the meta device only give their output's shape and keep their input.

    torch would take a norm apart into some thirty operations in Python, more than half of the time of counting a
    network, although none of them is counted and what they keep besides does not depend on the number of images.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.batch_norm or not args[0].is_meta:
            return func(*args, **(kwargs or {}))
        named = dict(zip(("weight", "bias"), args[3:5], strict=False)) | (kwargs or {})
        return _NormOfShapes.apply(args[0], named.get("weight"), named.get("bias"))


class _NormOfShapes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *trained: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, *trained)
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> tuple[Tensor | None, ...]:
        return tuple(None if kept is None else torch.empty_like(kept) for kept in ctx.saved_tensors)


def flops(network: nn.Module, input_shape: Sequence[int], *, backward: bool = False) -> int:
    """FLOPs of one image of ``input_shape`` (C, H, W): 2 per multiply-add, convolutions and matrix products.

    Counts the forward pass, or with ``backward`` both passes: three times as many, less the gradient of the images,
    which training does not compute. Works for networks on any device and does not change them.
    """
    return passes(network, input_shape, backward=backward)[-1]


def passes(network: nn.Module, input_shape: Sequence[int], *, backward: bool = True) -> tuple[int, int]:
    """(FLOPs of the forward pass, of it and the backward pass) per image, as ``flops`` counts them; without
    ``backward`` the forward pass twice."""
    # Imported here, because these imports take a tenth of a second, which plain training need not wait for.
    from torch.func import functional_call
    from torch.utils.flop_counter import FlopCounterMode

    state = {name: torch.empty_like(p, device="meta", requires_grad=True) for name, p in network.named_parameters()}
    state |= {name: torch.empty_like(b, device="meta") for name, b in network.named_buffers()}
    # Two images: BatchNorm in training mode refuses one image on a 1 x 1 map.
    images = torch.empty(2, *input_shape, device="meta")
    mended: Any = {torch.ops.aten.convolution_backward: convolution_backward_flops}
    with FlopCounterMode(display=False, custom_mapping=mended) as counter, torch.set_grad_enabled(backward):
        with _NormsAreShapes():
            logits = functional_call(network, state, (images,))
        forward = counter.get_total_flops() // 2
        if backward:
            logits.sum().backward()
    return forward, counter.get_total_flops() // 2


def convolution_backward_flops(
    gradient: Sequence[int],
    images: Sequence[int],
    weight: Sequence[int],
    _bias: Any,
    _stride: Any,
    _padding: Any,
    _dilation: Any,
    transposed: bool,
    _output_padding: Any,
    _groups: int,
    wanted: Sequence[bool],
    **_: Any,
) -> int:
    """FLOPs of a convolution's backward pass, from the shapes: as many as the forward pass per gradient ``wanted``.

    torch's own formula counts the weight gradient of a grouped convolution as that of a dense one. ``weight`` is
    (C_out, C_in / groups, ...), and each of its elements takes part once in every output position.
    """
    places = math.prod((images if transposed else gradient)[2:])
    return 2 * images[0] * places * math.prod(weight) * sum(map(bool, wanted[:2]))


@torch.no_grad()
def sizes(network: nn.Module, input_shape: Sequence[int]) -> tuple[int, int]:
    """(forward FLOPs, elements that convolutions, linear layers and norms write) per image, on the network's device.

    Hooks on the layers count while two images are run in evaluation mode. This avoids importing torch's compiler, which
    the meta device and ``flops`` would do. Matrix products outside a layer (attention) are not counted.
    """
    found = [0, 0]

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        found[1] += output.numel()
        if isinstance(module, nn.Conv2d | nn.Linear):
            found[0] += 2 * output.numel() * module.weight[0].numel()

    norms = (nn.modules.batchnorm._NormBase, nn.LayerNorm)
    layers = [m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear, *norms))]
    hooks = [layer.register_forward_hook(note) for layer in layers]
    training = network.training
    try:
        network.eval()(torch.zeros(2, *input_shape, device=next(network.parameters()).device))
    finally:
        network.train(training)
        for hook in hooks:
            hook.remove()
    return found[0] // 2, found[1] // 2


def activation_bytes(network: nn.Module, input_shape: Sequence[int]) -> int:
    """fp32 bytes that autograd keeps per image of ``input_shape`` (C, H, W) for the backward pass of a meta network."""
    network.train()
    # The difference of two batch sizes leaves out weights and statistics, which autograd keeps in both cases.
    return (_saved_bytes(network, 4, input_shape) - _saved_bytes(network, 2, input_shape)) // 2


def _saved_bytes(network: nn.Module, num_images: int, input_shape: Sequence[int]) -> int:
    """Bytes that autograd keeps in a forward pass; memory that several operators keep counts once."""
    seen: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        seen[tensor.untyped_storage()._cdata] = tensor  # kept alive, so that an address means one storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t), _NormsAreShapes():
        network(torch.empty(num_images, *input_shape, device="meta"))
    return sum(tensor.untyped_storage().nbytes() for tensor in seen.values())
