"""The readers of all formats: ``recognise(path)`` finds out what is at a path and returns how to read it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from imnet.data.files import reading
from imnet.data.readers import imagenet64
from imnet.data.readers.base import Block, Blocks, Choice, Found
from imnet.data.readers.cifar import find_cifar
from imnet.data.readers.folders import find_folders
from imnet.data.readers.idx import find_idx
from imnet.data.readers.items import Items
from imnet.data.readers.parquet import find_parquet
from imnet.data.readers.rule import is_picture, suffix_reason
from imnet.data.readers.tars import find_tars, is_tar
from imnet.data.readers.tree import ArchiveTree, FolderTree, archives
from imnet.errors import DataError, shown
from imnet.files import exists, is_dir, is_file

__all__ = ["Block", "Blocks", "Choice", "Found", "Items", "recognise"]

_KNOWN = (
    "IDX files, CIFAR's binary version (unpacked), ImageNet-64/32/16/8 batches or zips, tiny-imagenet-200, class "
    "folders (folder, zip or tar), ImageNet tars, one tar per class, WebDataset shards, Parquet with image bytes"
)
_DEEP = {0: "", 1: " one folder down", 2: " two folders down"}


def recognise(path: Path, choice: Choice | None = None) -> Found:
    """The data set at ``path``. Raises DataError if it is not a known format, is ambiguous or damaged, and IOFailure if
    it cannot be read. ``choice`` settles what a source leaves open."""
    path, choice = Path(path), choice or Choice()
    if not exists(path):
        raise DataError("no such file or folder", file=path, hint="check the path")
    if not (is_dir(path) or is_file(path)):  # opening a pipe would wait for a writer
        raise DataError("a pipe or a device; allowed: a file or a folder", file=path, hint="write its data to a file")
    with reading(path):
        found = _in_folder(path, choice) if is_dir(path) else _in_file(path, choice)
    if found is None or not found.splits:
        seen = _seen(path)
        hint = "docs/data.md has the layouts that are read" if seen else f"known: {_KNOWN}"
        raise DataError(f"no known data set here{seen}", file=path, hint=hint)
    _refuse_empty(found)
    if choice.image_key and found.name not in ("webdataset", "parquet"):
        raise DataError("no sample here has several pictures", file=path, hint="leave out --image-key")
    return found


def _refuse_empty(found: Found) -> None:
    """Raise DataError for a part without images, or with images without pixels: a run would fail on it later."""
    for split, content in found.splits.items():
        if not len(content) or (isinstance(content, Blocks) and not all(content.shape)):
            shape = f" of {'x'.join(map(str, content.shape))}" if isinstance(content, Blocks) else ""
            raise DataError(f"its {split} part has {len(content)} images{shape}", file=found.path, hint="get it again")


def _in_file(path: Path, choice: Choice) -> Found | None:
    if is_tar(path.name):
        return find_tars(FolderTree(path), choice)
    if path.suffix.lower() == ".parquet":
        return find_parquet(FolderTree(path), choice)
    if imagenet64.batch_order(path.name) is not None:
        return imagenet64.find(FolderTree(path))
    if path.suffix.lower() != ".zip":
        return None
    return imagenet64.find(FolderTree(path)) or find_folders(ArchiveTree(path))


def _in_folder(path: Path, choice: Choice) -> Found | None:
    """Look for pixels first, then for pictures in folders; archives beside them are counted but not read."""
    source = FolderTree.walked(path)
    found = find_idx(source) or find_cifar(source) or imagenet64.find(source) or find_folders(source)
    if found is not None:
        return found
    kinds = [("tars", is_tar), ("Parquet files", lambda name: name.lower().endswith(".parquet"))]
    both = [what for what, is_one in kinds if any(map(is_one, source.names))]
    if len(both) > 1:
        raise DataError(f"two ways to read it: {' and '.join(both)}", file=path, hint="give one of them")
    zips = [name for name in source.names if name.lower().endswith(".zip")]
    found = find_tars(source, choice) or find_parquet(source, choice)
    return found or (find_folders(archives(source, zips)) if zips else None)


def _seen(path: Path) -> str:
    """The files in a folder that was not recognised: ``; seen: 3 .parquet files two folders down``."""
    if not is_dir(path):
        return ""
    source = FolderTree.walked(path)
    kinds: Counter[tuple[str, int]] = Counter((suffix_reason(name), name.count("/")) for name in source.names)
    pieces = [f"{count} {suffix} file{'s' * (count > 1)}{_DEEP.get(deep, f' {deep} folders down')}"
              for (suffix, deep), count in kinds.most_common(3)]  # fmt: skip
    if source.names and all(map(is_picture, source.names)):
        pieces.append("pictures need one folder a class")
    return f"; seen: {shown(', '.join(pieces))}" if pieces else ""
