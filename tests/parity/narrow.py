"""imnet-train with one more network: a Shake-Shake of 8 channels, too narrow for imnet to list."""

import sys

from imnet.cli import train_main
from imnet.models import model
from imnet.models.shake_shake import ShakeShake26


@model
def shake_shake26_2x8d(num_classes, in_channels=3):
    return ShakeShake26(8, 8, num_classes, in_channels)


if __name__ == "__main__":
    sys.exit(train_main(sys.argv[1:]))
