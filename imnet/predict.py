"""imnet-predict: classifies pictures and prints the predictions as text, JSON or CSV."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from imnet import classifier, device
from imnet.data.readers.picture import BadPictureError, opened
from imnet.errors import DataError, shown
from imnet.fields import at_least_one
from imnet.files import finite, is_dir, lines
from imnet.fused import Ensemble
from imnet.run import Run
from imnet.run_options import RunOptions
from imnet.runfolder import bands_in


def run(values: argparse.Namespace) -> int:
    """Print the predictions in the order of the pictures. Returns 65 if a picture cannot be read (the others are still
    printed), else 0."""
    at_least_one(**{"--top": values.top, "--batch-size": values.batch_size})
    model = _model(values.model)
    # A classifier computes in fp32. With bf16, as auto would mean, TF32 would be allowed in its convolutions.
    model.to(device.resolve(RunOptions(device=values.device, precision="fp32")).device)
    write = _as_csv() if values.csv else _as_json if values.json else _as_text
    bad = num = 0
    with device.threads(RunOptions()):
        for row in model.stream(_pictures(values.pictures), values.top, values.batch_size):
            write(row)
            num, bad = num + 1, bad + ("top" not in row)
    if not num:
        raise DataError("no picture there", file=values.pictures[0], hint="name pictures, or a folder that holds some")
    return DataError.exit_code if bad else 0


def _model(path: Path) -> classifier.Classifier:
    """The classifier of a run folder, an ensemble's folder, or a file. Notes on unfinished runs go to stderr."""
    if not is_dir(path):
        return classifier.load(path)
    model = Ensemble(path) if bands_in(path) else Run(path)
    runs = model.bands.values() if isinstance(model, Ensemble) else [model]
    for note in dict.fromkeys(note for run in runs for note in run.unfinished):
        print(note, file=sys.stderr)  # stdout has the predictions alone, which programs may read
    return model.classifier()


def _pictures(words: list[str]) -> Iterator[classifier.Picture]:
    for word in words:
        if word == "-":
            yield from _from_stdin()
        else:
            yield from classifier.pictures_in([Path(word)])


def _from_stdin() -> Iterator[classifier.Picture]:
    """The bytes of stdin as one picture if they are a picture or binary (an error follows later), else the pictures in
    the files and folders that they name, one per line."""
    data = sys.stdin.buffer.read()
    if b"\0" in data or _is_picture(data):
        yield data
    else:
        names = [line for line in lines(data.decode("utf-8", "surrogateescape")) if line.strip()]
        yield from classifier.pictures_in([Path(name) for name in names])


def _is_picture(data: bytes) -> bool:
    try:
        opened(data).close()
    except BadPictureError:
        return False
    return True


def _as_text(row: dict[str, Any]) -> None:
    told = row.get("error") or ", ".join(f"{name} {share:.1%}" for name, share in row["top"])
    print(f"{shown(row['name'])}: {told}", flush=True)


def _as_json(row: dict[str, Any]) -> None:
    if "top" in row:
        row = row | {"top": [{"class": name, "probability": share} for name, share in row["top"]]}
    print(json.dumps(finite(row)), flush=True)


def _as_csv() -> Any:
    table = csv.writer(sys.stdout)
    table.writerow(["picture", "rank", "class", "probability", "error"])

    def write(row: dict[str, Any]) -> None:
        for rank, (name, share) in enumerate(row.get("top", []), 1):
            table.writerow([row["name"], rank, name, f"{share:.6f}", ""])
        if "error" in row:
            table.writerow([row["name"], "", "", "", row["error"]])

    return write
