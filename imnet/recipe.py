"""A recipe is a value: frozen, typed, printed, saved as JSON, and changed only by ``replace``.

This module and ``augmentation`` are leaves: standard library only. Everyone may read them; they read no one.
Units are in the names: ``_px`` pixels, ``_images``, ``_epochs``; accuracies are fractions in 0..1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from imnet.augmentation import Augment, check

__all__ = [
    "SGD",
    "AdamW",
    "Augment",
    "Comm",
    "Constant",
    "Cosine",
    "Data",
    "MultiStep",
    "OneCycle",
    "Published",
    "Recipe",
    "Step",
    "replace",
]


@dataclass(frozen=True, kw_only=True)
class Data:
    """Which images, how large, and how many an optimiser step sees (over all ranks)."""

    name: str
    image_px: int
    batch_images: int
    num_classes: int
    channels: int = 3
    split: str | None = None
    """Which division into train and test, for sets that have several (fashion-mnist: custom | official)."""
    drop_last: bool = True
    """Leave the incomplete last batch of an epoch out (another one each epoch, since the order changes)."""
    train_images: int | None = None
    """Size of a generated set; of another one that many evenly spaced images are taken."""
    test_images: int | None = None

    def __post_init__(self) -> None:
        for name in ("image_px", "batch_images", "num_classes", "channels"):
            value = getattr(self, name)
            check(value >= 1, f"data.{name} = {value}", "1 or more", f"set --data.{name}")


@dataclass(frozen=True, kw_only=True)
class SGD:
    """``torch.optim.SGD``: weight decay is coupled, i.e. added to the gradient."""

    kind: ClassVar[str] = "sgd"
    lr: float
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    decay_norms: bool = True
    """Whether weight decay also applies to normalisation parameters and biases."""

    def __post_init__(self) -> None:
        check(self.lr > 0, f"optim.lr = {self.lr}", "a positive number", "set --optim.lr")
        check(
            self.momentum > 0 or not self.nesterov, "optim.nesterov without momentum", "momentum > 0", "set one of both"
        )


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """``torch.optim.AdamW``: weight decay is decoupled and scaled by the learning rate."""

    kind: ClassVar[str] = "adamw"
    lr: float
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.01
    decay_norms: bool = False

    def __post_init__(self) -> None:
        check(self.lr > 0, f"optim.lr = {self.lr}", "a positive number", "set --optim.lr")
        for name in ("beta1", "beta2"):
            value = getattr(self, name)
            check(0 <= value < 1, f"optim.{name} = {value}", "0 <= beta < 1", f"set --optim.{name}")


@dataclass(frozen=True, kw_only=True)
class _Schedule:
    """``factor(t, epochs)`` multiplies the base learning rate at time ``t`` (epochs, fractional): a pure function."""

    warmup_epochs: float = 0.0
    """Linear from ~0 over this long; multiplies what the schedule says."""

    def factor(self, t: float, epochs: float) -> float:
        warm = min(1.0, (t + 1e-9) / self.warmup_epochs) if self.warmup_epochs > 0 else 1.0
        return warm * self._shape(t, epochs)

    def _shape(self, t: float, epochs: float) -> float:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Constant(_Schedule):
    kind: ClassVar[str] = "constant"

    def _shape(self, t: float, epochs: float) -> float:
        return 1.0


@dataclass(frozen=True, kw_only=True)
class Step(_Schedule):
    """Times ``gamma`` every ``every_epochs``."""

    kind: ClassVar[str] = "step"
    every_epochs: int = 30
    gamma: float = 0.1

    def _shape(self, t: float, epochs: float) -> float:
        return self.gamma ** int(t // self.every_epochs)


@dataclass(frozen=True, kw_only=True)
class MultiStep(_Schedule):
    """Times ``gamma`` at each milestone."""

    kind: ClassVar[str] = "multistep"
    milestones_epochs: tuple[int, ...] = (60, 120, 160)
    gamma: float = 0.2

    def _shape(self, t: float, epochs: float) -> float:
        return self.gamma ** sum(t >= m for m in self.milestones_epochs)


@dataclass(frozen=True, kw_only=True)
class Cosine(_Schedule):
    """Half a cosine from 1 to ``final_factor``; ``per`` says whether it moves every step or every epoch."""

    kind: ClassVar[str] = "cosine"
    final_factor: float = 0.0
    per: Literal["step", "epoch"] = "step"

    def _shape(self, t: float, epochs: float) -> float:
        t = math.floor(t) if self.per == "epoch" else t
        return self.final_factor + (1 - self.final_factor) * 0.5 * (1 + math.cos(math.pi * min(1.0, t / epochs)))


@dataclass(frozen=True, kw_only=True)
class OneCycle(_Schedule):
    """A triangle: ``start_factor`` up to 1 at ``peak_fraction`` of the run, then down to ``final_factor``."""

    kind: ClassVar[str] = "onecycle"
    peak_fraction: float = 0.25
    start_factor: float = 0.1
    final_factor: float = 0.0

    def __post_init__(self) -> None:
        ok = 0 < self.peak_fraction < 1
        check(ok, f"schedule.peak_fraction = {self.peak_fraction}", "between 0 and 1", "set --schedule.peak_fraction")

    def _shape(self, t: float, epochs: float) -> float:
        x = min(1.0, t / epochs)
        if x < self.peak_fraction:
            return self.start_factor + (1 - self.start_factor) * x / self.peak_fraction
        return self.final_factor + (1 - self.final_factor) * (1 - x) / (1 - self.peak_fraction)


@dataclass(frozen=True, kw_only=True)
class Published:
    """What the source reports; fractions, hours, and the hardware they were measured on."""

    top1: float | None = None
    top5: float | None = None
    hours: float | None = None
    hardware: str = ""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Comm:
    """How several ranks average their gradients; one rank ignores it.

    Buffers stay each rank's own in training (rank 0's are evaluated and saved) unless ``broadcast_buffers``.
    """

    bucket_mb: float = 25.0
    """MiB of gradients an all-reduce takes at once: smaller starts earlier, larger wastes less latency."""
    first_bucket_mb: float = 1.0
    """The first all-reduce (of the last layers, whose gradients come first) takes no more: it starts early."""
    static_graph: bool = False
    """Every step uses the same parameters, the same number of times: some may be unused, some used repeatedly."""
    gradient_as_bucket_view: bool = True
    """Gradients are views into the buckets: one copy less."""
    gradient_dtype: Literal["fp32", "bf16"] = "fp32"
    """What goes over the wire; bf16 halves it and rounds the sum."""
    broadcast_buffers: bool = False
    """Send rank 0's running statistics to all ranks before every forward."""

    def __post_init__(self) -> None:
        for name in ("bucket_mb", "first_bucket_mb"):
            value = getattr(self, name)
            check(value > 0, f"comm.{name} = {value}", "a positive number", f"set --comm.{name}")


Optim = SGD | AdamW
Schedule = Constant | Step | MultiStep | Cosine | OneCycle


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides the trained weights, and where its numbers come from."""

    name: str
    model: str
    data: Data
    optim: Optim
    schedule: Schedule
    epochs: int
    augment: Augment = field(default_factory=Augment)
    model_options: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of the network, e.g. ``{"zero_init_last_bn": true}``."""
    label_smoothing: float = 0.0
    mixup_alpha: float = 0.0
    """Images are blended with others of the batch by a share from Beta(alpha, alpha) (Zhang 2018); 0 = not."""
    cutmix_alpha: float = 0.0
    """A box of another image of the batch is pasted in (Yun 2019); with mixup, one of the two a step, at random."""
    head_outputs: int | None = None
    """Outputs of the network where it has more than there are classes; the others are always wrong."""
    ema_decay: float | None = None
    """Evaluate an exponential moving average of the weights; None = the weights themselves."""
    grad_clip: float | None = None
    """Largest 2-norm of the whole gradient."""
    comm: Comm = field(default_factory=Comm)
    seed: int = 0
    source: str = ""
    published: Published | None = None

    def __post_init__(self) -> None:
        check(self.epochs >= 1, f"epochs = {self.epochs}", "1 or more", "set --epochs")
        check(0 <= self.label_smoothing < 1, f"label_smoothing = {self.label_smoothing}", "0 <= s < 1", "0 means none")
        for name in ("mixup_alpha", "cutmix_alpha"):
            value = getattr(self, name)
            check(value >= 0, f"{name} = {value}", "0 or more", "0 means none")
        ema = self.ema_decay
        check(ema is None or 0 < ema < 1, f"ema_decay = {ema}", "between 0 and 1, or null", "null means no average")
        clip = self.grad_clip
        check(clip is None or clip > 0, f"grad_clip = {clip}", "a positive number, or null", "null means no clipping")
        head, classes = self.head_outputs, self.data.num_classes
        check(head is None or head >= classes, f"head_outputs = {head}", f"{classes} or more", "null means one a class")
        self.augment.check_fits(self.data.image_px, self.data.channels)

    @property
    def input_px(self) -> int:
        """Side of the images that the network is trained on."""
        return self.augment.output_px(self.data.image_px)

    @property
    def num_outputs(self) -> int:
        """Outputs of the network."""
        return self.head_outputs or self.data.num_classes

    def lr_at(self, step: int, steps_per_epoch: int) -> float:
        """Learning rate of the optimiser step ``step`` (counted from 0 over the whole run)."""
        return self.optim.lr * self.schedule.factor(step / steps_per_epoch, self.epochs)
