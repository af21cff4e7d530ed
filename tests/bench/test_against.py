"""`python -m bench.against` times the working tree and a commit, and removes its worktree even after a failed run."""

import re
import subprocess
import sys

import pytest

from bench.against import ROOT

WORDS = ["--recipe", "quickstart", "--epochs", "1", "--device", "cpu", "--threads", "1"]


@pytest.mark.nightly
@pytest.mark.parametrize("more", [[], ["--no-such-option", "1"]])
def test_both_sides_are_timed_and_nothing_is_left(more):
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = [sys.executable, "-m", "bench.against", "HEAD", "--rounds", "1", "--", *WORDS, *more]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    worktrees = subprocess.run(["git", "worktree", "list"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "before" not in worktrees.stdout
    if more:
        assert done.returncode
        assert "exit code 2" in done.stderr
        return
    assert not done.returncode, done.stderr
    assert re.findall(r"^(HEAD|here): \d+\.\d\d \+- ", done.stdout, re.MULTILINE) == ["HEAD", "here"]
