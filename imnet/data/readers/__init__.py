"""Every format in: ``recognise(path)`` says what lies there, and how to read it."""

from __future__ import annotations

from pathlib import Path

from imnet.data.readers import imagenet64
from imnet.data.readers.base import Block, Blocks, Found
from imnet.data.readers.cifar import find_cifar
from imnet.data.readers.folders import find_folders, find_tiny
from imnet.data.readers.idx import find_idx
from imnet.data.readers.items import Items
from imnet.data.readers.parquet import find_parquet
from imnet.data.readers.tars import find_tars
from imnet.data.readers.tree import tree
from imnet.errors import DataError, IOFailure

__all__ = ["Block", "Blocks", "Found", "Items", "recognise"]

_KNOWN = (
    "IDX files, CIFAR's binary version, ImageNet-64/32/16/8 batches or zips, tiny-imagenet-200 (folder or zip), class "
    "folders (folder or zip), ImageNet tars, one tar per class, WebDataset shards, Parquet with image bytes"
)


def recognise(path: Path) -> Found:
    """What lies at ``path``; DataError where it is nothing known or is damaged, IOFailure where it cannot be read."""
    path = Path(path)
    if not path.exists():
        raise DataError("no such file or folder", file=path, hint=f"known: {_KNOWN}")
    try:
        found = _find(path)
    except OSError as error:
        raise IOFailure(f"cannot read: {error.strerror or error}", file=error.filename or path) from error
    if found is None or not found.splits:
        raise DataError("no known data set here", file=path, hint=f"known: {_KNOWN}")
    return found


def _find(path: Path) -> Found | None:
    if path.is_file() and path.suffix == ".tar":
        return find_tars(path)
    if path.is_file() and path.suffix == ".parquet":
        return find_parquet(path)
    if path.is_file() and path.suffix != ".zip" and imagenet64.batch_order(path.name) is None:
        return None
    found = find_idx(path) or find_cifar(path) or imagenet64.find(path)
    if found is not None:
        return found
    if path.is_dir() and any(path.glob("*.tar")):
        return find_tars(path)
    if path.is_dir() and any(any(folder.glob("*.parquet")) for folder in (path, path / "data")):
        return find_parquet(path)
    source = tree(path)
    return find_tiny(source) or find_folders(source)
