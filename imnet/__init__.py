"""imnet: train image classifiers fast, exactly and honestly.

    import imnet
    run = imnet.train(imnet.recipes["quickstart"], out="runs/first")
    run.metrics[-1]["top1"], run.model()

Importing imnet does not import torch.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if (getattr(sys.modules["__main__"], "__file__", None) or "").rpartition("/")[2].startswith(
    "imnet-"
) and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # Ctrl-C during the imports of a command ends it without a traceback; later ``command.guarded`` handles Ctrl-C.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

if sys.platform == "win32":  # runs depend on POSIX locks, signals and forks
    raise ImportError("imnet runs on Linux and macOS; on Windows, under WSL")

from imnet.errors import ImnetError
from imnet.recipe import Recipe
from imnet.recipes import RECIPES

if TYPE_CHECKING:
    from dataclasses import replace  # of which an editor knows that it takes the fields

    from imnet.classifier import Classifier
    from imnet.fused import Ensemble
    from imnet.run import Run
else:
    from imnet.fields import replace

recipes = RECIPES

__all__ = ["ImnetError", "Recipe", "load", "load_run", "recipes", "replace", "train", "train_ensemble"]


def train(recipe: Recipe | str | None = None, **options: Any) -> Run:
    """Train ``recipe`` (a Recipe or the name of one; default quickstart) and return its run.

    ``options`` are the fields of ``imnet.run_options.RunOptions``, e.g. ``data_dir=``, ``out=``, ``device="cpu"``,
    ``gpus=2``, ``precision="fp32"``. An earlier run of the same configuration is resumed where it stopped. Raises
    ImnetError. With several ranks, call this under ``if __name__ == "__main__"``: each rank is a new process.
    """
    from imnet.run import train_run

    return train_run(recipe, options)


def train_ensemble(recipe: Recipe | str, bands: str | Iterable[int] = "all", **options: Any) -> Ensemble:
    """Train one network for each of the recipe's spectral ``bands`` ("all", or e.g. [0, 3]), in one folder.

    ``options`` are those of ``train``. Bands that are already complete in the folder are not trained again.
    """
    from imnet.fused import Ensemble
    from imnet.run import trained

    words = bands if isinstance(bands, str) else ",".join(map(str, bands))
    return Ensemble(trained(recipe, options | {"bands": words}))


def load_run(path: str) -> Run:
    """Return the run whose folder, written by imnet-train, is ``path``."""
    from imnet.run import Run

    return Run(path)


def load(path: str) -> Classifier:
    """Return the classifier in a safetensors file that imnet-export wrote."""
    from imnet.classifier import load as load_file

    return load_file(path)
