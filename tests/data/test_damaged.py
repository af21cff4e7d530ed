"""Every damaged source gives ONE line with the file and offset or member and exit code 65, in 2 CPU s, and no store."""

import os
import re

import pytest

from imnet.data.readers import recognise
from imnet.data.tool import main
from imnet.errors import DataError
from tests.data import (  # noqa: F401  (the modules of cases fill the table)
    damage_archives,
    damage_arrays,
    damage_doubt,
    damage_parquet,
    damage_pictures,
    making,
)
from tests.data.damage_table import CASES


def test_the_table_has_every_promised_kind():
    groups = {"idx": 8, "pickle": 8, "npz": 5, "zip": 4, "tar": 3, "jpeg": 5, "folder": 4}
    for group, promised in groups.items():
        assert sum(name.startswith(group) for name in CASES) >= promised, group
    assert len(CASES) >= 45


@pytest.mark.parametrize("name", CASES)
def test_damaged_input(name, tmp_path, capsys, monkeypatch):
    build, expected, shown = CASES[name]
    (tmp_path / "source").mkdir()
    monkeypatch.chdir(tmp_path)
    path = build(tmp_path / "source")
    pictures = name.startswith(("zip", "tar", "parquet", "webdataset", "jpeg", "png", "folder", "tiny"))
    began = cpu_s()
    code = main(["pack", str(path), str(tmp_path / "out"), "--workers", "1", *(["--size", "16"] if pictures else [])])
    spent_s = cpu_s() - began
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert re.search(expected, lines[0]), lines[0]
    assert shown in lines[0]
    assert code == 65
    assert str(tmp_path / "source") in lines[0] or "ImageNet" in lines[0]
    assert not list(tmp_path.glob("**/*.imnet"))
    assert not list(tmp_path.glob("**/canary"))
    assert spent_s < 2


def cpu_s():
    """CPU seconds of this process and of its ended children."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def test_a_damaged_npz_is_a_short_line(tmp_path, capsys):
    """zipfile repeats what it found in place of a member's name, up to 64 KiB of it."""
    raw = bytearray(making.npz_bytes(5, 64))
    raw[27] = 0xFF  # the upper byte of the length of the first name
    (tmp_path / "train_data_batch_1.npz").write_bytes(raw)
    assert main(["inspect", str(tmp_path)]) == 65
    error = capsys.readouterr().err
    assert "(data.npy): zip member is damaged: File name in directory" in error
    assert len(error) < 600


def test_parquet_whose_pages_have_checksums(tmp_path):
    """A changed label is a label too, so that only a checksum can tell; the datasets library writes none."""
    made = damage_parquet.table([b"x" * 2000] * 3, [0, 1, 0])
    options = {"write_page_checksum": True, "compression": "none", "use_dictionary": False}
    path = damage_parquet.write(tmp_path / "train.parquet", made, **options)
    raw = bytearray(path.read_bytes())
    labels = b"".join(number.to_bytes(8, "little") for number in (0, 1, 0))
    raw[raw.index(labels) + 8] = 2
    path.write_bytes(raw)
    with pytest.raises(DataError, match=r"Parquet is damaged: .*checksum"):
        recognise(tmp_path)
