"""Document 002 in plain PyTorch: two of its networks on its split of Fashion-MNIST.

    python -m tests.parity.fashion_mnist FOLDER '{"seed": 0, "net": "wrn"}'

It trains on the first 30,000 training images and is tested on the 10,000 test images and the other 30,000 training
images. SGD at 0.1 with momentum 0.9. WideResNet: Nesterov, weight decay 5e-4, the rate times 0.2 thrice, crop and flip.
Shake-Shake: no Nesterov, decay 1e-4, a cosine to 0 step by step, and Cutout with a box of 16 pixels that may leave the
image. Here the networks are narrow and short, and evenly spaced images of both parts are taken.
"""

import gzip
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch

from tests.parity.networks import ShakeShake, WideResNet
from tests.parity.plain import crop_flip, fit, judged, spaced

MEAN, STD = 0.2860, 0.3530
NETWORKS = {"wrn": lambda: WideResNet(3, 1, 1, channels=1, classes=10), "shake": lambda: ShakeShake(8, 1, 10)}
SETTINGS = {
    "wrn": {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4},
    "shake": {"lr": 0.1, "momentum": 0.9, "nesterov": False, "weight_decay": 1e-4},
}


def read(folder, name, offset):
    """Returns the bytes after the header of an IDX file."""
    return torch.from_numpy(np.frombuffer(gzip.open(Path(folder) / name).read(), np.uint8, offset=offset).copy())


def split(folder):
    """Returns the document's training and test parts, each as images (N, 1, 28, 28) uint8 and labels (N,)."""
    images, labels = (
        [read(folder, f"{part}-{kind}.gz", offset) for part in ("train", "t10k")]
        for kind, offset in (("images-idx3-ubyte", 16), ("labels-idx1-ubyte", 8))
    )
    train, test = (x.view(-1, 1, 28, 28) for x in images)
    first = train[:30_000], labels[0][:30_000].long()
    return first, (torch.cat([test, train[30_000:]]), torch.cat([labels[1], labels[0][30_000:]]).long())


def normalised(images):
    return (images.float() / 255 - MEAN) / STD


def cutout(images, size=16):
    """Set a box around a random centre (0..28) to 0, which is the mean."""
    for image in images:
        y, x = (torch.randint(29, (2,)) - size // 2).tolist()
        image[:, max(y, 0) : y + size, max(x, 0) : x + size] = 0
    return images


def schedule(optimizer, epochs, steps, net="wrn"):
    """Returns drops at 0.3, 0.6 and 0.8 of the epochs; for Shake-Shake, a cosine that moves over all ``steps``."""
    if net == "shake":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    milestones = [epochs * share // 10 for share in (3, 6, 8)]
    return torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, 0.2)


def optimiser(model, net="wrn", **changes):
    return torch.optim.SGD(model.parameters(), **SETTINGS[net] | changes)


def data(folder, train_images, test_images, net="wrn"):
    """Returns (ids -> training batch, training labels, ids -> test batch, test labels)."""
    first, second = split(folder)
    (train, labels), (test, test_labels) = spaced(*first, train_images), spaced(*second, test_images)

    def batch(ids):
        images = normalised(crop_flip(train[ids], 4))
        return cutout(images) if net == "shake" else images

    return batch, labels, lambda ids: normalised(test[ids]), test_labels


def main(folder, seed, net="wrn", epochs=4, train_images=4000, test_images=8000, batch_size=64, **changes):
    torch.manual_seed(seed)
    batch, labels, test_batch, test_labels = data(folder, train_images, test_images, net)
    began = time.perf_counter()
    model = NETWORKS[net]()
    optimizer = optimiser(model, net, **changes)
    scheduler = schedule(optimizer, epochs, epochs * (train_images // batch_size), net)
    sizes = {"batch_size": batch_size, "epochs": epochs, "every_step": net == "shake"}
    fit(model, optimizer, scheduler, batch, labels, **sizes)
    return judged(began, model, test_batch, test_labels)


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], **json.loads(sys.argv[2]))))
