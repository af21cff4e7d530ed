"""Batch norm in training, then ReLU, as torch computes them (Ioffe and Szegedy 2015, arXiv 1502.03167).

    y = relu((x - mean) / sqrt(var + eps) * weight + bias (+ residual))

mean and var are the batch's, per channel; var is the biased variance, and running_var tracks the unbiased one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def batch_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    residual: Tensor | None,
    momentum: float,
    eps: float,
    relu: bool,
) -> Tensor:
    """See imnet_kernels.batch_norm; the backward pass is torch's own."""
    y = F.batch_norm(x, running_mean, running_var, weight, bias, True, momentum, eps)
    if residual is not None:
        y += residual
    # In place, since no backward pass reads the norm's output.
    return F.relu(y, inplace=True) if relu else y


def backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    mean: Tensor,
    inverse: Tensor,
    y: Tensor | None,
    grad_sum: Tensor | None = None,
) -> None:
    """The kernels that autograd runs for batch_norm, to be timed: ReLU's backward if its result ``y`` is given, torch's
    batch norm backward, then the addition of ``grad_sum``, the gradient of the sum's other readers, if given."""
    passed = grad if y is None else torch.ops.aten.threshold_backward(grad, y, 0)
    none = (None, None)
    found = torch.ops.aten.native_batch_norm_backward(passed, x, weight, *none, mean, inverse, True, 0.0, [True] * 3)
    if grad_sum is not None:
        torch.add(found[0], grad_sum)
