"""Random erasing against torchvision's: the distribution of the drawn boxes, and the pixels that are erased."""

import functools

import pytest
import torch
from torchvision.transforms.v2 import RandomErasing
from torchvision.transforms.v2 import functional as tv

from imnet.data.pipelines import erasing
from imnet.data.pipelines.draws import Key


def key(count, seed=3, epoch=1):
    return Key(torch.arange(count), seed, epoch)


@functools.cache
def theirs(height, width, count):
    """Returns torchvision's boxes for ``count`` images, (n, 4) as top, left, height, width; some images get none."""
    torch.manual_seed(0)
    drawn = [RandomErasing(p=1.0).make_params([torch.zeros(3, height, width)]) for _ in range(count)]
    return torch.tensor([[p["i"], p["j"], p["h"], p["w"]] for p in drawn if p["v"] is not None])


# On narrow images most first draws do not fit; some images of the last size get no box at all.
@pytest.mark.parametrize("p", [1.0, 0.5])
@pytest.mark.parametrize("size", [(40, 56), (60, 7), (5, 60), (64, 3)], ids=str)
def test_boxes_are_distributed_as_torchvisions(size, p):
    import scipy.stats  # which takes a second

    count = 4000
    wanted, boxes = theirs(*size, count), erasing.draw_boxes(*size, p, key(count))
    found = boxes[boxes[:, 2] > 0]
    assert len(found) / count == pytest.approx(p * len(wanted) / count, abs=0.03)
    for name, column in {"top": 0, "left": 1, "height": 2, "width": 3}.items():
        result = scipy.stats.ks_2samp(found[:, column].numpy(), wanted[:, column].numpy(), method="asymp")
        assert result.pvalue > 1e-3, name
    assert (boxes[:, :2] + boxes[:, 2:] <= torch.tensor(size)).all()


def test_place_area_and_shape_of_a_box_say_nothing_of_each_other():
    import scipy.stats

    top, left, height, width = erasing.draw_boxes(400, 400, 1.0, key(4000)).double().unbind(1)
    apart = torch.stack([top / (400 - height), left / (400 - width), height * width, height / width], 1)
    together = scipy.stats.spearmanr(apart.numpy()).statistic
    assert abs(together - torch.eye(4).numpy()).max() < 0.06


def test_boxes_depend_on_the_image_and_the_epoch_alone():
    many = erasing.draw_boxes(40, 56, 0.25, key(8000))
    assert int((many[:, 2] > 0).sum()) == pytest.approx(2000, abs=200)
    assert torch.equal(erasing.draw_boxes(40, 56, 0.25, key(50)), many[:50])
    again = erasing.draw_boxes(40, 56, 0.25, key(8000, epoch=2))
    assert int(((many[:, 2] > 0) & (again[:, 2] > 0)).sum()) == pytest.approx(500, abs=100)


def test_erasing_is_torchvisions_on_the_drawn_box():
    images = torch.randn(20, 3, 40, 56).contiguous(memory_format=torch.channels_last)
    boxes = erasing.draw_boxes(40, 56, 0.5, key(20))
    got = erasing.erase(images, boxes)
    assert got.is_contiguous(memory_format=torch.channels_last)
    for image, (top, left, height, width), x in zip(images, boxes.tolist(), got, strict=True):
        assert torch.equal(x, tv.erase(image, top, left, height, width, torch.zeros(1)))
