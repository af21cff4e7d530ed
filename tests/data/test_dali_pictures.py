"""DALI on pictures that are kept encoded, some of them damaged, and whole training runs with it."""

import os
import signal
import zipfile
from dataclasses import replace

import pytest
import torch

from imnet import recipes, train
from imnet.data import pipelines
from imnet.data.tool import main as imnet_data
from imnet.errors import DataError, Preempted
from imnet.recipe import Augment
from tests.data.making import class_files, picture, write_tree
from tests.data.test_encoded import PAD_FLIP, RANDOM_CROP, SIZES, encoded_split, setting

pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed (extra: dali)")


@pytest.fixture(scope="module")
def coded():
    found = [picture(i, *SIZES[i % 5]) for i in range(30)]
    found[3], found[7] = picture(3, 40, 30, "L"), picture(7, 30, 40, "RGB", "PNG")
    found[8], found[9] = picture(8, 30, 40, "CMYK"), picture(9, 30, 40, "RGB", "WEBP")
    return found


def levels_apart(pictures, augment, train, image_px=24, device="cpu"):
    """|DALI's images on ``device`` - the host pipeline's| in levels of 0..255, (n, values)."""
    split = encoded_split(pictures, image_px)
    ids = torch.arange(len(pictures)).split(8)
    found = {}
    for kind, where in (("dali", device), ("host", "cpu")):
        options = setting(augment, split, workers=2, device=torch.device(where))
        found[kind] = [(x.cpu(), y.cpu()) for x, y in pipelines.build(kind, split, options).stream(ids, 1, train)]
    pairs = list(zip(found["dali"], found["host"], strict=True))
    assert all(torch.equal(x[1], y[1]) for x, y in pairs)
    return torch.cat([(x[0] - y[0]).abs().flatten(1) for x, y in pairs]) * 255 * min(augment.std)


@pytest.mark.parametrize("train", [True, False])
def test_decoded_as_by_pillow(coded, train):
    assert levels_apart(coded, PAD_FLIP, train).max() < 1e-3
    apart = levels_apart(coded, RANDOM_CROP, train)
    # Pillow rounds to whole levels between the two passes of its resize.
    assert apart.max() < 1.001
    assert apart.mean() < 0.3
    assert apart.mean(1).max() < 0.4


def test_a_header_is_read_once_and_again_when_the_picture_changes(coded, monkeypatch):
    """Pillow blocks every other thread while it reads a header; reading all in each epoch would limit images/s."""
    from imnet.data.pipelines import dali_pictures

    read, opened = [], dali_pictures.opened
    monkeypatch.setattr(dali_pictures, "opened", lambda data: read.append(data) or opened(data))
    pictures = list(coded)
    split = encoded_split(pictures)
    dali, host = (pipelines.build(kind, split, setting(RANDOM_CROP, split)) for kind in ("dali", "host"))
    pieces, plain = torch.arange(30).split(8), [data for data in coded if data[:2] == b"\xff\xd8"]
    plain.remove(coded[8])  # CMYK, which Pillow converts to RGB
    for epoch in range(4):
        read.clear()
        if epoch == 3:
            pictures[4] = picture(41, 50, 20)
        for (x, _), (y, _) in zip(dali.stream(pieces, epoch, True), host.stream(pieces, epoch, True), strict=True):
            assert (x - y).abs().max() * 255 * min(RANDOM_CROP.std) < 1.001
        wanted = {0: plain, 3: [pictures[4]]}.get(epoch, [])
        assert [data for data in read if data in (*plain, pictures[4])] == wanted


@pytest.mark.parametrize("px", [1, 7, 224])
def test_what_a_filter_lacks_at_the_borders(px):
    """The factor equals its definition, a sum over all taps, also for a part beyond the image or one enlarged."""
    from imnet.data.pipelines.dali_graph import _lacking

    g = torch.Generator().manual_seed(px)
    size = torch.randint(1, 900, (40,), generator=g)
    part = size * (0.05 + 1.1 * torch.rand(40, generator=g, dtype=torch.float64))
    first = (size - part) * torch.rand(40, generator=g, dtype=torch.float64)
    found = _lacking(first, part / px, size, px)
    for i in range(40):
        reach = max(1.0, float(part[i]) / px)
        center = first[i] + (torch.arange(px, dtype=torch.float64)[:, None] + 0.5) * part[i] / px
        pixel = torch.arange(-reach * 3 - 60, int(size[i]) + reach * 3 + 60, dtype=torch.float64).floor()
        weights = (1 - ((pixel + 0.5 - center) / reach).abs()).clamp(min=0)
        inside = weights[:, (pixel >= 0) & (pixel < size[i])].sum(1)
        torch.testing.assert_close(found[i], weights.sum(1) / inside, rtol=1e-9, atol=0.0)


PHOTOGRAPHS = Augment(crop_px=64, crop_scale=(0.08, 1.0), resize_eval_px=72)


def photographs(shared):
    with zipfile.ZipFile(shared("imagenet-1k-sample.zip")) as archive:
        names = [name for name in archive.namelist() if name.lower().endswith((".jpeg", ".jpg"))]
        return [archive.read(name) for name in sorted(names)[::6]]


@pytest.mark.parametrize("train", [True, False])
def test_photographs(shared, train):
    apart = levels_apart(photographs(shared), PHOTOGRAPHS, train)
    assert apart.max() < 1.001
    assert apart.mean() < 0.2


@pytest.mark.gpu
@pytest.mark.parametrize("train", [True, False])
def test_a_gpus_decoder_is_within_two_levels_of_pillow_on_average(coded, shared, train):
    """nvJPEG has its own inverse DCT and chroma filter, which is why only --pipeline dali decodes with it."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA GPU here")
    for pictures, augment in ((coded, PAD_FLIP), (coded, RANDOM_CROP), (photographs(shared), PHOTOGRAPHS)):
        apart = levels_apart(pictures, augment, train, device="cuda")
        assert apart.mean() < 2
        assert apart.mean(1).max() < 4


def bogus_table(data):
    """A JPEG with an impossible first Huffman table: its header can be read, but no decoder accepts it."""
    damaged, at = bytearray(data), data.index(b"\xff\xc4")
    damaged[at + 5 : at + 15] = b"\xff" * 10
    return bytes(damaged)


def cut_short(data):
    return data[: len(data) - 100]


@pytest.mark.parametrize("damage", [bogus_table, cut_short, lambda data: b"", lambda data: b"no picture at all"])
def test_a_damaged_picture_is_named_or_left_out(coded, damage):
    pictures = list(coded) * 34
    pictures[17] = damage(pictures[17])
    split = encoded_split(pictures)
    pieces = torch.arange(40).split(8)
    batches = pipelines.build("dali", split, setting(PAD_FLIP, split)).stream(pieces, 0, False)
    assert [len(next(batches)[1]) for _ in range(2)] == [8, 8]
    with pytest.raises(DataError, match=r"^x\.imnet: picture 17: .*--on-bad-image skip"):
        next(batches)
    options = setting(PAD_FLIP, split, on_bad="skip", workers=2)
    dali, host = (pipelines.build(kind, split, options) for kind in ("dali", "host"))
    for (x, labels), (y, wanted) in zip(dali.stream(pieces, 0, True), host.stream(pieces, 0, True), strict=True):
        assert torch.equal(labels, wanted)
        assert (x - y).abs().max() < 1e-5
    assert list(dali.decoder.bad) == list(host.decoder.bad) == [17]


def test_what_only_pillow_decodes_is_decoded_by_pillow(coded, monkeypatch):
    """If DALI refuses a picture that Pillow can read, training must go on with Pillow's pixels and not stop."""
    from imnet.data.pipelines.dali_pictures import Pictures

    given = Pictures._decoded

    def spoilt(self, i, epoch, train):
        data = given(self, i, epoch, train)
        if i == 12 and i not in self.by_pillow:
            data = data.copy()
            data[2:] = 0
        return data

    monkeypatch.setattr(Pictures, "_decoded", spoilt)
    split = encoded_split(coded)
    pieces = torch.arange(30).split(5)
    dali, host = (pipelines.build(kind, split, setting(PAD_FLIP, split)) for kind in ("dali", "host"))
    for (x, _), (y, _) in zip(dali.stream(pieces, 0, True), host.stream(pieces, 0, True), strict=True):
        assert (x - y).abs().max() < 1e-5
    assert 12 in dali.decoder.by_pillow
    assert not dali.decoder.bad


def small(name, **data):
    base = recipes["quickstart"]
    augment = Augment(crop_pad_px=2, hflip="random", cutout_px=4, mean=(0.5,), std=(0.25,))
    held = replace(base.data, **({"name": name, "batch_images": 16} | data))
    return replace(base, name="dali", model="wrn10_1", augment=augment, data=held, epochs=2)


def weights(run):
    return run.model().state_dict()


OPTIONS = {"pipeline": "dali", "device": "cpu", "precision": "fp32", "threads": 1, "workers": 2}


def shapes(root):
    return small("shapes", image_px=16, num_classes=4, train_images=96, test_images=40)


def store(root, *size):
    source = write_tree(root / "src", class_files("train", 16) | class_files("val", 4, seed=900))
    assert imnet_data(["pack", str(source), str(root / "set"), *size]) == 0
    held = {"image_px": 24, "num_classes": 3, "channels": 3, "train_images": None, "test_images": None}
    return small(f"packed:{root / 'set'}", **held)


def packed(root):
    return store(root, "--size", "24")


@pytest.mark.parametrize("make", [shapes, packed, store], ids=["shapes", "packed", "encoded"])
def test_a_training_that_is_interrupted_ends_with_the_same_weights(tmp_path, monkeypatch, make):
    from imnet.data.pipelines.dali import Dali

    recipe = make(tmp_path)
    whole = train(recipe, out=tmp_path / "whole", **OPTIONS)
    assert whole.info["pipeline"]["kind"] == "dali"
    given, count = Dali._labels, []

    def interrupting(self, feed, train):
        count.append(len(feed))
        if len(count) == 3:  # the first call was the warm-up's
            os.kill(os.getpid(), signal.SIGTERM)
        return given(self, feed, train)

    with monkeypatch.context() as patch:
        patch.setattr(Dali, "_labels", interrupting)
        with pytest.raises(Preempted, match=r"saved at step \d of"):
            train(recipe, out=tmp_path / "cut", **OPTIONS)
    resumed = train(recipe, out=tmp_path / "cut", **OPTIONS)
    want, got = weights(whole), weights(resumed)
    assert all(torch.equal(got[name], value) for name, value in want.items())
    assert resumed.metrics[-1]["loss"] == whole.metrics[-1]["loss"]
