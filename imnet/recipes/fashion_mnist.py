"""Fashion-MNIST on the custom split: 30,000 training images, 40,000 test images (document 002)."""

from imnet.recipe import SGD, Augment, Data, MultiStep, Published, Recipe, replace

MEAN, STD = (0.2860,), (0.3530,)
DATA = Data(name="fashion-mnist", image_px=28, channels=1, num_classes=10, batch_images=256, split="custom")
CROP_FLIP = Augment(crop_pad_px=4, hflip="random", mean=MEAN, std=STD)
# The notebooks fed raw 0..255 floats: no crop, no flip, no normalisation. 255 * (x / 255) is x.
RAW_PIXELS = Augment(mean=(0.0,), std=(1 / 255,))

WRN28_10 = Recipe(
    name="fashion-mnist/wrn28_10",
    model="wrn28_10",
    data=DATA,
    augment=CROP_FLIP,
    optim=SGD(lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4),
    schedule=MultiStep(milestones_epochs=(60, 120, 160), gamma=0.2),
    epochs=200,
    seed=40000,
    source="document 002 (as documented: crop and flip); Zagoruyko and Komodakis 2016",
    published=Published(top1=0.932775, hours=7, hardware="GTX 1080 Ti", note="best epoch, selected on the test set"),
)
WRN28_10_AS_RUN = replace(
    WRN28_10,
    name="fashion-mnist/wrn28_10_as_run",
    augment=RAW_PIXELS,
    source="jungwon1413/pytorch_image_classification, the notebook: raw pixels, nothing augmented",
    published=Published(top1=0.93177, hours=5.0, hardware="GTX 1080 Ti", note="last epoch, from the notebook's log"),
)
