"""Where a network's first weights come from: timm:NAME, torchvision:WEIGHTS, a file, or one of our runs.

``read`` gives the tensors, ``put`` copies into a network what fits and says what does not, ``preprocessing`` is what
the source's images went through. Nothing that a file holds is executed: of pickles only tensors are read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import pickle
import zipfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from imnet import checkpoint, hubs
from imnet.errors import DataError, IOFailure, UsageError, first_few
from imnet.files import in_utf8
from imnet.runfolder import read_run

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NESTED = ("state_dict_ema", "model_ema", "ema", "state_dict", "model", "model_state_dict", "module")
"""Under which names training scripts keep the weights in their checkpoints, the better ones first."""
LEAST_SHARE = 0.5
"""Of the network's elements; a source that fills less is another network's."""


@dataclass(frozen=True)
class Weights:
    """Tensors by name, and what they are: ``source`` as it was asked for, sha256 over them, the licence if stated."""

    source: str
    tensors: dict[str, Tensor]
    licence: str | None = None

    @property
    def sha256(self) -> str:
        state = hashlib.sha256()
        for name in sorted(self.tensors):
            state.update(name.encode())
            state.update(self.tensors[name].contiguous().flatten().view(torch.uint8).numpy().data)
        return state.hexdigest()


@dataclass(frozen=True)
class Preprocessing:
    """What images went through before a network saw them: their side, and mean and deviation a channel of x / 255."""

    image_px: int = 224
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD


@dataclass(frozen=True)
class Put:
    """How many tensors were copied, and the names of those left over on either side."""

    loaded: int
    skipped: tuple[str, ...]
    new: tuple[str, ...]

    def __str__(self) -> str:
        parts = [f"{self.loaded} tensors loaded"]
        parts += [f"{len(names)} {word} ({first_few(names)})" for word, names in self._rest if names]
        return ", ".join(parts)

    @property
    def _rest(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        return ("new", self.new), ("left out", self.skipped)

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "skipped": list(self.skipped), "new": list(self.new)}


def read(source: str) -> Weights:
    """The tensors of ``source``, on the CPU.

    Raises UsageError for what is no source, DataError for a file that is none of weights, IOFailure where a download
    is needed and the network is away: it names the file to fetch.
    """
    library, colon, name = source.partition(":")
    if colon and library == "timm":
        return Weights(source, *hubs.from_timm(name))
    if colon and library == "torchvision":
        file = hubs.torchvision_file(name)
        return Weights(source, _plain(_tensors_of(file), file), "BSD-3-Clause (torchvision)")
    path = _existing(source)
    if path.is_dir():
        return _from_run(source, path)
    return Weights(source, _plain(_tensors_of(path), path), _header(path).get("licence"))


def _existing(source: str) -> Path:
    """Raises UsageError where nothing lies there."""
    if not Path(source).exists():
        hint = "allowed: timm:NAME, torchvision:WEIGHTS, a .safetensors or .pth file, a run folder"
        raise UsageError(f"got --weights {source}: no such file or folder", hint=hint)
    return Path(source)


def preprocessing(source: str) -> Preprocessing:
    """What the source says of its images, without its tensors; ImageNet's usual values where it says nothing."""
    library, _, name = source.partition(":")
    if library == "timm":
        config = hubs.timm_config(name)
        return Preprocessing(config.input_size[1], tuple(config.mean), tuple(config.std))
    if library == "torchvision":
        # Made by a partial; its crop is the side that the network was judged at.
        made: Any = hubs.torchvision_weights(name).transforms()
        return Preprocessing(made.crop_size[0], tuple(made.mean), tuple(made.std))
    path = Path(source)
    run = read_run(path) if path.is_dir() else None
    if run is not None:
        augment, px = run["recipe"]["augment"], run["recipe"]["data"]["image_px"]
        if augment["mean"] != "image":
            side = augment["crop_px"] or augment["resize_px"] or px
            return Preprocessing(side, tuple(augment["mean"]), tuple(augment["std"]))
    told = _told(path, "preprocessing")
    return Preprocessing(told["image_px"], tuple(told["mean"]), tuple(told["std"])) if told else Preprocessing()


def put(net: nn.Module, weights: Weights) -> Put:
    """Copy into ``net`` every tensor that it has under the same name and shape; a colour stem into a grey one summed.

    Raises UsageError where that is less than half of the network: the source is another network's.
    """
    own, theirs = net.state_dict(), weights.tensors
    prefix = _wrapped_by(weights, own)
    found: dict[str, Tensor] = {}
    for name, tensor in own.items():
        given = theirs.get(prefix + name)
        if given is not None and given.dim() == 4 and tensor.shape[1] == 1 and given.shape[1] == 3:
            given = given.sum(1, keepdim=True)  # a grey picture has the same value in every channel
        if given is not None and given.shape == tensor.shape:
            found[name] = given.to(tensor.dtype)
    new = tuple(name for name in own if name not in found and not name.endswith("num_batches_tracked"))
    taken = {prefix + name for name in found}
    skipped = tuple(name for name in theirs if name not in taken)
    share = sum(t.numel() for t in found.values()) / max(1, sum(t.numel() for t in own.values()))
    if share < LEAST_SHARE:
        what = f"got --weights {weights.source}: they fill {share:.0%} of the network"
        raise UsageError(what, hint=f"theirs are named {first_few(list(theirs))}, the network's {first_few(list(own))}")
    net.load_state_dict(found, strict=False)
    return Put(len(found), skipped, new)


def _wrapped_by(weights: Weights, own: Mapping[str, Tensor]) -> str:
    """What stands in front of the network's names in most of theirs, such as ``module.`` of DistributedDataParallel,
    ``_orig_mod.`` of torch.compile, both, or the name under which a larger module holds the network.

    Raises UsageError where two of them hold it, as a student and its teacher.
    """
    counts: Counter[str] = Counter()
    for name in weights.tensors:
        parts = name.split(".")
        counts.update(".".join([*parts[:i], ""]) for i in range(len(parts)) if ".".join(parts[i:]) in own)
    most = max(counts.values(), default=0)
    found = [prefix for prefix, count in counts.items() if count == most]
    if "" in found or most < LEAST_SHARE * len(own):
        return ""
    if len(found) > 1:
        what = f"got --weights {weights.source}: it holds the network several times, as {first_few(found)}"
        raise UsageError(what, hint="save the one that is meant: its state_dict alone")
    return found[0]


def _from_run(source: str, path: Path) -> Weights:
    run = read_run(path)
    if run is None:
        raise UsageError(f"got --weights {source}: a folder without run.json", hint="give a run folder or a file")
    found = checkpoint.load(path / "checkpoints", checkpoint.of_run(run))
    if found is None:
        raise DataError("no checkpoint yet", file=path, hint="let the run reach its first checkpoint")
    if found.skipped:
        hint = f"run that training's command again, or give --weights {found.path / 'model.safetensors'}"
        raise DataError(f"the newest checkpoint is damaged ({found.skipped[0]})", file=path, hint=hint)
    return Weights(source, found.tensors["ema" if "ema" in found.tensors else "model"])


def _tensors_of(path: Path) -> Any:
    """What the file holds: a mapping of names, perhaps around another."""
    try:
        with in_utf8(path) as name:
            if path.suffix == ".safetensors":
                return load_file(name)
            return torch.load(name, map_location="cpu", weights_only=True)
    except OSError as error:
        raise IOFailure(f"cannot be read: {error.strerror}", file=path, hint="check the path") from error
    except SafetensorError as error:
        raise DataError(f"no safetensors file: {error}", file=path, hint="get it again") from error
    except Exception as error:  # torch's readers raise many kinds, UnpicklingError among them
        begin = _begin(path)
        if not begin or (begin == b"PK" and not zipfile.is_zipfile(path)):  # a zip's table is its end
            raise DataError("the file is empty or cut off", file=path, hint="get it again") from error
        pickled = "it holds Python objects, which are not executed"  # torch says that in a page of advice
        saved = isinstance(error, pickle.UnpicklingError) and begin in (b"PK", b"\x80\x02")
        why = pickled if saved else type(error).__name__
        what = f"no file of tensors: {why}"
        hint = "save the state_dict alone: torch.save(model.state_dict(), FILE)"
        raise DataError(what, file=path, hint=hint) from error


def _begin(path: Path) -> bytes:
    """By which a file that torch.save wrote is known: a zip's, or that of a pickle of old."""
    with path.open("rb") as file:
        return file.read(2)


def _plain(found: Any, path: Path) -> dict[str, Tensor]:
    """The mapping of names to tensors inside a checkpoint."""
    while isinstance(found, Mapping):
        inside = {name: value for name, value in found.items() if isinstance(value, Mapping)}
        known = [inside[name] for name in NESTED if name in inside]
        tensors = [value for value in inside.values() if _holds_tensors(value)]
        if not known and (_holds_tensors(found) or len(tensors) != 1):
            break
        found = (known or tensors)[0]
    tensors = {str(k): v for k, v in found.items() if isinstance(v, Tensor)} if isinstance(found, Mapping) else {}
    if not tensors:
        held = first_few([*map(str, found)]) if isinstance(found, Mapping) else f"a {type(found).__name__}"
        raise DataError(f"no tensors by name: it holds {held}", file=path, hint="save model.state_dict()")
    return tensors


def _holds_tensors(mapping: Mapping[Any, Any]) -> bool:
    return any(isinstance(value, Tensor) for value in mapping.values())


def _header(path: Path) -> dict[str, str]:
    """The words in a safetensors file's head."""
    if path.suffix != ".safetensors" or not path.is_file():
        return {}
    with contextlib.suppress(SafetensorError, OSError), in_utf8(path) as name, safe_open(name, "pt") as file:
        return file.metadata() or {}
    return {}


def network_of(source: str) -> tuple[str, dict[str, Any]] | None:
    """(network's name, its options) of a run folder or an exported file; None of files that do not say."""
    path = _existing(source)
    run = read_run(path) if path.is_dir() else None
    if run is not None:
        return run["recipe"]["model"], run["recipe"]["model_options"]
    card = _told(path, "imnet")
    return (card["model"], card["model_options"]) if card else None


_TOLD: dict[str, dict[str, type]] = {
    "imnet": {"model": str, "model_options": dict},
    "preprocessing": {"image_px": int, "mean": list, "std": list},
}
"""What is read of the head of a file that imnet-export wrote."""


def _told(path: Path, word: str) -> dict[str, Any] | None:
    """What an exported file says under that word; None of other files, whose heads mean what their writers chose.

    Raises DataError where it is not what imnet-export writes."""
    head = _header(path)
    if "imnet" not in head or word not in head:
        return None
    try:
        told = json.loads(head[word])
        for key, kind in _TOLD[word].items():
            if not isinstance(told[key], kind):
                raise ValueError(f"{key} = {told[key]!r}")
    except (ValueError, TypeError, KeyError) as error:
        what = f"{word} in its head is not what imnet-export writes: {error}"
        raise DataError(what, file=path, hint="write it again: imnet-export RUN --to safetensors") from error
    return told
