"""Labels, class names and archives that are almost right are read correctly or refused, never misread."""

import numpy as np
import pytest

from imnet.data.readers import recognise
from imnet.data.readers.cifar import CIFAR10
from imnet.errors import DataError
from tests.data import layouts, making
from tests.data.damage_parquet import table, write


def shards(folder, labels, kind="cls"):
    members = {}
    for i, label in enumerate(labels):
        said = label if isinstance(label, bytes) else label.encode()
        members |= {f"{i}.jpg": making.picture(i, 8, 8), f"{i}.{kind}": said}
    layouts.tar(folder / "train-0.tar", members)
    return folder


@pytest.mark.parametrize(
    ("labels", "classes", "numbers"),
    [(["0\r\n", "1\n"], 2, [0, 1]), ([b"\xef\xbb\xbf1", b"\xef\xbb\xbf0"], 2, [1, 0]), (["b", "a"], 2, [1, 0]),
     (["0x1", "3d"], 2, [0, 1]), (["1", "0"], 2, [1, 0])],
)  # fmt: skip
def test_labels_that_say_what_they_are(tmp_path, labels, classes, numbers):
    found = recognise(shards(tmp_path, labels))
    assert len(found.class_names) == classes
    assert found.splits["train"].labels().tolist() == numbers


@pytest.mark.parametrize("label", ["1.0", "-1.0", "0.5", ".5", "1.", "1.5e3", "+1", "\x00", "a\tb", "\x1b[0m", ""])
def test_words_that_were_numbers_or_cannot_be_seen_are_refused(tmp_path, label):
    with pytest.raises(DataError, match=r"\(0\.cls\): label is .*; allowed: a whole number or a word"):
        recognise(shards(tmp_path, [label, "cat"]))
    write(tmp_path / "train.parquet", table([making.picture(0)] * 2, [0, 1], names=()).drop(["label"]).append_column(
        "label", [[label, "cat"]]))  # fmt: skip
    with pytest.raises(DataError, match=r"row 0\): label is .*; allowed: a whole number or a word"):
        recognise(tmp_path / "train.parquet")


@pytest.mark.parametrize(
    ("record", "why"),
    [('{"label": 1.0}', "a whole number or a word"), ('{"label": null}', "a whole number or a word"),
     ('{"class": 1}', "field label or cls"), ('{"label": 1, "cls": 0}', "two that differ"),
     ('{"label": "\\ud83d"}', "a whole number or a word"), ("[1]", "field label or cls")],
)  # fmt: skip
def test_a_json_that_has_no_label(tmp_path, record, why):
    with pytest.raises(DataError, match=why) as caught:
        recognise(shards(tmp_path, [record] * 2, "json"))
    str(caught.value).encode()


def test_a_json_beside_a_label_may_say_anything(tmp_path):
    members = {"0.jpg": making.picture(0), "0.cls": b"1", "0.json": b'{"label": [1, 2], "cls": 1.0}'}
    layouts.tar(tmp_path / "train-0.tar", members)
    assert recognise(tmp_path).splits["train"].labels().tolist() == [1]


def test_words_that_look_the_same_are_no_two_classes(tmp_path):
    with pytest.raises(DataError, match=r"look the same: 'cafe\\u0301' and 'caf\\xe9'"):
        recognise(shards(tmp_path, ["caf\u00e9", "cafe\u0301"]))
    assert "capitals alone: Cat and cat" in recognise(shards(tmp_path, ["cat", "Cat"])).notes[0]


def test_lists_of_class_names_have_no_holes_and_agree(tmp_path):
    source = shards(tmp_path, ["0", "1", "2"])
    (source / "classes.txt").write_text("cat\ndog\nowl\n\n")
    assert recognise(source).class_names == ("cat", "dog", "owl")
    (source / "classnames.txt").write_text("cat\ndog\nowl")
    assert recognise(source).left.line() == ""
    (source / "classnames.txt").write_text("owl\ndog\ncat\n")
    with pytest.raises(DataError, match="other class names than in"):
        recognise(source)
    (source / "classnames.txt").unlink()
    (source / "classes.txt").write_text("cat\n\ndog\nowl\n")
    with pytest.raises(DataError, match=r"classes\.txt \(line 2\): no class name on this line"):
        recognise(source)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("odd", ["\x0b", "\x0c", "\x1c", "\x1e", "\x85", "\u2028", "\u2029"])
def test_only_a_line_end_ends_a_class_name(tmp_path, odd, end):
    """Python's splitlines ends a line at these characters, too: U+0085 is an ellipsis of Windows, read as Latin-1."""
    source = shards(tmp_path, ["0", "1", "2"])
    (source / "classes.txt").write_bytes(end.join(["cat", f"dog{odd}and so on", "owl", ""]).encode())
    assert recognise(source).class_names == ("cat", f"dog{odd}and so on", "owl")


def test_of_several_columns_of_labels_the_others_are_said(tmp_path):
    write(tmp_path / "train.parquet", table([making.picture(0)] * 2, [0, 1], cls=[5, 6]))
    assert "labels of column label; left out: cls" in recognise(tmp_path).notes


def cifar(folder, listed=None):
    for name in (*CIFAR10.train, *CIFAR10.test):
        pixels = np.zeros((10, 3073), dtype=np.uint8)
        pixels[:, 0] = range(10)
        making.write_tree(folder, {name: pixels.tobytes()})
    if listed is not None:
        (folder / CIFAR10.names_file).write_text(listed)
    return folder


def test_names_of_cifar_are_lines(tmp_path):
    names = [f"my class {i}" for i in range(10)]
    assert recognise(cifar(tmp_path, "\n".join(names) + "\n\n")).class_names == tuple(names)
    with pytest.raises(DataError, match=r"batches\.meta\.txt\): 9 class names, cifar10 has 10"):
        recognise(cifar(tmp_path, "\n".join(names[1:])))


@pytest.mark.parametrize("given", [".", "cifar-10-batches-py", "cifar-100-python"])
def test_pickles_of_cifar_are_called_so(tmp_path, given):
    making.write_tree(tmp_path, {"cifar-10-batches-py/data_batch_1": b"x", "cifar-100-python/train": b"x"})
    with pytest.raises(DataError, match=r"Python version, which is pickles; get the binary version: cifar-10-binary"):
        recognise(tmp_path / given)


@pytest.mark.parametrize("between", [0, 512, 1 << 21])
def test_tars_one_behind_the_other(tmp_path, between):
    first, second = (making.tar_bytes(layouts.files(part)) for part in ("train", "val"))
    (tmp_path / "in.tar").write_bytes(first + bytes(between) + second)
    with pytest.raises(DataError, match=r"another tar follows the end mark; tar -x -i"):
        recognise(tmp_path / "in.tar")
    (tmp_path / "in.tar").write_bytes(first + bytes(between) + b"a remark at the end")
    assert len(recognise(tmp_path / "in.tar").splits["train"]) == 6


@pytest.mark.parametrize("name", ["train-0 (1).tar", "train-0 copy.tar", "train-0 copy 2.tar", "train-0 - Copy.tar"])
def test_a_shard_that_came_twice(tmp_path, name):
    source = shards(tmp_path, ["0", "1"])
    (source / name).write_bytes((source / "train-0.tar").read_bytes())
    with pytest.raises(DataError, match=r"looks like a copy of train-0\.tar; remove one of them"):
        recognise(source)
    shards(tmp_path, ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11"])
    assert len(recognise(source).splits["train"]) == 14


def test_batches_of_imagenet64_that_are_missing_are_said(tmp_path):
    making.imagenet64_folder(tmp_path, 8)
    for number, said in ((10, "(3 batches)"), (1, "(2 batches, of train only 2)")):
        (tmp_path / f"train_data_batch_{number}").unlink()
        assert recognise(tmp_path).kind == f"ImageNet-8 {said}"


def test_a_raised_digit_is_no_class_number(tmp_path):
    making.imagenet64_folder(tmp_path, 8)
    (tmp_path / "map_clsloc.txt").write_text("n01440764 \u00b2 tench\n")
    with pytest.raises(DataError, match=r"line 1\): got .*; expected wnid, a new number"):
        recognise(tmp_path)
