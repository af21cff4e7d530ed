from __future__ import annotations

from pathlib import Path

import pytest
from run_folders import Page, make_run

from imnet.report import render


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "a run, ünïcode")


@pytest.fixture(scope="module")
def page(run_dir) -> Page:
    return Page(render(run_dir))
