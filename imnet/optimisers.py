"""The optimisers that a recipe can name, as values; ``imnet.optim`` builds them, ``imnet.recipe`` re-exports them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from imnet.fields import COUNT, NOT_NEGATIVE, POSITIVE, Range, about, check, check_ranges


@dataclass(frozen=True, kw_only=True)
class _Optimiser:
    """What every optimiser has."""

    lr: float = field(metadata=about("base learning rate; the schedule multiplies it", POSITIVE))

    def __post_init__(self) -> None:
        check_ranges(self, "optim.")


@dataclass(frozen=True, kw_only=True)
class _Adam(_Optimiser):
    """What every optimiser with Adam's two means has."""

    beta1: float = field(default=0.9, metadata=about("decay of the mean gradient", Range(low=0, below=1)))
    beta2: float = field(default=0.999, metadata=about("decay of the mean squared gradient", Range(low=0, below=1)))
    eps: float = field(default=1e-8, metadata=about("added to the root of beta2's mean", POSITIVE))


@dataclass(frozen=True, kw_only=True)
class SGD(_Optimiser):
    """``torch.optim.SGD``: weight decay is coupled, i.e. added to the gradient."""

    kind: ClassVar[str] = "sgd"
    momentum: float = field(default=0.9, metadata=about("momentum; 0 for none", Range(low=0, below=1)))
    nesterov: bool = field(default=False, metadata=about("Nesterov momentum"))
    weight_decay: float = field(
        default=0.0, metadata=about("added to the gradient, times the weight (L2)", NOT_NEGATIVE)
    )
    decay_norms: bool = field(default=True, metadata=about("also decay norms, biases and other vectors"))
    decay_biases: bool = field(
        # False as in Lasagne, which penalises weights and the scales of norms (gamma), but no biases or shifts (beta).
        default=True,
        metadata=about("with decay_norms: also decay biases and the norms' shifts", later=True),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_nesterov(self)


def _check_nesterov(optim: SGD | Muon) -> None:
    ok = optim.momentum > 0 or not optim.nesterov
    check(ok, "optim.nesterov without momentum", "momentum > 0", "set one of both")


@dataclass(frozen=True, kw_only=True)
class AdamW(_Adam):
    """``torch.optim.AdamW``: weight decay is decoupled and scaled by the learning rate."""

    kind: ClassVar[str] = "adamw"
    weight_decay: float = field(default=0.01, metadata=about("decoupled: lr times this per step", NOT_NEGATIVE))
    decay_norms: bool = field(default=False, metadata=about("also decay norms, biases and other vectors"))


@dataclass(frozen=True, kw_only=True)
class Lamb(_Adam):
    """LAMB (You 2019, arXiv 1904.00962): AdamW's direction, scaled per tensor in proportion to the norm of its weights.

    Tensors without weight decay are not scaled.
    """

    kind: ClassVar[str] = "lamb"
    eps: float = field(default=1e-6, metadata=about("added to the root of beta2's mean", POSITIVE))
    weight_decay: float = field(default=0.01, metadata=about("share of a weight in the direction", NOT_NEGATIVE))
    decay_norms: bool = field(default=False, metadata=about("also decay norms, biases and other vectors"))


@dataclass(frozen=True, kw_only=True)
class Lion(_Optimiser):
    """Lion (Chen 2023, arXiv 2302.06675): steps by the sign of a mean gradient; needs a third to a tenth of AdamW's
    learning rate."""

    kind: ClassVar[str] = "lion"
    beta1: float = field(default=0.9, metadata=about("share of the mean in the sign", Range(low=0, below=1)))
    beta2: float = field(default=0.99, metadata=about("decay of the mean gradient", Range(low=0, below=1)))
    weight_decay: float = field(default=0.0, metadata=about("decoupled: lr times this per step", NOT_NEGATIVE))
    decay_norms: bool = field(default=False, metadata=about("also decay norms, biases and other vectors"))


@dataclass(frozen=True, kw_only=True)
class Muon(_Optimiser):
    """Muon (Jordan 2024) for matrices and flattened convolutions; AdamW for the head, norms, biases and tables.

    A matrix moves by lr times 0.2 sqrt(larger side) times its orthogonalised momentum (Liu 2025, arXiv 2502.16982), so
    that one learning rate and weight decay, those usual for AdamW, suit both.
    """

    kind: ClassVar[str] = "muon"
    momentum: float = field(default=0.95, metadata=about("momentum of the matrices", Range(low=0, below=1)))
    nesterov: bool = field(default=True, metadata=about("Nesterov momentum"))
    ns_steps: int = field(default=5, metadata=about("Newton-Schulz iterations", COUNT))
    beta1: float = field(default=0.9, metadata=about("AdamW's, for the other parameters", Range(low=0, below=1)))
    beta2: float = field(default=0.999, metadata=about("AdamW's, for the other parameters", Range(low=0, below=1)))
    eps: float = field(default=1e-8, metadata=about("AdamW's, for the other parameters", POSITIVE))
    weight_decay: float = field(default=0.1, metadata=about("decoupled: lr times this per step", NOT_NEGATIVE))
    decay_norms: bool = field(default=False, metadata=about("also decay norms, biases and other vectors"))

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_nesterov(self)


@dataclass(frozen=True, kw_only=True)
class AdamCPR(_Adam):
    """Adam that bounds the norm of each weight tensor instead of decaying it (Franke et al. 2023, arXiv 2311.09058).

    The bound of a tensor is its squared norm after ``warm_start_steps`` steps, which the paper calls Kappa-WS.
    """

    kind: ClassVar[str] = "adamcpr"
    weight_decay: ClassVar[float] = 1.0
    """Marks the parameter groups that are bounded with 1 (the others have 0); there is no decay."""
    warm_start_steps: int = field(
        default=1000, metadata=about("optimiser steps after which the norms become the bounds", COUNT)
    )
    kappa_update: float = field(
        default=1.0, metadata=about("how fast the pull grows on a weight beyond its bound", NOT_NEGATIVE)
    )
    decay_norms: bool = field(default=False, metadata=about("also bound norms, biases and other vectors"))


Optim = SGD | AdamW | AdamCPR | Lamb | Lion | Muon
