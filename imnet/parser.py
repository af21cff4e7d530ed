"""The parser of imnet-train: one typed option for every leaf of a recipe and of the run options. Torch-free."""

from __future__ import annotations

import argparse
import dataclasses
import re
import typing
from collections.abc import Iterator
from typing import Any, Literal

from jsonargparse import ActionYesNo, ArgumentParser

from imnet.recipe import Recipe
from imnet.recipe_json import KINDS
from imnet.recipes import by_name
from imnet.run_options import RunOptions

ASK = ("dry_run", "doctor", "show_config", "debug")
FIXED = ("name", "source", "published")
DESCRIPTION = """Train an image classifier from a recipe.

  imnet-train                                        the embedded data set, two minutes on a laptop
  imnet-train --recipe fashion-mnist/wrn28_10        a published system
  imnet-train --model wrn36_5 --gpus 2               the recipe whose network this is, on two GPUs
  imnet-train --recipe fashion-mnist/wrn28_10 --optim.lr 0.05 --epochs 20 --dry-run"""

HELP = {
    "recipe": "recipe by name; --list recipes shows them",
    "model": "network by name; picks its recipe, or replaces the network of --recipe",
    "config": "configuration file (YAML), e.g. a run folder's config.yaml; flags win over it",
    "out": "run folder (default: runs/<recipe>-<hash of the configuration>)",
    "data_dir": "folder that holds the data set (also: $IMNET_DATA)",
    "gpus": "number of GPUs; starts one process each",
    "procs": "number of CPU processes (with --device cpu)",
    "resume": "auto: go on where a run of the same configuration stopped; never: refuse a used folder",
    "precision": "auto: bf16 where the hardware has it, else fp32",
    "data.name": "data set (--data); `shapes` and `synthetic` need no files",
    "data.batch_images": "images an optimiser step sees over all ranks (--batch-size)",
    "max_restarts": "how often a lost rank makes all ranks go on from the newest checkpoint",
    "tf32": "with --precision fp32: products in a GPU's TF32 units, 10 bits of mantissa, several times faster",
    "compile": "torch.compile (default: on a GPU, where the run is long enough to earn its cost back)",
    "cuda_graphs": "capture the whole step in one CUDA graph (default: wherever one GPU trains)",
    "deterministic": "repeat every bit of a run on the same GPU; what cannot is refused before the first step",
    "pipeline": "resident: the set in the device's memory; host: the CPU prepares batches; dali; torch: the reference",
    "on_bad_image": "stop, or skip: leave up to one picture in 1000 out where they cannot be decoded",
    "workers": "threads that prepare batches (default: the threads of this process)",
    "kernels": "kernel tier: auto, reference, host, triton or cuda; or family=tier,...",
    "allow_change": "resume although recipe, precision or data differ",
    "micro_batch_images": "most images a rank holds at once; more are accumulated over several passes",
    "optim_backend": "imnet: SGD and the average in one pass; apex: NVIDIA's FusedSGD, where it is installed",
    "eval_every_epochs": "default: about ten a run, a tenth of its time at most, and the last epoch",
    "checkpoint_every_steps": "also save within an epoch",
    "log_every_steps": "default: about 20 lines an epoch",
    "on_nonfinite": "stop, or skip:N to leave up to N bad steps out",
    "threads": "CPU threads a process",
    "device": "auto takes a GPU where there is one",
    "data.split": "division of a set that has several (fashion-mnist: custom, official)",
    "data.drop_last": "leave the incomplete last batch of an epoch out",
    "data.train_images": "size of a generated set; of others that many evenly spaced images",
    "model_options": "keyword arguments of the network",
    "seed": "decides initial weights, order and augmentation",
    "augment.hflip": "alternating: each image mirrored every second epoch",
    "augment.resize_px": "the resident images are resized to this before the crop (bilinear)",
    "augment.crop_px": "random crop in training, centre crop in evaluation",
    "augment.color_jitter": "brightness, contrast, saturation, hue",
    "augment.trivial_augment": "TrivialAugmentWide, bilinear",
    "augment.spectral_r": "2, 4, 6: the network sees one spectral band (sub4, sub16, sub36)",
    "augment.spectral_band": "which band (--band)",
    "comm.bucket_mb": "MiB of gradients that ranks all-reduce at once",
    "comm.first_bucket_mb": "MiB of the first of them, which starts while the backward has just begun",
    "comm.static_graph": "every step uses the same parameters equally often; some may be unused",
    "comm.gradient_as_bucket_view": "gradients lie in the buckets: one copy less",
    "comm.gradient_dtype": "what ranks send: bf16 halves the bytes and rounds the sum",
    "comm.broadcast_buffers": "rank 0's running statistics to all ranks before every forward",
    "head_outputs": "outputs of the network, where they are more than the classes",
    "augment.mean": "of x/255: a value, one a channel, or image: the training set's mean image",
    "dry_run": "check everything, print parameters, FLOPs, memory and schedule, train nothing",
    "doctor": "print versions, devices and kernel tiers, and what would improve each",
    "show_config": "print the resolved configuration and exit",
    "debug": "show the traceback of an error",
    "list": "list recipes, models, data sets",
}


def leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted name, type, value) of every leaf of a dataclass value."""
    hints = typing.get_type_hints(type(value))
    for f in dataclasses.fields(value):
        inner = getattr(value, f.name)
        if dataclasses.is_dataclass(inner):
            yield from leaves(inner, f"{prefix}{f.name}.")
        else:
            yield prefix + f.name, hints[f.name], inner


def build_parser(base: Recipe) -> ArgumentParser:
    """The parser whose defaults are the values of ``base``."""
    parser = ArgumentParser(
        prog="imnet-train",
        usage="imnet-train [--recipe NAME | --model NAME] [options]",
        description=DESCRIPTION,
        exit_on_error=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_argument_group("what to train")
    what.add_argument("--recipe", type=typing.Optional[str], default=None, help=HELP["recipe"])  # noqa: UP045
    what.add_argument("--config", type=typing.Optional[str], default=None, help=HELP["config"])  # noqa: UP045
    run = parser.add_argument_group("how and where")
    for name, hint, value in leaves(RunOptions()):
        _add(run, name, hint, value)
    values = parser.add_argument_group(f"values of the recipe (here: {base.name})")
    for name, hint, value in leaves(base):
        if name.split(".")[0] not in FIXED:
            _add(values, name, hint, value)
    for part, kinds in KINDS.items():
        kind = getattr(base, part).kind
        values.add_argument(f"--{part}.kind", type=Literal[tuple(kinds)], default=kind, help="which variant")
    ask = parser.add_argument_group("ask instead of training")
    for name in ASK:
        ask.add_argument(f"--{name}", action="store_true", help=HELP[name])
    ask.add_argument("--list", metavar="{recipes,models,data}", nargs="?", const="recipes", help=HELP["list"])
    return parser


def _add(group: Any, name: str, hint: Any, value: Any) -> None:
    text = HELP.get(name, "")
    if hint is bool or hint == bool | None:
        action = ActionYesNo(yes_prefix="", no_prefix="no_")
        group.add_argument(f"--{name}", action=action, default=value, help=text)
        return
    if typing.get_origin(hint) is not None and "Mapping" in str(hint):
        hint, value = dict, dict(value)
    group.add_argument(f"--{name}", type=hint, default=value, help=text, metavar=_metavar(hint))


def _metavar(hint: Any) -> str:
    """What stands for the value in --help."""
    members = [m for m in (typing.get_args(hint) or (hint,)) if m is not type(None)]
    short = {int: "N", float: "X", str: "NAME", dict: "{NAME: VALUE}"}
    if typing.get_origin(hint) is Literal:
        return "{" + ",".join(members) + "}"
    return short.get(members[0], "[X, ...]")


def help_text() -> str:
    """The whole help, with the values of quickstart; shown with dashes, as everyone types them."""
    text = build_parser(by_name("quickstart")).format_help()
    dashed = re.sub(r"--[a-z][a-z_]*(?![\w.])", lambda m: m[0].replace("_", "-"), text)
    for long, short in {
        "data.name NAME": "data",
        "data.batch_images N": "batch-size",
        "augment.spectral_band N": "band",
    }.items():
        dashed = re.sub(rf"--{long} *\n? *", f"--{short}, --{long}\n{' ' * 24}", dashed)
    return dashed.replace("--show-config ", "--print-config")
