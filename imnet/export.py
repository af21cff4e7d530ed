"""Exports a run for use elsewhere: as safetensors, ONNX, torch.export's pt2, or a folder that timm loads.

Before it is put in place, an export is read back and compared with the run on the same pictures; it is kept only if
their logits agree. ONNX and pt2 take float32 images (N, C, side, side) in 0..1, normalise them, and return logits.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn

from imnet.classifier import KEY, Card, Classifier, load
from imnet.data.pipelines import transforms
from imnet.data.pipelines.draws import Key
from imnet.errors import DataError, IOFailure, UsageError
from imnet.files import check_kind, check_output, exists, holds, in_utf8, is_dir, is_file, temporary_of

TOLERANCE = 1e-3
"""Allowed difference, relative to the largest logit (or to 1, if that is larger): what another order of additions may
change in fp32."""
NUM_CHECKED = 4
TIMM_FILES = {"config.json", "model.safetensors"}
"""The files of a folder for timm. A folder that holds nothing else, and MARK in its config.json, may be replaced."""
MARK = b"num_outputs"
"""A key of the card. Every file that is written here contains it, and no file of a run folder does."""


class Portable(nn.Module):
    """The network with its normalisation in front: images (B, C, side, side) in 0..1 -> logits (B, classes)."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: Classifier):
        super().__init__()
        card = model.card
        if card.augment.spectral_r:
            what = "the band is taken by a kernel of ours, which other runtimes lack"
            raise UsageError(f"got a spectral network: {what}", hint="--to safetensors keeps it for imnet.load")
        mean = model.mean  # the mean image (H, W, C), if there is one
        if mean is None:
            mean = torch.tensor(card.augment.mean_per_channel(card.channels)).view(1, 1, -1)
        self.register_buffer("mean", mean.permute(2, 0, 1)[None].contiguous())
        self.register_buffer("std", torch.tensor(card.augment.std).view(1, -1, 1, 1))
        self.network = model.network.cpu().to(memory_format=torch.contiguous_format)
        self.classes = len(card.class_names)

    def forward(self, images: Tensor) -> Tensor:
        return self.network((images - self.mean) / self.std)[:, : self.classes]


def export(model: Classifier, to: str, out: Path) -> str:
    """Write ``out`` (a folder for timm) and return the line to print. Raises UsageError, IOFailure, and DataError if
    the logits of the export differ from those of the run."""
    if to not in WRITERS:
        raise UsageError(f"got --to {to}; allowed: {', '.join(WRITERS)}")
    real = _place(out, to)
    folder = temporary_of(real)  # a folder in which the export already has its final name
    try:
        folder.mkdir(parents=True)
        temporary = folder / real.name
        read = WRITERS[to](model, temporary)
        pixels = _pictures(model.card)
        wanted = model.to("cpu").logits(pixels)
        error = float((read(pixels) - wanted).abs().max() / wanted.abs().max().clamp(min=1.0))
        if not error <= TOLERANCE:
            what = f"what was written is {error:.1e} away from the run's logits; allowed {TOLERANCE:.0e}"
            raise DataError(what, file=out, hint="nothing is kept; choose another --to, and report it")
        if is_dir(real):
            shutil.rmtree(real)
        if is_file(temporary):
            temporary.chmod(0o666 & ~_umask())  # some writers make files that other users cannot read
        os.replace(temporary, real)
    except OSError as error:
        raise IOFailure(f"cannot be written: {error.strerror}", file=out, hint="choose another --out") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    line = f"{out}: {to}, {NUM_CHECKED} pictures judged as by the run (largest difference {error:.1e})"
    if to == "timm" and resized_twice(model.card):
        line += f"; timm resizes a picture once, the run did it twice: {describe(model.card)}"
    return line


def _place(out: Path, to: str) -> Path:
    """Return ``out`` with links resolved. Raises UsageError if something lies there that is not an earlier export, such
    as a folder, a device or the user's own file: it would be replaced, with everything in it. Also raises UsageError if
    the name is that of another format."""
    if not is_dir(out):
        check_kind(out, "" if to == "timm" else f".{to}", f"--to {to} writes another kind of file")
        real = check_output(out, MARK)
        if exists(real) and not is_file(real):
            what = "got a device or a pipe for --out, which a file would replace"
            raise UsageError(what, file=out, hint="give a file")
        return real
    held = {path.name for path in out.iterdir()}
    mine = not held or (held <= TIMM_FILES and "config.json" in held and holds(out / "config.json", MARK))
    if to == "timm" and out.name and mine:
        return Path(os.path.realpath(out))
    hint = "name one that is not there" + (", or an earlier export for timm" if to == "timm" else "")
    raise UsageError("got a folder for --out", file=out, hint=hint)


def _umask() -> int:
    found = os.umask(0)
    os.umask(found)
    return found


def _pictures(card: Card) -> np.ndarray:
    """Random pixels in the size of decoded pictures: uint8 (NUM_CHECKED, side, side, C)."""
    side = card.rule.size_px
    return np.random.default_rng(0).integers(0, 256, (NUM_CHECKED, side, side, card.channels), dtype=np.uint8)


def network_input(card: Card, pixels: np.ndarray) -> Tensor:
    """Turn uint8 (B, H, W, C) into fp32 (B, C, side, side) in 0..1, resized and cropped as in evaluation but not
    normalised."""
    levels = torch.from_numpy(pixels).permute(0, 3, 1, 2).float()
    key = Key(torch.arange(len(pixels)), 0, 0)
    return transforms.transform(levels, card.then, key, False).contiguous() / 255


Read = Callable[[np.ndarray], Tensor]
# The writers let safetensors and torch make bytes and write these themselves: on a full disk the libraries' own writing
# raises errors of other types than OSError.


def _weights(model: Classifier) -> dict[str, Tensor]:
    return {name: tensor.contiguous() for name, tensor in model.network.cpu().state_dict().items()}


def _told(card: Card) -> dict[str, str]:
    """The metadata of every exported file; ``classes`` and ``input`` are for readers without imnet."""
    return {KEY: card.dumps(), "classes": json.dumps(card.class_names), "input": describe(card)}


def _safetensors(model: Classifier, path: Path) -> Read:
    if model.mean is not None:
        hint = "--to onnx and --to pt2 hold it"
        raise UsageError("got a network that subtracts the mean image of its training set", hint=hint)
    card = model.card
    head = {"format": "pt"} | _told(card)
    a = card.augment
    if not isinstance(a.mean, str):
        about: dict[str, Any] = {"image_px": card.input_px, "mean": a.mean, "std": a.std}
        if a.spectral_r:  # without these keys a reader would feed it whole images
            about |= {f"spectral_{key}": getattr(a, f"spectral_{key}") for key in ("r", "band", "std")}
        head["preprocessing"] = json.dumps(about)
    if card.licence:
        head["licence"] = card.licence
    path.write_bytes(save(_weights(model), head))
    return lambda pixels: load(path).logits(pixels)


def _example(card: Card) -> Tensor:
    return torch.rand(2, card.channels, card.input_px, card.input_px)


def _program(model: Classifier) -> torch.export.ExportedProgram:
    """The exported program, for any batch size up to 65,536."""
    batch = {0: torch.export.Dim("batch", min=1, max=65_536)}
    return torch.export.export(Portable(model).eval(), (_example(model.card),), dynamic_shapes={"images": batch})


def _pt2(model: Classifier, path: Path) -> Read:
    written = io.BytesIO()
    told = {f"{name}.{'txt' if name == 'input' else 'json'}": text for name, text in _told(model.card).items()}
    torch.export.save(_program(model), written, extra_files=told)
    path.write_bytes(written.getvalue())
    with path.open("rb") as file:
        again = torch.export.load(file).module()
    return lambda pixels: again(network_input(model.card, pixels)).detach()


def _onnx(model: Classifier, path: Path) -> Read:
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise UsageError(f"{error.name} is not installed", hint="pip install 'imnet[export]'") from error
    names: dict[str, Any] = {"input_names": ["images"], "output_names": ["logits"], "dynamic_shapes": ({0: "batch"},)}
    made = torch.onnx.export(_program(model), dynamo=True, verbose=False, **names)
    assert made is not None
    proto = made.model_proto
    card = model.card
    onnx.helper.set_model_props(proto, _told(card))
    onnx.save(proto, path)
    with in_utf8(path) as name:
        session = onnxruntime.InferenceSession(str(name), providers=["CPUExecutionProvider"])

    def read(pixels: np.ndarray) -> Tensor:
        images = network_input(card, pixels).split([1, len(pixels) - 1])
        return torch.cat([torch.from_numpy(np.asarray(session.run(None, {"images": x.numpy()})[0])) for x in images])

    return read


def _timm(model: Classifier, path: Path) -> Read:
    card, a = model.card, model.card.augment
    library, _, name = card.model.partition(":")
    if library != "timm":
        raise UsageError(f"got --to timm for {card.model}, a network that timm has not", hint="--to safetensors")
    if card.num_outputs != len(card.class_names) or isinstance(a.mean, str) or a.spectral_r:
        raise UsageError("timm has no word for this network's input or outputs", hint="--to safetensors")
    import timm

    path.mkdir()
    (path / "model.safetensors").write_bytes(save(_weights(model)))
    config = timm_pictures(card) | {"mean": a.mean_per_channel(card.channels)}
    config |= {"std": a.std * card.channels if len(a.std) == 1 else a.std}
    config |= {"num_classes": card.num_outputs, "license": card.licence}
    config |= {k: model.network.pretrained_cfg[k] for k in ("first_conv", "classifier")}  # pyright: ignore
    about = {"architecture": name.partition(".")[0], "num_classes": card.num_outputs, "model_args": card.model_options}
    about |= {"label_names": list(card.class_names), "pretrained_cfg": config, KEY: json.loads(card.dumps())}
    (path / "config.json").write_text(json.dumps(about, indent=1))
    with in_utf8(path) as name:
        again = timm.create_model(f"local-dir:{name}", pretrained=True).eval()
    mean, std = (torch.tensor(config[key]).view(1, -1, 1, 1) for key in ("mean", "std"))
    return lambda pixels: again((network_input(card, pixels) - mean) / std).detach()


def timm_pictures(card: Card) -> dict[str, Any]:
    """timm's settings that turn a picture into the network's input; they match the run if that resizes once."""
    rule, side = card.rule, card.input_px
    found: dict[str, Any] = {"input_size": [card.channels, side, side], "interpolation": rule.filter}
    if rule.shorter_px is not None:
        return found | {"crop_pct": side / rule.shorter_px, "crop_mode": "center"}
    # If the run resizes a second time, getting from size_px to the input's side is a resizing and not a crop.
    return found | {"crop_pct": 1.0 if resized_twice(card) else side / rule.size_px, "crop_mode": "squash"}


def resized_twice(card: Card) -> bool:
    """Whether evaluation resizes pictures a second time, after ``card.rule``."""
    return bool(card.then.test_px)


def describe(card: Card) -> str:
    """Describe the input of the exported graph in words."""
    a, rule = card.then, card.rule
    by = f"by Pillow's {rule.filter}"
    made = f"{rule.size_px} x {rule.size_px} pixels {by}" if rule.shorter_px is None else (
        f"shorter side to {rule.shorter_px} pixels {by}, then the middle {rule.size_px} x {rule.size_px}")  # fmt: skip
    side = a.test_px
    more = (f", then bilinear to {side}" if side else "") + (f", then the middle {a.crop_px}" if a.crop_px else "")
    shape = f"float32 (N, {card.channels}, {card.input_px}, {card.input_px}) in 0..1"
    return f"{shape}; pictures: Pillow's convert('{rule.mode}'), then {made}{more}"


WRITERS: dict[str, Callable[[Classifier, Path], Read]] = {
    "safetensors": _safetensors,
    "onnx": _onnx,
    "pt2": _pt2,
    "timm": _timm,
}
