"""The definition of the end of a Shake-Shake block (Gastaldi 2017): the references of its parts in sequence."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..batch_norm import Norm
from ..batch_norm.reference import batch_norm
from ..shake_shake.reference import Combine


def shake_batch_norm(
    x1: Tensor,
    x2: Tensor,
    residual: Tensor,
    norm1: Norm,
    norm2: Norm,
    alpha: Tensor,
    beta: Tensor,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """See imnet_kernels.shake_batch_norm; alpha, beta (B,) or (1,) fp32."""
    y1, y2 = (batch_norm(x, *norm, None, momentum, eps, False) for x, norm in ((x1, norm1), (x2, norm2)))
    y = Combine.apply(y1, y2, residual, alpha, beta)
    activated = F.relu(y)  # pyright: ignore[reportArgumentType]
    return y, activated, activated  # pyright: ignore[reportReturnType]
