"""``cifar10`` and ``cifar100``: the binary version, found or downloaded. The checksums are from the set's page."""

from __future__ import annotations

from functools import partial

from imnet.data.base import DataSet
from imnet.data.readers.cifar import CIFAR10, CIFAR100, Form, place, read
from imnet.data.sets import Request, dataset
from imnet.data.sets.remote import RemoteSet


def _remote(form: Form, num_classes: int, size_bytes: int, checksum: str) -> RemoteSet:
    return RemoteSet(
        name=form.name,
        base_url="https://www.cs.toronto.edu/~kriz/",
        files={form.archive: (size_bytes, checksum)},
        folders=(form.folder, form.name),
        wanted=f"{form.folder} or {form.archive}",
        image_shape=(32, 32, 3),
        num_classes=num_classes,
        place=partial(place, form),
        read=partial(read, form),
    )


_CIFAR10 = _remote(CIFAR10, 10, 170_052_171, "md5:c32a1d4ab5d03f1284b67883e8d87530")
_CIFAR100 = _remote(CIFAR100, 100, 168_513_733, "md5:03b5dce01913d631647c71ecec9e9cb8")


@dataset
def cifar10(request: Request) -> DataSet:
    """CIFAR-10: 50,000 / 10,000 images, 32 px RGB, 10 classes."""
    return _CIFAR10.load(request)


@dataset
def cifar100(request: Request) -> DataSet:
    """CIFAR-100: 50,000 / 10,000 images, 32 px RGB, 100 fine classes."""
    return _CIFAR100.load(request)
