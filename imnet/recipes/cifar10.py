"""CIFAR-10, 50,000 training images of 32 pixels: Gastaldi's original Shake-Shake runs with a stem of 16 channels.

The networks of document 002 are the same with a wider stem. The figures here are those published with the method.
"""

from imnet.recipe import SGD, Augment, Cosine, Data, Published, Recipe, replace

# The original pads with zeros after normalisation, i.e. with the mean colour; imnet pads before it, with black.
SHAKE_32D = Recipe(
    name="cifar10/shake_shake26_2x32d_stem16",
    model="shake_shake26_2x32d_stem16",
    data=Data(name="cifar10", image_px=32, num_classes=10, batch_images=128),
    augment=Augment(
        crop_pad_px=4,
        hflip="random",
        mean=(125.3 / 255, 123.0 / 255, 113.9 / 255),
        std=(63.0 / 255, 62.1 / 255, 66.7 / 255),
    ),
    optim=SGD(lr=0.2, momentum=0.9, nesterov=True, weight_decay=1e-4),
    schedule=Cosine(),
    epochs=1800,
    source="Gastaldi 2017 (arXiv 1705.07485); xgastaldi/shake-shake on fb.resnet.torch",
    published=Published(top1=0.9645, note="mean of several runs"),
)
SHAKE_64D = replace(
    SHAKE_32D,
    name="cifar10/shake_shake26_2x64d_stem16",
    model="shake_shake26_2x64d_stem16",
    published=Published(top1=0.9702, note="mean of several runs"),
)
SHAKE_96D = replace(
    SHAKE_32D,
    name="cifar10/shake_shake26_2x96d_stem16",
    model="shake_shake26_2x96d_stem16",
    published=Published(top1=0.9714, note="mean of several runs, on 2 GPUs"),
)
