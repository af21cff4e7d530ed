"""The environment of a measurement: versions, commit, hardware."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

from imnet.files import exists
from imnet.resources import cpu_name, num_cores


def environment() -> dict[str, Any]:
    """Versions, commit, hardware and number of threads, to be kept with measured figures."""
    import torch

    gpus = (
        [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    )
    return {
        "versions": {
            "imnet": version("imnet") or "source tree",
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": version("torchvision"),
            "numpy": version("numpy"),
            "cuda": torch.version.cuda,
        },
        "git_sha": _git_sha(),
        "hardware": {"cpu": cpu_name(), "cores": num_cores(), "gpus": gpus},
        "threads": torch.get_num_threads(),
    }


def version(package: str) -> str | None:
    """The version of an installed package; None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


@functools.cache
def _git_sha() -> str | None:
    """The commit of this source tree, with ``+`` if tracked files have changes; None outside of a git checkout."""
    here = Path(__file__).resolve().parent.parent
    if not exists(here / ".git"):
        return None
    try:
        # Name the tree, because GIT_DIR in the environment, e.g. in a hook, may point to another one.
        git = ["git", f"--git-dir={here / '.git'}", f"--work-tree={here}"]
        run = {"capture_output": True, "text": True, "timeout": 5, "check": True}
        sha = subprocess.run([*git, "rev-parse", "HEAD"], **run).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], **run).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return sha + ("+" if changed else "")
