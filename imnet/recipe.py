"""Recipes: frozen, typed values that can be printed and saved as JSON, and are changed only by ``replace``.

This module, ``augmentation``, ``optimisers``, ``schedules`` and ``fields`` need only the standard library, so every
other module may import them.
Units are in the names: ``_px`` pixels, ``_images``, ``_epochs``; accuracies are fractions in 0..1.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from imnet.augmentation import Augment
from imnet.fields import COUNT, NOT_NEGATIVE, POSITIVE, Range, about, check, check_ranges
from imnet.optimisers import SGD, AdamCPR, AdamW, Lamb, Lion, Muon, Optim
from imnet.schedules import Constant, Cosine, MultiStep, OneCycle, Schedule, Step

__all__ = [
    "SGD",
    "AdamCPR",
    "AdamW",
    "Augment",
    "Comm",
    "Constant",
    "Cosine",
    "Data",
    "Lamb",
    "Lion",
    "MultiStep",
    "Muon",
    "OneCycle",
    "Published",
    "Ran",
    "Recipe",
    "Step",
    "replace",
]


@dataclass(frozen=True, kw_only=True)
class Data:
    """The data set, the size of its images, and the number of images in an optimiser step (over all ranks)."""

    name: str = field(metadata=about("data set; shapes and synthetic need no files"))
    image_px: int = field(metadata=about("side of the images as stored", Range(low=1, high=65_536)))
    batch_images: int = field(metadata=about("global batch size: images per optimiser step, over all ranks", COUNT))
    num_classes: int = field(metadata=about("classes of the data set", COUNT))
    channels: int = field(default=3, metadata=about("1 for grey images, 3 for colour", COUNT))
    split: str | None = field(
        default=None, metadata=about("which split, if there are several (fashion-mnist: custom, official)")
    )
    sampler: Literal["shuffled", "balanced"] = field(
        # An image that is drawn twice in an epoch is augmented differently each time.
        default="shuffled",
        metadata=about("balanced: draw every class equally often, however many images it has", later=True),
    )
    drop_last: bool = field(
        # Different images are left out each epoch, since the order changes.
        default=True,
        metadata=about("drop the incomplete last batch of an epoch"),
    )
    hold_out: float = field(
        default=0.0,
        metadata=about(
            "share of each class held out for evaluation, of a set without a test part",
            Range(low=0, below=1),
            later=True,
        ),
    )
    val_images: int | None = field(
        default=None,
        metadata=about("training images to hold out; the best epoch is chosen on them", COUNT, later=True),
    )
    val_seed: int = field(
        default=0,
        metadata=about(
            "seed that chooses the held-out images (torch's random_split)", Range(low=0, high=2**63 - 1), later=True
        ),
    )
    val_stratified: bool = field(
        default=False, metadata=about("hold out the same share of every class instead", later=True)
    )
    train_images: int | None = field(
        default=None, metadata=about("size of a generated set; of other sets, this many evenly spaced images", COUNT)
    )
    test_images: int | None = field(default=None, metadata=about("the same for the test split", COUNT))

    def __post_init__(self) -> None:
        check_ranges(self, "data.")


@dataclass(frozen=True, kw_only=True)
class Published:
    """The results that the source reports: accuracies as fractions, hours, and the hardware they were measured on."""

    top1: float | None = None
    top5: float | None = None
    hours: float | None = None
    hardware: str = ""
    note: str = ""
    band_top1: tuple[float, ...] = ()
    """Top-1 of each band of a spectral recipe; ``top1`` is band 0."""
    ensemble_top1: float | None = None
    """Top-1 of an ensemble of bands, each of which is a run of its own."""
    ensemble_of: tuple[int, ...] = ()
    """The bands of that ensemble; empty if it is all of them."""
    ensemble_hours: float | None = None
    """Hours to train all bands, unless ``note`` explains it differently."""
    parameters: int | None = None
    mib: float | None = None
    """Size in MiB of one network's weights as a file."""
    references: Mapping[str, float] = field(default_factory=dict)
    """Earlier results that the source quotes in brackets: citation mark -> top-1."""


@dataclass(frozen=True, kw_only=True)
class Ran:
    """How the source ran the recipe. Run options left open take these values; the configuration hash ignores them."""

    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    eval_every_epochs: int | None = None
    val_images: int | None = None
    """Training images that the source held out although the recipe trains on all of them. Reports count a run that
    holds out as many as a run of the recipe."""


@dataclass(frozen=True, kw_only=True)
class Comm:
    """How several ranks average their gradients; ignored with one rank.

    During training each rank keeps its own buffers, of which rank 0's are evaluated and saved, unless
    ``broadcast_buffers`` is set.
    """

    bucket_mb: float = field(
        # The first gradients are sent while the backward pass still computes the others. Small buckets fill up, and
        # are sent, earlier; large ones pay the latency of the network less often.
        default=25.0,
        metadata=about("size of a gradient bucket, which ranks all-reduce at once, in MiB", POSITIVE),
    )
    first_bucket_mb: float = field(
        # The first bucket holds the last layers, whose gradients are computed first.
        default=1.0,
        metadata=about("size of the first bucket, sent early in the backward pass, in MiB", POSITIVE),
    )
    static_graph: bool = field(
        default=False, metadata=about("the graph is the same in every step; parameters may be unused")
    )
    gradient_as_bucket_view: bool = field(
        default=True, metadata=about("keep gradients in the buckets, which saves a copy")
    )
    gradient_dtype: Literal["fp32", "bf16"] = field(
        default="fp32", metadata=about("dtype of gradients between ranks: bf16 halves the bytes and rounds the sum")
    )
    broadcast_buffers: bool = field(
        default=False, metadata=about("send rank 0's running statistics to all ranks before each forward")
    )
    sync_bn: bool = field(
        default=False,
        metadata=about("compute BatchNorm statistics over all ranks; costs two all-reduces per layer", later=True),
    )

    def __post_init__(self) -> None:
        check_ranges(self, "comm.")


_GIVEN = {"name": "model", "model_name": "model", "num_classes": "data.num_classes", "in_channels": "data.channels"}
_GIVEN |= {"in_chans": "data.channels"} | dict.fromkeys(("pretrained", "checkpoint_path", "weights"), "weights")
"""Keyword arguments of networks that another value of the recipe decides: argument -> that value."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that determines the trained weights, and the source of its values."""

    name: str
    model: str = field(metadata=about("network by name; selects its recipe, or replaces that of --recipe"))
    data: Data
    optim: Optim
    schedule: Schedule
    epochs: int = field(metadata=about("passes over the training set", COUNT))
    augment: Augment = field(default_factory=Augment)
    model_options: Mapping[str, Any] = field(
        default_factory=dict, metadata=about("keyword arguments of the network; also --model_options.NAME VALUE")
    )
    weights: str | None = field(
        default=None,
        metadata=about(
            "initial weights: timm:NAME, torchvision:WEIGHTS, a .safetensors or .pth file, a run folder", later=True
        ),
    )
    freeze: str | None = field(
        default=None,
        metadata=about("freeze: all-but-head, or N for the first N parts of the network", later=True),
    )
    body_lr: float = field(
        default=1.0,
        metadata=about("learning rate of all layers except the head, as a share of the head's", POSITIVE, later=True),
    )
    label_smoothing: float = field(
        default=0.0, metadata=about("share of the target spread over all classes", Range(low=0, below=1))
    )
    class_weights: Literal["none", "balanced"] = field(
        # The weight of class c is n / (classes * n_c), as in scikit-learn; its mean over the images is 1.
        default="none",
        metadata=about("balanced: weight the loss so that every class counts equally", later=True),
    )
    mixup_alpha: float = field(
        # Zhang 2018: the blend factor is drawn from Beta(alpha, alpha).
        default=0.0,
        metadata=about("blend images with others of the batch (mixup); 0 = off", NOT_NEGATIVE),
    )
    cutmix_alpha: float = field(
        # Yun 2019. With mixup also on, every step does one of the two, chosen at random.
        default=0.0,
        metadata=about("paste in a box of another image of the batch (CutMix); 0 = off", NOT_NEGATIVE),
    )
    head_outputs: int | None = field(
        # Keeps the head of a network that was made for more classes. No image has one of the additional labels, so a
        # prediction of one counts as wrong.
        default=None,
        metadata=about("outputs of the network, if more than the classes", COUNT),
    )
    ema_decay: float | None = field(
        default=None,
        metadata=about(
            "decay of the evaluated moving average of the weights (EMA); null = off", Range(above=0, below=1)
        ),
    )
    ema_warmup: bool = field(
        # Steps count from 0. Early in a run the average should not cling to the initial weights.
        default=False,
        metadata=about("start with a small decay: min(ema_decay, (1 + step) / (10 + step))", later=True),
    )
    grad_clip: float | None = field(
        default=None, metadata=about("clip the 2-norm of the whole gradient to this", POSITIVE)
    )
    lr_base_images: int | None = field(
        # Goyal 2017, arXiv 1706.02677.
        default=None,
        metadata=about("optim.lr is for this many images per step; scale it to the batch size", COUNT, later=True),
    )
    patience: int | None = field(
        default=None,
        metadata=about("early stopping: end after N epochs without a higher held-out top-1", COUNT, later=True),
    )
    comm: Comm = field(default_factory=Comm)
    seed: int = field(
        default=0,
        metadata=about("random seed of initial weights, order and augmentation", Range(low=0, high=2**63 - 1)),
    )
    source: str = ""
    published: Published | None = None
    ran: Ran | None = None

    def __post_init__(self) -> None:
        check_ranges(self)
        warm = self.schedule.warmup_epochs
        got = f"schedule.warmup_epochs = {warm:g} in a run of {self.epochs} epochs"
        check(warm <= self.epochs, got, f"at most {self.epochs}", "set --schedule.warmup_epochs or --epochs")
        head, classes = self.head_outputs, self.data.num_classes
        check(head is None or head >= classes, f"head_outputs = {head}", f"{classes} or more", "null means one a class")
        frozen = self.freeze
        ok = frozen in (None, "all-but-head") or (str(frozen).isdecimal() and int(frozen) > 0)
        check(ok, f"freeze = {frozen}", "all-but-head, or a number from 1, or null", "null means all is trained")
        ok = self.ema_decay is not None or not self.ema_warmup
        check(ok, "ema_warmup without ema_decay", "both, or neither", "set --ema-decay")
        ok = self.class_weights == "none" or self.data.sampler == "shuffled"
        check(ok, "class_weights and data.sampler both balanced", "one of them", "together they favour small classes")
        # A copy, because replace() would share the dict with the original recipe, and a change would reach both.
        object.__setattr__(self, "model_options", copy.deepcopy(dict(self.model_options)))
        for name in self.model_options:
            ok = isinstance(name, str)  # YAML reads a bare on, no or 3 as something else
            check(ok, f"model_options with the name {name!r}", "names of options", "put quotes around it")
            own = _GIVEN.get(name)
            check(own is None, f"model_options.{name}", "options that no other value gives", f"set --{own} instead")
        self.augment.check_fits(self.data.image_px, self.data.channels)

    @property
    def input_px(self) -> int:
        """Side in pixels of the images that the network is trained on."""
        return self.augment.output_px(self.data.image_px)

    @property
    def num_outputs(self) -> int:
        """Number of logits of the network: ``head_outputs``, or one per class."""
        return self.head_outputs or self.data.num_classes

    @property
    def scaled_lr(self) -> float:
        """``optim.lr``, scaled linearly from ``lr_base_images`` to the batch size if the recipe sets it."""
        return self.optim.lr * self.data.batch_images / (self.lr_base_images or self.data.batch_images)

    def lr_at(self, step: int, steps_per_epoch: int) -> float:
        """Learning rate of optimiser step ``step``, counted from 0 over the whole run."""
        return self.scaled_lr * self.schedule.factor(step / steps_per_epoch, self.epochs)
