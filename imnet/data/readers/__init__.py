"""Every format in: ``recognise(path)`` says what lies there, and how to read it."""

from __future__ import annotations

from pathlib import Path

from imnet.data import cifar, fashion_mnist
from imnet.data.readers import imagenet64
from imnet.data.readers.base import Block, Blocks, Found, stat_key
from imnet.data.readers.folders import find_folders, find_tiny
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
    found = _idx(path) or _cifar(path) or imagenet64.find(path)
    if found is not None:
        return found
    if path.is_dir() and any(path.glob("*.tar")):
        return find_tars(path)
    if path.is_dir() and any(any(folder.glob("*.parquet")) for folder in (path, path / "data")):
        return find_parquet(path)
    source = tree(path)
    return find_tiny(source) or find_folders(source)


def _idx(path: Path) -> Found | None:
    """Fashion-MNIST, or any set in its four files (MNIST, KMNIST), told apart by nothing but the folder's name."""
    if not path.is_dir() or not any((path / n).is_file() for f in fashion_mnist.FILES for n in (f, f[:-3])):
        return None
    train, test = fashion_mnist.read_official(path)
    files = sorted(p for p in path.iterdir() if p.is_file())

    def blocks(split) -> Blocks:
        return Blocks(len(split), split.images.shape[1:], lambda: iter([(split.images, split.labels)]), stat_key(files))

    fashion = "fashion" in str(path.resolve()).lower()
    names = fashion_mnist.CLASS_NAMES if fashion else tuple(str(digit) for digit in range(10))
    name, kind = ("fashion-mnist", "Fashion-MNIST") if fashion else ("mnist", "MNIST-like")
    splits: dict[str, Items | Blocks] = {"train": blocks(train), "test": blocks(test)}
    return Found(name, f"{kind} IDX files", path, names, splits)


def _cifar(path: Path) -> Found | None:
    form = next((form for form in cifar.FORMS.values() if path.is_dir() and (path / form.train[0]).is_file()), None)
    if form is None:
        return None
    train, test, names = cifar.read(form, path)
    key = stat_key([path / name for name in (*form.train, *form.test)])
    splits: dict[str, Items | Blocks] = {
        "train": Blocks(len(train), (32, 32, 3), lambda: iter([(train.images, train.labels)]), key),
        "test": Blocks(len(test), (32, 32, 3), lambda: iter([(test.images, test.labels)]), key),
    }
    return Found(form.name, f"{form.name} binary files", path, names, splits)
