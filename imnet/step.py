"""The training step: forward, backward, update. No host sync, no logging.

The learning rate is a pure function of the step; randomness inside networks (dropout, Shake-Shake) is reseeded from
(seed, step, rank). So a resumed run draws the same numbers as an uninterrupted one, and no generator state is saved.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from imnet import optim as optimisers
from imnet.capture import UNCAPTURED, CapturedStep, NotCapturableError, on_stream
from imnet.device import Place
from imnet.errors import UsageError
from imnet.half_weights import HalfWeights
from imnet.launch import World
from imnet.models.head import freeze
from imnet.parallel import parallel, synchronise_norms
from imnet.recipe import Recipe

Batch = tuple[Tensor, Tensor]


class TrainStep:
    """The network, its optimiser and everything else that a step changes; calling it runs one optimiser step."""

    def __init__(
        self, net: nn.Module, recipe: Recipe, place: Place, world: World, *, compile: bool, graphs: bool, backend: str
    ):
        self.net, self.recipe, self.place, self.world = net, recipe, place, world
        self.frozen = divided(net, recipe, place, world)
        """Frozen modules: they stay in evaluation mode."""
        self.net.eval()
        self.training_mode()
        self.optimizer = optimisers.build(net, recipe.optim, backend, graphs=graphs, body_lr=recipe.body_lr)
        self.scaler = torch.amp.GradScaler(place.device.type, enabled=place.precision == "fp16")
        self.ema: optimisers.Ema | None = None
        stream = torch.cuda.Stream(place.device) if graphs and world.reduces else None
        with on_stream(stream):  # what it sends are the weights, which the current stream writes before and after
            self.parallel = parallel(net, recipe.comm, place, world)
        self.forward: Any = torch.compile(self.parallel) if compile else self.parallel
        self.params = [p for p in net.parameters() if p.requires_grad]
        by_autocast = place.precision == "fp32" or compile or world.reduces
        self.half_weights = HalfWeights(net, None if by_autocast else place.dtype)
        self.graph = CapturedStep(self, stream) if graphs else None
        self.compiled = compile
        self.told = torch.zeros(3, device=place.device)
        """(bad, loss, right) of the last step, on the device, for this rank's images: 1 if loss or gradient was not
        finite and nothing was changed, the sum of the losses, and the number of correct predictions (NaN for mixed
        labels). They share one tensor so that one launch clears, clones or adds all three. ``bad`` comes first because
        fused optimisers read it at the tensor's aligned start."""
        self.class_weights: Tensor | None = None
        """(outputs,) fp32 on the device: the weight of each class in the loss."""
        self.warmed_shapes: set[torch.Size] = set()
        """Image shapes that ``warm_up`` saw. Only these run compiled: an odd last batch would make the compiler start
        again in the middle of a run, so it runs uncompiled."""

    def add_ema(self, averaged: nn.Module, decay: float) -> None:
        if self.graph is not None and self.recipe.ema_warmup:
            raise NotCapturableError("--ema-warmup has another decay every step, a graph one", hint=UNCAPTURED)
        self.ema = optimisers.Ema(self.net, averaged, decay, self.recipe.ema_warmup)
        self.ema.merge(self.optimizer)

    def __call__(self, batches: list[Batch], num_images: int, step: int, lr: float) -> tuple[Tensor, Tensor]:
        """One optimiser step over this rank's micro-batches of a global batch of ``num_images``.

        Returns two parts of ``told``, detached and on the device: the sum of this rank's losses, and 1.0 if loss or
        gradient is not finite. In that case weights and optimiser are unchanged.
        """
        self.training_mode()
        optimisers.set_lr(self.optimizer, lr)
        self.reseed(step)
        if self.ema is not None:
            self.ema.at(step)
        if self.graph is not None and self.graph.fits(batches, num_images):
            return self.graph(batches, num_images)
        return self.compute(batches, num_images)

    def training_mode(self) -> None:
        """Switch dropout and batch statistics on, except in frozen modules.

        Every step calls this, and setting the mode of DenseNet's 257 modules takes half a millisecond. So nothing is
        done if the network is in training mode already.
        """
        if self.net.training:
            return
        self.net.train()
        for module in self.frozen:
            module.training = False

    def reseed(self, step: int) -> None:
        """Seed the generators that the network draws from in optimiser step ``step``."""
        seed = _mix(self.recipe.seed, step, self.world.rank)
        # Only the generators that this rank uses: torch.manual_seed visits every kind of device, which takes 0.1 ms.
        torch.default_generator.manual_seed(seed)
        if self.place.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def compute(self, batches: list[Batch], num_images: int) -> tuple[Tensor, Tensor]:
        """The arithmetic of a step; what a CUDA graph captures."""
        self.told = torch.zeros(3, device=self.place.device)
        bad, total, _ = self.told
        weight = self._weight(batches, num_images)
        with self.half_weights.in_place():
            for i, (images, labels) in enumerate(batches):
                with self._syncing(i == len(batches) - 1):
                    loss = self._loss(images, labels)
                    self._scaled(loss, weight).backward()
                self.half_weights.hand_over()
                total += loss.detach()
        if self.class_weights is not None:
            total *= num_images / weight  # the sum over images of what torch calls the mean loss
        self._update(total, bad)
        return total, bad

    def _scaled(self, loss: Tensor, weight: float | Tensor) -> Tensor:
        """The value that ``backward`` starts from: ``loss`` divided by ``weight``, times the loss scale of fp16."""
        # DDP averages gradients over the ranks. Multiplying by their number and dividing by the weight of the global
        # batch gives the gradient of the global mean, whether or not the ranks hold equally many images.
        factor = self.world.size / weight
        if self.world.reduces or self.scaler.is_enabled():
            # A loss that is not finite can have finite gradients (a logit of minus infinity does). The other ranks and
            # the scaler of fp16 see only gradients and would take the step, so make these NaN as well.
            factor = factor + 0 * loss.detach()
        return self.scaler.scale(loss * factor)

    def _weight(self, batches: list[Batch], num_images: int) -> float | Tensor:
        """The divisor of the summed losses, as in torch's cross_entropy: the class weights of all labels over all
        ranks. Without class weights, or with mixed labels, it is the number of images."""
        if self.class_weights is None or batches[0][1].is_floating_point():
            return num_images
        weights = [self.class_weights[labels].sum() for _, labels in batches]
        return self.world.all_reduce(torch.stack(weights).sum())

    def _loss(self, images: Tensor, labels: Tensor) -> Tensor:
        warm = not self.warmed_shapes or images.shape in self.warmed_shapes
        return self.loss(self.forward if warm else self.parallel, images, labels)

    def loss(self, forward: Any, images: Tensor, labels: Tensor) -> Tensor:
        """Sum of the losses of ``forward(images)`` in the run's precision; adds the correct predictions to ``told``."""
        with self.place.autocast:
            logits = forward(images)
        self.told[2].add_(_num_right(logits.detach(), labels))
        options: Any = {"label_smoothing": self.recipe.label_smoothing, "reduction": "sum"}
        # At least fp32; the fp64 networks of the exactness tests stay in fp64.
        precise = torch.promote_types(logits.dtype, torch.float32)
        return F.cross_entropy(logits.to(precise), labels, self.class_weights, **options)

    def _syncing(self, wanted: bool):
        """Whether a pass in the block averages its gradients over the ranks; one pass of a step does."""
        if wanted or not isinstance(self.parallel, DistributedDataParallel):
            return contextlib.nullcontext()
        return self.parallel.no_sync()

    def _update(self, loss: Tensor, bad: Tensor) -> None:
        """Apply the gradients to the weights, or set ``bad`` to 1 if the gradients or ``loss`` are not finite."""
        self.scaler.unscale_(self.optimizer)
        grads = [p.grad for p in self.params if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads, foreach=True)
        self._judge(norm, loss, bad)
        if self.recipe.grad_clip is not None:
            torch.nn.utils.clip_grads_with_norm_(self.params, self.recipe.grad_clip, norm, foreach=True)
        if not self.scaler.is_enabled():
            # Fused optimisers read this on the device and change nothing if it is 1.
            self.optimizer.found_inf = bad  # pyright: ignore[reportAttributeAccessIssue]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=self.graph is None or not self.graph.keeps_gradients)
        if self.ema is not None:
            self.ema.update()

    def _judge(self, norm: Tensor, loss: Tensor, bad: Tensor) -> None:
        """Set ``bad`` to 1 if training should stop here. It should not for an overflow of the loss scale of fp16: the
        scaler skips that step and lowers the scale."""
        # x - x is NaN if x is not finite, and NaN differs from every number: a third of the launches of isfinite.
        gradient, sum_of_losses = norm - norm, loss - loss
        if self.scaler.is_enabled():
            scale = self.scaler._get_scale_async()
            assert scale is not None, "the scaler has scaled a loss"
            gradient = torch.where(scale <= 1.0, gradient, 0.0)
        torch.ne(gradient, sum_of_losses, out=bad)

    def warm_up(self, batches: list[Batch], num_images: int) -> None:
        """Compile, allocate and capture on a batch with dummy labels; weights, buffers and gradients are put back."""
        before = {k: v.clone() for k, v in self.net.state_dict().items()}
        self.training_mode()
        self.warmed_shapes = {images.shape for images, _ in batches}
        for i, (images, labels) in enumerate([batches[-1], *batches[:-1]]):
            # Only one pass all-reduces, since ranks may hold different numbers of micro-batches. It is the first,
            # because that is the pass from which DDP's static_graph learns which parameters are used.
            with self._syncing(i == 0):
                (self._loss(images, torch.zeros_like(labels)) / num_images).backward()
            self._check_used()
        self.optimizer.zero_grad(set_to_none=True)
        self.net.load_state_dict(before)
        if self.graph is not None:
            # No loss may be alive here: its autograd nodes belong to this stream and would end the capture.
            self.graph.capture(batches, num_images)

    def forget_gradients(self) -> None:
        """Drop the gradients that a step has left which failed halfway."""
        for tensor in (*self.params, *self.half_weights.copies.values()):
            tensor.grad = None

    def release(self) -> None:
        """Destroy the recorded graph, if there is one; to be called before the process group ends."""
        if self.graph is not None:
            self.graph.release()

    def _check_used(self) -> None:
        """UsageError if a parameter got no gradient, for which several ranks would wait for ever."""
        if self.world.size == 1 or self.recipe.comm.static_graph:
            return
        unused = [name for name, p in self.net.named_parameters() if p.requires_grad and p.grad is None]
        if unused:
            what = f"got {len(unused)} parameters without a gradient on several ranks, e.g. {unused[0]}"
            raise UsageError(what, hint="set --comm.static_graph true where every step leaves the same ones out")

    @property
    def buffers(self) -> list[Tensor]:
        """Running statistics and counters of the network and of its average (EMA).

        The forward pass changes them before a step is found not to be finite and is skipped, so that they have to be
        put back: an average that has taken in one NaN would keep it.
        """
        averaged = () if self.ema is None else self.ema.averaged.buffers()
        return [*self.net.buffers(), *averaged]

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """The tensors that a checkpoint saves, by file."""
        found = {"model": self.net.state_dict(), "state": dict(optimisers.state_tensors(self.optimizer))}
        if self.ema is not None:
            found["ema"] = self.ema.averaged.state_dict()
        return found

    @property
    def num_bytes(self) -> int:
        """Size of a checkpoint's tensors, without the state that an optimiser only makes in its first step."""
        return sum(t.numel() * t.element_size() for named in self.tensors().values() for t in named.values())

    def load_tensors(self, tensors: dict[str, dict[str, Tensor]]) -> None:
        """Inverse of ``tensors``."""
        self.net.load_state_dict(tensors["model"])
        optimisers.load_state_tensors(self.optimizer, tensors.get("state", {}))
        if self.ema is not None:
            # If the checkpoint has no average, the average begins at its weights.
            self.ema.averaged.load_state_dict(tensors.get("ema", tensors["model"]))


def divided(net: nn.Module, recipe: Recipe, place: Place, world: World) -> list[nn.Module]:
    """Apply the recipe's ``sync_bn`` and ``freeze`` to ``net``; returns the frozen modules.

    UsageError if the network has no part of the name that ``freeze`` gives.
    """
    if recipe.comm.sync_bn and world.size > 1:
        synchronise_norms(net, place, world.group)
    return freeze(net, recipe.freeze) if recipe.freeze else []


def _num_right(logits: Tensor, labels: Tensor) -> Tensor:
    """Number of images whose largest logit is that of their label, as fp32; NaN for mixed labels (B, classes)."""
    if labels.is_floating_point():
        return logits.new_full((), float("nan"), dtype=torch.float32)
    return (logits.argmax(1) == labels).sum(dtype=torch.float32)


def _mix(seed: int, step: int, rank: int) -> int:
    """One 63-bit seed for (seed, step, rank)."""
    value = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + rank * 0x94D049BB133111EB) & (2**64 - 1)
    value ^= value >> 31
    return (value * 0xD6E8FEB86659FD93 & (2**64 - 1)) >> 1
