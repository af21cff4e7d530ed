"""ImageNet at 64 x 64 pixels, 1000 classes (document 000; Chrabaszcz, Loshchilov and Hutter 2017)."""

from imnet.recipe import SGD, Augment, Data, Published, Recipe, Step, replace

# The paper concatenates every batch file with its mirror image, so its "epoch" holds 2,562,334 images and its 40
# epochs are 80 ordinary ones with random flips; its drops after 10, 20, 30 are ours after 20, 40, 60. Its penalty
# 5e-4 * sum(W^2) has no 1/2, which makes the weight decay of torch 1e-3.
WRN36_5 = Recipe(
    name="imagenet64/wrn36_5",
    model="wrn36_5",
    data=Data(name="imagenet64", image_px=64, num_classes=1000, batch_images=128),
    augment=Augment(crop_pad_px=4, hflip="random", mean="image"),
    optim=SGD(lr=0.01, momentum=0.9, weight_decay=1e-3),
    schedule=Step(every_epochs=20, gamma=0.2),
    epochs=80,
    source="arXiv 1707.08819, and the authors' WRNs_imagenet.py",
    published=Published(top1=0.6766, top5=0.8736, hours=22 * 24, hardware="Titan X", note="last epoch"),
)
WRN36_2 = replace(
    WRN36_5,
    name="imagenet64/wrn36_2",
    model="wrn36_2",
    published=Published(top1=0.6045, top5=0.8343, hours=6.4 * 24, hardware="Titan X", note="last epoch"),
)
