"""What a number was measured with: versions, commit, hardware."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

from imnet.resources import cpu_name, num_cores


def environment() -> dict[str, Any]:
    """Versions and hardware that a number was measured with."""
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
    """Of an installed package; None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


@functools.cache
def _git_sha() -> str | None:
    """The commit of this source tree, with ``+`` where it has changes; None where it is installed without one."""
    here = Path(__file__).resolve().parent.parent
    if not (here / ".git").exists():
        return None
    try:
        # Named, since GIT_DIR in the environment, as in a hook, is another tree's.
        git = ["git", f"--git-dir={here / '.git'}", f"--work-tree={here}"]
        run = {"capture_output": True, "text": True, "timeout": 5, "check": True}
        sha = subprocess.run([*git, "rev-parse", "HEAD"], **run).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], **run).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return sha + ("+" if changed else "")
