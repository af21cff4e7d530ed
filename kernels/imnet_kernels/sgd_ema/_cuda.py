"""sgd_ema_ through the CUDA library: one launch over a table of addresses."""

from __future__ import annotations

from .. import native
from . import reference
from ._host import fitting
from .reference import Lists, Step
from .table import on_device, tables

CHUNK = 4096
"""Elements a block takes of one tensor. Not tuned: no other size was timed on a GPU."""


def sgd_ema_(lists: Lists, step: Step) -> None:
    """See reference.sgd_ema_; other dtypes and layouts go there, all together."""
    if not all(fitting(lists)):
        reference.sgd_ema_(lists, step)
        return
    native.cuda().sgd_ema(
        *tables(lists, CHUNK),
        *on_device(step, lists.params[0].device),
        chunk=CHUNK,
        has_momenta=bool(lists.momenta),
        has_emas=bool(lists.emas),
        momentum=step.momentum,
        weight_decay=step.weight_decay,
        ema_weight=1.0 - step.ema_decay,
        nesterov=step.nesterov,
    )
