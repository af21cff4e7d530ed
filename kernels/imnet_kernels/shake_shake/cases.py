"""shake_shake's cases: stages of the 26 2x96d network, and odd shapes."""

from __future__ import annotations

import torch

from ..family import Call, Case, Family
from . import reference, shake_backward_op, shake_shake

CASES = (
    Case.of("stage1", (32, 96, 28, 28), real=True, channels_last=True),
    Case.of("planar", (5, 6, 7, 9)),
    Case.of("per_batch", (3, 32, 8, 8), level="batch", channels_last=True),
    Case.of("one_image", (1, 3, 5, 7), channels_last=True),
    Case.of("mixed_layouts", (2, 8, 6, 6), channels_last=True, mixed=True),
    Case.of("empty_batch", (0, 4, 3, 3)),
    Case.of("stage1 256", (256, 96, 28, 28), gpu=True, channels_last=True),
    Case.of("stage3 256", (256, 384, 7, 7), gpu=True, channels_last=True),
)


def make(case: Case, dtype: torch.dtype, device: str) -> Call:
    """Random branches and residual, which get a gradient, and random fp32 coefficients."""
    o, generator = case.options, torch.Generator().manual_seed(3)
    layout = torch.channels_last if o.get("channels_last") else torch.contiguous_format
    tensors = [torch.randn(o["shape"], generator=generator).to(dtype) for _ in range(3)]
    tensors = [t.to(device).contiguous(memory_format=layout).requires_grad_() for t in tensors]
    if o.get("mixed"):
        tensors[1] = tensors[1].detach().contiguous(memory_format=torch.contiguous_format).requires_grad_()
    count = 1 if o.get("level") == "batch" else o["shape"][0]
    alpha, beta = (torch.rand(count, generator=generator).to(device) for _ in range(2))
    return Call(run=lambda: shake_shake(*tensors, alpha, beta), leaves=tuple(tensors))  # pyright: ignore[reportCallIssue]


def bytes_moved(case: Case, dtype: torch.dtype) -> int:
    """The least traffic of the forward pass: three tensors are read, one is written."""
    batch, channels, height, width = case.options["shape"]
    return 4 * batch * channels * height * width * dtype.itemsize


def make_backward(case: Case, dtype: torch.dtype, device: str, name: str) -> Call:
    """The backward pass alone on the tier ``name``: two products of the incoming gradient."""
    grad = make(case, dtype, device).leaves[0].detach()
    beta = torch.rand(grad.shape[0], generator=torch.Generator().manual_seed(9)).to(device)
    backward = reference.combine_backward if name == "reference" else shake_backward_op
    return Call(run=lambda: backward(grad, beta))


def backward_bytes(case: Case, dtype: torch.dtype) -> int:
    """The least traffic of the backward pass: one tensor is read, two are written."""
    return 3 * torch.Size(case.options["shape"]).numel() * dtype.itemsize


FAMILY = Family(
    name="shake_shake",
    cases=CASES,
    tolerance={torch.float32: 1e-6, torch.bfloat16: 1e-3, torch.float16: 1e-4},
    make=make,
    bytes_moved=bytes_moved,
    make_backward=make_backward,
    backward_bytes=backward_bytes,
)
