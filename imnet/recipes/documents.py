"""The documents that describe the systems: for each row of a document's table its name and its recipe.

The figures are in the recipes' ``published``. Does not import torch; used for the page of a system.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from imnet.command import suggest
from imnet.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Document:
    """One document. ``rows`` are in its order and wording: row -> name of the recipe."""

    number: str
    system: str
    title: str
    rows: Mapping[str, str]
    notes: tuple[str, ...] = ()
    citations: Mapping[str, str] = field(default_factory=dict)


_DEPTHS = (18, 34, 50, 101, 152)
DOCUMENTS = (
    Document(
        number="000",
        system="imagenet64",
        title="Image classification on ImageNet-64",
        rows={
            "Wide ResNet (wide_resnet50_2)": "imagenet64/wide_resnet50_2",
            "with the hyperparameters of the paper": "imagenet64/wide_resnet50_2_reference",
            "WRN, N = 36, k = 5, of the paper": "imagenet64/wrn36_5",
            "WRN, N = 36, k = 2, of the paper": "imagenet64/wrn36_2",
            "DaViT": "imagenet64/davit_tiny",
        },
        notes=("The document gives its own figure as around 69 %, its experiments still running, and none for DaViT.",),
    ),
    Document(
        number="002",
        system="fashion-mnist",
        title="Image classification on custom Fashion-MNIST",
        rows={
            "WideResNet": "fashion-mnist/wrn28_10",
            "DenseNet": "fashion-mnist/densenet_bc100_12",
            "DualPathNet": "fashion-mnist/dpn28_10",
            "ResNet w/ Shake-Shake (96d)": "fashion-mnist/shake_shake26_2x96d",
            "ResNet w/ Shake-Shake (64d)": "fashion-mnist/shake_shake26_2x64d",
        },
        notes=(
            "30,000 training and 40,000 test images. The published accuracies are those of the best epoch, selected on "
            "the test set; the times are the author's estimates.",
        ),
    ),
    Document(
        number="003",
        system="tiny-imagenet",
        title="Ten ResNets on Tiny ImageNet",
        rows={
            f"tiny-imagenet-resnet{depth}-{kind}": f"tiny-imagenet/resnet{depth}_{kind}"
            for depth in _DEPTHS
            for kind in ("baseline", "augmented")
        },
        notes=("The ten published runs took 60 h together on one V100, and held 10,000 training images out.",),
    ),
    Document(
        number="004",
        system="spectral",
        title="Spectral subsampling on ImageNet-1K and ImageNet-21K",
        rows={
            "AlexNet": "spectral/alexnet_224",
            "spectral-AlexNet-sub4": "spectral/alexnet_sub4",
            "spectral-AlexNet-sub16": "spectral/alexnet_sub16",
            "VGG-16": "spectral/vgg16_224",
            "Spectral-VGG-16-sub4": "spectral/vgg16_sub4",
            "Spectral-VGG-16-sub16": "spectral/vgg16_sub16",
            "ResNet-34": "spectral/resnet34_224",
            "spectral-ResNet34-sub4": "spectral/resnet34_sub4",
            "spectral-ResNet34-sub16": "spectral/resnet34_sub16",
            "spectral-ResNet34-sub36": "spectral/resnet34_sub36",
            "ResNet-50": "spectral/resnet50_224",
            "spectral-ResNet50-sub4": "spectral/resnet50_sub4",
            "spectral-ResNet50-sub16": "spectral/resnet50_sub16",
            "21K: ResNet-34": "spectral/resnet34_21k_224",
            "21K: spectral-ResNet-34-sub36": "spectral/resnet34_21k_sub36",
            "21K: ResNet-50": "spectral/resnet50_21k_224",
            "21K: spectral-ResNet-50-sub36": "spectral/resnet50_21k_sub36",
        },
        notes=(
            "A row of sub4, sub16 or sub36 is an ensemble of that many networks, one a band; imnet-eval ENSEMBLE "
            "measures it. In brackets: what the references report.",
        ),
        citations={
            "[3]": "Krizhevsky 2012",
            "[4]": "Simonyan and Zisserman 2014",
            "[5]": "He et al. 2016",
            "[6]": "Liu et al. 2022",
            "[7]": "Pham and Le 2021",
        },
    ),
)


def of_system(word: str) -> Document:
    """The document for ``word``, the name of a system or the number of a document. UsageError if there is none."""
    found = next((d for d in DOCUMENTS if word in (d.system, d.number)), None)
    if found is None:
        names = [d.system for d in DOCUMENTS]
        hint = suggest(word, names) or f"allowed: {', '.join(names)}"
        raise UsageError(f"got unknown system {word!r}", hint=hint)
    return found
