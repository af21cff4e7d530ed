"""ImageNet-1K as whole images (``_224``) and as spectral bands (``_sub4``, ``_sub16``, ``_sub36``; document 004).

One network is trained per band, all of them together in one folder; ``--bands`` selects some, ``--band K`` trains one
as a run of its own. The published figures are those of the ensemble. Source:
YangletLiu/Tensor_Layer_Neural_Networks, IEEE TNNLS 2024, doi 10.1109/TNNLS.2024.3394861.
"""

from imnet.recipe import SGD, Augment, Cosine, Data, Published, Recipe, Step, replace

GPU = "A100"
SOURCE = "document 004; IEEE TNNLS 2024, doi 10.1109/TNNLS.2024.3394861"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DATA = Data(name="imagenet", image_px=224, num_classes=1000, batch_images=256)
# The document does not mention augmentation. This is how the source's code trains ImageNet-1K: torchvision's
# RandomResizedCrop and a flip, evaluated on the middle crop after resizing the shorter side to 256 (sub36: 384). Crops
# are taken from whole pictures, which the store keeps encoded.
WHOLE_224 = Augment(crop_scale=(0.08, 1.0), crop_px=224, resize_eval_px=256, hflip="random", mean=MEAN, std=STD)

# Standard deviation of every band of x/255, of the three colours together, over ten such crops of each of 100 ImageNet
# images, each of another class. The source's bands went through JPEG files, which clipped them to 0..255; ours do not.
SUB4_STD = (2.06, 0.156, 0.0652, 0.150)
SUB16_STD = (
    8.01, 0.837, 0.403, 0.270, 0.189, 0.295, 0.349, 0.627, 0.377, 0.455, 0.213, 0.130, 0.0790, 0.122, 0.170, 0.332,
)  # fmt: skip
SUB36_STD = (
    18.1, 1.90, 0.970, 0.612, 0.394, 0.361, 0.273, 0.398, 0.405, 0.630, 0.750, 1.33,
    0.911, 1.07, 0.549, 0.385, 0.242, 0.177, 0.135, 0.168, 0.206, 0.301, 0.366, 0.629,
    0.320, 0.568, 0.297, 0.221, 0.139, 0.0979, 0.0658, 0.0952, 0.126, 0.196, 0.248, 0.484,
)  # fmt: skip
# The same for images resized to 336 pixels square, which are closer to those in the 21K store.
SUB36_21K_STD = (
    18.5, 2.12, 1.17, 0.831, 0.629, 0.577, 0.456, 0.592, 0.597, 0.808, 0.906, 1.56,
    1.16, 1.28, 0.703, 0.560, 0.430, 0.381, 0.328, 0.368, 0.399, 0.485, 0.542, 0.824,
    0.606, 0.757, 0.476, 0.404, 0.340, 0.300, 0.259, 0.298, 0.331, 0.394, 0.443, 0.688,
)  # fmt: skip
SUB4 = replace(WHOLE_224, std=(1.0,), spectral_r=2, spectral_std=SUB4_STD)
SUB16 = replace(WHOLE_224, std=(1.0,), spectral_r=4, spectral_std=SUB16_STD)
SUB36 = replace(WHOLE_224, std=(1.0,), crop_px=336, resize_eval_px=384, spectral_r=6, spectral_std=SUB36_STD)
SUB36_21K = Augment(hflip="random", mean=MEAN, spectral_r=6, spectral_std=SUB36_21K_STD)

RESNET34_224 = Recipe(
    name="spectral/resnet34_224",
    model="resnet34",
    data=DATA,
    augment=WHOLE_224,
    optim=SGD(lr=0.01, momentum=0.9, weight_decay=1e-4),
    schedule=Cosine(final_factor=0.01, per="epoch"),
    epochs=100,
    source=f"{SOURCE}; crops as in the source's code",
    published=Published(top1=0.7351, hours=43.66, hardware=GPU, mib=83.15, references={"[5]": 0.7548, "[6]": 0.761}),
)
RESNET34_SUB4 = replace(
    RESNET34_224,
    name="spectral/resnet34_sub4",
    augment=SUB4,
    published=Published(
        top1=0.7631,
        hardware=GPU,
        band_top1=(0.7631, 0.7439, 0.6879, 0.7482),
        ensemble_top1=0.7829,
        ensemble_of=(0, 1, 3),
        ensemble_hours=281,
        mib=83.15,
        note="by 600 epochs of another recipe (ResNet strikes back); of what the 281 h are, it does not say",
    ),
)
RESNET34_SUB16 = replace(
    RESNET34_224,
    name="spectral/resnet34_sub16",
    model="resnet34_56",
    augment=SUB16,
    published=Published(
        top1=0.7046,
        hardware=GPU,
        band_top1=(
            0.7046,
            0.6865,
            0.6204,
            0.6890,
            0.6033,
            0.5644,
            0.6089,
            0.5818,
            0.6372,
            0.5775,
            0.6287,
            0.5506,
            0.5363,
            0.4214,
            0.5553,
            0.5507,
        ),
        ensemble_top1=0.7213,
        ensemble_hours=20.02,
        mib=83.15,
    ),
)
RESNET34_SUB36 = replace(
    RESNET34_SUB16,
    name="spectral/resnet34_sub36",
    data=replace(DATA, image_px=336),
    augment=SUB36,
    published=Published(hardware=GPU, ensemble_top1=0.6983, ensemble_hours=20.02, mib=83.15),
)

RESNET50_224 = replace(
    RESNET34_224,
    name="spectral/resnet50_224",
    model="resnet50",
    published=Published(
        top1=0.7799,
        hours=43.8,
        hardware=GPU,
        mib=97.69,
        references={"[5]": 0.7715, "[7]": 0.803},
        note="averaged over 10 crops; 76.27 % without",
    ),
)
RESNET50_SUB4 = replace(
    RESNET34_SUB4,
    name="spectral/resnet50_sub4",
    model="resnet50",
    published=Published(
        top1=0.7753,
        hardware=GPU,
        band_top1=(0.7753, 0.7342, 0.6121, 0.7344),
        ensemble_top1=0.7784,
        ensemble_of=(0, 1, 3),
        ensemble_hours=62.6,
        mib=97.69,
        note="the bands of the ensemble were chosen on the validation set",
    ),
)
# For sub36 only ResNet-34 was published; the other networks have the same recipe.
RESNET50_SUB16 = replace(RESNET34_SUB16, name="spectral/resnet50_sub16", model="resnet50_56", published=None)
RESNET50_SUB36 = replace(RESNET34_SUB36, name="spectral/resnet50_sub36", model="resnet50_56", published=None)

ALEXNET_224 = replace(
    RESNET34_224,
    name="spectral/alexnet_224",
    model="alexnet",
    published=Published(top1=0.6344, hours=40.8, hardware=GPU, mib=224, references={"[3]": 0.593}),
)
ALEXNET_SUB4 = replace(
    RESNET34_SUB4,
    name="spectral/alexnet_sub4",
    model="alexnet_112",
    published=Published(
        top1=0.5927,
        hardware=GPU,
        band_top1=(0.5927, 0.5575, 0.4763, 0.5040),
        ensemble_top1=0.6343,
        ensemble_hours=20.2,
        mib=61.04,
        note="the document's page has 37.73 MB here too",
    ),
)
ALEXNET_SUB16 = replace(
    RESNET34_SUB16,
    name="spectral/alexnet_sub16",
    model="alexnet_56",
    published=Published(hardware=GPU, ensemble_top1=0.6218, ensemble_hours=9.7, mib=37.73),
)
ALEXNET_SUB36 = replace(RESNET34_SUB36, name="spectral/alexnet_sub36", model="alexnet_56", published=None)

# Whether VGG-16 has BN is inferred from the published sizes: 527.79 MiB is without, a band's 207.82 MiB is with it.
VGG16_224 = replace(
    RESNET34_224,
    name="spectral/vgg16_224",
    model="vgg16",
    published=Published(top1=0.7321, hours=81.2, hardware=GPU, mib=527.79, references={"[4]": 0.73}),
)
VGG16_SUB4 = replace(
    RESNET34_SUB4,
    name="spectral/vgg16_sub4",
    model="vgg16_bn_112",
    published=Published(hardware=GPU, ensemble_top1=0.7282, ensemble_hours=44.14, mib=207.82),
)
VGG16_SUB16 = replace(
    RESNET34_SUB16,
    name="spectral/vgg16_sub16",
    model="vgg16_bn_56",
    published=Published(hardware=GPU, ensemble_top1=0.6424, ensemble_hours=26.84, mib=128.05),
)
VGG16_SUB36 = replace(RESNET34_SUB36, name="spectral/vgg16_sub36", model="vgg16_bn_56", published=None)

# ImageNet-21K: the classes with at least 500 pictures, 50 of each held out for testing. The store is made once by
#   imnet-data pack FOLDER_OF_CLASS_TARS STORE --size 336 --shorter 384 --filter bilinear --min-images 500 --hold-out 50
# and given as `--data-dir STORE`. The winter 2021 release has 10,450 such classes: the source's code trains on them,
# and its 171.56 MB are torchvision's ResNet-50 with as many outputs and BN's running statistics. The text counts 11,221
# classes, as in the fall 2011 release (`--data.num_classes 11221`). ResNet-34's 122.35 MB fit neither.
RESNET34_21K_224 = Recipe(
    name="spectral/resnet34_21k_224",
    model="resnet34",
    data=Data(name="packed", image_px=336, num_classes=10_450, batch_images=512),
    augment=Augment(resize_px=224, hflip="random", mean=MEAN, std=STD),
    optim=SGD(lr=0.001, momentum=0.9, weight_decay=1e-4),
    schedule=Step(every_epochs=30, gamma=0.1),
    epochs=100,
    source=f"{SOURCE}; the flip, and 224 pixels for whole images, are inferred",
    published=Published(
        top1=0.4045,
        hours=246,
        mib=122.35,
        note="quoted from Ridnik et al. 2021, not the document's run; more than 246 h",
    ),
)
RESNET34_21K_SUB36 = replace(
    RESNET34_21K_224,
    name="spectral/resnet34_21k_sub36",
    model="resnet34_56",
    augment=SUB36_21K,
    source=f"{SOURCE}; the flip is inferred",
    published=Published(hardware=GPU, ensemble_top1=0.3512, ensemble_hours=90, mib=122.35),
)
RESNET50_21K_224 = replace(RESNET34_21K_224, name="spectral/resnet50_21k_224", model="resnet50", published=None)
RESNET50_21K_SUB36 = replace(
    RESNET34_21K_SUB36, name="spectral/resnet50_21k_sub36", model="resnet50_56", published=None
)
