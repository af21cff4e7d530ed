"""Describes a recipe in words that can be compared with its source document, one line per part, for --dry-run."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from imnet import models
from imnet.recipe import SGD, AdamCPR, Augment, Cosine, Lion, MultiStep, Muon, OneCycle, Recipe, Step

DROPS_SHOWN = 6


def lines(recipe: Recipe, net: nn.Module, bands: Sequence[int] = ()) -> list[str]:
    """The lines about ``recipe`` and its network, which may be on the meta device; ``bands`` are an ensemble's."""
    seen = bands or (recipe.augment.spectral_band,)
    told = {
        "weights": _sizes(net),
        "options": _options(recipe),
        "optimiser": _optimiser(recipe),
        "drops": _rates(recipe),
        "loss": _loss(recipe),
        "augment": _train(recipe.augment, seen),
        "test images": _test(recipe.augment, seen),
        "normalise": _normalise(recipe.augment, seen),
        "seed": f"{recipe.seed} of weights, order and augmentation",
        "split": _split(recipe),
        "published": _published(recipe),
        "as run": _ran(recipe),
    }
    return [f"{name:<12} {text}" for name, text in told.items() if text]


def _sizes(net: nn.Module) -> str:
    """Size in MiB of a file of the weights, with and without running statistics, since documents differ in that."""
    sizes = [t.numel() * t.element_size() for t in net.parameters()]
    statistics = [t.numel() * t.element_size() for t in net.buffers() if t.is_floating_point()]
    more = f", {sum(sizes + statistics) / 2**20:.2f} MiB with running statistics" if statistics else ""
    return f"{sum(sizes) / 2**20:.2f} MiB of parameters{more}"


def _options(recipe: Recipe) -> str:
    """Every option of the network with its value; for timm's and torchvision's only those that the recipe sets."""
    values = ({} if ":" in recipe.model else models.option_defaults(recipe.model)) | dict(recipe.model_options)
    told = [f"{name} {value}" for name, value in values.items() if value is not None]
    rest = "; 0.5 in evaluation" if "shake_forward" in values else ""
    return ", ".join(told) + rest


def _optimiser(recipe: Recipe) -> str:
    o = recipe.optim
    if isinstance(o, SGD):
        nesterov = "Nesterov" if o.nesterov else "no Nesterov"
        how = f"momentum {o.momentum:g}, {nesterov}" if o.momentum else "no momentum"
    else:
        how = f"betas {o.beta1:g} {o.beta2:g}" + ("" if isinstance(o, Lion) else f", eps {o.eps:g}")
    if isinstance(o, Muon):
        how = f"momentum {o.momentum:g}, {o.ns_steps} Newton-Schulz steps, AdamW's {how}"
    body = f", body at {recipe.body_lr:g} of it" if recipe.body_lr != 1 else ""
    if recipe.freeze:
        what = "all but the head" if recipe.freeze == "all-but-head" else f"first {recipe.freeze} parts"
        body += f", {what} frozen"
    clip = f", gradients clipped to norm {recipe.grad_clip:g}" if recipe.grad_clip else ""
    average = f", weights averaged with decay {recipe.ema_decay:g}" if recipe.ema_decay else ""
    return f"{o.kind} lr {recipe.scaled_lr:g}{body}, {how}, {_decay(recipe)}{clip}{average}"


def _decay(recipe: Recipe) -> str:
    o = recipe.optim
    if isinstance(o, AdamCPR):
        where = "every weight" if o.decay_norms else "every weight but norms and biases"
        return f"the norm of {where} bounded by its own after {o.warm_start_steps:,} steps"
    if not o.weight_decay:
        return "no weight decay"
    shifts = isinstance(o, SGD) and not o.decay_biases
    where = "all but biases and the norms' shifts" if shifts else "everything"
    return f"weight decay {o.weight_decay:g} on {where if o.decay_norms else 'all but norms and biases'}"


def _rates(recipe: Recipe) -> str:
    """The learning rate at each drop, or the values that it moves between; epochs are counted from 0."""
    s, lr, epochs = recipe.schedule, recipe.scaled_lr, recipe.epochs
    warm = f"warm-up over {s.warmup_epochs:g} epochs; " if s.warmup_epochs else ""
    if isinstance(s, Step):
        at = tuple(range(s.every_epochs, epochs, s.every_epochs))
        return warm + _drops(recipe, at, s.gamma)
    if isinstance(s, MultiStep):
        return warm + _drops(recipe, tuple(m for m in sorted(s.milestones_epochs) if m < epochs), s.gamma)
    if isinstance(s, Cosine):
        return f"{warm}half a cosine from {lr:g} to {lr * s.final_factor:g}, moved every {s.per}"
    if isinstance(s, OneCycle):
        peak = f"{lr:g} at epoch {s.peak_fraction * epochs:g}"
        return f"{warm}{lr * s.start_factor:g} up to {peak}, down to {lr * s.final_factor:g}"
    return f"{warm}none: {lr:g} throughout"


def _drops(recipe: Recipe, at: tuple[int, ...], gamma: float) -> str:
    lr = recipe.scaled_lr
    told = [f"{lr * gamma**i:g} from epoch {epoch}" for i, epoch in enumerate(at[:DROPS_SHOWN], 1)]
    more = f", ... {len(at)} drops in all" if len(at) > DROPS_SHOWN else ""
    return f"x{gamma:g}: {', '.join([f'{lr:g}', *told])}{more}"


def _loss(recipe: Recipe) -> str:
    parts = {"label smoothing": recipe.label_smoothing, "mixup": recipe.mixup_alpha, "CutMix": recipe.cutmix_alpha}
    outputs = f" over {recipe.num_outputs} outputs for {recipe.data.num_classes} classes" if recipe.head_outputs else ""
    weighted = ", every class of equal weight" if recipe.class_weights == "balanced" else ""
    drawn = ", every class drawn equally often" if recipe.data.sampler == "balanced" else ""
    outputs += weighted + drawn
    return ", ".join([f"cross-entropy{outputs}", *(f"{name} {value:g}" for name, value in parts.items() if value)])


def _train(a: Augment, bands: Sequence[int]) -> str:
    """The training augmentation, in the order in which it is applied."""
    flip = f"{a.hflip} mirror" + (f" (p {a.hflip_p:g})" if a.hflip == "random" else "")
    scale = a.crop_scale or (0.0, 0.0)
    jitter = ", ".join(f"{value:g}" for value in a.color_jitter)
    where = "inside" if a.cutout_inside else "centre anywhere"
    told = [
        f"crop of {scale[0]:g} to {scale[1]:g} of the area, made {a.crop_px} px" if a.crop_scale else "",
        f"pad {a.crop_pad_px} px ({a.crop_pad_mode}) and crop" if a.crop_pad_px else "",
        flip if a.hflip != "none" else "",
        f"resize to {a.resize_px} px" if a.resize_px else "",
        f"random crop of {a.crop_px} px" if a.crop_px and not a.crop_scale else "",
        "TrivialAugmentWide" if a.trivial_augment else "",
        f"RandAugment ({a.rand_augment_ops} of magnitude {a.rand_augment_magnitude})" if a.rand_augment_ops else "",
        f"colour jitter {jitter} (brightness, contrast, saturation, hue)" if any(a.color_jitter) else "",
        _bands(a, bands),
        f"cutout {a.cutout_px} px ({where}, always)" if a.cutout_px else "",
        f"random erasing (p {a.random_erasing_p:g})" if a.random_erasing_p else "",
    ]
    return ", ".join(filter(None, told)) or "none"


def _test(a: Augment, bands: Sequence[int]) -> str:
    side = a.test_px
    crop = f"middle {a.crop_px} px" if a.crop_px else ""
    told = [f"resize to {side} px" if side else "", crop, _bands(a, bands)]
    return ", ".join(filter(None, told)) or "as they are"


def _bands(a: Augment, bands: Sequence[int]) -> str:
    if not a.spectral_r:
        return ""
    named = f"band{'s' * (len(bands) > 1)} {' '.join(map(str, bands))}"
    return f"{named} of {a.num_bands} at 1/{a.spectral_r} of the side"


def _normalise(a: Augment, bands: Sequence[int]) -> str:
    if a.mean == (0.0,) and a.std == (1 / 255,):
        return "none: pixels 0..255"
    mean = "the mean image" if isinstance(a.mean, str) else _numbers(a.mean)
    stds = " ".join(f"{a.spectral_std[band % len(a.spectral_std)]:g}" for band in bands)
    std = f"band's {stds}" if a.spectral_r else _numbers(a.std)
    return f"x/255 less {mean}, over {std}"


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:.4g}" for value in values)


def _split(recipe: Recipe) -> str:
    d = recipe.data
    told = [
        d.split or "the set's own train and test",
        f"{d.hold_out:g} of each class as test where it has none" if d.hold_out else "",
        _validation(recipe),
        f"{d.train_images:,} training images" if d.train_images else "",
        f"{d.test_images:,} test images" if d.test_images else "",
        f"the last partial batch {'left out' if d.drop_last else 'trained on'}",
    ]
    return ", ".join(filter(None, told))


def _validation(recipe: Recipe) -> str:
    d = recipe.data
    if d.val_images is None:
        return ""
    how = "of every class its share" if d.val_stratified else "at random"
    return f"{d.val_images:,} training images held out ({how}, seed {d.val_seed})"


def _published(recipe: Recipe) -> str:
    p = recipe.published
    if p is None:
        return "nothing"
    bands = ", ".join(map(str, p.ensemble_of)) or "all"
    hours = "" if p.ensemble_hours is None else f" in {p.ensemble_hours:g} h"
    brackets = " ".join(f"({100 * top1:.6g} % {mark})" for mark, top1 in p.references.items())
    told = [
        f"top-1 {100 * p.top1:.6g} %" if p.top1 is not None else "",
        f"top-5 {100 * p.top5:.6g} %" if p.top5 is not None else "",
        f"bands {' '.join(f'{100 * top1:.2f}' for top1 in p.band_top1)} %" if p.band_top1 else "",
        f"ensemble of {bands} bands {100 * p.ensemble_top1:.6g} %{hours}" if p.ensemble_top1 is not None else "",
        brackets,
        f"{p.hours:g} h" if p.hours is not None else "",
        f"{p.mib:g} MiB" if p.mib is not None else "",
        p.hardware,
        p.note,
    ]
    return "; ".join(filter(None, told))


def _ran(recipe: Recipe) -> str:
    r = recipe.ran
    if r is None:
        return ""
    every = f"judged every {r.eval_every_epochs} epoch(s)" if r.eval_every_epochs else ""
    precision = "" if r.precision == "auto" else r.precision
    options = ", ".join(filter(None, (precision, every)))
    held_out = f"{r.val_images:,} training images held out, here none" if r.val_images else ""
    return "; ".join(filter(None, (options and f"{options}, where the options leave it open", held_out)))
