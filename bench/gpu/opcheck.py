"""torch.library.opcheck of every op, by tier: schema, fake tensors, autograd registration, AOT dispatch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from imnet_kernels import tier
from imnet_kernels.augment.op import augment_op
from imnet_kernels.family import families
from imnet_kernels.sgd_ema.op import sgd_ema_op
from imnet_kernels.shake_shake.op import shake_backward_op, shake_bn_backward_op, shake_bn_op, shake_op
from imnet_kernels.spectral.op import spectral_op

from .rows import Setting, Task

USUAL = ("test_schema", "test_autograd_registration", "test_faketensor")
AOT = "test_aot_dispatch_dynamic"


def calls(device: str) -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """{op: (op, arguments)} on small random tensors; the first word of a name is the family's."""
    generator = torch.Generator().manual_seed(5)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device)

    images = [random(2, 4, 6, 6).to(memory_format=torch.channels_last) for _ in range(3)]
    leaves = [t.clone().requires_grad_() for t in images]
    vectors = [random(4).abs() + 0.5 for _ in range(4)]
    alpha, beta = torch.rand(2, 2, generator=generator).to(device).unbind()
    store = torch.randint(0, 256, (3, 8, 8, 3), dtype=torch.uint8, generator=generator).to(device)
    ids = torch.tensor([2, 0, 1, 1], device=device)
    lists = [[random(5), random(2, 3)] for _ in range(4)]
    crop = (5, 1, 2, "zero", "random", 0.5, 3, False, torch.bfloat16)
    return {
        "augment": (augment_op, (store, ids, ids, vectors[0][:3], vectors[1][:3], *crop)),
        "spectral": (spectral_op, (images[0], 2, [0, 3], None, None, torch.float32)),
        "shake_shake": (shake_op, (*leaves, alpha, beta)),
        "shake_shake backward": (shake_backward_op, (images[0], beta)),
        "shake_shake bn": (shake_bn_op, (*leaves, *(v.clone().requires_grad_() for v in vectors), alpha, beta)),
        "shake_shake bn backward": (shake_bn_backward_op, (*images, vectors[0], vectors[1], beta)),
        "sgd_ema": (sgd_ema_op, (*lists, torch.tensor(0.1, device=device), None, None, 0.9, 1e-4, 0.99, True)),
    }


def check(name: str, tier_name: str, device: str) -> dict[str, Any]:
    """opcheck one op with one tier behind it; raises torch's OpCheckError."""
    op, arguments = calls(device)[name]
    # AOT dispatch wants the forward's derivative, which shake-shake's backward is not; its formula is tested elsewhere.
    utils = USUAL if name.startswith("shake") else (*USUAL, AOT)
    with tier.using(tier_name):
        torch.library.opcheck(op, arguments, test_utils=utils)
    return {"opcheck": ", ".join(u.removeprefix("test_") for u in utils)}


def tasks(setting: Setting) -> Iterator[Task]:
    """One row an op and tier."""
    for family in families():
        for tier_name in family.tiers(setting.device):
            for name in calls("cpu"):
                if name.split(" ")[0] == family.name:
                    yield f"{name} opcheck", tier_name, lambda n=name, t=tier_name: check(n, t, setting.device)
