"""Makes random calls into a sanitizer build of _host, on numpy arrays of the exact sizes; run by test_host.py."""

from __future__ import annotations

import random
import sys

import _host
import numpy as np

WIDTHS = {0: 4, 1: 2, 2: 2, 3: 1}


def block(num_elements: int, code: int) -> np.ndarray:
    """Returns a heap block of zeros in exactly the size needed, so that ASan's redzone follows the last element."""
    return np.zeros(max(num_elements * WIDTHS[code], 1), dtype=np.uint8)


def augment(rng: random.Random) -> None:
    height, width, channels, batch = rng.randint(1, 40), rng.randint(1, 40), rng.randint(1, 5), rng.randint(0, 4)
    code, image, limit = rng.randint(0, 2), height * width * channels, min(height, width)
    cutout, inside = rng.randint(0, limit), rng.random() < 0.5
    first = 0 if inside else -(cutout // 2)
    counts = [size - cutout + 1 if inside else size + (cutout % 2 == 0) for size in (height, width)]
    store, out = np.random.randint(0, 256, 3 * image, dtype=np.uint8), block(batch * image, code)
    ids = np.random.randint(0, 3, batch)
    mean = np.zeros(image, dtype=np.float32) if rng.random() < 0.3 else None
    _host.augment(
        store=store.ctypes.data, ids=ids.ctypes.data, sample_ids=ids.ctypes.data, out=out.ctypes.data,
        mean_shift=0 if mean is None else mean.ctypes.data, num_stored=3, batch=batch, height=height, width=width,
        channels=channels, dtype=code, scale=[1.0] * channels, shift=[0.5] * channels, seed=rng.getrandbits(64),
        epoch=3, pad_px=rng.randint(0, limit - 1), reflect=rng.randint(0, 1), hflip=rng.randint(0, 2),
        flip_threshold=1 << 31, cutout_px=cutout, box=[first, counts[0], first, counts[1]],
        num_threads=rng.randint(1, 3)
    )  # fmt: skip


def spectral(rng: random.Random) -> None:
    r, batch, channels = rng.choice([2, 4, 6]), rng.randint(0, 2), rng.randint(1, 5)
    height, width = r * rng.randint(1, 5), r * rng.randint(1, 40)
    bands = [rng.randrange(r * r) for _ in range(rng.randint(1, r * r + 2))]
    in_code, out_code = rng.randint(0, 3), rng.randint(0, 2)
    images = block(batch * channels * height * width, in_code)
    out = block(batch * channels * height * width // (r * r) * len(bands), out_code)
    numbers = [0.5] * (len(bands) * channels) if rng.random() < 0.5 else []
    _host.spectral(
        images=images.ctypes.data, out=out.ctypes.data, batch=batch, channels=channels, height=height, width=width, r=r,
        in_dtype=in_code, out_dtype=out_code, channels_last=rng.random() < 0.5, bands=bands, scale=numbers,
        shift=numbers, num_threads=rng.randint(1, 3)
    )  # fmt: skip


def shake(rng: random.Random) -> None:
    batch, n, code = rng.randint(0, 4), rng.randint(1, 40) * rng.randint(1, 50), rng.randint(0, 2)
    blocks = [block(batch * n, code) for _ in range(4)]
    a, b, c, d = (x.ctypes.data for x in blocks)
    count = rng.choice([1, batch])
    coefficient = np.full(max(count, 1), 0.25, dtype=np.float32)
    common = {"batch": batch, "image_elements": n, "coefficient": coefficient.ctypes.data, "num_coefficients": count}
    common |= {"dtype": code, "num_threads": rng.randint(1, 3)}
    _host.shake(x1=a, x2=b, residual=c, out=d, **common)
    _host.shake_backward(grad=a, d1=b, d2=c, **common)


def sgd(rng: random.Random) -> None:
    sizes = [rng.randint(0, 70) for _ in range(rng.randint(0, 5))]
    lists = [[block(n, 0) for n in sizes] for _ in range(4)]
    pointers = {name: [x.ctypes.data for x in arrays] for name, arrays in zip(("params", "grads"), lists, strict=False)}
    momenta, emas = rng.random() < 0.5, rng.random() < 0.5
    pointers["momenta"] = [x.ctypes.data for x in lists[2]] if momenta else []
    pointers["emas"] = [x.ctypes.data for x in lists[3]] if emas else []
    _host.sgd_ema(
        **pointers, sizes=sizes, lr=0.1, grad_scale=1.0, momentum=0.9, weight_decay=1e-4, ema_weight=0.01,
        nesterov=momenta and rng.random() < 0.5, num_threads=rng.randint(1, 3)
    )  # fmt: skip


def main() -> None:
    rng, calls = random.Random(11), 0
    for isa in ("base", "avx2", "avx512", "avx512bf16"):
        try:
            _host.force_isa(isa)
        except ValueError:
            continue
        for _ in range(400):
            for family in (augment, spectral, shake, sgd):
                family(rng)
                calls += 1
    sys.stdout.write(f"{calls} calls without a finding\n")


main()
