"""Used by test_launch.py: a rank that trains; rank 0 alone prepares data, for longer than a collective waits."""

import os
import time
from dataclasses import replace

from imnet import meeting
from imnet.data.base import DataSet
from imnet.data.sets import Request, all_sets, dataset
from imnet.errors import DataError
from imnet.start import _rank_entry
from tests.train.conftest import TINY, options


def rank(what, out):
    """Trains as one of two ranks. What it sets and registers stays in the rank's process."""
    meeting.COLLECTIVE_TIMEOUT_S = 2

    @dataset
    def slow(request: Request) -> DataSet:
        if os.environ.get("RANK") == "0":
            time.sleep(5)
            if what == "refused":
                raise DataError("nothing can be packed here")
            if what == "killed":
                os.kill(os.getpid(), 9)
        return all_sets()["shapes"](request)

    recipe = replace(TINY, data=replace(TINY.data, name="slow"), epochs=1)
    return _rank_entry(recipe, options(out, procs=2))  # as imnet.start gives it to run_ranks
