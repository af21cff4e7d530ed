"""The native JPEG + BOX kernel: byte for byte Pillow's pixels, or it leaves the picture to Pillow."""

import io
import random
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from imnet.data import box
from imnet.data.readers import picture
from imnet.data.readers.picture import BadPictureError, ResizeRule, decode
from tests.data import making
from tests.data.test_fuzz_inputs import TIMES, mutated

if box._host() is None or not hasattr(box._host(), "box_jpeg"):
    pytest.skip("host kernels are not built, or older than box_jpeg", allow_module_level=True)


@pytest.fixture(params=["auto", "base"])
def isa(request):
    box._host().force_isa(request.param)
    yield request.param
    box._host().force_isa("auto")


def encoded(seed, width, height, mode="RGB", rough=2, **options):
    """A JPEG of smooth noise with details of about ``rough`` pixels."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (height // rough + 1, width // rough + 1, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).convert(mode).save(out, "JPEG", **options)
    return out.getvalue()


def test_this_pillow_agrees():
    assert box.jpeg() is not None


@settings(max_examples=1500, deadline=None)
@given(
    width=st.integers(1, 140),
    height=st.integers(1, 140),
    size=st.integers(1, 80),
    mode=st.sampled_from(["RGB", "RGB", "L"]),
    channels=st.sampled_from([1, 3]),
    rough=st.integers(1, 9),
    options=st.fixed_dictionaries(
        {"quality": st.integers(20, 98), "subsampling": st.integers(0, 2), "optimize": st.booleans()}
    ),
)
def test_every_size_and_sampling_equals_pillow(width, height, size, mode, channels, rough, options):
    data = encoded(0, width, height, mode, rough, **options)
    got = box.small(data, size, channels)
    if got is not None:
        assert np.array_equal(got, making.expected(data, size, "RGB" if channels == 3 else "L"))
    else:  # declined: grey from colour, repeated chroma samples of tiny pictures, coefficients that no photograph has
        assert (mode == "RGB" and channels == 1) or width <= 4 or rough < 3


def test_photographs_are_not_declined(shared, isa):
    with zipfile.ZipFile(shared("imagenet-1k-sample.zip")) as archive:
        for name in archive.namelist():
            data = archive.read(name)
            got = box.small(data, 64, 3)
            assert got is not None, name
            assert np.array_equal(got, making.expected(data, 64)), name


@pytest.mark.parametrize("size", [1, 16, 224, 300])
@pytest.mark.parametrize("shape", [(500, 375), (375, 500), (301, 299), (7, 2000), (2000, 7), (224, 224)])
def test_large_and_odd_shapes(isa, size, shape):
    for subsampling in range(3):
        data = encoded(1, *shape, rough=5, quality=90, subsampling=subsampling)
        assert np.array_equal(box.small(data, size, 3), making.expected(data, size))


@pytest.mark.parametrize(
    "options",
    [{"progressive": True}, {"restart_marker_rows": 1}, {"mode": "CMYK"}, {"keep_rgb": True}],
    ids=lambda options: next(iter(options)),
)
def test_unusual_kinds_are_left_to_pillow_and_come_out_equal(options):
    data = encoded(2, 90, 70, rough=5, **options)
    assert box.small(data, 16, 3) is None
    assert np.array_equal(decode(data, ResizeRule(16)), making.expected(data, 16))


def test_damage_gives_what_pillow_gives(isa, monkeypatch):
    """Random damage: the same pixels as without the kernel, or the same refusal."""
    rng = random.Random(11)
    raws = [encoded(i, 60, 44, mode, 6, subsampling=i % 3) for i, mode in enumerate(["RGB", "RGB", "RGB", "L"])]
    native = used = 0
    for _ in range(1500 * TIMES):
        data = mutated(rng.choice(raws), rng)
        with_kernel = outcome(data)
        monkeypatch.setattr(picture.box, "jpeg", lambda: None)
        plain = outcome(data)
        monkeypatch.undo()
        assert type(with_kernel) is type(plain)
        assert np.array_equal(with_kernel, plain) if isinstance(plain, np.ndarray) else with_kernel == plain
        used += isinstance(plain, np.ndarray)
        native += box.small(data, 16, 3) is not None
    assert used > 300
    assert native > 100


def outcome(data):
    try:
        return decode(data, ResizeRule(16))
    except BadPictureError as error:
        return str(error)


def test_truncation_at_every_byte_is_declined():
    data = encoded(3, 40, 33, rough=6)
    assert box.small(data, 8, 3) is not None
    assert all(box.small(data[:end], 8, 3) is None for end in range(len(data)))


def test_wrong_buffers_are_refused():
    fill = box.jpeg()
    wrong = [(8, 3, (10,)), (0, 3, (0,)), (8, 2, (8, 8, 2)), (5000, 1, (5000, 5000, 1))]
    buffers = [(size, channels, np.empty(shape, np.uint8)) for size, channels, shape in wrong]
    buffers += [(8, 3, np.empty((8, 3, 16), np.uint8)[..., ::2]), (8, 3, np.empty((8, 8, 3), np.float32))]
    for size, channels, out in buffers:
        with pytest.raises(ValueError, match="box_jpeg: size"):
            fill(b"", size, channels, out)


def test_the_reference_can_be_forced(monkeypatch):
    monkeypatch.setenv("IMNET_KERNELS", "reference")
    box.jpeg.cache_clear()
    assert box.jpeg() is None
    box.jpeg.cache_clear()
