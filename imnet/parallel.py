"""How ranks agree on a gradient: DistributedDataParallel with the recipe's communication options."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from imnet.device import Place
from imnet.launch import World
from imnet.recipe import Comm

# torch 2.15 renamed it.
_NEW_NAME = "forward_sync_buffers" in inspect.signature(DistributedDataParallel.__init__).parameters
_BUFFERS = "forward_sync_buffers" if _NEW_NAME else "broadcast_buffers"


def parallel(net: nn.Module, comm: Comm, place: Place, world: World) -> nn.Module:
    """``net`` itself on one rank, else wrapped so that gradients are averaged over the ranks as ``comm`` says."""
    if world.size == 1:
        return net
    options: dict[str, Any] = {
        "device_ids": [place.device.index] if place.device.type == "cuda" else None,
        # As a list: a single size would take torch's small first bucket away.
        "bucket_cap_mb_list": [min(comm.first_bucket_mb, comm.bucket_mb), comm.bucket_mb],
        "gradient_as_bucket_view": comm.gradient_as_bucket_view,
        "static_graph": comm.static_graph,
        _BUFFERS: comm.broadcast_buffers,
    }
    wrapped = DistributedDataParallel(net, **options)
    if comm.gradient_dtype == "bf16":
        wrapped.register_comm_hook(None, bf16_compress_hook)
    return wrapped
