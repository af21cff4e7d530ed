"""Used by test_launch.py: data that rank 0 alone prepares, for longer than a collective waits."""

import os
import time

from imnet import meeting
from imnet.data.base import DataSet
from imnet.data.sets import Request, all_sets, dataset
from imnet.errors import DataError


def prepare(what):
    """Registers the data set "slow", of which rank 0 is ``what``: prepared late, refused or killed."""
    meeting.COLLECTIVE_TIMEOUT_S = 2

    @dataset
    def slow(request: Request) -> DataSet:
        if os.environ.get("RANK") == "0":
            time.sleep(4 if what == "prepared" else 0.5)
            if what == "refused":
                raise DataError("nothing can be packed here")
            if what == "killed":
                os.kill(os.getpid(), 9)
        return all_sets()["shapes"](request)
