"""Checks, before the first step, that the parts of a recipe fit each other and the ranks that train it.

Networks may be on the meta device, so that a dry run refuses whatever the run would refuse.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from imnet_kernels import tier
from torch import nn

from imnet import models, optim
from imnet.data import DataSet
from imnet.data.order import Order, micro_batches, shard
from imnet.device import Place
from imnet.environment import version
from imnet.errors import DataError, UsageError
from imnet.half_weights import HalfWeights
from imnet.launch import World
from imnet.models.count import activation_bytes, num_params
from imnet.recipe import AdamCPR, AdamW, Lamb, Recipe
from imnet.recipe_json import PROVENANCE, to_dict
from imnet.resources import free_memory_bytes
from imnet.run_options import OF_ONE_MACHINE, RunOptions
from imnet.step import divided


@dataclass(frozen=True)
class Memory:
    """Bytes that a rank needs: ``fixed`` for weights, gradients, optimiser state and EMA in fp32, ``cast`` for copies
    in half precision, and ``per_image`` for what autograd keeps of each of the ``images`` that it sees at once."""

    fixed: int
    cast: int
    images: int
    per_image: int

    @property
    def total(self) -> int:
        return self.fixed + self.cast + self.images * self.per_image


def memory(
    recipe: Recipe, options: RunOptions, images: int, precision: str, ranks: int, networks: int = 1
) -> Memory:  # fmt: skip
    """Estimate the memory of one of the ``ranks`` of a network, which sees ``images`` at once. Nothing is computed.

    Of several ``networks`` of a rank, those of bands, one at a time has activations; captured steps need more. What the
    recipe freezes has neither gradients nor optimiser state, and keeps no activations.
    A CPU took 9 to 27 % more (WRN-28-10, DenseNet-BC, Shake-Shake, a ViT; n = 1 each, an Intel Xeon, 2026-11-28).
    """
    averages = 2 if isinstance(recipe.optim, AdamW | AdamCPR | Lamb) else int(getattr(recipe.optim, "momentum", 1) > 0)
    with torch.device("meta"):
        net = models.build(recipe.model, recipe.num_outputs, recipe.data.channels, **recipe.model_options)
    divided(net, recipe, Place(torch.device("cpu"), precision, ""), World())
    trained = sum(p.numel() for p in net.parameters() if p.requires_grad)
    fixed = num_params(net) * (1 + (recipe.ema_decay is not None)) + trained * (1 + averages)
    halves = precision != "fp32" and ranks == 1 and not options.compile
    # Half-precision copies, if autocast does not cast: two bytes for each weight and two for its gradient.
    cast = sum(copy.numel() for copy in HalfWeights(net, torch.bfloat16).copies.values()) * 4 if halves else 0
    shape = (recipe.data.channels, recipe.input_px, recipe.input_px)
    per_image = activation_bytes(net, shape) // (1 if precision == "fp32" else 2)
    return Memory(fixed * 4 * networks, cast * networks, images, per_image)


def beyond(needed: Memory, ranks: int, already: int = 0) -> list[str]:
    """Words for a host whose free memory is less than ``ranks`` need, if it is; ``already`` bytes a rank are in use.
    The system would kill the run without saying why."""
    free, fixed = free_memory_bytes(), needed.fixed + needed.cast - already
    if ranks * (needed.total - already) <= free:
        return []
    fewer = (1 << n for n in reversed(range(needed.images.bit_length())))
    most = next((n for n in fewer if n < needed.images and ranks * (fixed + n * needed.per_image) <= free), None)
    sizes = f"about {ranks * needed.total / 2**30:.1f} GiB needed, {free / 2**30:.1f} GiB free"
    smaller = "" if most is None else f"; --micro-batch-images {most} may fit"
    return [f"{sizes}: the system may kill the run{smaller}"]


def check_fills(order: Order) -> None:
    """Raise UsageError if there are too few training images for a single batch."""
    if order.steps_per_epoch == 0:
        what = f"got batch_images = {order.batch_images} for {order.num_images} training images"
        raise UsageError(what, hint="make --batch-size smaller, or set --no-data.drop_last")


def settings(recipe: Recipe, options: RunOptions, place: Place) -> dict[str, Any]:
    """The settings that must be the same on all ranks, by their names on the command line. A launcher starts the same
    command on every machine, but a machine may have another configuration file, another version or no bf16."""
    alike = {name: value for name, value in to_dict(options).items() if name not in OF_ONE_MACHINE}
    whole = to_dict(recipe) | alike | {"precision": place.precision, "imnet": version("imnet")}
    for provenance in PROVENANCE:
        whole.pop(provenance)
    return dict(_flat(whole, ""))


def _flat(values: Mapping[str, Any], before: str) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


def check_alike(found: DataSet, world: World) -> None:
    """Raise DataError on every rank if they have loaded different data, as when each machine has a copy of its own."""
    told = world.gather(f"{len(found.train):,} training images ({found.fingerprint[:12]})")
    other = next((rank for rank, text in enumerate(told) if text != told[0]), None)
    if other is not None:
        what = f"the ranks have different data: rank {other} has {told[other]}, rank 0 has {told[0]}"
        raise DataError(what, hint="start all ranks on the same data")


def check_forward(recipe: Recipe) -> None:
    """Raise UsageError if an external network (timm, torchvision) accepts an option but then fails on images, or does
    not return logits. Nothing is computed. imnet's own networks refuse wrong options when they are built."""
    if ":" not in recipe.model or not recipe.model_options:
        return
    from imnet.models import external

    with torch.device("meta"), models.seeing(recipe.model, recipe.input_px):
        net = models.build(recipe.model, recipe.num_outputs, recipe.data.channels, **recipe.model_options)
        images = torch.empty(2, recipe.data.channels, recipe.input_px, recipe.input_px)
        external.check_logits(recipe.model, net, images, recipe.num_outputs, recipe.model_options)


def check_parts(recipe: Recipe, net: nn.Module, num_ranks: int) -> None:
    """Raise UsageError if ``net`` lacks the parts that the recipe freezes, trains at another rate, or synchronises over
    the ranks. ``net`` is on the meta device, and is changed here."""
    divided(net, recipe, Place(torch.device("cpu"), "fp32", ""), World(size=num_ranks))
    optim.param_groups(net, recipe.optim, recipe.body_lr)


def check_passes(recipe: Recipe, net: nn.Module, order: Order, num_ranks: int, most: int | None) -> None:
    """Raise UsageError if --sync-bn would make a rank wait in a pass that another rank does not run, or if a pass has
    one image and some BatchNorm sees only one value per channel of it. ``most`` is the size of a micro-batch."""
    held = _shards(order, num_ranks)
    if recipe.comm.sync_bn:
        _check_equal(held, most)
    if not (recipe.comm.sync_bn and num_ranks > 1):
        _check_statistics(recipe, net, held, most)


def _shards(order: Order, num_ranks: int) -> list[set[int]]:
    """The numbers of images that ranks get of a full batch, and of an incomplete last one if it is trained on."""
    rest = 0 if order.drop_last else order.num_images % order.batch_images
    return [
        {len(shard(torch.arange(n), rank, num_ranks)) for rank in range(num_ranks)}
        for n in filter(None, (order.batch_images, rest))
    ]


def _check_equal(held: list[set[int]], most: int | None) -> None:
    def agree(most: int | None) -> bool:
        passes = [{len(micro_batches(torch.arange(n), most)) for n in shards} for shards in held]
        return all(len(counts) == 1 for counts in passes)

    if not agree(most):
        fits = next(n for n in itertools.count(most or 1) if agree(n))
        what = f"got --sync-bn with micro-batches of {most} images, of which ranks would make different numbers"
        raise UsageError(what, hint=f"take --micro-batch-images {fits}")


def _check_statistics(recipe: Recipe, net: nn.Module, held: list[set[int]], most: int | None) -> None:
    single = [any(len(p) == 1 for n in shards for p in micro_batches(torch.arange(n), most)) for shards in held]
    if not any(single):
        return
    kept = {name: buffer.clone() for name, buffer in net.named_buffers()}
    device = next(net.parameters()).device
    image = torch.zeros(1, recipe.data.channels, recipe.input_px, recipe.input_px, device=device)
    try:
        with torch.no_grad(), tier.using("reference"):
            torch.func.functional_call(net, kept, (image,))
    except ValueError as error:
        what = f"got {'batches' if single[0] else 'a last batch'} of which a pass has one image: {error}"
        fewer = "fewer ranks, or a larger --micro-batch-images"
        hint = fewer if single[0] else f"set --data.drop_last, or take another --batch-size, {fewer}"
        raise UsageError(what, hint=hint) from error
