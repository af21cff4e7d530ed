"""Run by test_ranks.py: imnet-train with an unexpected error in every rank, since each rank imports this file."""

import sys

from imnet import cli
from imnet.trainer import Trainer


def fail(self):
    raise ZeroDivisionError("a fault of ours")


Trainer.run = fail

if __name__ == "__main__":
    sys.exit(cli.train_main())
