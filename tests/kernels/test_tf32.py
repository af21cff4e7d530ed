"""Matrix products that make images are in full fp32 on a GPU, also where training beside them may use TF32."""

import pytest
import torch
from imnet_kernels.spectral import reference

from imnet.data.pipelines import transforms
from imnet.data.pipelines.draws import Key

IMAGES = torch.randint(0, 256, (40, 40, 40, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
BOX = transforms.draw_resized_crop(
    torch.full((40,), 40), torch.full((40,), 40), (0.3, 1.0), Key(torch.arange(40), 3, 1)
)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(
    ("make", "off"),
    [
        (lambda x: transforms.resized_crop(x, BOX, 12), 0),
        (lambda x: reference.spectral(x.permute(0, 3, 1, 2), 4, (0, 15), None, None, torch.float32), 0.01),
    ],
    ids=["crop", "bands"],
)
def test_images_are_the_same_beside_tf32(make, off):
    """In TF32, 1.7 % of the values of resized crops differed by a level."""
    matmul = torch.backends.cuda.matmul
    before, matmul.allow_tf32 = matmul.allow_tf32, True
    try:
        want, got = make(IMAGES).double(), make(IMAGES.cuda()).double().cpu()
        assert matmul.allow_tf32
    finally:
        matmul.allow_tf32 = before
    assert ((want - got).abs() > off).double().mean() < 0.001
