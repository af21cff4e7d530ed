"""Initial weights of a network from timm:NAME, torchvision:WEIGHTS, a file, or a run folder.

``read`` loads the tensors, ``put`` copies those that fit into a network and lists the others, ``preprocessing`` is what
the source applies to its images. No code in a file is executed: only tensors are read from pickles.
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
from imnet.errors import DataError, IOFailure, UsageError, first_few, quoted
from imnet.files import exists, in_utf8, is_dir, is_file
from imnet.runfolder import read_run

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NESTED = ("state_dict_ema", "model_ema", "ema", "state_dict", "model", "model_state_dict", "module")
"""The keys under which training scripts keep the weights in their checkpoints; averaged weights come first."""
LEAST_SHARE = 0.5
"""A source that fills less than this share of the network's elements belongs to another network."""


@dataclass(frozen=True)
class Weights:
    """Tensors by name, the ``source`` as the user wrote it, the licence if it is stated, and a sha256 of names and
    tensors."""

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
    """How images are prepared for a network: their side, and the mean and standard deviation per channel of x / 255."""

    image_px: int = 224
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD


@dataclass(frozen=True)
class Put:
    """The result of ``put``: the number of tensors copied, and the names of those ``skipped`` in the source and those
    ``new`` in the network, which keep their values."""

    loaded: int
    skipped: tuple[str, ...]
    new: tuple[str, ...]

    def __str__(self) -> str:
        parts = [f"{self.loaded} tensors loaded"]
        for word, names in (("new", self.new), ("left out", self.skipped)):
            if names:
                parts.append(f"{len(names)} {word} ({first_few(names)})")
        return ", ".join(parts)

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "skipped": list(self.skipped), "new": list(self.new)}


def read(source: str) -> Weights:
    """The tensors of ``source``, on the CPU.

    Raises UsageError if ``source`` names no source, DataError if a file holds no weights, and IOFailure, which names
    the file to fetch, if a download is needed and there is no network.
    """
    library, colon, name = source.partition(":")
    if colon and library == "timm":
        return Weights(source, *hubs.from_timm(name))
    if colon and library == "torchvision":
        file = hubs.torchvision_file(name)
        return Weights(source, _plain(_tensors_of(file), file), "BSD-3-Clause (torchvision)")
    path = _existing(source)
    if is_dir(path):
        return _from_run(source, path)
    return Weights(source, _plain(_tensors_of(path), path), _header(path).get("licence"))


def _existing(source: str) -> Path:
    """``source`` as a path; UsageError if there is nothing at it."""
    if not exists(Path(source)):
        hint = "allowed: timm:NAME, torchvision:WEIGHTS, a .safetensors or .pth file, a run folder"
        raise UsageError(f"got --weights {source}: no such file or folder", hint=hint)
    return Path(source)


def preprocessing(source: str) -> Preprocessing:
    """The preprocessing that the source states, read without its tensors; the usual values of ImageNet if none."""
    library, _, name = source.partition(":")
    if library == "timm":
        config = hubs.timm_config(name)
        return Preprocessing(config.input_size[1], tuple(config.mean), tuple(config.std))
    if library == "torchvision":
        # ``transforms`` is a functools.partial; its crop_size is the side at which the network was evaluated.
        made: Any = hubs.torchvision_weights(name).transforms()
        return Preprocessing(made.crop_size[0], tuple(made.mean), tuple(made.std))
    path = Path(source)
    run = read_run(path) if is_dir(path) else None
    if run is not None:
        augment, px = run["recipe"]["augment"], run["recipe"]["data"]["image_px"]
        if augment["mean"] != "image":
            side = augment["crop_px"] or augment["resize_px"] or px
            return Preprocessing(side, tuple(augment["mean"]), tuple(augment["std"]))
    told = _told(path, "preprocessing")
    return Preprocessing(told["image_px"], tuple(told["mean"]), tuple(told["std"])) if told else Preprocessing()


def put(net: nn.Module, weights: Weights) -> Put:
    """Copy into ``net`` every tensor that it has under the same name and shape. The weights of a colour stem are summed
    over the channels for a grey one.

    Raises UsageError if they fill less than half of the network: the source is then another network's.
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
    """The prefix that most names in ``weights`` have in front of the network's own: ``module.`` from
    DistributedDataParallel, ``_orig_mod.`` from torch.compile, both, or the network's name in a larger module.

    Raises UsageError if several prefixes hold the network, such as those of a student and its teacher.
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
        raise checkpoint.absent(run, path)
    if found.skipped:
        hint = f"run that training's command again, or give --weights {quoted(found.path / 'model.safetensors')}"
        raise DataError(f"the newest checkpoint is damaged ({found.skipped[0]})", file=path, hint=hint)
    return Weights(source, found.tensors["ema" if "ema" in found.tensors else "model"])


def _tensors_of(path: Path) -> Any:
    """The object in the file: usually a mapping from names to tensors, perhaps inside another one."""
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
        if not begin or (begin == b"PK" and not zipfile.is_zipfile(path)):  # a zip has its table at the end
            raise DataError("the file is empty or cut off", file=path, hint="get it again") from error
        pickled = "it holds Python objects, which are not executed"  # torch's own message is a page long
        saved = isinstance(error, pickle.UnpicklingError) and begin in (b"PK", b"\x80\x02")
        why = pickled if saved else type(error).__name__
        what = f"no file of tensors: {why}"
        hint = "save the state_dict alone: torch.save(model.state_dict(), FILE)"
        raise DataError(what, file=path, hint=hint) from error


def _begin(path: Path) -> bytes:
    """The first two bytes, which identify a file of torch.save: b"PK" of a zip, or an older format's pickle header."""
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
    """The metadata in the header of a safetensors file; empty for other files."""
    if path.suffix != ".safetensors" or not is_file(path):
        return {}
    with contextlib.suppress(SafetensorError, OSError), in_utf8(path) as name, safe_open(name, "pt") as file:
        return file.metadata() or {}
    return {}


def network_of(source: str) -> tuple[str, dict[str, Any]] | None:
    """(network's name, its options) of a run folder or an exported file; None for files that do not state them."""
    path = _existing(source)
    run = read_run(path) if is_dir(path) else None
    if run is not None:
        return run["recipe"]["model"], run["recipe"]["model_options"]
    card = _told(path, "imnet")
    return (card["model"], card["model_options"]) if card else None


_TOLD: dict[str, dict[str, type]] = {
    "imnet": {"model": str, "model_options": dict},
    "preprocessing": {"image_px": int, "mean": list, "std": list},
}
"""What is read from the header of a file that imnet-export wrote: entry -> its keys and their types."""


def _told(path: Path, word: str) -> dict[str, Any] | None:
    """The entry ``word`` in the header of an exported file; None for other files, whose headers may mean anything.

    Raises DataError if imnet-export cannot have written the entry."""
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
