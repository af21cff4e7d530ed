"""What the plain trainers share: class folders, the training loop, the evaluation. Nothing is imported from imnet."""

import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image


def pictures(folder, part):
    """Returns the pictures of ``folder/part/<class>/`` as RGB PIL images, and labels that number the sorted classes."""
    classes = sorted((Path(folder) / part).iterdir())
    files = [(file, label) for label, place in enumerate(classes) for file in sorted(place.iterdir())]
    return [Image.open(file).convert("RGB") for file, _ in files], torch.tensor([label for _, label in files])


def spaced(images, labels, count):
    """Returns ``count`` evenly spaced images with their labels."""
    ids = [i * len(labels) // count for i in range(count)]
    return (images[ids] if isinstance(images, torch.Tensor) else [images[i] for i in ids]), labels[ids]


def tensor(image):
    """A PIL image as uint8 (3, H, W)."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def crop_flip(images, pad):
    """Pad images (B, C, H, W) with ``pad`` zeros, crop each to H x W at random, and mirror it with probability 0.5."""
    height, width = images.shape[2:]
    out = []
    for image in F.pad(images, (pad,) * 4):
        top, left = torch.randint(2 * pad + 1, (2,)).tolist()
        cut = image[:, top : top + height, left : left + width]
        out.append(cut.flip(2) if torch.rand(()) < 0.5 else cut)
    return torch.stack(out)


def step(net, optimizer, images, labels):
    """Take one optimiser step; returns the loss before it."""
    loss = F.cross_entropy(net(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def fit(net, optimizer, scheduler, batch, labels, *, batch_size, epochs, every_step=False):
    """Train on ``batch(ids)``; the scheduler moves every epoch, or every step. An incomplete last batch is left out."""
    net.train()
    for _ in range(epochs):
        order = torch.randperm(len(labels))
        for ids in order.split(batch_size)[: len(labels) // batch_size]:
            step(net, optimizer, batch(ids), labels[ids])
            if every_step:
                scheduler.step()
        if not every_step:
            scheduler.step()


@torch.no_grad()
def accuracy(net, batch, labels):
    """Returns the top-1 accuracy as a fraction."""
    net.eval()
    right = sum((net(batch(ids)).argmax(1) == labels[ids]).sum() for ids in torch.arange(len(labels)).split(500))
    return right.item() / len(labels)


def judged(began, net, batch, labels):
    """Returns what a plain trainer prints as JSON: accuracy, and seconds since ``began``, a time.perf_counter()."""
    top1 = accuracy(net, batch, labels)
    return {"top1": top1, "seconds": round(time.perf_counter() - began, 3)}
