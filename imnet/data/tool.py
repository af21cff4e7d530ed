"""``imnet-data``: pack, verify, stats, export, inspect, download. An error is one line and an exit code (errors.py)."""

from __future__ import annotations

import argparse
import io
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from imnet.command import Parser, guarded
from imnet.data.base import chunks
from imnet.data.files import refuse_run, without_locks
from imnet.data.readers import Choice, recognise
from imnet.data.readers.base import select
from imnet.data.readers.headers import refusals
from imnet.data.readers.picture import FILTERS, ResizeRule
from imnet.data.sets.remote import remote_sets
from imnet.data.store import Store, is_store, open_store, split_path
from imnet.data.store.export import check_free, export
from imnet.data.store.pack import Options, pack, unchanged
from imnet.data.store.sources import Origin, request_values
from imnet.errors import DataError, Preempted, UsageError
from imnet.files import check_output, exists, is_file, listed, write_atomic

_REMOTE = remote_sets()


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    return guarded("imnet-data", _run, argv)


def _run(argv: list[str]) -> int:
    arguments = _parser().parse_args(argv)
    if getattr(arguments, "no_lock", False):
        without_locks()
    try:
        return arguments.run(arguments)
    except KeyboardInterrupt as error:
        raise Preempted("interrupted", hint="run the same command to go on") from error


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="imnet-data", description="Turn any supported data set into one packed store, and look inside."
    )
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser, metavar="COMMAND")
    _pack_parser(commands.add_parser("pack", help="pack any source into a store (resumable)"))
    for name, run, what in (
        ("inspect", _inspect, "describe the data at a path"),
        ("verify", _verify, "read a store and check every checksum"),
        ("stats", _stats, "mean and standard deviation of a store's training pixels, as JSON"),
        ("export", _export, "store -> class folders of PNGs"),
    ):
        command = commands.add_parser(name, help=what)
        command.add_argument("path", type=Path)
        command.set_defaults(run=run)
        if name == "stats":
            command.add_argument("--mean-image", type=Path, metavar="FILE", help="write the mean image, .npy float64")
        if name == "export":
            command.add_argument("target", type=Path)
        if name == "inspect":
            _choice_options(command)
    command = commands.add_parser("download", help="fetch a set whose licence allows it (resumable, checked)")
    command.add_argument("name", choices=sorted(_REMOTE))
    command.add_argument("target", type=Path, help="the folder for its files")
    command.add_argument("--url", help="another server with the same files")
    _lock_option(command)
    command.set_defaults(run=_download)
    return parser


def _pack_parser(command: argparse.ArgumentParser) -> None:
    command.add_argument("source", type=Path)
    command.add_argument("target", type=Path)
    command.add_argument("--name", help="the data set's name in the store (default: what the source is)")
    command.add_argument("--size", type=_pixels, metavar="PX", help="pixels; without it pictures stay encoded")
    command.add_argument("--filter", choices=sorted(FILTERS), help="box (default) gives ImageNet-64's own pixels")
    command.add_argument("--shorter", type=_pixels, metavar="PX", help="resize the shorter side to PX, take the centre")
    command.add_argument("--channels", type=int, choices=[1, 3], help="3 (default), or 1 for grey")
    command.add_argument("--min-images", type=_positive, default=0, metavar="N", help="drop classes with fewer images")
    command.add_argument(
        "--hold-out", type=_positive, default=0, metavar="N", help="take N images of each class as test set"
    )
    command.add_argument("--on-bad-image", choices=["stop", "skip"], default="stop", help="skip up to 0.1 %%")
    command.add_argument("--max-bad", type=_positive, metavar="N", help="skip at most N images of a split (0.1 %%)")
    _lock_option(command)
    command.add_argument("--workers", type=_positive, default=0, metavar="N", help="processes (default: one per core)")
    _choice_options(command)
    command.set_defaults(run=_pack)


def _lock_option(command: argparse.ArgumentParser) -> None:
    what = "on a file system without locks: keep other processes from writing there yourself"
    command.add_argument("--no-lock", action="store_true", help=what)


def _choice_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--image-key", metavar="KEY", help="image of a sample: jpg, or a column of Parquet")
    command.add_argument("--allow-missing", action="store_true", help="accept a set with missing shards")


def _choice(arguments: argparse.Namespace) -> Choice:
    return Choice(arguments.image_key, arguments.allow_missing)


def _positive(text: str) -> int:
    if not text.isdecimal() or len(text) > 10 or not 1 <= int(text) <= 10**9:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a whole number from 1 to 1,000,000,000")
    return int(text)


def _pixels(text: str) -> int:
    """The side of an image in pixels; training accepts none above 65,536."""
    if _positive(text) > 65_536:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of pixels from 1 to 65,536")
    return int(text)


def _pack(arguments: argparse.Namespace) -> int:
    rule, target = _rule(arguments), arguments.target
    options = Options(rule, arguments.on_bad_image, arguments.workers, max_bad=arguments.max_bad)
    asked = (arguments.name, arguments.min_images, arguments.hold_out, _choice(arguments))
    request = request_values(rule, *asked, arguments.on_bad_image, arguments.max_bad)
    origin = Origin.of(arguments.source, request) if exists(arguments.source) else None
    if origin is not None and unchanged(target, origin):
        headers = {store.header["split"]: store.header for store in _stores(target)}
    else:
        found = select(recognise(arguments.source, _choice(arguments)), arguments.min_images, arguments.hold_out)
        found = replace(found, name=arguments.name or found.name)
        headers = pack(found, target, options, origin)
    for note in next(iter(headers.values())).get("notes", []):
        print(f"note: {note}")
    for split, header in headers.items():
        print(f"{split_path(target, split)}: {header['count']} images, digest {header['digest'][:16]}")
    return 0


def _rule(arguments: argparse.Namespace) -> ResizeRule | None:
    if arguments.size is None:
        for option in ("filter", "shorter", "channels"):
            if getattr(arguments, option) is not None:
                raise UsageError(f"--{option} without --size does nothing", hint="add --size PX")
        return None
    if arguments.shorter is not None and arguments.shorter < arguments.size:
        raise UsageError(f"--shorter is {arguments.shorter}; allowed {arguments.size} (--size) or more")
    return ResizeRule(arguments.size, arguments.filter or "box", arguments.channels or 3, arguments.shorter)


def _stores(path: Path) -> list[Store]:
    """The stores of a packed folder, one per split, or the one store at ``path``."""
    files = [path] if is_file(path) else listed(path, "*.imnet")[::-1]
    if not files:
        raise DataError("no packed store here", file=path, hint="make one: imnet-data pack SOURCE TARGET --size 64")
    return [open_store(file) for file in files]


def _inspect(arguments: argparse.Namespace) -> int:
    path = arguments.path
    if is_store(path) or path.suffix == ".imnet":
        for store in _stores(path):
            header = store.header
            form = "encoded pictures" if store.is_encoded else "x".join(map(str, header["shape"][1:])) + " pixels"
            print(f"{store.path}: packed {header['name']} {header['split']}, {len(store)} images, {form}, "
                  f"{len(store.class_names)} classes, from {header['source']['kind']}")  # fmt: skip
            for note in header.get("notes", []):
                print(f"note: {note}")
        return 0
    found = recognise(path, _choice(arguments))
    print("\n".join([*found.describe(), *(f"note: {line}" for line in refusals(found))]))
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    for store in _stores(arguments.path):
        print(f"{store.path}: {store.verify()} blocks and {len(store)} images are sound")
    return 0


def _stats(arguments: argparse.Namespace) -> int:
    store = _stores(arguments.path)[0]
    images = store.images()
    if arguments.mean_image is not None:  # checked first: FILE may be the store itself, which would be overwritten
        check_output(arguments.mean_image, f"'shape': {images.shape[1:]}".encode(), "--mean-image")
    count, total, squares = 0, np.zeros(images.shape[1:], np.uint64), np.zeros(images.shape[-1], np.uint64)
    for chunk in chunks(images):
        count += len(chunk)
        total += chunk.sum(axis=0, dtype=np.uint64)
        squares += np.square(chunk, dtype=np.uint64).sum(axis=(0, 1, 2))
    pixels = max(1, count * images.shape[1] * images.shape[2])
    mean = total.sum(axis=(0, 1)) / pixels
    std = np.sqrt(np.maximum(squares / pixels - mean**2, 0))
    if arguments.mean_image is not None:
        made = io.BytesIO()
        np.save(made, total / max(1, count))
        write_atomic(arguments.mean_image, made.getvalue())
    out = {"images": count, "mean": (mean / 255).round(6).tolist(), "std": (std / 255).round(6).tolist()}
    print(json.dumps({"file": str(store.path), **out, "unit": "x/255"}))
    return 0


def _export(arguments: argparse.Namespace) -> int:
    stores = _stores(arguments.path)
    for store in stores:
        check_free(store, arguments.target)
    for store in stores:
        print(f"{export(store, arguments.target)} images written under {arguments.target / store.header['split']}")
    return 0


def _download(arguments: argparse.Namespace) -> int:
    refuse_run(arguments.target)
    url = arguments.url and arguments.url.rstrip("/") + "/"
    print(_REMOTE[arguments.name].download(arguments.target, url))
    return 0


if __name__ == "__main__":
    sys.exit(main())
