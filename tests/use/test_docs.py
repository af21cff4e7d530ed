"""Runs the commands and the Python of docs/ as they stand and in their order, beside a folder ``photos``."""

import contextlib
import io
import re
import shlex
from pathlib import Path

import pytest

from imnet import cli, hubs
from tests.use.test_own import folder_of

DOCS = Path(__file__).resolve().parents[2] / "docs"
COMMANDS = {"imnet-train": cli.train_main, "imnet-predict": cli.predict_main, "imnet-export": cli.export_main}
COMMANDS["imnet-eval"] = cli.eval_main
LONG = ("weights.md", "spectral.md", "training.md")
SHARE = re.compile(r"^(band \d|average|fitted) +([\d.]+)%", re.MULTILINE)
"""A row of the table that imnet-eval prints for an ensemble: its name, and its top-1 in percent."""
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(hubs, "is_here", lambda source: False)
    monkeypatch.setattr(hubs, "REACHABLE_S", 0.01)
    monkeypatch.chdir(tmp_path)
    return folder_of(tmp_path / "photos")


@pytest.mark.parametrize("name", ["own-images.md", *(pytest.param(n, marks=pytest.mark.slow) for n in LONG)])
def test_the_commands_of_a_page_work_in_their_order(name, photos):
    """The accuracies that they print must be those of the page, as far as another machine's rounding allows."""
    page = (DOCS / name).read_text()
    blocks, shares = BLOCK.findall(page), dict(SHARE.findall(page))
    assert len(blocks) >= 1
    for kind, text in blocks:
        if kind == "python":
            exec(compile(text, name, "exec"), {})
            continue
        for line in text.splitlines():
            command, *words = shlex.split(line)
            # ``imnet-train photos`` would train for as long as it chooses, so here it is only a dry run.
            words += ["--dry-run"] if words == ["photos"] else []
            said = io.StringIO()
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                code = COMMANDS[command](words)
            assert code == 0, f"{line}\n{said.getvalue()}"
            found = dict(SHARE.findall(said.getvalue()))
            assert all(float(found[who]) == pytest.approx(float(shares[who]), abs=8) for who in found), found


@pytest.mark.slow
def test_the_page_on_clusters_has_a_command_to_try(tmp_path, monkeypatch):
    import os
    import subprocess
    import sys

    ((_, text),) = BLOCK.findall((DOCS / "cluster.md").read_text())
    words = shlex.split(text)[1:]
    done = subprocess.run([sys.executable, "-m", "imnet.cli", *words], cwd=tmp_path, capture_output=True, text=True,
                          check=False, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})  # fmt: skip
    assert done.returncode == 0, done.stderr
