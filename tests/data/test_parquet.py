"""Parquet sources: the pixels, labels, names and splits that are read equal those that pyarrow wrote."""

import random
import subprocess
import sys

import numpy as np
import pytest

from imnet.data.readers import recognise
from imnet.data.readers.base import select
from imnet.data.readers.picture import ResizeRule
from imnet.data.store import load_store, open_store, split_path
from imnet.data.store.pack import Options, pack
from imnet.data.tool import main
from tests.data import making
from tests.data.damage_parquet import WNIDS, table, write

pytest.importorskip("pyarrow")


def pictures(count, seed=0):
    return [making.picture(seed + i) for i in range(count)]


def hub(folder, plain=False, names=WNIDS):
    """A folder as on the Hugging Face hub: two training shards, a validation file and an unlabelled test file."""
    folder.mkdir()
    write(folder / "train-00000-of-00002.parquet", table(pictures(70), [i % 3 for i in range(70)], names, plain))
    write(folder / "train-00001-of-00002.parquet", table(pictures(31, 70), [1] * 31, names, plain), 1000)
    write(folder / "validation-00000-of-00001.parquet", table(pictures(9, 200), [2] * 9, names, plain))
    write(folder / "test-00000-of-00001.parquet", table(pictures(4, 300), [-1] * 4, names, plain))
    return folder


@pytest.mark.parametrize("form", ["top", "data folder", "plain binary", "encoded"])
def test_pixels_labels_names_and_splits(tmp_path, form):
    names = () if form == "plain binary" else WNIDS
    source = hub(tmp_path / ("data" if form == "data folder" else "in"), form == "plain binary", names)
    found = recognise(tmp_path if form == "data folder" else source)
    assert found.class_names == (WNIDS or names if names else ("class_0000", "class_0001", "class_0002"))
    rule = None if form == "encoded" else ResizeRule(16)
    pack(found, tmp_path / "out", Options(rule, workers=2, quiet=True))
    train = open_store(split_path(tmp_path / "out", "train"))
    assert train.labels.tolist() == [i % 3 for i in range(70)] + [1] * 31
    if rule is None:
        assert [train.encoded(i) for i in range(len(train))] == pictures(101)
        return
    assert np.array_equal(train.images(), np.stack([making.expected(data, 16) for data in pictures(101)]))
    test = load_store(tmp_path / "out").test
    assert np.array_equal(test.images, np.stack([making.expected(data, 16) for data in pictures(9, 200)]))
    assert test.labels.tolist() == [2] * 9


def test_one_file_and_any_order_of_rows(tmp_path, capsys):
    path = write(tmp_path / "cats.parquet", table(pictures(40), [i % 3 for i in range(40)]), 15)
    items = recognise(path).splits["train"]
    order = np.random.default_rng(0).permutation(40).tolist()
    assert [items.read(i) for i in order] == [making.picture(i) for i in order]
    chosen = select(recognise(path), hold_out=2)
    assert {split: len(part) for split, part in chosen.splits.items()} == {"train": 34, "test": 6}
    held = chosen.splits["test"]
    assert all(held.read(i) == making.picture(int(held.where(i)[1].removeprefix("row "))) for i in range(6))
    assert main(["inspect", str(path)]) == 0
    assert "Parquet (1 files)" in capsys.readouterr().out


def test_without_pyarrow_it_is_one_line_with_the_command(tmp_path):
    write(tmp_path / "a.parquet", table(pictures(1), [0]))
    code = "import sys; sys.modules['pyarrow'] = None; from imnet.data.tool import main; sys.exit(main(sys.argv[1:]))"
    call = [sys.executable, "-c", code, "inspect", str(tmp_path)]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "pip install 'imnet[parquet]'" in done.stderr


FUZZ = """
import sys
from pathlib import Path
from imnet.data.readers import recognise
from imnet.errors import DataError
from tests.data.test_fuzz_inputs import fuzz
path = Path(sys.argv[1])
def attempt(raw):
    path.write_bytes(raw)
    items = recognise(path).splits["train"]
    for i in range(len(items)):
        items.read(i)
print(fuzz([path.read_bytes()], attempt, int(sys.argv[2]), 7))
"""


def test_random_damage_is_refused_or_harmless(tmp_path):
    """Runs in a child process, so that a crash inside pyarrow fails this test and does not end pytest."""
    random.seed(0)
    path = write(tmp_path / "a.parquet", table([random.randbytes(50) for _ in range(12)], [1] * 12), 5)
    call = [sys.executable, "-c", FUZZ, str(path), "300"]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 50
