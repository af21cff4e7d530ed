"""A step also returns loss, right answers and whether all is finite, and needs only few kernel launches for that."""

import math

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from .conftest import TINY
from .test_step import batch, make_step


class Launches(TorchDispatchMode):
    """Counts the operators that compute something: each launches at least one kernel on a GPU."""

    def __init__(self):
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        views = [r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns]
        silent = str(func).startswith(("aten.empty", "aten.promote_types", "profiler."))
        self.number += not silent and not any(views)
        return func(*args, **(kwargs or {}))


def test_it_takes_few_launches():
    step, (images, labels) = make_step(TINY), batch(1)
    step([(images, labels)], 8, 0, 0.1)
    with Launches() as whole:
        step([(images, labels)], 8, 1, 0.1)
    with Launches() as alone:
        loss = F.cross_entropy(step.net(images), labels, reduction="sum", label_smoothing=TINY.label_smoothing)
        (loss * 0.5).backward()
        torch.nn.utils.get_total_norm([p.grad for p in step.params], foreach=True)
        step.optimizer.step()
    assert alone.number > 60
    # One for zeros, three for the right answers, one for their sum, one for the loss, three for what is not finite.
    assert whole.number - alone.number <= 9


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("loss", [0.0, 3e38, math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("norm", [0.0, 3e38, math.inf, math.nan])
def test_nothing_that_is_not_finite_passes(norm, loss, precision):
    """In fp16 the scaler handles overflowing gradients, as long as it has a scale to lower."""
    step, bad = make_step(TINY, precision), torch.full((), 7.0)
    step.scaler.scale(torch.zeros(()))
    step._judge(torch.tensor(norm), torch.tensor(loss), bad)
    assert float(bad) == (not math.isfinite(loss) or (precision == "fp32" and not math.isfinite(norm)))
