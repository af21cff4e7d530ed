"""bench.gate with every training step slower by the share in $SLOWED_BY: the regression that the gate must see."""

import os
import sys
import time

from bench import gate
from imnet.step import TrainStep

_step = TrainStep.__call__


def _slowed(self, *args):
    start = time.process_time()
    result = _step(self, *args)
    end = time.process_time()
    while time.process_time() - end < float(os.environ["SLOWED_BY"]) * (end - start):
        pass
    return result


TrainStep.__call__ = _slowed

if __name__ == "__main__":
    sys.exit(gate.main())
