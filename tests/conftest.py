"""Settings of the whole test run."""

import gc
import os
import subprocess
import sys

import pytest

from tests import drawings

# A run that takes all cores would keep them from the other processes while its threads wait for one another: such tests
# take three times as long. With this policy, which torch reads when it is imported, its threads sleep.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


frozen_modules = 0


def freeze():
    """Keeps Python's collector from going through the modules and the tests again and again, a quarter of a second each
    time: every training ends with a collection."""
    global frozen_modules
    frozen_modules = len(sys.modules)
    gc.collect()
    gc.freeze()


def pytest_collection_finish():
    freeze()
    gc.set_threshold(10_000, 20, 100)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown():
    """Freezes what a test has imported, such as torch's compiler, once the test has ended."""
    yield
    if len(sys.modules) > frozen_modules + 100:
        freeze()


@pytest.fixture(autouse=True, scope="session")
def drawn_once(tmp_path_factory):
    """Draws equal curves once, see drawings.py."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "drawings"
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(drawings.FOLDER, str(folder))
        for user in drawings.USERS:
            patch.setattr(user, "curves_svg", drawings.curves_svg)
        yield


@pytest.fixture
def busy():
    """Keeps every core of this process busy with another program."""
    words = ["sh", "-c", "echo; while :; do :; done"]
    others = [subprocess.Popen(words, stdout=subprocess.PIPE) for _ in os.sched_getaffinity(0)]
    for other in others:
        other.stdout.readline()
    yield
    for other in others:
        other.kill()
        other.communicate()
