"""Sets that train from a packed store: ``packed`` itself, and those that are packed into the cache on first use."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from imnet.data.base import DataSet, check_hold_out, check_no_test, check_val_images
from imnet.data.files import cache_dir
from imnet.data.readers import Blocks, Found, Items, recognise
from imnet.data.readers.picture import ResizeRule
from imnet.data.sets import AbsentError, Request, Unpacked, dataset, require, search_path
from imnet.data.sets.fashion_mnist import fashion_mnist
from imnet.data.store import FORMAT, is_store, load_store
from imnet.data.store.pack import unchanged
from imnet.data.store.sources import Origin, request_values
from imnet.errors import DataError, IOFailure, UsageError, quoted
from imnet.files import is_dir, is_file

_IMAGENET_SIDES = (8, 16, 32, 64)


@dataset
def packed(request: Request) -> DataSet:
    """The packed store in the folder ``data_dir`` (or ``packed:FOLDER``), with the name of the set it was made from."""
    if request.data_dir is None:
        raise UsageError("data set packed needs its folder", hint="--data packed:FOLDER")
    if not is_store(request.data_dir):
        hint = f"make one: imnet-data pack SOURCE {quoted(request.data_dir)} --size 64"
        raise AbsentError("no packed store here (train.imnet is missing)", file=request.data_dir, hint=hint)
    held = load_store(request.data_dir, request.image_px, request.hold_out, request.seed)
    if held.name == "fashion-mnist" and request.split is not None:
        return fashion_mnist(request)
    return _checked(held, request)


@dataset
def tiny_imagenet(request: Request) -> DataSet:
    """200 classes, 64 px (resized to another ``image_px`` with the BOX filter); test = the official validation set."""
    names = ("tiny-imagenet-200", "tiny-imagenet", "tiny-imagenet-200.zip", "tiny-imagenet-200-small.zip")
    return _from_source(request, "tiny-imagenet", names, request.image_px or 64, "the folder or zip tiny-imagenet-200")


@dataset
def imagenet64(request: Request) -> DataSet:
    """1000 classes, 64 px (32, 16, 8 by ``image_px``), labels in map_clsloc order; test = the validation set."""
    side = request.image_px or 64
    if side not in _IMAGENET_SIDES:
        raise UsageError(f"image_px is {side} for data set imagenet64; allowed {', '.join(map(str, _IMAGENET_SIDES))}")
    names = (f"imagenet{side}", f"imagenet-{side}", f"Imagenet{side}")
    return _from_source(request, f"imagenet{side}", names, None, "the batches train_data_batch_1 ... or their zips")


@dataset
def imagenet(request: Request) -> DataSet:
    """ImageNet-1K, or any class folders or tars in ``imagenet``; test = val. Pictures are resized to ``image_px`` with
    the BOX filter, or kept encoded (``whole``) if the recipe crops from the whole picture."""
    if request.image_px is None:
        raise UsageError("data set imagenet needs image_px", hint="--image-px 224")
    names = ("imagenet", "ImageNet", "imagenet-1k", "ILSVRC2012", "ILSVRC/Data/CLS-LOC")
    size = None if request.whole else request.image_px
    return _from_source(request, "imagenet", names, size, "class folders or the official tars")


@dataset
def folder(request: Request) -> DataSet:
    """Any data at ``data_dir`` that ``imnet-data inspect`` recognises. Pictures are resized to ``image_px``, or kept
    encoded (``whole``) if the recipe crops from the whole picture; pixels are not changed."""
    if request.data_dir is None or request.image_px is None:
        raise UsageError("data set folder needs data_dir and image_px", hint="imnet-train FOLDER chooses them")
    return _from_source(request, "folder", (), None if request.whole else request.image_px, "class folders")


def _from_source(request: Request, name: str, names: tuple[str, ...], size: int | None, wanted: str) -> DataSet:
    """Load the set from a packed store on the search path, or else from its source, packed into the cache."""
    places = search_path(request.data_dir, names)
    store = next((place for place in places if is_store(place)), None)
    if store is not None:
        return _named(store, name, request)
    # The roots come last: they may contain several sets, whereas a folder with the set's name is the set.
    roots = search_path(request.data_dir, ())
    source = next((place for place in sorted(places, key=roots.__contains__) if _holds(place)), None)
    if source is None:
        looked = ", ".join(map(str, places)) or "no folder (give --data-dir or set IMNET_DATA)"
        hint = "imnet-data inspect PATH says what lies there; --data shapes needs nothing"
        raise AbsentError(f"{name} not found: looked for {wanted} in {looked}", hint=hint)
    return _named(_pack_once(source, name, size, request), name, request)


def _named(store: Path, name: str, request: Request) -> DataSet:
    return _checked(load_store(store, request.image_px, request.hold_out, request.seed, name), request)


def _holds(place: Path) -> bool:
    """Whether ``place`` is a file or a folder that is not empty."""
    return is_file(place) or (is_dir(place) and any(place.iterdir()))


def _pack_once(source: Path, name: str, size: int | None, request: Request) -> Path:
    """The cache folder of this source at this size, packed by a child process unless it is up to date.

    A child process, because packing forks workers and this process may already have threads (torch, a notebook). What
    loading the store would refuse is refused before packing.
    """
    mark = f"{FORMAT} {source.resolve()} {size}"
    digest = hashlib.sha256(mark.encode(errors="surrogateescape")).hexdigest()
    target = cache_dir() / "packed" / f"{name}-{digest[:16]}"
    rule = None if size is None else ResizeRule(size)
    origin = Origin.of(source, request_values(rule, name=name, on_bad=request.on_bad))
    if unchanged(target, origin):
        return target
    found = recognise(source)
    _check_found(found, name, size, request)
    if request.look:
        raise Unpacked(found, target)
    sys.stderr.write(f"packing {source} once into {target}\n")
    command = [sys.executable, "-m", "imnet.data.tool", "pack", os.fspath(source), os.fspath(target), "--name", name]
    _run([*command, "--on-bad-image", request.on_bad, *([] if size is None else ["--size", str(size)])])
    return target


def _check_found(found: Found, name: str, size: int | None, request: Request) -> None:
    """Raise the UsageError or DataError that loading the packed store would raise."""
    has_test = "test" in found.splits or request.hold_out
    if not has_test or "train" not in found.splits:
        lacks = "train" if "train" not in found.splits else "test or val"
        notes = "; ".join(found.remarks())
        raise DataError(f"no {lacks} part with labels here{f' ({notes})' if notes else ''}", file=found.path,
                        hint="--data.hold_out 0.1 takes a tenth of each class for it")  # fmt: skip
    require("split", request.split, None, name)
    require("num_classes", request.num_classes, len(found.class_names), name)
    train = found.splits["train"]
    if "test" in found.splits:
        check_no_test(request.hold_out)
    elif isinstance(train, Items):
        check_hold_out(train.labels(), found.path)
    if isinstance(train, Blocks):
        _require_side(size or request.image_px, train.shape, name, found.path)
    require("channels", request.channels, train.shape[2] if isinstance(train, Blocks) else 3, name)
    for option, count, split in (("train_images", request.train_images, "train"),
                                 ("test_images", request.test_images, "test")):  # fmt: skip
        if count is not None and split in found.splits and count > len(found.splits[split]):
            raise UsageError(f"{option} is {count}; allowed 1..{len(found.splits[split])}")
    if request.val_images is not None:
        check_val_images(request.val_images, request.train_images or len(train))


def _run(command: list[str]) -> None:
    """Run ``imnet-data`` with its progress on this process's stderr; its one-line error is raised here."""
    root = os.fspath(Path(__file__).resolve().parents[3])
    paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace",
                             env={**os.environ, "PYTHONPATH": paths})  # fmt: skip
    assert child.stderr is not None
    last = ""
    for line in child.stderr:
        last = line.strip() or last
        if not line.startswith("imnet-data: "):
            sys.stderr.write(line)
            sys.stderr.flush()
    if child.wait():
        kinds = {kind.exit_code: kind for kind in (UsageError, DataError)}
        line = last.removeprefix("imnet-data: ") or f"packing ended with {child.returncode}"
        raise kinds.get(child.returncode, IOFailure)(line)


def _checked(held: DataSet, request: Request) -> DataSet:
    """Return ``held``; UsageError or DataError if the request asks for a form that it does not have."""
    require("split", request.split, None, held.name)
    _require_side(request.image_px, held.image_shape, held.name)
    require("num_classes", request.num_classes, held.num_classes, held.name)
    require("channels", request.channels, held.image_shape[2], held.name)
    return held


def _require_side(side: int | None, shape: tuple[int, int, int], name: str, file: Path | None = None) -> None:
    """Raise UsageError if ``side`` is not that of the pixels, DataError if they are not square (no side would fit)."""
    height, width, _ = shape
    if side is not None and height != width:
        what = f"images of {name} are {height} x {width} pixels; allowed: squares"
        raise DataError(what, file=file, hint="resize them first (encoded pictures are made square here)")
    require("image_px", side, height, name)
