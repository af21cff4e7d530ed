"""``fashion-mnist``: four IDX files, found or downloaded; the published runs' 30,000 / 40,000 split or the official.

Sources: Xiao, Rasul, Vollgraf 2017 (the set); jungwon1413/pytorch_image_classification (the custom split).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from imnet.data.base import DataSet, Request, Split, dataset, did_you_mean, make, require, search_path
from imnet.data.download import Patience, Remote, fetch
from imnet.data.files import cache_dir
from imnet.data.idx import read_idx
from imnet.data.store import is_store, load_named
from imnet.errors import DataError, IOFailure, UsageError

BASE_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
FILES = {
    "train-images-idx3-ubyte.gz": (26_421_880, "md5:8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
    "train-labels-idx1-ubyte.gz": (29_515, "md5:25c81989df183df01b3e8a0aad5dffbe"),
    "t10k-images-idx3-ubyte.gz": (4_422_102, "md5:bef4ecab320f06d8554ea6380940ec79"),
    "t10k-labels-idx1-ubyte.gz": (5_148, "md5:bb300cfdad3c16e7a12a480ee83cd310"),
}
CLASS_NAMES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
SPLITS = ("custom", "official")
_FOLDERS = ("fashion-mnist", "fashion_mnist", "FashionMNIST/raw")
_CUSTOM_TRAIN_IMAGES = 30_000


@dataset
def fashion_mnist(request: Request) -> DataSet:
    """28 px, 1 channel, 10 classes. ``split``: custom (the default: the first 30,000 official training images; test =
    the 10,000 official test images, then training images 30,000..59,999) or official (60,000 / 10,000)."""
    split = request.split or SPLITS[0]
    if split not in SPLITS:
        hint = did_you_mean(split, list(SPLITS)).strip()
        raise UsageError(f"split is {split!r} for data set fashion-mnist; allowed {', '.join(SPLITS)}", hint=hint)
    for option, got, allowed in (
        ("image_px", request.image_px, 28),
        ("num_classes", request.num_classes, 10),
        ("channels", request.channels, 1),
    ):
        require(option, got, allowed, "fashion-mnist")
    if request.data_dir is not None and is_store(request.data_dir):
        stored = load_named(request.data_dir, "fashion-mnist")
        train, test = stored.train, stored.test
        assert isinstance(train, Split), "without image_px a store of encoded pictures is refused"
        assert isinstance(test, Split), "as above"
    else:
        train, test = read_official(find(request.data_dir) or _download(request))
    if split == "custom":
        train, test = custom_split(train, test)
    return make("fashion-mnist", train, test, CLASS_NAMES)


def custom_split(train: Split, test: Split) -> tuple[Split, Split]:
    """(train, test) official -> custom, unshuffled, as the published runs did it."""
    cut = _CUSTOM_TRAIN_IMAGES
    if len(train) <= cut:
        raise DataError(f"fashion-mnist: {len(train)} training images; the custom split needs more than {cut}")
    rest = Split(
        np.concatenate([test.images, train.images[cut:]]),
        np.concatenate([test.labels, train.labels[cut:]]),
    )
    return Split(train.images[:cut], train.labels[:cut]), rest


def read_official(folder: Path) -> tuple[Split, Split]:
    """(train, test) from the four files, gz or raw, in ``folder``."""
    return _read_pair(folder, "train"), _read_pair(folder, "t10k")


def _read_pair(folder: Path, part: str) -> Split:
    image_file, label_file = (_file(folder, f"{part}-{kind}-ubyte.gz") for kind in ("images-idx3", "labels-idx1"))
    if image_file is None or label_file is None:
        raise DataError(f"no {part}-images-idx3-ubyte[.gz] and {part}-labels-idx1-ubyte[.gz]", file=folder)
    images, labels = read_idx(image_file, 3), read_idx(label_file, 1)
    if len(images) != len(labels):
        raise DataError(
            f"{len(labels)} labels for {len(images)} images of {image_file.name}", file=label_file, offset=4
        )
    if images.shape[1:] != (28, 28):
        raise DataError(
            f"images are {images.shape[1]} x {images.shape[2]}, expected 28 x 28", file=image_file, offset=8
        )
    wrong = np.flatnonzero(labels >= len(CLASS_NAMES))
    if len(wrong):
        got = f"label {labels[wrong[0]]} of image {wrong[0]}; allowed 0..9"
        raise DataError(got, file=label_file, offset=8 + int(wrong[0]))
    return Split(images[..., None], labels.astype(np.int64))


def _file(folder: Path, name: str) -> Path | None:
    return next((p for p in (folder / name, folder / name.removesuffix(".gz")) if p.is_file()), None)


def find(data_dir: Path | None) -> Path | None:
    """The first folder of the search path that holds any of the four files; the reader names what it lacks."""
    for folder in [*search_path(data_dir, _FOLDERS), cache_dir() / "fashion-mnist"]:
        if any(_file(folder, name) for name in FILES):
            return folder
    return None


def download(folder: Path, base_url: str = BASE_URL, patience: Patience | None = None) -> Path:
    """Fetch the four files into ``folder``, resuming; IOFailure (one line) where that fails."""
    for name, (size_bytes, checksum) in FILES.items():
        if _file(folder, name) is None:
            fetch(Remote(base_url + name, size_bytes, checksum), folder / name, patience)
    return folder


def _download(request: Request) -> Path:
    """The folder after a download, or ONE DataError: what was looked for, where, and what to do."""
    why = "no download asked"
    target = (request.data_dir or cache_dir()) / "fashion-mnist"
    if request.data_dir is not None and not request.data_dir.is_dir():
        why = f"the folder {request.data_dir} does not exist, so nothing was downloaded into it"
    elif request.download:
        try:
            return download(target)
        except IOFailure as error:
            why = str(error)
    looked = ", ".join(map(str, [*search_path(request.data_dir, _FOLDERS[:1]), cache_dir() / "fashion-mnist"]))
    raise DataError(
        f"fashion-mnist not found: looked for train-images-idx3-ubyte[.gz] and its three siblings in {looked}; {why}",
        hint=f"put the four files of {BASE_URL} into {target}, or train on --data shapes, which needs nothing",
    )
