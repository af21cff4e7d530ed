"""Runs every row of the table in docs/runs.md, which lists the changes that resume and those that are refused."""

import re
import shlex
import shutil
from pathlib import Path

import pytest

from imnet import cli

from .test_change import content

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "runs.md").read_text(encoding="utf-8")
BASE = shlex.split(re.search(r"^    imnet-train (.*)$", TEXT, re.M)[1])
ROWS = re.findall(r"^\| (?:\(none\)|`(.*?)`) \| (goes on|refused) \| (.*) \|$", TEXT, re.M)
HOW = ["--device", "cpu", "--threads", "1"]


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("table") / "run"
    assert cli.train_main([*BASE, *HOW, "--out", str(folder)]) == 0
    return folder


def test_the_table_is_read():
    assert len(ROWS) == TEXT.count("| goes on |") + TEXT.count("| refused |") > 12


@pytest.mark.parametrize(("words", "answer", "said"), ROWS)
def test_a_row(kept, tmp_path, capsys, words, answer, said):
    folder = shutil.copytree(kept, tmp_path / "run")
    before = content(folder)
    capsys.readouterr()
    code = cli.train_main([*BASE, *shlex.split(words), *HOW, "--out", str(folder)])
    out, err = capsys.readouterr()
    assert said in out + err
    assert code == (0 if answer == "goes on" else 2)
    if answer == "refused":
        assert err.count("\n") == 1
        assert content(folder) == before
        assert cli.train_main([*BASE, *HOW, "--out", str(folder)]) == 0


def test_the_commands_of_the_page_share_a_folder():
    """Without --out, every row with another configuration would be a new run in a folder of its own."""
    assert "--out" in BASE


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_a_change_without_the_name_of_its_run_is_refused(tmp_path, monkeypatch, capsys, more):
    monkeypatch.chdir(tmp_path)
    small = [
        "--data.train_images",
        "32",
        "--data.test_images",
        "20",
        "--batch-size",
        "16",
        "--data.image_px",
        "12",
        *HOW,
    ]
    assert cli.train_main([*small, "--epochs", "1"]) == 0
    before = content(tmp_path)
    capsys.readouterr()
    assert cli.train_main([*small, "--epochs", "2", "--allow-change", *more]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "got --allow-change without --out" in error
    assert "--out RUN" in error
    assert content(tmp_path) == before
    assert cli.train_main([*small, "--epochs", "1", "--allow-change", *more]) == 0
