"""A stage of DenseNet-BC in training, as torch computes it (Huang et al. 2017, arXiv 1608.06993).

    x <- [x, conv3x3(relu(norm(conv1x1(relu(norm(x))))))]      for every layer

The norms use the batch's statistics; the convolutions' weights are cast to x's dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..batch_norm.reference import batch_norm

if TYPE_CHECKING:
    from . import Layer


def dense_stage(x: Tensor, layers: Sequence[Layer], momentum: float, eps: float) -> Tensor:
    """See imnet_kernels.dense_stage; the backward pass is torch's own."""
    for layer in layers:
        y = batch_norm(x, *layer.norm1, None, momentum, eps, True)
        y = batch_norm(F.conv2d(y, layer.conv1.to(x.dtype)), *layer.norm2, None, momentum, eps, True)
        x = torch.cat([x, F.conv2d(y, layer.conv2.to(x.dtype), padding=1)], 1)
    return x
