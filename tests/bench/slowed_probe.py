"""Runs bench.gate with each training step slowed by the fraction $SLOWED_BY: a regression that the gate must detect."""

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
