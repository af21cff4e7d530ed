"""YAML as people write it in files and options: it is read as plain values, or one line says what is wrong."""

import os
import threading
from itertools import pairwise

import pytest

from imnet import yaml_file
from imnet.cli import train_main
from imnet.errors import UsageError
from imnet.options import parse
from imnet.recipe import replace
from imnet.recipe_json import config_hash, dump_config
from imnet.recipes import by_name
from imnet.run_options import RunOptions


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("epochs: 3\nepochs: 4", "epochs is given twice"),
        ("optim: {lr: 1}\noptim.lr: 2", "wrong.yaml:2: optim.lr is given twice"),
        ("data: {batch_images: 4, batch_images: 5}", "batch_images is given twice"),
        ("model_options: {width: 4}\nmodel_options.width: 8", "wrong.yaml:2: model_options.width is given twice"),
        ("model_options: 5\nmodel_options.width: 8", "wrong.yaml:2: model_options.width is given twice"),
        ("epochs: &a [*a]", "not YAML of plain values"),
        ("data: &a {name: *a}", "not YAML of plain values"),
        ("epochs: !!int x", "not YAML of plain values"),
        ("epochs: !!timestamp 2026-01-01", "not YAML of plain values"),
        ("model_options: {width: !!set {8}}", "not YAML of plain values"),
        ("[" * 1200, "not YAML"),
        ("epochs: !!python/object/apply:os.getcwd []", "not YAML of plain values"),
        ("epochs: 2026-13-45", "epochs"),
        ("batch_size: 8", "got unknown key batch_size; write data.batch_images"),
        ("batch-size: 8", "got unknown key batch-size; write data.batch_images"),
        ("label-smoothing: 0.1", "got unknown key label-smoothing; write label_smoothing"),
        ("data_dir: \x00", "not YAML"),
        ("", "no mapping"),
    ],
)
def test_a_file_that_is_wrong_is_one_line(tmp_path, capsys, text, said):
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    assert train_main(["--config", str(path), "--dry-run"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("imnet-train: ")
    assert said in err
    assert err.count("\n") == 1


def test_a_file_that_cannot_be_read_is_named(tmp_path, capsys):
    (tmp_path / "latin.yaml").write_bytes(b"data_dir: caf\xe9")
    for path, said in ((tmp_path / "no.yaml", "No such file"), (tmp_path, "Is a directory")):
        assert train_main(["--config", str(path), "--dry-run"]) == 2
        assert f"{path}: cannot be read: {said}" in capsys.readouterr().err
    assert train_main(["--config", str(tmp_path / "latin.yaml"), "--dry-run"]) == 2
    assert "write it in UTF-8" in capsys.readouterr().err


def test_a_pipe_is_read_once(tmp_path):
    """``--config <(...)`` in a shell passes a pipe, in which a second read would find nothing."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_text, args=("epochs: 3",), daemon=True)
    writer.start()
    assert parse(["--config", str(path)]).recipe.epochs == 3
    writer.join(10)


def test_a_date_is_its_text_and_merged_mappings_may_be_overridden():
    assert yaml_file.parse("2026-01-01") == "2026-01-01"
    assert parse(["--data-dir", "2026-01-01"]).options.data_dir == "2026-01-01"
    assert yaml_file.parse("{a: &a {x: 1, y: 2}, b: {<<: *a, x: 3}}")["b"] == {"x": 3, "y": 2}
    assert yaml_file.parse("1.0e-3") == 1e-3
    assert yaml_file.parse("") is None
    with pytest.raises(UsageError, match=r"got --model_options\.width 2026: \[: not a YAML value"):
        parse(["--model_options.width", "2026: ["])


@pytest.mark.parametrize("words", [["--model-options", "{width: 8, width: 16}"], ['--model-options={"a":1,"a":1}']])
def test_a_mapping_with_a_name_twice_is_refused_as_in_a_file(words):
    with pytest.raises(UsageError, match="is given twice in one mapping"):
        parse(words)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("epochs", "1:30"),
        ("epochs", "1:30:00"),
        ("optim.lr", "1:30.5"),
        ("seed", "10:05"),
        ("augment.mean", "[1:30,2,3]"),
    ],
)
def test_a_clocks_time_is_no_number(tmp_path, name, text):
    """YAML 1.1, and with it jsonargparse, reads 1:30 as 90."""
    (tmp_path / "c.yaml").write_text(f"{name}: {text}\n")
    for words in ([f"--{name}", text], [f"--{name}={text}"], ["--config", str(tmp_path / "c.yaml")]):
        with pytest.raises(UsageError, match="allowed: "):
            parse(words)


@pytest.mark.parametrize("text", ["!!int", "!!bool x", "!!float", "[!!int , 2]", '"!!int"', "!!bool ''", "!x 3"])
def test_a_type_of_yaml_that_does_not_fit_is_one_line(tmp_path, text):
    (tmp_path / "c.yaml").write_text(f"epochs: {text}\n")
    for words in (["--epochs", text], ["--config", str(tmp_path / "c.yaml")], [f"--augment.mean={text}"]):
        with pytest.raises(UsageError, match=r"; allowed: |not YAML of plain values"):
            parse(words)
    with pytest.raises(UsageError):
        yaml_file.parse(text if "'" in text else f"[{text.strip(chr(34))}]")
    with pytest.raises(UsageError, match=r"got --out !!int; .* write \./NAME"):
        parse(["--out", "!!int"])
    assert parse(["--out", "wow!!"]).options.out == "wow!!"


def test_a_colon_elsewhere_is_none_of_a_number(tmp_path):
    (tmp_path / "12:30").mkdir()
    assert parse(["--out", "12:30", "--dry-run"]).options.out == "12:30"
    assert parse(["--epochs", "3", "--dry-run", "--data", "packed:a:b"]).recipe.data.name == "packed:a:b"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1E5", 1e5),
        ("+2.e1", 20.0),
        ("1:30.5", "1:30.5"),
        ("1.5", 1.5),
        ("-.5", -0.5),
        (".inf", float("inf")),
        ("-.5e+1", -5.0),
        ("1.0e10", 1e10),
        ('"1e-3"', "1e-3"),
        ("e3", "e3"),
    ],
)
def test_a_number_with_an_exponent_needs_no_point_and_no_sign(text, value):
    assert yaml_file.parse(text) == value
    assert type(yaml_file.parse(text)) is type(value)
    assert parse(["--model_options.x", text]).recipe.model_options["x"] == value
    for kept in (value, {"a": [str(value), text]}):  # text that looks like a number is dumped as text
        assert yaml_file.parse(yaml_file.dump(kept)) == kept


def test_a_word_that_looks_like_a_number_is_the_same_in_a_run_folders_file(tmp_path):
    request = parse(["--data-dir", "1e5"])
    (tmp_path / "config.yaml").write_text(dump_config(request.recipe, request.options))
    assert parse(["--config", str(tmp_path / "config.yaml")]).options.data_dir == "1e5"


@pytest.mark.parametrize("text", ["2024", "-7", "007", "1_000", "0x10", "12:30", "+7", "0o7"])
def test_a_word_of_digits_is_the_word_that_was_written(tmp_path, text):
    """Folders may be called 007, 1_000, 0x10 or 12:30, which YAML 1.1 reads as 7, 1000, 16 and 750."""
    path = tmp_path / "digits.yaml"
    words = {"out": "out", "data_dir": "data-dir", "weights": "weights", "data.split": "data.split"}
    path.write_text("recipe: quickstart\n" + "".join(f"{name}: {text}\n" for name in words))
    typed = parse([word for name in words.values() for word in (f"--{name}={text}",)])
    read = parse(["--config", str(path)])
    assert (read.recipe, read.options) == (typed.recipe, typed.options)
    assert read.options.out == read.options.data_dir == read.recipe.weights == read.recipe.data.split == text


def test_numbers_are_the_words_that_options_want_in_python_too(tmp_path):
    """Otherwise ``freeze = 2`` and ``--freeze 2`` would be two experiments in two folders."""
    (tmp_path / "config.yaml").write_text("keep: 3\nfreeze: 2\n")
    read = parse(["--config", str(tmp_path / "config.yaml")])
    assert read.options == RunOptions(keep=3) == RunOptions(keep="3")  # pyright: ignore[reportArgumentType]
    made = replace(by_name("quickstart"), freeze=2)
    assert read.recipe == made
    assert config_hash(made, "fp32") == config_hash(replace(made, freeze="2"), "fp32")
    with pytest.raises(ValueError, match=r"got out = 1\.5; allowed: a word"):
        RunOptions(out=1.5)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(("text", "number"), [("1_0", 10), ("0x10", 16), ("10", 10)])
def test_where_a_number_is_wanted_all_spellings_of_yaml_are(tmp_path, text, number):
    (tmp_path / "config.yaml").write_text(f"epochs: {text}")
    assert parse(["--config", str(tmp_path / "config.yaml")]).recipe.epochs == number


@pytest.mark.parametrize(
    "values",
    [
        {"recipe": "quickstart", "optim": {"kind": "adamw", "lr": 0.001}},
        {"recipe": "quickstart", "schedule": {"kind": "step", "every_epochs": 2}},
        {"recipe": "fashion-mnist/speedrun", "data": {"name": "shapes", "image_px": 32}},
        {"recipe": "spectral/resnet34_sub4", "augment": {"spectral_band": 2}},
        {"recipe": "fashion-mnist/wrn28_10", "model_options": {"drop_rate": 0.3, "zero_init_last_bn": True}},
    ],
)
def test_dotted_names_in_a_file_mean_what_nested_ones_do(tmp_path, values):
    """Grid files and the command line have dotted names, so people write them here too."""
    whole, dotted = tmp_path / "whole.yaml", tmp_path / "dotted.yaml"
    whole.write_text(yaml_file.dump(values))
    (part, inner) = list(values.items())[1]
    dotted.write_text(yaml_file.dump({"recipe": values["recipe"]} | {f"{part}.{k}": v for k, v in inner.items()}))
    nested, read = (parse(["--config", str(path)]) for path in (whole, dotted))
    assert read == nested
    assert nested != parse(["--recipe", values["recipe"]])


@pytest.mark.parametrize(
    "text",
    [
        "model: wrn36_2",  # the network's own recipe
        "recipe: fashion-mnist/speedrun_long\nmodel: resnet18_64",  # which has no width
        "recipe: quickstart\noptim.kind: adamw\noptim.lr: 0.001",
    ],
)
def test_a_recipe_and_a_network_in_a_file_mean_what_they_mean_on_the_command_line(tmp_path, text):
    path = tmp_path / "few.yaml"
    path.write_text(text)
    read = parse(["--config", str(path)])
    typed = parse([f"--{name}={value}" for name, value in yaml_file.parse(text).items()])
    assert (read.recipe, read.notes) == (typed.recipe, typed.notes)


def test_a_network_on_the_command_line_goes_into_the_recipe_of_the_file(tmp_path):
    (tmp_path / "few.yaml").write_text("recipe: fashion-mnist/speedrun\nepochs: 3")
    found = parse(["--config", str(tmp_path / "few.yaml"), "--model", "wrn36_5"]).recipe
    assert (found.name, found.model, found.epochs) == ("fashion-mnist/speedrun", "wrn36_5", 3)


@pytest.mark.parametrize("by", ["option", "line", "own"])
def test_a_whole_file_of_one_recipe_is_not_run_under_the_name_of_another(tmp_path, by):
    """Every value of the file would win, and the report would compare them with the other's published figure."""
    path, other = tmp_path / "whole.yaml", "fashion-mnist/wrn28_10"
    own = replace(by_name("quickstart"), name="own/photos-123456") if by == "own" else by_name("quickstart")
    text = dump_config(own, RunOptions())
    path.write_text(text.replace("recipe: quickstart", f"recipe: {other}") if by == "line" else text)
    with pytest.raises(UsageError, match=f"got recipe {other}, but .*whole.yaml has all values of {own.name}"):
        parse(["--config", str(path), *([] if by == "line" else ["--recipe", other])])
    if by != "line":
        assert parse(["--config", str(path), "--model", "wrn10_1"]).recipe.model == "wrn10_1"


def test_aliases_that_stand_for_billions_of_values_are_refused_at_once():
    lines = ["a: &a [1, 2, 3, 4, 5, 6, 7, 8, 9]"]
    lines += [f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]" for before, name in pairwise("abcdefghijklmnop")]
    with pytest.raises(UsageError, match=r"not YAML of plain values: its aliases stand for more than 1000000 values"):
        yaml_file.parse("\n".join(lines))
    assert yaml_file.parse("\n".join(lines[:3]))["c"][0][0] == [*range(1, 10)]


def test_a_raised_digit_is_no_number_of_layers():
    with pytest.raises(ValueError, match="got freeze = \u00b2; allowed: all-but-head"):
        replace(by_name("quickstart"), freeze="\u00b2")
