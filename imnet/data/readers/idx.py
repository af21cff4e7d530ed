"""IDX files (MNIST's format), gz or raw: two zero bytes, a type byte, a dimension count, big-endian sizes, then bytes.

A set in IDX files has four of them: images and labels, to train and to test.

Source of the format: the MNIST page (LeCun, Cortes, Burges). Only unsigned bytes are read; that is all these sets have.
"""

from __future__ import annotations

import gzip
import os
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from imnet.data.base import Split
from imnet.data.readers.base import Blocks, Found, stat_key
from imnet.data.readers.items import Items
from imnet.errors import DataError, IOFailure

_UINT8 = 0x08
_BLOCK_BYTES = 1 << 20
# Deflate cannot expand further than this; a header that claims more is wrong before anything is read.
_MAX_DEFLATE_RATIO = 1032
MAX_IDX_BYTES = 4 << 30
_FILES = tuple(f"{part}-{kind}-ubyte.gz" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))
FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


def read_idx(path: Path, num_dims: int, max_bytes: int = MAX_IDX_BYTES) -> np.ndarray:
    """The array of an IDX file, uint8, shape as its header says, which must have ``num_dims`` sizes.

    Memory: the array plus 1 MiB, and never more than the file can hold. DataError (one line, file, offset in the
    uncompressed stream) on anything that is not exactly such a file; IOFailure where it cannot be read.
    """
    try:
        with open(path, "rb") as raw:
            gzipped = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            size = os.fstat(raw.fileno()).st_size
            limit = min(max_bytes, size * _MAX_DEFLATE_RATIO if gzipped else size)
            stream = gzip.GzipFile(fileobj=raw) if gzipped else raw
            return _read(stream, path, num_dims, limit)
    except EOFError as error:
        raise DataError("gzip stream ends early", file=path, hint="get the file again") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"gzip stream is damaged: {error}", file=path, hint="get the file again") from error
    except OSError as error:
        raise IOFailure(f"cannot read: {error.strerror or error}", file=path) from error


def _read(stream: BinaryIO | gzip.GzipFile, path: Path, num_dims: int, limit: int) -> np.ndarray:
    shape = _header(stream, path, num_dims)
    count = 1
    for size in shape:
        count *= size
    if count > limit:
        raise DataError(f"header claims {count} bytes {shape}; the file holds at most {limit}", file=path, offset=4)
    data = bytearray()
    while len(data) < count:
        block = stream.read(min(_BLOCK_BYTES, count - len(data)))
        if not block:
            start = 4 + 4 * num_dims + len(data)
            raise DataError(f"data ends after {len(data)} bytes, expected {count}", file=path, offset=start)
        data += block
    if stream.read(1):
        start = 4 + 4 * num_dims + count
        raise DataError(f"trailing bytes after the {count} that the header announces", file=path, offset=start)
    return np.frombuffer(data, dtype=np.uint8).reshape(shape)


def _header(stream: BinaryIO | gzip.GzipFile, path: Path, num_dims: int) -> tuple[int, ...]:
    head = stream.read(4)
    if len(head) < 4 or head[:2] != b"\0\0":
        raise DataError(
            f"not an IDX file: starts with {head[:4].hex() or 'nothing'}, expected 0000", file=path, offset=0
        )
    if head[2] != _UINT8:
        raise DataError(f"IDX type is 0x{head[2]:02x}, expected 0x08 (unsigned byte)", file=path, offset=2)
    if head[3] != num_dims:
        raise DataError(f"IDX has {head[3]} dimensions, expected {num_dims}", file=path, offset=3)
    sizes = stream.read(4 * num_dims)
    if len(sizes) < 4 * num_dims:
        raise DataError(f"header ends after {4 + len(sizes)} bytes, expected {4 + 4 * num_dims}", file=path, offset=4)
    return struct.unpack(f">{num_dims}I", sizes)


def find_idx(path: Path) -> Found | None:
    """Fashion-MNIST, or any set in its four files (MNIST, KMNIST), told apart by nothing but the folder's name."""
    if not path.is_dir() or not holds_idx(path):
        return None
    train, test = read_official(path)
    files = sorted(p for p in path.iterdir() if p.is_file())

    def blocks(split) -> Blocks:
        return Blocks(len(split), split.images.shape[1:], lambda: iter([(split.images, split.labels)]), stat_key(files))

    fashion = "fashion" in str(path.resolve()).lower()
    names = FASHION_CLASSES if fashion else tuple(str(digit) for digit in range(10))
    name, kind = ("fashion-mnist", "Fashion-MNIST") if fashion else ("mnist", "MNIST-like")
    splits: dict[str, Items | Blocks] = {"train": blocks(train), "test": blocks(test)}
    return Found(name, f"{kind} IDX files", path, names, splits)


def holds_idx(folder: Path) -> bool:
    """Whether any of the four files lies in ``folder``."""
    return any(_file(folder, name) for name in _FILES)


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
    wrong = np.flatnonzero(labels >= 10)
    if len(wrong):
        got = f"label {labels[wrong[0]]} of image {wrong[0]}; allowed 0..9"
        raise DataError(got, file=label_file, offset=8 + int(wrong[0]))
    return Split(images[..., None], labels.astype(np.int64))


def _file(folder: Path, name: str) -> Path | None:
    return next((p for p in (folder / name, folder / name.removesuffix(".gz")) if p.is_file()), None)
