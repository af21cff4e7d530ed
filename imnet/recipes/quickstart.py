"""The recipe for a first run: a small network on the built-in data set `shapes`, half a minute on two CPU cores."""

from imnet.recipe import SGD, Augment, Data, OneCycle, Recipe

QUICKSTART = Recipe(
    name="quickstart",
    model="speednet",
    data=Data(name="shapes", image_px=32, num_classes=10, batch_images=128, train_images=8000, test_images=2000),
    augment=Augment(crop_pad_px=2, hflip="random", mean=(0.5,), std=(0.25,)),
    optim=SGD(lr=0.2, momentum=0.9, nesterov=True, weight_decay=5e-4),
    schedule=OneCycle(peak_fraction=0.3),
    epochs=6,
    source="made for imnet",
)
