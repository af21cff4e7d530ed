"""Unusual names and links: no class counts twice, no link is followed in a circle, every name prints as one line."""

import os
import time
from pathlib import Path

import numpy as np
import pytest

from imnet import classifier
from imnet.data.judged import Images, matched
from imnet.data.readers import recognise
from imnet.data.readers.items import Items
from imnet.data.readers.rule import LeftOut
from imnet.data.store.sources import state
from imnet.data.tool import main
from imnet.errors import DataError, shown
from tests.data import layouts, making


@pytest.mark.parametrize(
    ("name", "seen"),
    [("a\nb", r"a\nb"), ("tab\t", r"tab\t"), ("\x1b[31mred", r"\x1b[31mred"),
     ("caf\udce9", r"caf\xe9"), ("\ud83d", r"\ud83d"), ("two  spaces é \u00a0日本", "two  spaces é \u00a0日本")],
)  # fmt: skip
def test_a_name_is_one_line_and_can_be_found(name, seen):
    assert shown(name) == seen
    assert str(DataError("is  no\n   good", file=name, offset=name)) == f"{seen} ({seen}): is  no good"
    seen.encode()


def test_a_class_with_a_line_end(tmp_path, capsys):
    source = making.write_tree(
        tmp_path / "in", {f"{c}/{i}.jpg": making.picture(i) for c in ("a\nb", "c") for i in (0, 1)}
    )
    assert recognise(source).class_names == (r"a\nb", "c")
    (source / "c" / "x\ny  z.jpg").write_bytes(b"?")
    assert main(["pack", str(source), str(tmp_path / "out"), "--size", "8", "--workers", "1"]) == 65
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert r"c/x\ny  z.jpg: not a picture" in error[0]


@pytest.mark.parametrize("other", ["cafe\u0301", "caf\u00e9 "])
def test_a_class_of_val_that_only_looks_like_trains(tmp_path, other):
    source = layouts.tree(tmp_path, "train", classes=("caf\u00e9", "dog"))
    making.write_tree(source, {f"val/{other}/1.jpg": making.picture(1)})
    with pytest.raises(DataError) as caught:
        recognise(source)
    assert f"{other!a} is not in train; train has 'caf\\xe9'" in str(caught.value)


@pytest.mark.parametrize("target", [".", "..", "../..", "../../..", "{root}/train", "{root}/elsewhere"])
def test_links_that_lead_back_up_are_left_out(tmp_path, target):
    source = layouts.tree(tmp_path, "train")
    if target.endswith("elsewhere"):  # a link out of the set, and from there back into it
        (tmp_path / "elsewhere").mkdir()
        os.symlink(source, tmp_path / "elsewhere" / "back")
        os.symlink(tmp_path / "elsewhere", source / "elsewhere")
    os.symlink(target.format(root=source), source / "train" / "cat" / "up")
    found = recognise(source)
    assert len(found.splits["train"]) == 6
    assert found.left["linked folder"] >= 1
    assert state(source) == state(source)


def test_folders_as_deep_as_a_copy_into_itself_are_walked(tmp_path, monkeypatch):
    source = layouts.tree(tmp_path, "")
    monkeypatch.chdir(source / "cat")
    for _ in range(500):
        os.mkdir("d")
        os.chdir("d")
    Path("deep.jpg").write_bytes(making.picture(1))
    assert len(recognise(source).splits["train"]) == len(list(classifier.pictures_in([source]))) == 7
    state(source)
    while Path.cwd().name == "d":  # pytest removes folders by recursion
        for file in os.listdir():
            (os.rmdir if os.path.isdir(file) else os.remove)(file)
        os.chdir("..")


def test_a_link_to_itself_is_a_file_that_is_not_there(tmp_path):
    source = layouts.tree(tmp_path, "train")
    os.symlink("loop.jpg", source / "train" / "cat" / "loop.jpg")
    with pytest.raises(DataError, match=r"loop\.jpg: 1 links point at files that are not there"):
        recognise(source)
    state(source)


@pytest.mark.parametrize("name", ["in.zip", "in.tar", "in"])
def test_a_pipe_is_refused_without_waiting_for_its_writer(tmp_path, name):
    os.mkfifo(tmp_path / name)
    writer = os.open(tmp_path / name, os.O_RDWR)  # without it and its bytes, a reader would wait for ever
    try:
        os.write(writer, bytes(1000))
        with pytest.raises(DataError, match="a pipe or a device; allowed: a file or a folder"):
            recognise(tmp_path / name)
    finally:
        os.close(writer)


def test_pictures_to_judge_are_found_as_those_to_learn_from(tmp_path):
    source = layouts.tree(tmp_path, "", extra={"cat/.hidden.jpg": b"x", "__MACOSX/a.jpg": b"x", "notes.txt": b"x"})
    os.symlink(source / "cat", source / "linked")
    os.symlink("..", source / "cat" / "up")
    os.symlink("nowhere", source / "dog" / "gone.jpg")
    names = [file.relative_to(source).as_posix() for file in classifier.pictures_in([source])]
    dogs = ["dog/dog_0.jpg", "dog/dog_1.jpg", "dog/dog_2.jpg", "dog/gone.jpg"]
    assert names == [*(f"cat/cat_{i}.jpg" for i in range(3)), *dogs, *(f"linked/cat_{i}.jpg" for i in range(3))]


def test_twenty_thousand_archives_take_no_quadratic_time(tmp_path):
    names, start = [f"train-{i:06d}.tar" for i in range(20_000)], time.process_time()
    items, left = Items(tmp_path), LeftOut()
    assert [items.file_number(f"{tmp_path}/{name}", (0, 0, 0)) for name in [*names, *names]] == [*range(20_000)] * 2
    left.rest([*names, "a.txt"], names)
    assert left == {".txt": 1}
    assert time.process_time() - start < 2


def judged(classes):
    return Images(Path("set"), "test", tuple(classes), np.arange(len(classes)), bytes, str)


def test_thirty_thousand_classes_are_matched_by_name_in_no_quadratic_time():
    names, start = [f"n{i:08d}" for i in range(30_000)], time.process_time()
    assert matched(judged(names[::-1]), tuple(names)).tolist() == [*range(30_000)][::-1]
    assert time.process_time() - start < 2


@pytest.mark.parametrize("name", ["cafe\u0301", "caf\u00e9 "])
def test_a_class_to_judge_that_only_looks_like_the_networks_is_told_apart(name):
    with pytest.raises(DataError) as caught:
        matched(judged([name, "dog"]), ("caf\u00e9", "dog"))
    assert f"1 of 2 classes are none of the network's 2: {name!a}" in str(caught.value)
    assert str(caught.value).endswith(r"matched by name: 'caf\xe9'")


@pytest.mark.parametrize(
    ("count", "said"), [(2, "train has a, b"), (3, "train has a, b, c"), (4, "train has a, b, c, ...")]
)
def test_dots_stand_for_names_that_are_left_out_alone(tmp_path, count, said):
    files = {f"train/{'abcd'[k]}/1.jpg": making.picture(k) for k in range(count)} | {"val/zz/1.jpg": making.picture(9)}
    with pytest.raises(DataError) as caught:
        recognise(making.write_tree(tmp_path / "set", files))
    assert str(caught.value).endswith(said)


def test_inspect_says_one_line_of_each_thing(tmp_path, capsys):
    source = making.write_tree(tmp_path / "a\nb", {"train/cat/1.jpg": making.picture(1), "train/cat/x.t\nt": b"x"})
    assert main(["inspect", str(source)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [rf"{tmp_path}/a\nb: class folders", "classes: 1 (cat)", "train: 1 pictures",
                     r"note: left out: 1 file (.t\nt 1)"]  # fmt: skip
