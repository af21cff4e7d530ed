"""Which operations go together and with which images, at both sides of every border, and what they make of an image."""

import re

import pytest

from imnet.recipe import Augment

RANDAUG = {"rand_augment_ops": 2}
CROPS = {"crop_scale": (0.3, 1.0), "crop_px": 20}
BANDS = {"spectral_r": 2}
# What goes together, and a change with which it does not, in what is said about it.
TOGETHER = [
    ({"hflip": "alternating"}, {"hflip_p": 0.4}, "hflip_p = 0.4"),
    ({"hflip": "random", "hflip_p": 0.4}, {"hflip": "alternating"}, "hflip_p = 0.4"),
    ({"color_jitter": (0.0, 0.0, 0.0, 0.5)}, {"color_jitter": (0.0, 0.0, 0.0, 0.51)}, "the last at most 0.5"),
    ({"color_jitter": (3.0, 0.6, 0.6, 0.0)}, {"color_jitter": (0.1,) * 5}, "four numbers"),
    ({"trivial_augment": True}, RANDAUG, "one of them"),
    (RANDAUG, {"trivial_augment": True}, "one of them"),
    (RANDAUG | {"rand_augment_magnitude": 30}, {"rand_augment_ops": 0}, "magnitude without operations"),
    ({"rand_augment_ops": 16}, {"rand_augment_ops": 17}, "rand_augment_ops = 17"),
    (RANDAUG, {"rand_augment_magnitude": 31}, "rand_augment_magnitude = 31"),
    (CROPS, {"crop_px": None}, "crop_scale without crop_px"),
    (CROPS, {"resize_px": 32}, "or with resize_px"),
    (CROPS, {"crop_scale": (0.3, 1.01)}, "two shares of the area"),
    (CROPS | {"crop_scale": (0.3, 0.3)}, {"crop_scale": (0.31, 0.3)}, "two shares of the area"),
    (CROPS, {"crop_scale": (0.3,)}, "two shares of the area"),
    (BANDS | {"spectral_band": 3}, {"spectral_band": 4}, "spectral_band = 4 of 4 bands; allowed: 0..3; choose another"),
    (BANDS | {"spectral_band": 1}, {"spectral_r": None}, "1 of no bands; allowed: 0..0; set --augment.spectral_r"),
    ({"spectral_r": 4}, {"spectral_r": 5}, "spectral_r = 5"),
    ({"spectral_r": 6, "spectral_band": 35}, {"spectral_band": 36}, "allowed: 0..35"),
    (BANDS | {"spectral_std": (1.0,) * 4}, {"spectral_std": (1.0,) * 3}, "allowed: 1 or 4 numbers"),
    (BANDS | {"spectral_std": (2.0,)}, {"spectral_std": ()}, "allowed: 1 or 4 numbers"),
    ({"spectral_std": (2.0,)}, {"spectral_std": (2.0, 2.0)}, "allowed: one number without spectral_r"),
]
# As above, for images of (px, channels).
FITTING = [
    ((32, 3), {"crop_pad_px": 31}, {"crop_pad_px": 32}, "under 32"),
    ((32, 3), CROPS | {"crop_pad_px": 19}, {"crop_pad_px": 20}, "under 20"),
    ((32, 3), {"crop_px": 20, "crop_pad_px": 31}, {"crop_pad_px": 32}, "under 32"),
    ((31, 3), {"crop_px": 31}, {"crop_px": 32}, "at most 31, the side of the training images"),
    ((32, 3), {"crop_px": 40, "resize_px": 40}, {"resize_px": 39}, "at most 39, the side of the training images"),
    ((32, 3), {"crop_px": 30, "resize_eval_px": 30}, {"resize_eval_px": 29}, "at most 29, the side of the test images"),
    ((16, 3), CROPS | {"resize_eval_px": 20}, {"resize_eval_px": 19}, "at most 19, the side of the test images"),
    ((16, 3), CROPS | {"resize_eval_px": 20}, {"resize_eval_px": None}, "at most 16, the side of the test images"),
    ((32, 3), BANDS, {"spectral_r": 6}, "32 px with augment.spectral_r = 6; allowed: multiples of 6"),
    ((31, 3), BANDS | {"crop_px": 30}, {"crop_px": None}, "31 px with augment.spectral_r = 2"),
    ((32, 3), BANDS | {"resize_eval_px": 30}, {"resize_eval_px": 31}, "31 px with augment.spectral_r = 2"),
    ((32, 3), BANDS | {"resize_px": 30}, {"resize_px": 31, "resize_eval_px": 30}, "31 px with augment.spectral_r = 2"),
    ((32, 3), {"cutout_px": 32}, {"cutout_px": 33}, "at most data.image_px = 32"),
    ((32, 3), {"cutout_px": 30, "crop_px": 30}, {"cutout_px": 31}, "at most the input size = 30"),
    ((32, 3), BANDS, {"cutout_px": 4}, "a box has no place in a band"),
    ((32, 3), BANDS, {"random_erasing_p": 0.1}, "a box has no place in a band"),
    ((32, 3), {"cutout_px": 4, "random_erasing_p": 0.1}, BANDS, "a box has no place in a band"),
    ((32, 3), {"mean": (0.1,) * 3}, {"mean": (0.1,) * 2}, "augment.mean of 2 values; allowed: 1 or 3;"),
    ((32, 3), {"std": (0.1,) * 3}, {"std": (0.1,) * 2}, "augment.std of 2 values; allowed: 1 or 3;"),
    ((32, 1), {"mean": (0.1,), "std": (0.2,)}, {"mean": (0.1,) * 3}, "augment.mean of 3 values; allowed: 1;"),
    ((32, 3), {"mean": "image", "crop_pad_px": 2, "cutout_px": 2}, {"crop_px": 8}, "allowed: numbers"),
    ((32, 3), {"mean": "image"}, {"resize_eval_px": 32}, "allowed: numbers"),
    ((32, 3), {"mean": "image"}, {"color_jitter": (0.0, 0.0, 0.0, 0.1)}, "allowed: numbers"),
    ((32, 1), {}, {"trivial_augment": True}, "data.channels = 1 with"),
    ((32, 1), {}, RANDAUG, "data.channels = 1 with"),
    ((32, 1), {"random_erasing_p": 0.2}, {"color_jitter": (0.1, 0.0, 0.0, 0.0)}, "data.channels = 1 with"),
]  # fmt: skip


@pytest.mark.parametrize(("good", "change", "said"), TOGETHER)
def test_what_goes_together(good, change, said):
    Augment(**good)
    with pytest.raises(ValueError, match=re.escape(said)):
        Augment(**(good | change))


@pytest.mark.parametrize(("images", "good", "change", "said"), FITTING)
def test_what_fits_the_images(images, good, change, said):
    Augment(**good).check_fits(*images)
    with pytest.raises(ValueError, match=re.escape(said)):
        Augment(**(good | change)).check_fits(*images)


@pytest.mark.parametrize(("how", "px"), [
    ({}, 32), ({"resize_px": 40}, 40), ({"resize_eval_px": 40}, 32), ({"resize_px": 40, "crop_px": 24}, 24),
    (CROPS, 20), ({"spectral_r": 4}, 8), (BANDS | {"crop_px": 24}, 12),
])  # fmt: skip
def test_the_side_of_what_a_network_sees(how, px):
    assert Augment(**how).output_px(32) == px


def test_what_is_done_to_which_images():
    assert [Augment(spectral_r=r).num_bands for r in (None, 2, 6)] == [0, 4, 36]
    assert [Augment(mean=m).mean_per_channel(3) for m in ((0.5,), (0.1, 0.2, 0.3))] == [(0.5,) * 3, (0.1, 0.2, 0.3)]
    with pytest.raises(ValueError, match="allowed: numbers"):
        Augment(mean="image").mean_per_channel(3)
    sides = ({}, {"resize_px": 40}, {"resize_eval_px": 30}, {"resize_px": 40, "resize_eval_px": 30})
    assert [Augment(**how).test_px for how in sides] == [None, 40, 30, 30]
    always = ({"crop_pad_px": 2}, {"hflip": "random"}, {"cutout_px": 3}, {"random_erasing_p": 0.1}, {"mean": (0.5,)})
    colours = ({"trivial_augment": True}, RANDAUG, {"color_jitter": (0.0, 0.0, 0.1, 0.0)})
    for how in (*always, *colours, *sides, CROPS, BANDS):
        a, cut = Augment(**how), how in sides[1:] or how in (CROPS, BANDS)
        assert (a.transforms_eval, a.recolors, a.transforms) == (cut, how in colours, cut or how in colours), how
    rest = Augment(**CROPS, resize_eval_px=30, hflip="random").of_cut_images
    assert rest == Augment(hflip="random")
    assert Augment(resize_px=30, **BANDS).of_cut_images == Augment(**BANDS)
