"""Exports a packed store to class folders of pictures; file names are computed here, and nothing is overwritten."""

from __future__ import annotations

import io
import re
from pathlib import Path

from PIL import Image

from imnet.data.files import io_errors, make_dir
from imnet.data.readers.picture import opened
from imnet.data.readers.rule import junk, split_of
from imnet.data.store import Store
from imnet.errors import IOFailure
from imnet.files import is_dir

# Phones write MPO: a JPEG followed by more pictures.
_SUFFIX = {
    **{"JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png", "BMP": ".bmp", "DIB": ".dib", "WEBP": ".webp", "GIF": ".gif"},
    **{"TIFF": ".tif", "PPM": ".ppm", "AVIF": ".avif", "JPEG2000": ".jp2"},
}


def check_free(store: Store, target: Path) -> None:
    """Raise IOFailure if ``target`` holds anything but other splits of an export: a reader would later mix the new
    pictures with the user's own, or take them instead."""
    top = _top(store, target)
    there = sorted(path.name for path in target.iterdir()) if is_dir(target) else []
    taken = [name for name in there if not name.startswith(".") and split_of(name) is None and target / name != top]
    if taken or (is_dir(top) and any(top.iterdir())):
        raise IOFailure("exists already", file=target / taken[0] if taken else top, hint="export into an empty folder")


def _top(store: Store, target: Path) -> Path:
    return target / re.sub(r"\W", "_", str(store.header["split"]))


def export(store: Store, target: Path) -> int:
    """Write ``target/<split>/<class>/<number>.png``, or encoded pictures unchanged; returns the number of files.

    Folder names sort in label order, so that reading the folders back gives the same labels. IOFailure if a file exists
    already.
    """
    top = make_dir(_top(store, target))
    folders = [make_dir(top / name) for name in folder_names(store.class_names)]
    images = None if store.is_encoded else store.images()
    for i in range(len(store)):
        stem = folders[int(store.labels[i])] / f"{i:08d}"
        if images is None:
            data = store.encoded(i)
            with opened(data) as picture:
                path = stem.with_suffix(_SUFFIX[picture.format or "JPEG"])
        else:
            png = io.BytesIO()
            Image.fromarray(images[i].squeeze()).save(png, "PNG", compress_level=1)
            path, data = stem.with_suffix(".png"), png.getvalue()
        with io_errors(path, "write"), open(path, "xb") as file:
            file.write(data)
    return len(store)


def folder_names(class_names: tuple[str, ...]) -> list[str]:
    """One safe and unique folder name per class, which sort in label order and which a reader does not take for junk;
    they get a number in front if needed."""
    plain = [re.sub(r"[^\w .,()-]", "_", name).strip(" .")[:100] or "_" for name in class_names]
    if plain == sorted(set(plain)) and not any(map(junk, plain)):
        return plain
    digits = len(str(len(plain) - 1))
    return [f"{i:0{digits}d} {name}" for i, name in enumerate(plain)]
