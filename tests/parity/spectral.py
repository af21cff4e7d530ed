"""Document 004 in plain PyTorch: one band of spectral-ResNet-sub4.

    python -m tests.parity.spectral FOLDER '{"seed": 0, "band": 1}'

An image is split into r * r smaller ones: phase p = r * row + column is x[row::r, column::r]. A DCT-II over the phases
gives the bands, V[k] = 2 sum_p x[p] cos(pi k (2p + 1) / 2s) with s = r * r, and every band has a network of its own.
SGD with momentum 0.9, decay 1e-4 and a cosine from 0.01 to 0.0001 that moves once per epoch. The document does not
specify augmentation or scale: here images are mirrored, and bands are divided by imnet's own figures. The images have
64 pixels, so a band has 32; the network is a ResNet-18.
"""

import json
import sys
import time

import numpy as np
import torch

from tests.parity.networks import ResNet
from tests.parity.plain import fit, judged, pictures, tensor

R = 2
MEAN, STD = (0.485, 0.456, 0.406), (2.06, 0.156, 0.0652, 0.150)


def band_of(images, k):
    """uint8 (B, 3, H, W) -> fp32 (B, 3, H / 2, W / 2), computed in fp64. The mean colour affects only band 0."""
    x = images.double().numpy() / 255 - np.array(MEAN)[:, None, None]
    phases = [x[:, :, row::R, column::R] for row in range(R) for column in range(R)]
    waves = [2 * np.cos(np.pi * k * (2 * p + 1) / (2 * R * R)) for p in range(R * R)]
    return torch.from_numpy(sum(w * phase for w, phase in zip(waves, phases, strict=True)) / STD[k]).float()


def network(classes):
    return ResNet((2, 2, 2, 2), classes)


def optimiser(net, lr=0.01, momentum=0.9):
    return torch.optim.SGD(net.parameters(), lr, momentum, weight_decay=1e-4)


def schedule(optimizer, epochs, steps):
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs, eta_min=1e-4)


def data(folder, band):
    """Returns (ids -> training batch, training labels, ids -> test batch, test labels)."""
    (train, labels), (test, test_labels) = pictures(folder, "train"), pictures(folder, "val")
    train, test = (torch.stack([tensor(x) for x in part]) for part in (train, test))

    def batch(ids):
        mirrored = torch.rand(len(ids), 1, 1, 1) < 0.5
        return band_of(torch.where(mirrored, train[ids].flip(3), train[ids]), band)

    return batch, labels, lambda ids: band_of(test[ids], band), test_labels


def main(folder, seed, band=1, epochs=4, batch_size=32, **changes):
    torch.manual_seed(seed)
    batch, labels, test_batch, test_labels = data(folder, band)
    began = time.perf_counter()
    net = network(len(test_labels.unique()))
    optimizer = optimiser(net, **changes)
    fit(net, optimizer, schedule(optimizer, epochs, 0), batch, labels, batch_size=batch_size, epochs=epochs)
    return judged(began, net, test_batch, test_labels)


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], **json.loads(sys.argv[2]))))
