"""Every transform against torchvision's own function, image by image, with the same drawn parameters."""

import math

import numpy as np
import pytest
import torch
from scipy.fft import dct
from torchvision.transforms.v2 import RandAugment, TrivialAugmentWide
from torchvision.transforms.v2 import functional as tv

from imnet.data.base import Split
from imnet.data.pipelines import Setting, recolor, transforms
from imnet.data.pipelines.draws import Key
from imnet.data.pipelines.resident import Resident
from imnet.recipe import Augment, replace

BILINEAR = tv.InterpolationMode.BILINEAR


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pictures(count=24, height=40, width=40, seed=0):
    """Returns smooth random uint8 images (N, 3, H, W), some of them flat, noisy or low in contrast."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 256, (count, 3, 6, 6), generator=generator).float()
    images = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 255).to(torch.uint8)
    images[0] = 77
    images[1, 0] = 0
    images[2] = torch.randint(0, 256, images[2].shape, generator=generator)
    images[3] = images[3] // 4 + 60
    return images


def levels(images):
    return images.float().contiguous(memory_format=torch.channels_last)


def key(count, seed=3, epoch=1, first=0):
    return Key(torch.arange(first, first + count), seed, epoch)


def assert_levels(got, want, share=0.001):
    """Checks that all are whole levels, and at most a ``share`` of the pixels is off, by one level: a rounding boundary
    explains no more."""
    assert torch.equal(got, got.round())
    difference = (got - want.float()).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() <= share


@pytest.mark.parametrize("side", [56, 96, 20, 13])
def test_resize_is_torchvisions(side):
    images = pictures(6)
    got = transforms.resize(levels(images), side)
    assert torch.equal(got, tv.resize(images.float(), [side, side]).round())
    assert_levels(got, tv.resize(images, [side, side]), share=0.5)  # their uint8 path has fixed-point weights


def test_center_crop_is_torchvisions():
    for size, crop in ((40, 32), (41, 32), (39, 32), (40, 40), (250, 224)):
        images = pictures(4, size, size)
        assert torch.equal(transforms.center_crop(levels(images), crop), tv.center_crop(images, [crop, crop]).float())


def test_random_crops_are_the_drawn_ones_and_uniform():
    images = pictures(24)
    who = key(24)
    top, left = transforms.draw_crop(40, 40, 33, who)
    got = transforms.random_crop(levels(images), 33, who)
    for i, image in enumerate(images):
        assert torch.equal(got[i], tv.crop(image, int(top[i]), int(left[i]), 33, 33).float())
    many = transforms.draw_crop(40, 40, 33, key(8000))
    for drawn in many:
        counts = torch.bincount(drawn, minlength=8)
        assert len(counts) == 8
        assert ((counts - 1000).abs() < 6 * math.sqrt(1000 * 7 / 8)).all()


def test_color_jitter_is_torchvisions_in_the_drawn_order():
    images, strengths, who = pictures(96), (0.4, 0.5, 0.6, 0.3), key(96)
    images[4::2] = images[4::2, :1]
    factors, order = recolor.draw_jitter(strengths, who)
    apply = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
    want = []
    for image, factor, places in zip(images, factors.tolist(), order.tolist(), strict=True):
        for kind in places:
            image = apply[kind](image, factor[kind])
        want.append(image)
    # One level that is lost by rounding in the hue may become two or three in the operations that follow.
    difference = (recolor.color_jitter(levels(images), strengths, who) - torch.stack(want).float()).abs()
    assert difference.max() <= 4
    assert (difference > 0).float().mean() < 0.001
    assert len({tuple(o) for o in order.tolist()}) >= 20


@pytest.mark.parametrize("kind", range(4))
def test_each_color_operation_is_torchvisions(kind):
    images = pictures(48)
    images[4::2] = images[4::2, :1]
    factors = torch.linspace(0.0, 2.0, 48) if kind < 3 else torch.linspace(-0.5, 0.5, 48)
    apply = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)[kind]
    want = torch.stack([apply(image, float(f)) for image, f in zip(images, factors, strict=True)])
    column = factors[:, None, None, None]
    if kind == 3:
        got = recolor.adjust_hue(levels(images), column)
    else:
        got = recolor.blend(levels(images), torch.tensor(kind), column)
    assert_levels(got, want, share=0.001 if kind == 3 else 0.0)


def test_jitter_draws_fill_their_ranges():
    factors, order = recolor.draw_jitter((0.1, 0.2, 1.5, 0.05), key(4000))
    low, high = factors.amin(0), factors.amax(0)
    assert torch.allclose(low, torch.tensor([0.9, 0.8, 0.0, -0.05]), atol=0.005)
    assert torch.allclose(high, torch.tensor([1.1, 1.2, 2.5, 0.05]), atol=0.005)
    for place in range(4):
        assert (torch.bincount(order[:, place]) - 1000).abs().max() < 170


SPACE = TrivialAugmentWide._AUGMENTATION_SPACE


def test_the_operations_are_torchvisions():
    assert tuple(SPACE) == recolor.OPERATIONS
    for code, (make, signed) in enumerate(SPACE.values()):
        theirs = make(31, 40, 40)
        ours = recolor._STRENGTHS[code]
        assert torch.equal(ours, torch.zeros(31).double() if theirs is None else theirs.double())
        assert bool(recolor._SIGNED[code]) == signed


@pytest.mark.parametrize("name", list(SPACE))
@pytest.mark.parametrize("shape", [(40, 40), (31, 44)])
@pytest.mark.parametrize("space", [TrivialAugmentWide, RandAugment])
def test_each_operation_is_torchvisions_at_every_strength(name, shape, space):
    """Equal to the bit, also for grey pictures, whose blends end exactly on a level. Only shears and rotations may
    differ, midway between two levels: there the coordinate's last bit decides, which depends on the processor."""
    code, theirs = recolor.OPERATIONS.index(name), space(interpolation=BILINEAR)
    make, signed = theirs._AUGMENTATION_SPACE[name]
    table = make(31, *shape)
    strengths = torch.zeros(31).double() if table is None else table.double()
    if signed:
        strengths = torch.cat([strengths, -strengths])
    images = pictures(len(strengths), *shape)
    images[4::2] = images[4::2, :1]

    def applied(images):
        return torch.stack([
            theirs._apply_image_or_video_transform(i, name, float(m), BILINEAR, {}) if name != "Posterize"
            else tv.posterize(i, int(m)) for i, m in zip(images, strengths, strict=True)
        ])  # fmt: skip

    family = int(recolor._FAMILIES[code])
    codes = torch.full((len(strengths),), code)
    got = recolor._apply(family, levels(images), codes, strengths) if family else levels(images)
    if name in ("ShearX", "ShearY", "Rotate"):
        assert torch.equal(got, got.round())
        # The coordinates are fp32: their last bits move a value by a few thousandths of a level at most.
        assert (got - applied(images.double())).abs().max() < 0.505
    else:
        assert_levels(got, applied(images), share=0.0)


def test_trivial_augment_applies_what_was_drawn():
    images, who = pictures(200), key(200)
    codes, strengths = recolor.draw_trivial(who)
    theirs = TrivialAugmentWide(interpolation=BILINEAR)
    got = recolor.operate(levels(images), *recolor.draw_trivial(who))
    want = []
    for image, code, strength in zip(images, codes.tolist(), strengths.tolist(), strict=True):
        name = recolor.OPERATIONS[code]
        want.append(theirs._apply_image_or_video_transform(image, name, strength, BILINEAR, {}))
    assert_levels(got, torch.stack(want), share=0.005)
    assert (torch.bincount(recolor.draw_trivial(key(14000))[0], minlength=14) - 1000).abs().max() < 200


RAND = RandAugment._AUGMENTATION_SPACE


@pytest.mark.parametrize("magnitude", [0, 9, 15, 30])
@pytest.mark.parametrize("shape", [(40, 40), (31, 44)])
def test_rand_augment_is_torchvisions_with_what_was_drawn(magnitude, shape):
    augment = Augment(rand_augment_ops=3, rand_augment_magnitude=magnitude)
    images, who = pictures(150, *shape), key(150)
    want, got = list(images), levels(images)
    theirs = RandAugment(interpolation=BILINEAR)
    for codes, strengths in recolor.rounds(augment, shape, who):
        names = [recolor.OPERATIONS[c] for c in codes.tolist()]
        for i, (name, strength) in enumerate(zip(names, strengths.tolist(), strict=True)):
            make, signed = RAND[name]
            theirs_all = make(31, *shape)
            meant = 0.0 if theirs_all is None else float(theirs_all[magnitude])
            assert strength == meant or (signed and strength == -meant)
            want[i] = theirs._apply_image_or_video_transform(want[i], name, strength, BILINEAR, {})
        got = recolor.operate(got, codes, strengths)
    # One level lost in an operation may be amplified by the next, so a few values may differ.
    assert ((got - torch.stack(want).float()).abs() > 0).float().mean() < 0.02


def test_rand_augments_operations_are_drawn_evenly_and_apart():
    augment = Augment(rand_augment_ops=2)
    (first, strength), (second, _) = recolor.rounds(augment, (40, 40), key(14000))
    for codes in (first, second):
        assert (torch.bincount(codes, minlength=14) - 1000).abs().max() < 200
    assert (torch.bincount(first * 14 + second, minlength=196) - 71.4).abs().max() < 60
    turned = strength[first == recolor.OPERATIONS.index("Rotate")]
    assert set(turned.abs().tolist()) == {float(torch.linspace(0, 30, 31)[9])}
    assert 400 < int((turned < 0).sum()) < 600


EVERYTHING = Augment(
    crop_pad_px=4, crop_pad_mode="reflect", hflip="random", cutout_px=8, resize_px=56, crop_px=48,
    color_jitter=(0.2, 0.2, 0.2, 0.1), trivial_augment=True, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3),
)  # fmt: skip
BAND = replace(EVERYTHING, cutout_px=0, spectral_r=4, spectral_band=5, spectral_std=(0.3,))


def resident(augment, count=40, seed=7):
    images = pictures(count).permute(0, 2, 3, 1).contiguous().numpy()
    split = Split(images, np.arange(count, dtype=np.int64) % 5)
    return Resident(split, Setting(augment=augment, seed=seed, device=torch.device("cpu"), dtype=torch.float32))


@pytest.mark.parametrize("augment", [EVERYTHING, BAND], ids=["everything", "band"])
def test_a_batch_does_not_depend_on_its_company(augment):
    """Otherwise a run on another number of ranks would train on other images."""
    data = resident(augment)
    ids = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    for train in (True, False):
        whole, labels = data.batch(ids, 3, train)
        assert whole.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(labels, ids % 5)
        parts = torch.cat([data.batch(part, 3, train)[0] for part in ids.split([1, 2, 30, 7])])
        assert torch.equal(whole, parts)
    assert torch.equal(resident(augment).batch(ids, 3, True)[0], data.batch(ids, 3, True)[0])
    assert not torch.equal(data.batch(ids, 4, True)[0], data.batch(ids, 3, True)[0])
    assert not torch.equal(resident(augment, seed=8).batch(ids, 3, True)[0], data.batch(ids, 3, True)[0])
    assert torch.equal(data.batch(ids, 4, False)[0], data.batch(ids, 3, False)[0])


def test_evaluation_is_resize_centre_crop_normalise():
    augment = replace(EVERYTHING, resize_eval_px=60)
    got, _ = resident(augment).batch(torch.arange(40), 0, train=False)
    theirs = tv.center_crop(tv.resize(pictures(40).float(), [60, 60]).round(), [48, 48]) / 255
    want = tv.normalize(theirs, augment.mean, augment.std)
    assert torch.allclose(got, want, atol=1e-5)


def test_training_as_the_tiny_imagenet_notebook_did_it():
    augment = Augment(hflip="random", hflip_p=0.2, resize_px=50, crop_px=44, color_jitter=(0.1,) * 4)
    ids = torch.arange(40)
    got, _ = resident(augment).batch(ids, 2, train=True)
    plain, _ = resident(replace(augment, resize_px=None, crop_px=None, color_jitter=(0.0,) * 4)).batch(ids, 2, True)
    flipped = (plain != resident(Augment()).batch(ids, 2, False)[0]).any(3).any(2).any(1)
    assert 1 <= int(flipped.sum()) <= 18
    who = Key(ids, 7, 2)
    top, left = transforms.draw_crop(50, 50, 44, who)
    big = tv.resize(plain.mul(255).round(), [50, 50]).round()
    cropped = torch.stack([tv.crop(b, int(t), int(x), 44, 44) for b, t, x in zip(big, top, left, strict=True)])
    assert torch.allclose(got * 255, recolor.color_jitter(cropped, (0.1,) * 4, who), atol=1e-3)


@pytest.mark.parametrize(("r", "band"), [(2, 0), (2, 3), (4, 0), (4, 9), (6, 20)])
def test_a_band_is_the_normalised_dct_of_the_phases(r, band):
    augment = Augment(resize_px=48, spectral_r=r, spectral_band=band, mean=(0.4, 0.5, 0.6), spectral_std=(0.7,))
    got, _ = resident(augment).batch(torch.arange(10), 0, train=False)
    x = transforms.resize(levels(pictures(40)[:10]), 48).double().numpy()
    phases = np.stack([x[:, :, row::r, column::r] for row in range(r) for column in range(r)])
    want = dct(phases / 255, type=2, norm=None, axis=0)[band]
    means = np.array(augment.mean)[:, None, None] * (2 * r * r if band == 0 else 0)
    np.testing.assert_allclose(got.double().numpy(), (want - means) / 0.7, atol=2e-4)
    assert got.shape == (10, 3, 48 // r, 48 // r)


def test_ids_beyond_the_host_are_brought_to_it():
    """Draws are made on the host, and must be the same whether the ids are a contiguous tensor or a strided view."""
    data = resident(EVERYTHING)
    ids = torch.arange(0, 40, 2)
    assert torch.equal(data.batch(torch.arange(40)[::2], 0, True)[0], data.batch(ids, 0, True)[0])


@pytest.mark.gpu
@pytest.mark.parametrize("augment", [EVERYTHING, BAND], ids=["everything", "band"])
def test_a_gpu_makes_the_same_images(augment):
    """A few values may differ: by a level if a sum rounds differently, which later operations may amplify."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    split = Split(pictures(40).permute(0, 2, 3, 1).contiguous().numpy(), np.zeros(40, dtype=np.int64))
    options = {"augment": augment, "seed": 7, "dtype": torch.float32}
    host, gpu = (Resident(split, Setting(device=torch.device(kind), **options)) for kind in ("cpu", "cuda"))
    for train in (True, False):
        want, got = (data.batch(torch.arange(40), 3, train)[0].cpu() for data in (host, gpu))
        assert ((want - got).abs() > 0.02).float().mean() < 0.02
