"""Run by test_machines.py: one of two ranks; rank 0 is busy for 60 s while joining or preparing data (``WHEN``)."""

import sys
import time
from pathlib import Path

from imnet.command import guarded

WHEN, SIGN = sys.argv[1], Path(sys.argv[2])


def wait(_):
    import torch  # as late as a command imports it

    from imnet import launch, meeting

    def be_busy(now):
        if now == WHEN and launch.current_world().is_main:
            SIGN.touch()
            time.sleep(60)

    def agree_late(*facts):
        be_busy("joining")
        return agree(*facts)

    meeting.INIT_TIMEOUT_S, meeting.COLLECTIVE_TIMEOUT_S = 5, 2
    agree, meeting._agree = meeting._agree, agree_late
    found = launch.current_world()
    with launch.named_loss(found), launch.connected(torch.device("cpu")) as world, world.main_first():
        be_busy("preparing")
    return 0


if __name__ == "__main__":
    sys.exit(guarded("script", wait, []))
