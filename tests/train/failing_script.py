"""imnet-train whose ranks fail as nobody foresaw: each imports this file, and with it the fault."""

import sys

from imnet import cli
from imnet.trainer import Trainer


def fail(self):
    raise ZeroDivisionError("a fault of ours")


Trainer.run = fail

if __name__ == "__main__":
    sys.exit(cli.train_main())
