"""Document 003 in plain PyTorch: a ResNet-18 on Tiny ImageNet, with the augmentation "taught in the course".

    python -m tests.parity.tiny_imagenet FOLDER '{"seed": 0}'

Training images are resized to 250 pixels, randomly cropped to 224, mirrored one time in five, and changed in
brightness, contrast, saturation and hue by up to 0.1; test images are resized and centre-cropped; no mean is
subtracted. torchvision's ResNet with its 1000 outputs, SGD at 0.1 without momentum, decay or schedule, batches of 64.
Here the sizes are a seventh, 36 and 32 pixels.
"""

import json
import random
import sys
import time

import torch
from PIL import Image, ImageEnhance

from tests.parity.networks import ResNet
from tests.parity.plain import fit, judged, pictures, tensor

RESIZED, CROPPED = 36, 32


def jitter(image, most=0.1):
    """Change brightness, contrast, saturation and hue in a random order, each by a random amount."""
    for kind in random.sample(("Brightness", "Contrast", "Color", "hue"), 4):
        amount = random.uniform(-most, most)
        if kind != "hue":
            image = getattr(ImageEnhance, kind)(image).enhance(1 + amount)
            continue
        hue, *rest = image.convert("HSV").split()
        turned = hue.point([(level + int(255 * amount)) % 256 for level in range(256)])
        image = Image.merge("HSV", (turned, *rest)).convert("RGB")
    return image


def augmented(image):
    """Resized picture -> training picture, randomly cropped, mirrored and recoloured."""
    top, left = (random.randint(0, RESIZED - CROPPED) for _ in range(2))
    image = image.crop((left, top, left + CROPPED, top + CROPPED))
    return jitter(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if random.random() < 0.2 else image)


def middle(image):
    edge = (RESIZED - CROPPED) // 2
    return image.crop((edge, edge, edge + CROPPED, edge + CROPPED))


def resized(images):
    return [image.resize((RESIZED, RESIZED), Image.Resampling.BILINEAR) for image in images]


def batch_of(images):
    """PIL images -> fp32 (B, 3, H, W) in 0..1."""
    return torch.stack([tensor(image) for image in images]).float() / 255


def network(classes):
    return ResNet((2, 2, 2, 2), classes=1000)


def optimiser(net, lr=0.1):
    return torch.optim.SGD(net.parameters(), lr)


def schedule(optimizer, epochs, steps):
    return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)


def data(folder):
    """Returns (ids -> training batch, training labels, ids -> test batch, test labels)."""
    (train, labels), (test, test_labels) = pictures(folder, "train"), pictures(folder, "val")
    train, test = resized(train), resized(test)

    def batch(ids):
        return batch_of([augmented(train[i]) for i in ids])

    return batch, labels, lambda ids: batch_of([middle(test[i]) for i in ids]), test_labels


def main(folder, seed, epochs=4, batch_size=64, **changes):
    torch.manual_seed(seed)
    random.seed(seed)
    batch, labels, test_batch, test_labels = data(folder)
    began = time.perf_counter()
    net = network(len(test_labels.unique()))
    optimizer = optimiser(net, **changes)
    fit(net, optimizer, schedule(optimizer, epochs, 0), batch, labels, batch_size=batch_size, epochs=epochs)
    return judged(began, net, test_batch, test_labels)


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], **json.loads(sys.argv[2]))))
