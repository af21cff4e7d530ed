"""Published throughput: its data against the arithmetic of the documents, cards by name, comparison and picture."""

import re

import pytest

from bench import pictures, tables, throughput
from bench.case import find_recipe, train_flops
from bench.cli import main
from imnet.errors import UsageError

# Images/s that follow from the hours in the reference documents, and independent figures for the same card.
STATED = {
    ("GTX 1080 Ti", "wrn28_10"): {238, 550},
    ("GTX 1080 Ti", "shake_shake26_2x96d"): {375, 490},
    ("GTX 1080 Ti", "shake_shake26_2x64d"): {600, 900},
    ("GTX 1080 Ti", "densenet_bc100_12"): {833},
    ("GTX 1080 Ti", "dpn28_10"): {278},
    ("4 GPUs", "wide_resnet50_2_imagenet64"): {7118},
    ("V100", "resnet18"): {208},
    ("V100", "resnet152"): {208},
    ("A100", "alexnet_112"): {1762},
    ("A100", "alexnet_56"): {3669},
    ("A100", "vgg16_bn_112"): {806},
    ("A100", "vgg16_bn_56"): {1326},
    ("A100", "resnet34_56"): {1778, 3814},
    ("A100", "alexnet"): {872},
    ("A100", "vgg16"): {438},
    ("A100", "resnet34"): {815, 760},
    ("A100", "resnet50"): {813, 568, 2470, 3660},
    ("V100", "wrn28_10"): {754},
    ("V100", "resnet50"): {1200},
    ("RTX 3090", "resnet18"): {3482},
    ("RTX 3090", "resnet50"): {1218},
}
# GFLOP per image, forward and backward, 2 per multiply-add: stated with the recipes and counted without this code.
TRAIN_GFLOP = {
    "imagenet64/wrn36_5": 42.32,
    "fashion-mnist/wrn28_10": 24.09,
    "fashion-mnist/densenet_bc100_12": 1.32,
    "spectral/resnet50_224": 24.30,
    "spectral/vgg16_224": 92.65,
    "spectral/alexnet_224": 4.15,
}


def every():
    data = throughput.published()
    return [throughput._reference(row, data["train_images"]) for row in data["rows"]]


def test_hours_give_the_rates_that_the_documents_imply():
    found = {}
    for one in every():
        found.setdefault((one.card, one.recipe.model), set()).add(round(one.images_per_s))
    for key, rates in STATED.items():
        assert rates <= found[key], key
    # 22 and 6.4 days for 80 epochs on a Titan X
    assert found["Titan X", "wrn36_5"] == {round(80 * 1281167 / (22 * 86400))}
    assert found["Titan X", "wrn36_2"] == {round(80 * 1281167 / (6.4 * 86400))}


def test_the_fastest_figure_is_the_reference_and_the_others_are_named():
    (wrn,) = throughput.references("GTX 1080 Ti", ["wrn28_10"])
    assert wrn.images_per_s == 550
    assert wrn.hours == 7
    assert len(wrn.others) == 2
    assert "238 images/s (document 002)" in wrn.others


def test_every_row_has_a_source_and_a_card_with_a_peak_of_its_precision():
    data = throughput.published()
    for row in data["rows"]:
        card = data["cards"][row["card"]]
        assert row["source"]
        assert card["source"]
        if row["card"] != "4 GPUs":  # document 000 does not name the card
            assert card["peak_tflops"][row["precision"]] > 0
            assert card["bandwidth_gb_s"] > 0


def test_every_document_has_its_rows():
    rows = throughput.published()["rows"]
    cards = {"000": "4 GPUs", "002": "GTX 1080 Ti", "003": "V100", "004": "A100"}
    counts = {name: sum(f"document {name}" in r["source"] and r["card"] == card for r in rows)
              for name, card in cards.items()}  # fmt: skip
    # 003 gives one rate for five networks; 004 is its table of hours, without dashes and without ResNet-34 on 21K.
    assert counts == {"000": 1, "002": 5, "003": 5, "004": 13}
    assert pytest.approx(208.3, abs=0.05) == 10 * 50 * 90_000 / (60 * 3600)
    assert pytest.approx(759.9, abs=0.05) == 600 * 1281167 / (281 * 3600)


def test_a_network_of_two_data_sets_on_a_card_has_a_reference_each():
    assert [r.recipe.name for r in throughput.references("V100", ["resnet50"])] == [
        "spectral/resnet50_224", "tiny-imagenet/resnet50_augmented"]  # fmt: skip


def test_cards_of_no_known_kind_have_no_share_of_a_peak():
    (one,) = throughput.references("4 GPUs")
    row = comparison(one=one)
    assert row["published_share_of_peak"] is None
    assert row["published_hours"] == 4
    assert "of its peak            -" in tables.shown("reference", row)


@pytest.mark.parametrize(("recipe", "gflop"), TRAIN_GFLOP.items())
def test_counted_flops_are_the_stated_ones(recipe, gflop):
    assert train_flops(find_recipe(recipe, None)) / 1e9 == pytest.approx(gflop, abs=0.006)


@pytest.mark.parametrize("name", ["GTX 1080 Ti", "gtx1080ti", "NVIDIA GeForce GTX 1080 Ti"])
def test_a_card_is_found_however_it_is_written(name):
    assert throughput.find_card(name) == "GTX 1080 Ti"


def test_an_unknown_card_is_one_line_with_a_suggestion_and_exit_code_2(capsys):
    assert main(["throughput", "--against", "GTX 1080"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "did you mean GTX 1080 Ti" in line
    with pytest.raises(UsageError, match=r"allowed: 4 GPUs, GTX 1080 Ti, Titan X"):
        throughput.find_card("quadro")


def test_an_unknown_network_of_the_card_names_those_it_has():
    with pytest.raises(UsageError, match=r"got --models vgg16; allowed for V100: wrn28_10, resnet50"):
        throughput.references("V100", ["vgg16"])


def comparison(rate=100.0, batch=16, one=None):
    one = one or throughput.references("GTX 1080 Ti", ["wrn28_10"])[0]
    rates = {"images_per_s": rate, "images_per_s_iqr": 1.0, "images_per_s_by_clock": rate, "n": 3}
    row = {
        "image_px": 28,
        "batch_images": batch,
        "precision": "bf16",
        "rates": {"end to end": rates},
        "train_flops_per_image": 24.09e9,
        "matmul_flops_per_s": 10e12,
    }
    return throughput.compared(one, row)


def test_ratio_shares_and_projected_hours_by_hand():
    row = comparison()
    assert row["ratio"] == pytest.approx(100 / 550)
    assert row["share_of_peak"] == pytest.approx(100 * 24.09e9 / 10e12)
    assert row["published_share_of_peak"] == pytest.approx(550 * 24.09e9 / 11.3e12)
    assert row["projected_hours"] == pytest.approx(200 * 30_000 / 100 / 3600)
    assert row["published_hours"] == 7


def test_a_figure_of_few_windows_or_a_smaller_batch_says_so():
    lines = [" ".join(line.split()) for line in tables.shown("reference", comparison()).splitlines()]
    assert {"images/s 100 (IQR 1, n = 3)", "batch 16 of 256", "ratio 0.182x"} <= set(lines)
    assert "256 of" not in tables.shown("reference", comparison(batch=256))


def test_the_picture_shows_both_rates_of_every_model(tmp_path):
    path = tmp_path / "bars.svg"
    rows = [comparison(), comparison(rate=1234.0) | {"model": "another"}]
    pictures.check(path)
    pictures.bars(path, rows, "this machine")
    text = " ".join(re.findall(r">([^<>]+)</text>", path.read_text()))
    for word in ("wrn28_10", "another", "550", "1,234", "100", "published, GTX 1080 Ti", "measured, this machine"):
        assert word in text, word


def test_what_cannot_be_drawn_is_said_before_anything_is_measured(tmp_path, capsys):
    assert main(["throughput", "--against", "A100", "--picture", str(tmp_path / "bars.bmp")]) == 2
    assert main(["throughput", "--against", "A100", "--picture", str(tmp_path / "none" / "bars.png")]) == 74
    assert len(capsys.readouterr().err.strip().splitlines()) == 2
