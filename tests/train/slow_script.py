"""Run by test_launch.py: trains on two ranks; rank 0 alone prepares data, for longer than a collective waits."""

import os
import sys
import time
from dataclasses import replace

from imnet import meeting
from imnet.data.base import DataSet
from imnet.data.sets import Request, all_sets, dataset
from imnet.errors import DataError, DeviceError
from imnet.start import train
from tests.train.conftest import TINY, options

meeting.COLLECTIVE_TIMEOUT_S = 2  # in every rank, since each imports this file again
WHAT, OUT = sys.argv[1:3]


@dataset
def slow(request: Request) -> DataSet:
    if os.environ.get("RANK") == "0":
        time.sleep(5)
        if WHAT == "refused":
            raise DataError("nothing can be packed here")
        if WHAT == "killed":
            os.kill(os.getpid(), 9)
    return all_sets()["shapes"](request)


if __name__ == "__main__":
    recipe = replace(TINY, data=replace(TINY.data, name="slow"), epochs=1)
    try:
        sys.exit(train(recipe, options(OUT, procs=2))[0])
    except DeviceError as error:
        print(error)
        sys.exit(69)
    except DataError as error:
        print(error)
        sys.exit(65)
