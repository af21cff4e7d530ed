"""Document 000 in plain PyTorch: a wide residual network on 64-pixel images, trained as in the paper that it cites.

    python -m tests.parity.imagenet64 FOLDER '{"seed": 0}'

The document names WRN-N-k with N = 36, k = 5 and "the same hyperparameters" as Chrabaszcz 2017: SGD with momentum 0.9,
a penalty 5e-4 * |W|^2 (whose gradient is a weight decay of 1e-3), batches of 128, the learning rate times 0.2 after
every quarter of the run, and images less their mean, zero-padded by 4, randomly cropped and mirrored. Here the network
is short and narrow (one block per group, k = 1: N = 12), and the run and its batches are small.
"""

import json
import sys
import time

import torch

from tests.parity.networks import WideResNet
from tests.parity.plain import crop_flip, fit, judged, pictures, spaced, tensor


def network(classes):
    return WideResNet(groups=4, blocks=1, k=1, channels=3, classes=classes)


def optimiser(net, lr=0.05, momentum=0.9, decay=1e-3):
    return torch.optim.SGD(net.parameters(), lr, momentum, weight_decay=decay)


def schedule(optimizer, epochs, steps):
    return torch.optim.lr_scheduler.StepLR(optimizer, epochs // 4, 0.2)


def data(folder, train_images):
    """Returns (ids -> training batch, training labels, ids -> test batch, test labels)."""
    train, labels = spaced(*pictures(folder, "train"), train_images)
    test, test_labels = pictures(folder, "val")
    train, test = (torch.stack([tensor(x) for x in part]).float() / 255 for part in (train, test))
    mean = train.mean(0)
    return lambda ids: crop_flip(train[ids] - mean, 4), labels, lambda ids: test[ids] - mean, test_labels


def main(folder, seed, epochs=4, train_images=640, batch_size=32, **changes):
    torch.manual_seed(seed)
    batch, labels, test_batch, test_labels = data(folder, train_images)
    began = time.perf_counter()
    net = network(len(test_labels.unique()))
    optimizer = optimiser(net, **changes)
    fit(net, optimizer, schedule(optimizer, epochs, 0), batch, labels, batch_size=batch_size, epochs=epochs)
    return judged(began, net, test_batch, test_labels)


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], **json.loads(sys.argv[2]))))
