"""imnet: train image classifiers fast, exactly and honestly.

    import imnet
    run = imnet.train(imnet.recipes["quickstart"], out="runs/first")
    run.metrics[-1]["top1"], run.model()

Importing this does not import torch.
"""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING, Any

if (getattr(sys.modules["__main__"], "__file__", None) or "").rpartition("/")[2].startswith(
    "imnet-"
) and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # Ctrl-C ends a command that is still being imported without frames; ``command.guarded`` hears it from there on.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

if sys.platform == "win32":  # locks, signals and forks of POSIX hold a run together
    raise ImportError("imnet runs on Linux and macOS; on Windows, under WSL")

from imnet.errors import ImnetError
from imnet.recipe import Recipe, replace
from imnet.recipes import RECIPES

if TYPE_CHECKING:
    from imnet.classifier import Classifier
    from imnet.fused import Ensemble
    from imnet.run import Run

recipes = RECIPES

__all__ = ["ImnetError", "Recipe", "load", "load_run", "recipes", "replace", "train", "train_ensemble"]


def train(recipe: Recipe | str | None = None, **options: Any) -> Run:
    """Train a recipe (a value, or its name; default quickstart) and return its run.

    ``options`` are the fields of ``imnet.run_options.RunOptions``, e.g. ``data_dir=``, ``out=``, ``device="cpu"``,
    ``gpus=2``, ``precision="fp32"``. Goes on where an earlier run of the same configuration stopped. Raises ImnetError.
    With several ranks, call it under ``if __name__ == "__main__"``: they are separate processes.
    """
    from imnet.run import train_run

    return train_run(recipe, options)


def train_ensemble(recipe: Recipe | str, bands: str = "all", **options: Any) -> Ensemble:
    """Train a network for each of a recipe's spectral ``bands`` (all, or numbers with commas), in one folder.

    ``options`` as for ``train``. Bands that the folder holds already are not trained again.
    """
    from imnet.fused import Ensemble
    from imnet.run import trained

    return Ensemble(trained(recipe, options | {"bands": bands}))


def load_run(path: str) -> Run:
    """The run in a folder that imnet-train wrote."""
    from imnet.run import Run

    return Run(path)


def load(path: str) -> Classifier:
    """The classifier in a file that imnet-export wrote (safetensors)."""
    from imnet.classifier import load as load_file

    return load_file(path)
