"""Every damaged source gives ONE line with the file and offset or member and exit code 65, in 2 CPU s, and no store."""

import os
import re

import pytest

from imnet.data.tool import main
from tests.data import damage_archives, damage_arrays, damage_parquet, damage_pictures  # noqa: F401  (they fill the table)
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
