"""Collects the state of a run for a checkpoint, and writes it in the background while training continues."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from imnet import checkpoint
from imnet.run_state import RunState, Setup
from imnet.runfolder import RunFolder
from imnet.step import TrainStep


class Saver:
    """Writes rank 0's checkpoints in a thread of its own, one at a time and in the order of their steps.

    Writing, hashing and reading back 36 million weights with momentum and EMA takes about a second, for which the
    device would idle. Training waits only for the copy of the tensors to host memory and for the previous checkpoint.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._newest: Future[Path] | None = None

    def save(
        self, folder: RunFolder, setup: Setup, state: RunState, step_fn: TrainStep, loss_sum: float, right_sum: float
    ) -> None:
        """Start saving the current state of the run to ``folder``; the sums are over all ranks.

        Raises IOFailure if the previous checkpoint could not be written, or if the folder is gone.
        """
        folder.check_place()
        self.wait()
        values = {
            "step": state.step,
            "epoch": state.step / setup.order.steps_per_epoch,
            "seconds": state.seconds,
            "loss_sum": loss_sum,
            "right_sum": right_sum,
            "loss_images": state.loss_images,
            "best": state.best,
            "stopped": state.stopped,
            "top1": state.judged[1] if state.judged[0] == state.step else None,
            "skipped_steps": state.skipped_steps,
            "metrics_bytes": state.metrics_bytes,
            "train_images": setup.order.num_images,
            "data_fingerprint": setup.dataset.fingerprint,
            "config_hash": setup.config_hash,
            "scaler": step_fn.scaler.state_dict(),
            "versions": {"torch": torch.__version__},
        }
        copies, keeps = _in_host_memory(step_fn.tensors()), setup.options.keeps
        own = checkpoint.of_run({"config_hash": setup.config_hash, "before": setup.before})
        self._newest = self._thread.submit(checkpoint.save, folder.checkpoints, state.step, copies, values, keeps, own)

    def wait(self) -> None:
        """Wait until the newest checkpoint is on the disk; raises IOFailure if it could not be written."""
        if self._newest is not None:
            self._newest.result()

    def close(self) -> None:
        """Let the newest checkpoint be finished, whatever ends the run; only ``wait`` raises its errors."""
        self._thread.shutdown()


def _in_host_memory(tensors: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    """Copies on the host, which later steps do not change. From a GPU they go to pinned memory, which is ten times as
    fast as pageable memory."""
    copies = {stem: {name: _copy(t) for name, t in named.items()} for stem, named in tensors.items()}
    # Nothing is asked of a GPU that the run does not use: the first call would take its memory, or fail if it is busy.
    if any(t.is_cuda for named in tensors.values() for t in named.values()):
        torch.cuda.current_stream().synchronize()
    return copies


def _copy(tensor: Tensor) -> Tensor:
    copy = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda, requires_grad=False)
    return copy.copy_(tensor.detach(), non_blocking=True)
