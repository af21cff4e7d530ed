"""Every layout of the table gives its classes, counts and left-out files, or a refusal that names what was found."""

import importlib.util
import re

import pytest

from imnet.data.readers import Choice, recognise
from imnet.data.store import open_store
from imnet.data.tool import main
from imnet.errors import DataError
from tests.data import layouts, making


@pytest.mark.parametrize("name", layouts.CASES)
def test_layout(name, tmp_path):
    case = layouts.CASES[name]
    path = case.build(tmp_path)
    if case.refused:
        with pytest.raises(DataError, match=re.escape(case.refused)) as caught:
            recognise(path)
        assert "\n" not in str(caught.value)
        return
    found = recognise(path)
    counts = {split: len(items) for split, items in found.splits.items()}
    wanted = {"train": case.train, "test": case.test, "final": case.final}
    assert counts == {split: count for split, count in wanted.items() if count}
    assert found.class_names == tuple(case.classes)
    assert found.left.line() == case.left
    assert not case.note or case.note in found.notes


@pytest.mark.skipif(importlib.util.find_spec("pyarrow") is None, reason="the table has rows that need pyarrow")
def test_docs_have_this_table():
    assert layouts.rows() in layouts.DOCS.read_text(), f"put this into docs/data.md:\n{layouts.rows()}"


def test_labels_of_class_folders_follow_the_class_not_the_part(tmp_path):
    found = recognise(layouts.train_val(tmp_path))
    for items in found.splits.values():
        assert [found.class_names[items.label(i)] in items.name(i) for i in range(len(items))] == [True] * len(items)


def test_a_val_that_has_class_folders_is_not_said_to_have_none(tmp_path):
    assert recognise(layouts.flat_beside_classes(tmp_path)).notes == []


def test_image_key_chooses(tmp_path):
    path = layouts.two_pictures(tmp_path)
    for key, form in (("jpg", b"\xff\xd8"), ("depth.png", b"\x89P")):
        items = recognise(path, Choice(image_key=key)).splits["train"]
        assert [items.read(i)[:2] for i in range(len(items))] == [form] * 4
    with pytest.raises(DataError, match=r"no picture \.webp; it has"):
        recognise(path, Choice(image_key="webp"))


def test_allow_missing_says_it_aloud(tmp_path, capsys):
    pytest.importorskip("pyarrow")
    path = str(layouts.missing_shard(tmp_path))
    assert main(["inspect", path]) == 65
    assert "--allow-missing" in capsys.readouterr().err
    assert main(["inspect", path, "--allow-missing"]) == 0
    assert "note: 1 shards are missing, the first is train-00001-of-00003.parquet" in capsys.readouterr().out


def test_labels_matched_by_name_are_the_right_ones(tmp_path):
    pytest.importorskip("pyarrow")
    splits = recognise(layouts.other_order(tmp_path)).splits
    assert splits["train"].labels().tolist() == [0, 1]
    assert splits["test"].labels().tolist() == [1, 0]


@pytest.mark.parametrize("command", ["inspect", "pack"])
def test_inspect_and_pack_say_what_is_left_out(tmp_path, capsys, command):
    path = str(layouts.junk_zip(tmp_path))
    target = [] if command == "inspect" else [str(tmp_path / "out")]
    assert main([command, path, *target]) == 0
    assert f"note: {layouts.JUNK_LEFT}\n" in capsys.readouterr().out
    if target:
        assert main(["inspect", *target]) == 0
        assert f"note: {layouts.JUNK_LEFT}\n" in capsys.readouterr().out


def test_hold_out_that_empties_a_class_is_refused(tmp_path, capsys):
    made = making.class_files(count=2) | {"train/n09/x.jpg": making.picture(1)}
    call = [
        "pack",
        str(making.write_tree(tmp_path / "in", made)),
        str(tmp_path / "out"),
        "--size",
        "8",
        "--hold-out",
        "1",
    ]
    assert main(call) == 65
    assert "--hold-out 1 leaves nothing of 1 of 4 classes (n09)" in capsys.readouterr().err
    assert main([*call, "--min-images", "2"]) == 0
    assert "left out: 1 file (in a class that is too small 1)" in capsys.readouterr().out


def test_a_class_that_is_dropped_takes_its_test_pictures_along(tmp_path, capsys):
    """Each picture has the colour of its class."""
    counts = {"train": {"a": 1, "b": 3, "c": 4}, "val": {"a": 2, "b": 1, "c": 2}}
    made = making.write_tree(tmp_path / "in", {f"{part}/{name}/{i}.png": making.plain("abc".index(name))
                             for part, of in counts.items() for name, n in of.items() for i in range(n)})  # fmt: skip
    call = ["pack", str(made), str(tmp_path / "out"), "--size", "8", "--workers", "1", "--min-images", "3"]
    assert main(call) == 0
    out = capsys.readouterr().out
    assert "2 of 3 classes kept\n" in out
    assert "left out: 3 files (in a class that is too small 3)" in out
    for part in ("train", "test"):
        store = open_store(tmp_path / "out" / f"{part}.imnet")
        assert store.class_names == ("b", "c")
        assert store.labels.tolist() == [int(image[0, 0, 0]) - 1 for image in store.images()]
