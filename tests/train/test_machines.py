"""Ranks that were started on several machines, each with its own words and its own copy of the data."""

import os
import socket
import subprocess
import sys

import pytest
from PIL import Image

WORDS = ["--device", "cpu", "--epochs", "1", "--batch-size", "4", "--model", "speednet", "--threads", "1"]


def pictures(root, shade):
    for i in range(12):
        path = root / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (i * 10, shade, 0)).save(path)
    return root


@pytest.mark.parametrize(
    ("shades", "seeds", "code", "expected"),
    [((0, 9), (1, 1), 65, "different data"), ((0, 0), (1, 2), 2, "different recipes"), ((0, 0), (1, 1), 0, "")],
)
def test_ranks_of_two_copies_are_refused_where_those_differ(shades, seeds, code, expected, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"WORLD_SIZE": 2, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = []
    for rank in range(2):
        photos = pictures(tmp_path / f"machine-{rank}" / "photos", shades[rank])
        words = ["--config", str(tmp_path / "config.yaml"), "--data-dir", str(photos), "--seed", str(seeds[rank])]
        if rank == 0:
            made = [sys.executable, "-m", "imnet.cli", str(photos), *WORDS, "--print-config"]
            (tmp_path / "config.yaml").write_text(subprocess.run(made, capture_output=True, text=True).stdout)
        names = os.environ | {name: str(value) for name, value in (common | {"RANK": rank}).items()}
        names |= {"XDG_CACHE_HOME": str(tmp_path / f"machine-{rank}" / "cache")}
        asked = [sys.executable, "-m", "imnet.cli", *words, "--out", str(tmp_path / f"machine-{rank}" / "run")]
        ranks.append(subprocess.Popen(asked, env=names, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True))
    said = [rank.communicate(timeout=120)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [code, code], said
    assert all(expected in words for words in said), said
    assert not any("Traceback" in words for words in said), said
