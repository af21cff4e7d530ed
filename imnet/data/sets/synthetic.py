"""``synthetic``: random pixels and labels in the shape of another set, to measure throughput. Not learnable."""

from __future__ import annotations

import numpy as np

from imnet.data.base import DataSet, Split, make
from imnet.data.sets import Request, dataset, require, require_memory

_DEFAULT_TRAIN_IMAGES = 4096
_DEFAULT_TEST_IMAGES = 1024


@dataset
def synthetic(request: Request) -> DataSet:
    """Random uint8 pixels (N, image_px, image_px, channels); 32 px, 3 channels, 10 classes unless asked otherwise.

    ``split`` is accepted for the sake of the set that it replaces, and changes nothing.
    """
    require("hold_out", request.hold_out or None, None, "synthetic")
    image_px, channels = request.image_px or 32, request.channels or 3
    num_classes = request.num_classes or 10
    splits = []
    for stream, count in enumerate(
        (request.train_images or _DEFAULT_TRAIN_IMAGES, request.test_images or _DEFAULT_TEST_IMAGES)
    ):
        generator = np.random.Generator(np.random.Philox(key=[request.seed & (2**64 - 1), stream]))
        shape = (count, image_px, image_px, channels)
        require_memory(shape, "synthetic")
        pixels = np.frombuffer(generator.bytes(int(np.prod(shape, dtype=np.int64))), dtype=np.uint8).reshape(shape)
        splits.append(Split(pixels, generator.integers(0, num_classes, count, dtype=np.int64)))
    return make("synthetic", splits[0], splits[1], tuple(f"class_{i}" for i in range(num_classes)))
