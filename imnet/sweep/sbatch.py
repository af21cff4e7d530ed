"""Writes a batch script for Slurm with one array task per trial, which is requeued until the trial is complete."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence

from imnet.sweep.grid import Trial, needs

SCRIPT = """\
#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --array={array}
#SBATCH --nodes=1
#SBATCH --ntasks=1
{device}
#SBATCH --cpus-per-task={cpus}
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.log

# {count} trial(s), a task each. What the cluster wants otherwise (partition, account, time) goes behind sbatch, before
# the name of this script. Two minutes before the time is up the trial saves, and the task queues again.
cd {folder} || exit 74
export SRUN_CPUS_PER_TASK={cpus}
srun --ntasks=1 {command}
code=$?
if [ $code -eq 75 ]; then
    scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}"
fi
exit $code
"""


def script(name: str, todo: Sequence[Trial], words: Sequence[str], more: Sequence[str], jobs: int | None) -> str:
    """The text of the script; ``words`` are those for imnet-sweep without --trial, ``more`` those for imnet-train."""
    ranges = spans([trial.number for trial in todo])
    gpus, ranks, on_cpu = needs(todo)
    command = [shlex.join(["imnet-sweep", *words]), '--trial "$SLURM_ARRAY_TASK_ID"']
    return SCRIPT.format(
        name=re.sub(r"[^\w.-]+", "-", f"imnet-{name}"),  # part of the log file's name, in which % is special
        array=ranges + (f"%{jobs}" if jobs else ""),
        device="# no GPU is asked for" if on_cpu else f"#SBATCH --gpus-per-task={gpus}",
        cpus=max(8 * gpus, ranks),
        count=len(todo),
        folder=shlex.quote(os.getcwd()),
        command=" ".join([*command, *(["--", shlex.join(more)] if more else [])]),
    )


def spans(numbers: Sequence[int]) -> str:
    """Ascending numbers as ranges, e.g. ``1-3,7`` for 1, 2, 3, 7."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in found)
