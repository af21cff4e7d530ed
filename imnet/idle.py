"""Finds options of a command line that have no effect beside its other values, to tell the user. Without torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from imnet.fields import flag
from imnet.recipe import Recipe
from imnet.run_options import RunOptions

_NEEDS: dict[str, tuple[str, Callable[[Recipe, RunOptions], bool]]] = {
    "augment.crop_pad_mode": ("--augment.crop_pad_px", lambda r, _: r.augment.crop_pad_px > 0),
    "augment.hflip_p": ("--augment.hflip random", lambda r, _: r.augment.hflip != "none"),
    "augment.cutout_inside": ("--augment.cutout_px", lambda r, _: r.augment.cutout_px > 0),
    "augment.spectral_band": ("--augment.spectral_r", lambda r, _: r.augment.spectral_r is not None),
    "augment.spectral_std": ("--augment.spectral_r", lambda r, _: r.augment.spectral_r is not None),
    "data.split": ("a set with several splits", lambda r, _: _has_splits(r.data.name)),
    "data.val_seed": ("--data.val_images", lambda r, _: r.data.val_images is not None),
    "data.val_stratified": ("--data.val_images", lambda r, _: r.data.val_images is not None),
    "optim.decay_biases": ("--optim.decay_norms", lambda r, _: r.optim.decay_norms),
    "body_lr": ("a body that is not frozen", lambda r, _: r.freeze != "all-but-head"),
    "max_restarts": ("--gpus N or --procs N", lambda _, o: o.num_ranks > 1),
    "tf32": ("fp32 on a GPU", lambda _, o: o.precision in ("auto", "fp32") and o.device != "cpu" and o.procs is None),
    "workers": ("another --pipeline than resident", lambda _, o: o.pipeline != "resident"),
}
"""Option -> (what it needs, in words; whether that is there)."""


def _has_splits(name: str) -> bool:
    from imnet.data import GENERATED  # imports numpy; the sets that are read refuse a split that they do not have

    return name not in GENERATED


def notes(argv: Sequence[str], recipe: Recipe, options: RunOptions) -> tuple[str, ...]:
    """A line for each option in ``argv``, in the parser's spelling, that has no effect. Those of a configuration file
    are not looked at, since it lists every value."""
    given = {word.removeprefix("--").partition("=")[0] for word in argv if word.startswith("--")}
    return tuple(
        f"--{flag(name)} has no effect here: it needs {needs}"
        for name, (needs, is_there) in _NEEDS.items()
        if name in given and not is_there(recipe, options)
    )
