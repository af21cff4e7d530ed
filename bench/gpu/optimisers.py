"""Peers of sgd_ema_: torch's own SGD and an exponential moving average, over the same parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch

from .rows import Setting, Task

if TYPE_CHECKING:
    from .kernels import Job


def step_of(shapes: tuple[tuple[int, ...], ...], form: str, device: str) -> Callable[[], None]:
    """One optimiser step with average over fresh parameters; ``form`` is a flag of torch.optim.SGD."""
    params = [torch.randn(shape, device=device) for shape in shapes]
    for p in params:
        p.grad = torch.randn_like(p)
    averages = [p.clone() for p in params]
    optimiser = torch.optim.SGD(params, 0.1, 0.9, weight_decay=5e-4, nesterov=True, **{form: True})

    def run() -> None:
        with torch.no_grad():
            optimiser.step()
            torch._foreach_lerp_(averages, params, 1e-3)

    return run


def tasks(job: Job, setting: Setting) -> Iterator[Task]:
    """foreach and fused, each with the average as one more foreach pass."""
    from .kernels import measured

    for form in ("foreach", "fused"):

        def work(form: str = form) -> dict[str, Any]:
            shapes = job.case.options["shapes"]
            moved = 28 * sum(torch.Size(s).numel() for s in shapes)
            return measured([step_of(shapes, form, setting.device)], moved, setting)

        yield job.name, f"torch {form} + EMA", work
