"""How and where a recipe runs: what the command line sets beside the recipe's own values. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from imnet.recipe import check


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How and where a recipe runs. None of it changes the experiment, but for ``precision`` (see ``config_hash``)."""

    out: str | None = None
    """Run folder; default runs/<recipe>-<hash of the configuration>."""
    data_dir: str | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    gpus: int | None = None
    procs: int | None = None
    """CPU processes (gloo ranks); needs --device cpu."""
    max_restarts: int = 0
    """How often a lost rank makes all ranks start again from the newest checkpoint (--gpus, --procs)."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    tf32: bool = False
    """fp32 products in a GPU's TF32 units, with 10 bits of mantissa; without it fp32 is fp32."""
    compile: bool | None = None
    """torch.compile; default: on a GPU where the whole run is long enough to earn its cost back, on a CPU no."""
    cuda_graphs: bool | None = None
    """Capture the whole step in one CUDA graph; default: wherever one GPU trains."""
    deterministic: bool | None = None
    """Algorithms that repeat every bit of a run on the same GPU; default: as the run began, else no."""
    pipeline: Literal["auto", "resident", "host", "dali", "torch"] = "auto"
    """auto: resident where the set fits the device, else host."""
    workers: int | None = None
    """Threads that prepare batches (not of resident); default: the threads of this process."""
    on_bad_image: Literal["stop", "skip"] = "stop"
    """skip: the next picture takes the place of one that cannot be decoded, for at most 0.1 % of the set."""
    kernels: str = "auto"
    """Kernel tier: auto | reference | host | triton | cuda."""
    resume: Literal["auto", "never"] = "auto"
    """``never`` refuses a folder that already holds a run."""
    allow_change: bool = False
    """Resume although recipe, precision or data differ from the checkpoint's."""
    micro_batch_images: int | None = None
    """Most images a rank holds at once; more are accumulated over several passes."""
    optim_backend: Literal["auto", "torch", "imnet", "apex"] = "auto"
    eval_every_epochs: int | None = None
    """Default: about ten evaluations a run, at most a tenth of its time, and always the last epoch."""
    checkpoint_every_epochs: int = 1
    checkpoint_every_steps: int | None = None
    log_every_steps: int | None = None
    """Default: about 20 lines an epoch."""
    on_nonfinite: str = "stop"
    """``stop``, or ``skip:N``: leave up to N bad steps out."""
    threads: int | None = None
    """CPU threads a process; default: the cores, divided by --procs."""

    def __post_init__(self) -> None:
        counts = ("gpus", "procs", "micro_batch_images", "eval_every_epochs", "checkpoint_every_epochs", "workers")
        for name in counts:
            value = getattr(self, name)
            check(value is None or value >= 1, f"{name} = {value}", "1 or more", f"leave --{name} out for the default")
        clash = self.procs is not None and (self.gpus is not None or self.device == "cuda")
        check(not clash, "procs together with a GPU", "--device cpu --procs N, or --gpus N", "drop one of them")
        clash = self.gpus is not None and self.device == "cpu"
        check(not clash, f"gpus = {self.gpus} with device cpu", "--gpus N, or --device cpu --procs N", "drop one")
        word, _, count = self.on_nonfinite.partition(":")
        ok = self.on_nonfinite == "stop" or (word == "skip" and count.isdigit())
        check(ok, f"on_nonfinite = {self.on_nonfinite!r}", "stop or skip:N", "e.g. --on_nonfinite skip:3")

    @property
    def max_skips(self) -> int:
        """How many non-finite steps may be left out."""
        return int(self.on_nonfinite.partition(":")[2] or 0)
