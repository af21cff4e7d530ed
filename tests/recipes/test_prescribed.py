"""The lines that --dry-run prints about a recipe, against the reference documents."""

import pytest
import torch
from torch import nn

from imnet import cli, models, prescribed, recipes
from imnet.options import parse
from imnet.recipe import replace

# Recipe -> (name of the line, what the document states about it).
TOLD = {
    "fashion-mnist/wrn28_10": [
        ("optimiser", "sgd lr 0.1, momentum 0.9, Nesterov, weight decay 0.0005 on everything"),
        ("drops", "x0.2: 0.1, 0.02 from epoch 60, 0.004 from epoch 120, 0.0008 from epoch 160"),
        ("augment", "pad 4 px (zero) and crop, random mirror (p 0.5)"),
        ("seed", "40000"),
        ("split", "custom, the last partial batch left out"),
        ("published", "top-1 93.2775 %; 7 h; GTX 1080 Ti; best epoch, selected on the test set"),
        ("options", "drop_rate 0.0"),
    ],
    "fashion-mnist/dpn28_10_as_run": [
        ("optimiser", "sgd lr 0.1, momentum 0.9, no Nesterov, weight decay 0.0005 on everything"),
        ("drops", "0.02 from epoch 59, 0.004 from epoch 119, 0.0008 from epoch 159"),
        ("augment", "none"),
        ("normalise", "none: pixels 0..255"),
        ("seed", "52"),
        ("split", "the last partial batch trained on"),
        ("as run", "fp32, judged every 1 epoch(s)"),
    ],
    "fashion-mnist/shake_shake26_2x96d": [
        ("options", "shake_forward shake, shake_backward shake, shake_level image"),
        ("options", "0.5 in evaluation"),
        ("augment", "cutout 16 px (centre anywhere, always)"),
        ("drops", "half a cosine from 0.1 to 0, moved every step"),
        ("seed", "30000"),
    ],
    "imagenet64/wide_resnet50_2": [
        ("optimiser", "adamw lr 0.001, betas 0.9 0.999, eps 1e-08, weight decay 1 on all but norms and biases"),
        ("drops", "warm-up over 0.8 epochs; half a cosine from 0.001 to 1e-05"),
        ("augment", "pad 4 px (reflect) and crop, random mirror (p 0.5), TrivialAugmentWide"),
        ("normalise", "x/255 less 0.485 0.456 0.406, over 0.229 0.224 0.225"),
    ],
    "imagenet64/wrn36_5_lasagne": [
        ("optimiser", "weight decay 0.001 on all but biases and the norms' shifts"),
        ("drops", "x0.2: 0.01, 0.002 from epoch 20, 0.0004 from epoch 40, 8e-05 from epoch 60"),
        ("normalise", "x/255 less the mean image"),
    ],
    "imagenet64/wide_resnet50_2_reference": [
        ("optimiser", "sgd lr 0.01, momentum 0.9, no Nesterov, weight decay 0.0005 on all but norms and biases"),
        ("drops", "x0.2: 0.01, 0.002 from epoch 10, 0.0004 from epoch 20, 8e-05 from epoch 30"),
    ],
    "tiny-imagenet/resnet50_augmented": [
        ("optimiser", "sgd lr 0.1, no momentum, no weight decay"),
        ("drops", "none: 0.1 throughout"),
        ("augment", "random mirror (p 0.2), resize to 250 px, random crop of 224 px, colour jitter 0.1, 0.1, 0.1, 0.1"),
        ("test images", "resize to 250 px, middle 224 px"),
        ("loss", "cross-entropy over 1000 outputs for 200 classes"),
        ("published", "top-1 53.49 %"),
    ],
    "spectral/resnet34_sub4": [
        ("published", "bands 76.31 74.39 68.79 74.82 %; ensemble of 0, 1, 3 bands 78.29 %"),
        ("augment", "crop of 0.08 to 1 of the area, made 224 px, random mirror (p 0.5), band 0 of 4 at 1/2 of the"),
        ("test images", "resize to 256 px, middle 224 px"),
        ("drops", "half a cosine from 0.01 to 0.0001, moved every epoch"),
    ],
}
# MiB in the table of document 004, of which only some count running statistics. Its AlexNet and VGG-16 at 56 pixels are
# left out: they are smaller than ours by layers that it does not name.
MIB = {
    "spectral/vgg16_224": "527.79 MiB of parameters",
    "spectral/vgg16_sub4": "207.82 MiB",
    "spectral/resnet34_224": "83.15 MiB of parameters",
    "spectral/resnet50_224": "97.69 MiB with running statistics",
}

# Changes to quickstart on the command line -> the whole of each line that they change.
CHANGED = {
    "--optim.kind adamcpr --lr 0.2 --body_lr 0.1": {
        "optimiser": "adamcpr lr 0.2, body at 0.1 of it, betas 0.9 0.999, eps 1e-08, the norm of every weight bounded "
        "by its own after 1,000 steps"
    },
    "--optim.kind adamcpr --lr 0.2 --optim.decay_norms false": {
        "optimiser": "adamcpr lr 0.2, betas 0.9 0.999, eps 1e-08, the norm of every weight but norms and biases "
        "bounded by its own after 1,000 steps"
    },
    "--optim.kind lion --lr 0.2": {"optimiser": "lion lr 0.2, betas 0.9 0.99, weight decay 0.0005 on everything"},
    "--optim.kind muon --lr 0.2 --optim.weight_decay 0": {
        "optimiser": "muon lr 0.2, momentum 0.9, 5 Newton-Schulz steps, AdamW's betas 0.9 0.999, eps 1e-08, "
        "no weight decay"
    },
    "--schedule.kind multistep --schedule.milestones_epochs [3,1,5] --epochs 5": {
        "drops": "x0.2: 0.2, 0.04 from epoch 1, 0.008 from epoch 3"
    },
    "--schedule.kind step --schedule.every_epochs 1 --epochs 7": {
        "drops": "x0.1: 0.2, 0.02 from epoch 1, 0.002 from epoch 2, 0.0002 from epoch 3, 2e-05 from epoch 4, "
        "2e-06 from epoch 5, 2e-07 from epoch 6"
    },
    "--schedule.kind step --schedule.every_epochs 1 --epochs 8": {
        "drops": "x0.1: 0.2, 0.02 from epoch 1, 0.002 from epoch 2, 0.0002 from epoch 3, 2e-05 from epoch 4, "
        "2e-06 from epoch 5, 2e-07 from epoch 6, ... 7 drops in all"
    },
    "--class_weights balanced --cutmix_alpha 1 --label_smoothing 0.1": {
        "loss": "cross-entropy, every class of equal weight, label smoothing 0.1, CutMix 1"
    },
    "--data.sampler balanced": {"loss": "cross-entropy, every class drawn equally often"},
    "--augment.rand_augment_ops 2 --augment.cutout_px 4 --augment.cutout_inside true --augment.random_erasing_p 0.25": {
        "augment": "pad 2 px (zero) and crop, random mirror (p 0.5), RandAugment (2 of magnitude 9), "
        "cutout 4 px (inside, always), random erasing (p 0.25)"
    },
    "--augment.hflip alternating --augment.color_jitter [0,0.2,0,0]": {
        "augment": "pad 2 px (zero) and crop, alternating mirror, colour jitter 0, 0.2, 0, 0 (brightness, contrast, "
        "saturation, hue)"
    },
    "--augment.crop_pad_px 0 --augment.hflip none --augment.crop_px 16": {
        "augment": "random crop of 16 px",
        "test images": "middle 16 px",
    },
    "--augment.mean [0]": {"normalise": "x/255 less 0, over 0.25"},
    "--augment.std [0.00392156862745098]": {"normalise": "x/255 less 0.5, over 0.003922"},
    "--augment.mean [0] --augment.spectral_r 2 --augment.spectral_std [1,2,3,4] --bands 1,3": {
        "augment": "pad 2 px (zero) and crop, random mirror (p 0.5), bands 1 3 of 4 at 1/2 of the side",
        "test images": "bands 1 3 of 4 at 1/2 of the side",
        "normalise": "x/255 less 0, over band's 2 4",
    },
    "--data.val_images 50 --data.val_stratified true --data.hold_out 0.2 --data.drop_last false": {
        "split": "the set's own train and test, 0.2 of each class as test where it has none, 50 training images held "
        "out (of every class its share, seed 0), 8,000 training images, 2,000 test images, the last partial batch "
        "trained on"
    },
}

# Recipe -> the whole lines "published" and "as run".
QUOTED = {
    "quickstart": ("nothing", None),
    "imagenet64/wrn36_5": ("top-1 67.66 %; top-5 87.36 %; 528 h; Titan X; last epoch", None),
    "spectral/resnet34_224": ("top-1 73.51 %; (75.48 % [5]) (76.1 % [6]); 43.66 h; 83.15 MiB; A100", None),
    "spectral/resnet34_sub36": ("ensemble of all bands 69.83 % in 20.02 h; 83.15 MiB; A100", None),
    "spectral/alexnet_sub4": (
        "top-1 59.27 %; bands 59.27 55.75 47.63 50.40 %; ensemble of all bands 63.43 % in 20.2 h; 61.04 MiB; A100; "
        "the document's page has 37.73 MB here too",
        None,
    ),
    "fashion-mnist/wrn28_10_as_run": (
        "top-1 93.177 %; 5 h; GTX 1080 Ti; last epoch, from the notebook's log",
        "fp32, judged every 1 epoch(s), where the options leave it open",
    ),
    "tiny-imagenet/resnet18_baseline": (
        "top-1 44.58 %; V100; last epoch, official validation set; all ten runs took 60 h together",
        "10,000 training images held out, here none",
    ),
}


def told(recipe, bands=()):
    with torch.device("meta"):
        net = models.build(recipe.model, recipe.num_outputs, recipe.data.channels, **recipe.model_options)
    return {line[:12].strip(): line[13:] for line in prescribed.lines(recipe, net, bands)}


@pytest.mark.parametrize("name", TOLD)
def test_the_lines_say_what_the_document_says(name):
    lines = told(recipes[name])
    for part, words in TOLD[name]:
        assert words in lines[part], part


@pytest.mark.parametrize("name", MIB)
def test_the_weights_have_the_published_size(name):
    assert MIB[name] in told(recipes[name])["weights"]


def test_only_what_was_changed_is_told_otherwise():
    plain = told(recipes["quickstart"])
    assert list(plain) == [
        *("weights", "options", "optimiser", "drops", "loss", "augment", "test images", "normalise", "seed", "split"),
        "published",
    ]
    assert (plain["test images"], plain["loss"]) == ("as they are", "cross-entropy")
    assert plain["options"] == "width 32, num_residuals 1, num_stages 3, last_residuals 0, pool_stem False"
    for words, lines in CHANGED.items():
        asked = parse(["--recipe", "quickstart", *words.split()])
        assert told(asked.recipe, asked.options.bands_of(asked.recipe)) == plain | lines, words


def test_figures_are_quoted_with_their_conditions():
    for name, (published, ran) in QUOTED.items():
        lines = {line[:12].strip(): line[13:] for line in prescribed.lines(recipes[name], nn.Identity())}
        assert (lines["published"], lines.get("as run")) == (published, ran), name
        assert lines["weights"] == "0.00 MiB of parameters"


def test_a_change_on_the_command_line_is_told(capsys, tmp_path):
    argv = ["--recipe", "tiny-imagenet/resnet18_baseline", "--data.val_images", "10000", "--data.val_seed", "123"]
    argv += ["--grad_clip", "2", "--ema_decay", "0.99", "--mixup_alpha", "0.2", "--schedule.kind", "onecycle"]
    lines = told(parse(argv).recipe)
    assert "10,000 training images held out (at random, seed 123)" in lines["split"]
    assert "gradients clipped to norm 2, weights averaged with decay 0.99" in lines["optimiser"]
    assert lines["loss"].endswith("mixup 0.2")
    assert lines["drops"] == "0.01 up to 0.1 at epoch 12.5, down to 0"
    assert cli.train_main([*argv, "--dry-run", "--data-dir", str(tmp_path)]) == 0
    assert lines["split"] in capsys.readouterr().out


@pytest.mark.parametrize(
    ("freeze", "told"), [("2", "first 2 parts frozen"), ("all-but-head", "all but the head frozen"), (None, "momentum")]
)
def test_what_is_not_trained_is_said(freeze, told):
    recipe = replace(recipes["quickstart"], freeze=freeze, body_lr=0.1)
    line = prescribed._optimiser(recipe)
    assert line.startswith(f"sgd lr 0.2, body at 0.1 of it, {told}")
