"""``fashion-mnist``: four IDX files, found or downloaded; in the published runs' 30,000 / 40,000 split or the official.

Sources: Xiao, Rasul, Vollgraf 2017 (the set); jungwon1413/pytorch_image_classification (the custom split).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from imnet.data.base import DataSet, Split
from imnet.data.readers.idx import FASHION_CLASSES, holds_idx, read_official
from imnet.data.sets import Request, dataset
from imnet.data.sets.remote import RemoteSet
from imnet.errors import DataError

_CUSTOM_TRAIN_IMAGES = 30_000
# Fingerprints of the custom and of the official split of the official files.
_OFFICIAL = (
    "ea6ecd8224be703826dd8c280bf2b349b4bb0fef85a3ebb00cf1265e0ecbfac8",
    "1f89909c6d278a907b136f5ec5e0ed44e4493d785a73bd789bf19e785da8900d",
)


def custom_split(train: Split, test: Split) -> tuple[Split, Split]:
    """Turn the official (train, test) into the custom split, unshuffled, as in the published runs."""
    cut = _CUSTOM_TRAIN_IMAGES
    if len(train) <= cut:
        raise DataError(f"fashion-mnist: {len(train)} training images; the custom split needs more than {cut}")
    rest = Split(np.concatenate([test.images, train.images[cut:]]), np.concatenate([test.labels, train.labels[cut:]]))
    return Split(train.images[:cut], train.labels[:cut]), rest


def _read(folder: Path) -> tuple[Split, Split, tuple[str, ...]]:
    return *read_official(folder), FASHION_CLASSES


FASHION_MNIST = RemoteSet(
    name="fashion-mnist",
    base_url="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    files={
        "train-images-idx3-ubyte.gz": (26_421_880, "md5:8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
        "train-labels-idx1-ubyte.gz": (29_515, "md5:25c81989df183df01b3e8a0aad5dffbe"),
        "t10k-images-idx3-ubyte.gz": (4_422_102, "md5:bef4ecab320f06d8554ea6380940ec79"),
        "t10k-labels-idx1-ubyte.gz": (5_148, "md5:bb300cfdad3c16e7a12a480ee83cd310"),
    },
    folders=("fashion-mnist", "fashion_mnist", "FashionMNIST/raw"),
    wanted="train-images-idx3-ubyte[.gz] and its three siblings",
    image_shape=(28, 28, 1),
    num_classes=10,
    place=lambda folder: folder if holds_idx(folder) else None,
    read=_read,
    splits={"custom": custom_split, "official": None},
)


@dataset
def fashion_mnist(request: Request) -> DataSet:
    """28 px, 1 channel, 10 classes. ``split``: custom (the default: the first 30,000 official training images; test =
    the 10,000 official test images, then training images 30,000..59,999) or official (60,000 / 10,000)."""
    loaded = FASHION_MNIST.load(request)
    if loaded.fingerprint in _OFFICIAL:
        return loaded
    # MNIST and similar sets have files of the same names. They are trained on as asked for, with a note.
    note = "by their checksum these IDX files are not Fashion-MNIST, whose class names they get"
    return replace(loaded, notes=(*loaded.notes, note))
