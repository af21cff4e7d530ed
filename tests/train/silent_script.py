"""Used by test_machines.py: one of two ranks; rank 0 is busy for 60 s while joining or preparing data (``when``)."""

import os
import time

import torch

from imnet import launch, meeting
from imnet.command import guarded


def rank(when, sign, errors):
    """Joins the other rank and prepares nothing; returns the exit code, and appends what it says to ``errors``."""
    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666), 2)

    def be_busy(now):
        if now == when and launch.current_world().is_main:
            sign.touch()
            time.sleep(60)

    def agree_late(*facts):
        be_busy("joining")
        return agree(*facts)

    def wait(_):
        found = launch.current_world()
        with launch.named_loss(found), launch.connected(torch.device("cpu")) as world, world.main_first():
            be_busy("preparing")
        return 0

    meeting.INIT_TIMEOUT_S, meeting.COLLECTIVE_TIMEOUT_S = 3, 2
    agree, meeting._agree = meeting._agree, agree_late
    return guarded("script", wait, [])
