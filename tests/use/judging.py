"""Helpers for the tests of imnet-eval: all its figures computed by NumPy in float64, and the files that it wrote."""

import itertools
import json

import numpy as np
import pytest
import torch

from imnet import device
from imnet.cli import eval_main
from imnet.from_recipe import build_pipelines, load_data
from imnet.launch import World
from imnet.run_options import RunOptions

CPU = ["--device", "cpu"]


class Plain:
    """All figures of an evaluation from logits (N, outputs) and labels (N,), in float64 by NumPy."""

    def __init__(self, logits, labels, num_classes):
        z = logits.astype(np.float64)
        p = np.exp(z - z.max(1, keepdims=True))
        self.p = p = p / p.sum(1, keepdims=True)
        rows = np.arange(len(labels))
        self.predicted, self.probability = p.argmax(1), p.max(1)
        self.loss = -np.log(p[rows, labels])
        hit = self.predicted == labels
        self.top1, self.top5 = hit.mean(), (p.argsort(1)[:, -5:] == labels[:, None]).any(1).mean()
        self.classes = []
        for c in range(num_classes):
            tp, positive, true = (hit & (labels == c)).sum(), (self.predicted == c).sum(), (labels == c).sum()
            precision, recall = (tp / n if n else None for n in (positive, true))
            # The harmonic mean of the two; 0 if one is 0 or undefined, None if the class does not occur at all.
            f1 = 0.0 if positive + true else None
            if precision and recall:
                f1 = 2 * precision * recall / (precision + recall)
            self.classes.append((precision, recall, f1, true))
        self.balanced = np.mean([row[1] for row in self.classes if row[3]])
        edges = np.linspace(0, 1, 16)
        self.bins, self.ece = [], 0.0
        for low, high in itertools.pairwise(edges):
            inside = (self.probability > low) & (self.probability <= high)
            self.bins.append((inside.sum(), self.probability[inside].sum(), hit[inside].sum()))
            if inside.any():
                self.ece += inside.mean() * abs(hit[inside].mean() - self.probability[inside].mean())


def agrees(found, plain):
    """Assert that ``found``, the JSON of an evaluation, has the figures of ``plain``."""
    for name in ("top1", "top5"):
        assert found[name] == pytest.approx(getattr(plain, name), abs=1e-12)
    assert found["loss"] == pytest.approx(plain.loss.mean(), rel=1e-5)
    assert found["balanced_accuracy"] == pytest.approx(plain.balanced, abs=1e-12)
    assert found["ece"] == pytest.approx(plain.ece, abs=1e-5)
    for row, plainly in zip(found["bins"], plain.bins, strict=True):
        assert row == pytest.approx(plainly, abs=1e-4)
    assert found["num_images"] == sum(found["support"]) == sum(row[0] for row in found["bins"])
    for row, (precision, recall, f1, true) in zip(found["classes"], plain.classes, strict=True):
        assert (row["precision"], row["recall"], row["f1"]) == pytest.approx((precision, recall, f1))
        assert row["support"] == true


def evaluated(argv, capsys):
    code = eval_main([str(word) for word in argv])
    told = capsys.readouterr()
    assert code == 0, told.err
    return told.out


def beside(run):
    """Returns the newest evaluation that was written beside the run's own."""
    return json.loads(max(run.path.glob("evaluation-*.json"), key=lambda p: p.stat().st_mtime_ns).read_text())


def logits_of(run, split):
    """Returns the logits of the test images, made by the pipeline of an evaluation."""
    options = RunOptions(device="cpu", precision="fp32", pipeline="resident")
    data = load_data(run.recipe, options)
    _, test, _ = build_pipelines(run.recipe, options, data, device.resolve(options), World(), None)
    ((images, _),) = test.stream([torch.arange(len(split))], 0, False)
    with torch.no_grad():
        return run.model()(images)
