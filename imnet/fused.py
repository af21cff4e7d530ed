"""The folder of an ensemble: its runs by band, their logits on a split, and all of them as one classifier."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from imnet import device, runfolder
from imnet.classifier import Classifier
from imnet.data import DataSet
from imnet.errors import DataError, quoted
from imnet.evaluate import evaluation_batch
from imnet.from_recipe import build_pipeline
from imnet.recipe import Recipe
from imnet.recipe_json import to_dict
from imnet.report.measured import FUSION, read_fusion
from imnet.run import Run
from imnet.run_options import RunOptions

CHOSEN = "chosen: geometric"
HELD_OUT = "held-out images"


class Ensemble:
    """The runs in an ensemble's folder, by band. Raises DataError if there are none, or if they do not belong
    together."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.bands = {band: Run(folder) for band, folder in runfolder.bands_in(self.path).items()}
        if not self.bands:
            raise DataError(
                "no band-K folders: not an ensemble",
                file=path,
                hint="imnet-train --recipe spectral/resnet34_sub4 makes one",
            )
        self.first = next(iter(self.bands.values()))
        for band, run in self.bands.items():
            own = run.recipe.augment.spectral_band
            if run.recipe.augment.spectral_r is None or own != band:
                what = f"the folder is called band-{band}, its run saw band {own}"
                raise DataError(what, file=run.path, hint="give it its own name back")
            others = runfolder.difference(_shared(self.first), _shared(run))
            if others:
                what = f"band {band} belongs to another ensemble ({others})"
                raise DataError(what, file=run.path, hint="give the folder of one ensemble")

    def __repr__(self) -> str:
        return f"Ensemble({str(self.path)!r}, recipe={self.recipe.name!r}, bands={list(self.bands)})"

    @property
    def recipe(self) -> Recipe:
        """The recipe of the first band."""
        return self.first.recipe

    @property
    def unfinished(self) -> list[int]:
        """The bands whose training is not complete."""
        return [band for band, run in self.bands.items() if run.info["status"] != "complete"]

    @torch.no_grad()
    def logits(
        self, dataset: DataSet, options: RunOptions, split: str, which: str = "last", batch_images: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return fp32 logits (K, N, outputs) and labels (N,) of a split, on the CPU, from one pass over its images.

        Pictures that could not be decoded are left out.
        """
        place, images = device.resolve(options), dataset.part(split)
        data = build_pipeline(self.recipe, options, dataset, images, place).of_bands(tuple(self.bands))
        nets = [run.model(which).to(place.device, memory_format=torch.channels_last) for run in self.bands.values()]  # pyright: ignore[reportCallIssue]
        pieces = torch.arange(len(images)).split(batch_images or evaluation_batch(self.recipe.data.batch_images))
        found: list[list[Tensor]] = [[] for _ in nets]
        seen: list[Tensor] = []
        with device.undisturbed(place), device.threads(options):
            for bands, labels in data.stream(pieces, 0, False):
                seen.append(labels.cpu())
                for i, net in enumerate(nets):
                    with place.autocast:
                        out = net(bands[:, i].contiguous(memory_format=torch.channels_last))
                    found[i].append(out.float().cpu())
        labels = torch.cat(seen)
        return torch.stack([torch.cat(parts) for parts in found])[:, labels >= 0], labels[labels >= 0]

    def weights(self) -> dict[int, float]:
        """Weights by band: those that imnet-eval chose on held-out images, else the same for all bands.

        Raises DataError if the choice was made with other network weights than the newest in the folder.
        """
        known = read_fusion(self.path) or {"rules": ()}
        chosen = [r["weights"] for r in known["rules"] if _is_choice(r)]
        if not chosen:
            return dict.fromkeys(self.bands, 1 / len(self.bands))
        now = self.weights_ids()
        other = sorted(int(band) for band in {*now, *known["bands"]} if now.get(band) != known["bands"].get(band))
        if other:
            what = f"was chosen with other weights than the folder's newest (band {', '.join(map(str, other))})"
            raise DataError(what, file=self.path / FUSION, hint=f"choose again: imnet-eval {quoted(self.path)}")
        return {int(band): weight for band, weight in chosen[0].items()}

    def weights_ids(self, which: str = "last") -> dict[str, str]:
        """Identify the network weights of each band, by its number (see ``Run.weights_id``)."""
        return {str(band): run.weights_id(which) for band, run in self.bands.items()}

    def classifier(self) -> Classifier:
        """Return all networks as one classifier, which sums their logits by ``weights``."""
        weights = self.weights()
        each = {band: self.bands[band].classifier() for band in weights}
        network = Sum([one.network for one in each.values()], list(weights.values()))
        return Classifier(network, next(iter(each.values())).card, bands=tuple(weights))


def _is_choice(rule: dict[str, Any]) -> bool:
    return str(rule.get("name")).startswith(CHOSEN) and rule.get("chosen_on") == HELD_OUT


class Sum(nn.Module):
    """The weighted sum of the logits of K networks, each of which sees one band: (B, K, C, h, w) -> (B, outputs)."""

    def __init__(self, networks: Sequence[nn.Module], weights: Sequence[float]):
        super().__init__()
        self.networks, self.weights = nn.ModuleList(networks), list(weights)

    def forward(self, bands: Tensor) -> Tensor:
        parts = zip(self.networks, self.weights, bands.unbind(1), strict=True)
        logits = [w * net(band.contiguous(memory_format=torch.channels_last)) for net, w, band in parts]
        return torch.stack(logits).sum(0)


def _shared(run: Run) -> dict[str, Any]:
    """The settings that all bands of an ensemble must share."""
    recipe = to_dict(run.recipe)
    recipe["augment"] = recipe["augment"] | {"spectral_band": None}
    return recipe | {"precision": run.info["precision"], "data": run.data["fingerprint"][:12]}
