"""Makes run folders with realistic figures without training, and parses the report pages made from them."""

from __future__ import annotations

import json
import math
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import yaml

from imnet.report import contact_sheet

PUBLISHED = {"top1": 0.932775, "hours": 7, "hardware": "GTX 1080 Ti", "note": "best epoch on test"}
SECTIONS = [
    "results",
    "loss",
    "accuracy",
    "lr",
    "throughput",
    "classes",
    "calibration",
    "confusion",
    "worst",
    "recipe",
    "environment",
]
VOID = {"meta", "img", "br", "wbr"}
STEPS = 118  # 30,000 images in batches of 256


def metric_lines(epochs: int, top1: list[float], seconds_per_step: float = 0.1) -> list[dict]:
    """Returns the metrics of a run with a cosine schedule: a train line every ten steps, an eval line per epoch."""
    lines: list[dict] = []
    total = STEPS * epochs
    for step in range(10, total + 1, 10):
        loss = 0.25 + 2.0 * math.exp(-step / 200) + 0.05 * math.sin(step)
        lr = 0.05 * (1 + math.cos(math.pi * step / total))
        clock = {"images_per_s": 2500.0 + step % 7, "seconds": step * seconds_per_step}
        lines.append({"kind": "train", "step": step, "epoch": step / STEPS, "loss": loss, "lr": lr, **clock})
    for epoch, accuracy in enumerate(top1, 1):
        line = {
            "kind": "eval",
            "step": STEPS * epoch,
            "epoch": epoch,
            "loss": 0.4,
            "seconds": STEPS * epoch * seconds_per_step,
        }
        lines.append({**line, "top1": accuracy, "top5": 0.99})
    return sorted(lines, key=lambda line: line["step"])


def confusion_of(classes: int, num_images: int, top1: float) -> np.ndarray:
    rng = np.random.default_rng(classes)
    labels = rng.integers(0, classes, num_images)
    wrong = (labels + rng.integers(1, classes, num_images)) % classes
    predicted = np.where(np.arange(num_images) < round(top1 * num_images), labels, wrong)
    return np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)


def evaluation_of(classes: int, names: list[str] | None = None, num_images: int = 40_000, top1: float = 0.92) -> dict:
    worst = [
        {
            "index": 31 * i,
            "label": i % classes,
            "predicted": (i + 1) % classes,
            "loss": 9.5 - i / 10,
            "probability": math.exp(i / 10 - 9.5),
        }
        for i in range(16)
    ]
    counts = confusion_of(classes, num_images, top1)
    cells = (*counts.nonzero(), counts[counts.nonzero()])
    confusion = {name: c.tolist() for name, c in zip(("true", "predicted", "images"), cells, strict=True)}
    accuracies = {"top1": top1, "top5": 0.99, "top1_flip": 0.9237, "loss": 0.3}
    names = names or [f"class {i}" for i in range(classes)]
    return {"num_images": num_images, **accuracies, "confusion": confusion, "class_names": names, "worst": worst}


def make_run(folder: Path, *, epochs: int = 3, top1: list[float] | None = None, seed: int = 0, **changes) -> Path:
    """Writes a finished run; ``changes`` may have recipe (dict), lines (list), evaluation (dict or None)."""
    folder.mkdir(parents=True, exist_ok=True)
    top1 = [0.85, 0.925, 0.92] if top1 is None else top1
    recipe = {"name": "test/wrn28_10", "model": "wrn28_10", "epochs": epochs, "seed": seed}
    recipe |= {"source": "document 002", "published": PUBLISHED, "optim": {"lr": 0.1, "nesterov": True}} | changes.get(
        "recipe", {}
    )
    (folder / "config.yaml").write_text(yaml.safe_dump({"recipe": recipe, "seed": seed, "compile": False}))
    info = {
        "versions": {"torch": "2.15.0"},
        "git_sha": "3f2a9c1",
        "config_hash": "0123abcd",
        "device": "cpu",
        "num_ranks": 1,
        "hardware": {"cpu": "EPYC", "cores": 2, "gpus": []},
        "data": {"train_images": 30_000, "test_images": 40_000},
    }
    info |= {"precision": "fp32", "data_fingerprint": "sha256:ab12", "recipe": recipe}
    (folder / "run.json").write_text(json.dumps(info))
    lines = changes.get("lines", metric_lines(epochs, top1))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    evaluation = changes.get("evaluation", evaluation_of(10))
    if evaluation is not None:
        (folder / "evaluation.json").write_text(json.dumps(evaluation))
        images = np.random.default_rng(0).integers(0, 256, (16, 28, 28, 1), dtype=np.uint8)
        (folder / "worst.png").write_bytes(contact_sheet(images, ["shirt as coat 0.99"] * 16))
    return folder


class Page(HTMLParser):
    """Parses a page, fails on an unclosed tag, and collects its ids, its references and the text of each section."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.open_tags: list[str] = []
        self.tags: set[str] = set()
        self.ids: list[str] = []
        self.references: list[str] = []
        self.section = ""
        self.text: dict[str, str] = {}
        self.feed(self.source)
        self.close()
        assert self.open_tags == []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        values = dict(attrs)
        self.ids += [values["id"]] if "id" in values else []
        self.references += [value for key, value in attrs if key in ("src", "href", "xlink:href", "srcset", "action")]
        if tag == "section":
            self.section = values["id"]
        if tag not in VOID and not self.get_starttag_text().endswith("/>"):
            self.open_tags.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag):
        assert self.open_tags.pop() == tag
        self.section = "" if tag == "section" else self.section

    def handle_data(self, data):
        if "style" not in self.open_tags:
            self.text[self.section] = f"{self.text.get(self.section, '')} {data.strip()}".strip()
