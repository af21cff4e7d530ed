"""ffcv's side of bench_data, run by another Python that has ffcv: ``PYTHON data_ffcv.py PIXELS.npy FOLDER``.

Writes PIXELS, uint8 (N, H, W, 3), as raw fields; then for each line on stdin goes once through the set and answers with
one line of JSON: its processor seconds and images. The first answer is the gate: whether ffcv without augmentation
gives back the pixels. On Debian: apt-get install libopencv-dev libturbojpeg0-dev pkg-config g++, then into a virtual
environment: pip install torch numba setuptools opencv-python-headless assertpy fastargs terminaltables pandas tqdm, and
pip install --no-deps --no-build-isolation ffcv==1.0.2.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

BATCH, PAD_PX, CUTOUT_PX = 256, 4, 16
MEAN, STD = 127.5, 63.75


class _Pixels:
    def __init__(self, images: np.ndarray) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        return np.asarray(self._images[i]), i


def loaders(images: np.ndarray, folder: Path):
    """(augmented in random order, as it is in order)."""
    from ffcv import transforms as t  # pyright: ignore[reportMissingImports]
    from ffcv.fields import IntField, RGBImageField  # pyright: ignore[reportMissingImports]
    from ffcv.fields.rgb_image import SimpleRGBImageDecoder  # pyright: ignore[reportMissingImports]
    from ffcv.loader import Loader, OrderOption  # pyright: ignore[reportMissingImports]
    from ffcv.writer import DatasetWriter  # pyright: ignore[reportMissingImports]

    path = str(folder / "pixels.beton")
    fields = {"image": RGBImageField(write_mode="raw"), "label": IntField()}
    DatasetWriter(path, fields, num_workers=1).from_indexed_dataset(_Pixels(images))
    fill = (127, 127, 127)
    augmented = [
        SimpleRGBImageDecoder(),
        t.RandomHorizontalFlip(),
        t.RandomTranslate(padding=PAD_PX, fill=fill),
        t.Cutout(CUTOUT_PX, fill),
        t.NormalizeImage(np.array([MEAN] * 3), np.array([STD] * 3), np.float32),
        t.ToTensor(),
        t.ToTorchImage(),
    ]
    plain = [SimpleRGBImageDecoder(), t.ToTensor()]
    common = {"batch_size": BATCH, "num_workers": 1, "os_cache": True}
    return (
        Loader(path, order=OrderOption.RANDOM, pipelines={"image": augmented, "label": None}, **common),
        Loader(path, order=OrderOption.SEQUENTIAL, pipelines={"image": plain, "label": None}, **common),
    )


def main() -> None:
    import torch

    torch.set_num_threads(1)
    images = np.load(sys.argv[1], mmap_mode="r")
    augmented, plain = loaders(images, Path(sys.argv[2]))
    same = all(
        np.array_equal(batch.numpy(), images[i * BATCH : i * BATCH + len(batch)]) for i, (batch,) in enumerate(plain)
    )
    print(json.dumps({"gate": bool(same)}), flush=True)
    for _ in sys.stdin:
        began, count = time.process_time(), 0
        for (batch,) in augmented:
            count += len(batch)
        print(json.dumps({"seconds": time.process_time() - began, "images": count}), flush=True)


if __name__ == "__main__":
    main()
