"""Only a run of the published recipe is compared with its figure; others name their changes and no difference."""

import json

import pytest
from run_folders import Page, make_run

import imnet
from imnet.announce import _caption
from imnet.recipe import AdamW, replace
from imnet.recipe_json import to_dict
from imnet.report import compare, render, summary
from imnet.report.read import load

WRN = imnet.recipes["fashion-mnist/wrn28_10"]
SUB4 = imnet.recipes["spectral/resnet34_sub4"]


def run_of(recipe, folder, **changes):
    return make_run(
        folder, epochs=3, recipe=json.loads(json.dumps(to_dict(recipe))) | {"epochs": recipe.epochs}, **changes
    )


def told(folder):
    lines = {line[:18].strip(): line[19:] for line in summary(folder).splitlines()}
    return lines["published"]


def test_the_recipe_itself_is_compared(tmp_path):
    folder = run_of(replace(WRN, seed=5), tmp_path / "run")
    assert "changed" not in told(folder)
    assert "against it" in told(folder)
    assert "not comparable" not in render(folder).read_text()


CHANGED = {
    "model": replace(WRN, model="wrn28_2"),
    "data": replace(WRN, data=replace(WRN.data, train_images=1000)),
    "epochs": replace(WRN, epochs=3),
    "augment": replace(WRN, augment=replace(WRN.augment, hflip="none")),
    "optim": replace(WRN, optim=AdamW(lr=0.001)),
    "label_smoothing": replace(WRN, label_smoothing=0.2),
    "model, data": replace(WRN, model="wrn28_2", data=replace(WRN.data, split="official")),
    "epochs, mixup_alpha": replace(WRN, name="my own", mixup_alpha=0.2, epochs=7),
}


@pytest.mark.parametrize("parts", CHANGED)
def test_what_ran_otherwise_is_marked(tmp_path, parts):
    folder = run_of(CHANGED[parts], tmp_path / "run")
    assert f"changed: {parts}; not comparable" in told(folder)
    assert "against it" not in told(folder)
    text = Page(render(folder)).text["results"]
    assert f"Top-1 minus published changed: {parts}; not comparable" in text
    if parts != "model, data":  # pages take a while: one of several runs shows that it is marked there, too
        return
    other = run_of(WRN, tmp_path / "other")
    assert f"changed: {parts}; not comparable" in Page(compare([folder, other], tmp_path / "c.html")).text["groups"]


def test_a_precision_that_was_asked_for_and_a_change_on_the_way_are_marked(tmp_path):
    folder = run_of(WRN, tmp_path / "run")
    config = folder / "config.yaml"
    config.write_text(config.read_text() + "precision: fp32\n")
    assert "changed: precision; not comparable" in told(folder)
    info = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(info | {"before": [{}]}))
    assert "changed: precision, the configuration on the way; not comparable" in told(folder)


@pytest.mark.parametrize(("band", "top1"), [(0, "76.31 %"), (2, "68.79 %")])
def test_a_band_is_compared_with_its_own_figure_and_the_ensemble_with_none(tmp_path, band, top1):
    recipe = replace(SUB4, augment=replace(SUB4.augment, spectral_band=band))
    folder = run_of(recipe, tmp_path / "run")
    assert told(folder).startswith(f"{top1}; last epoch")
    assert "an ensemble of several bands 78.29 %" in told(folder)
    text = Page(render(folder)).text["results"]
    assert f"Top-1, ensemble of the bands 0, 1, 3 one run is band {band} alone" in text


def test_a_band_without_a_figure_is_compared_with_nothing(tmp_path):
    recipe = imnet.recipes["spectral/vgg16_sub4"]
    folder = run_of(replace(recipe, augment=replace(recipe.augment, spectral_band=1)), tmp_path / "run")
    assert told(folder).startswith("nothing for this band; an ensemble of several bands 72.82 %")
    assert load(folder).against_published(0.5) == "nothing published"


def test_bands_and_ensembles_are_whole():
    for recipe in imnet.recipes.values():
        published = recipe.published
        if published is None or not published.band_top1:
            continue
        assert len(published.band_top1) == recipe.augment.spectral_r**2
        assert published.band_top1[0] == published.top1
        assert all(band < len(published.band_top1) for band in published.ensemble_of)


def test_a_right_answer_is_not_called_wrong():
    assert _caption(["circle", "triangle"], 1, 1) == "triangle, rightly"
    assert _caption(["circle", "triangle"], 1, 0) == "triangle, not circle"
    assert _caption(["circle", "triangle"], 1, 7) == "triangle, not output 7"


def test_a_right_answer_is_called_right_on_the_page(tmp_path):
    folder = run_of(WRN, tmp_path / "run")
    evaluation = json.loads((folder / "evaluation.json").read_text())
    evaluation["worst"][0] |= {"label": 1, "predicted": 1}
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    assert "class 1 (right)" in Page(render(folder)).text["worst"]
