"""Run options: how and where a recipe runs, as set by the command line besides the recipe. Standard library only."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from typing import Literal

from imnet.fields import COUNT, Range, about, check, check_ranges
from imnet.recipe import Recipe

LOGS = ("csv", "tensorboard", "wandb")
OF_ONE_MACHINE = ("out", "data_dir", "device", "gpus", "procs", "threads", "workers", "lock", "max_restarts")
OF_ONE_MACHINE += ("log", "resume", "allow_change")
"""Options that may differ between ranks: those that depend on the machine, and those that only rank 0 uses."""
PROCESSES = Range(low=1, high=1024)
RESTARTS = Range(low=0, high=1000)


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How and where a recipe runs. Only ``precision`` is part of an experiment's identity (see ``config_hash``)."""

    out: str | None = field(
        default=None, metadata=about("run folder (default: runs/<recipe>-<hash of the configuration>)")
    )
    data_dir: str | None = field(default=None, metadata=about("folder that holds the data set (also: $IMNET_DATA)"))
    device: Literal["auto", "cpu", "cuda"] = field(default="auto", metadata=about("auto: a GPU if there is one"))
    bands: str | None = field(
        # For recipes with spectral bands; the command line uses all if neither --band nor --bands is given.
        default=None,
        metadata=about("bands to train together, one network each, in one folder: all, or comma-separated numbers"),
    )
    gpus: int | None = field(default=None, metadata=about("number of GPUs; starts one process each", PROCESSES))
    procs: int | None = field(default=None, metadata=about("number of CPU processes (with --device cpu)", PROCESSES))
    max_restarts: int = field(
        default=0, metadata=about("after a lost rank, restart all from the newest checkpoint, up to N times", RESTARTS)
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = field(
        default="auto", metadata=about("auto: bf16 if the hardware has it, else fp32")
    )
    tf32: bool = field(
        default=False,
        metadata=about("fp32 matrix products in TF32 on a GPU: 10 bits of mantissa, several times faster"),
    )
    compile: bool | None = field(
        default=None,
        metadata=about("torch.compile (default: on a GPU, if the run is long enough to pay for it)"),
    )
    cuda_graphs: bool | None = field(
        default=None, metadata=about("capture the whole step in one CUDA graph (default: if one GPU trains)")
    )
    deterministic: bool | None = field(
        # By default a resumed run keeps the value that it began with; a new run takes False.
        default=None,
        metadata=about("make runs bit for bit repeatable on the same GPU, or refuse before the first step"),
    )
    pipeline: Literal["auto", "resident", "host", "dali", "torch"] = field(
        # auto: resident if the set fits into the device's memory, else host.
        default="auto",
        metadata=about("resident: in the device's memory; host: prepared by the CPU; dali; torch: the reference"),
    )
    workers: int | None = field(
        default=None,
        metadata=about("threads that prepare batches (default: the threads of this process)", PROCESSES),
    )
    on_bad_image: Literal["stop", "skip"] = field(
        # skip: a picture that cannot be decoded is replaced by the next one.
        default="stop",
        metadata=about("if images cannot be decoded: stop, or skip up to one in 1000"),
    )
    kernels: str = field(
        default="auto", metadata=about("kernel tier: auto, reference, host, triton or cuda; or family=tier,...")
    )
    resume: Literal["auto", "never"] = field(
        default="auto",
        metadata=about("auto: resume a run of the same configuration; never: refuse a used folder"),
    )
    lock: bool = field(
        default=True,
        metadata=about("lock the run folder; --no-lock: for file systems without locks; keep other runs out yourself"),
    )
    allow_change: bool = field(
        default=False, metadata=about("resume with another configuration, e.g. more epochs, if possible")
    )
    micro_batch_images: int | None = field(
        default=None,
        metadata=about(
            "most images per rank and pass; a larger batch accumulates gradients over several passes", COUNT
        ),
    )
    optim_backend: Literal["auto", "torch", "imnet", "apex"] = field(
        default="auto",
        metadata=about("imnet: SGD and weight average in one pass; apex: NVIDIA's FusedSGD, if installed"),
    )
    eval_every_epochs: int | None = field(
        default=None,
        metadata=about(
            "default: about ten evaluations per run, at most a tenth of its time, and the last epoch", COUNT
        ),
    )
    checkpoint_every_epochs: int = field(
        default=1, metadata=about("save a checkpoint every N epochs, and after the last", COUNT)
    )
    checkpoint_every_steps: int | None = field(
        default=None, metadata=about("also save every N steps within an epoch", COUNT)
    )
    keep: str = field(
        default="2",
        metadata=about("checkpoints to keep: the N newest, best (by evaluation top-1), last; e.g. best,last"),
    )
    log_every_steps: int | None = field(default=None, metadata=about("default: about 20 lines per epoch", COUNT))
    log: str | None = field(
        default=None,
        metadata=about("also log to csv, tensorboard, wandb; comma-separated (pip install 'imnet[track]')"),
    )
    on_nonfinite: str = field(
        default="stop", metadata=about("if loss or gradient is not finite: stop, or skip:N to skip up to N such steps")
    )
    threads: int | None = field(
        default=None,
        metadata=about("CPU threads per process (default: the cores, divided by the processes)", PROCESSES),
    )

    def __post_init__(self) -> None:
        check_ranges(self)
        for name in ("out", "data_dir"):  # no shell has expanded the ~ of a file or of Python
            if (path := getattr(self, name)) is not None:
                object.__setattr__(self, name, os.path.expanduser(path))
        clash = self.procs is not None and (self.gpus is not None or self.device == "cuda")
        check(not clash, "procs together with a GPU", "--device cpu --procs N, or --gpus N", "drop one of them")
        clash = self.gpus is not None and self.device == "cpu"
        check(not clash, f"gpus = {self.gpus} with device cpu", "--gpus N, or --device cpu --procs N", "drop one")
        word, _, count = self.on_nonfinite.partition(":")
        ok = self.on_nonfinite == "stop" or (word == "skip" and count.isdecimal() and len(count) < 10)
        check(ok, f"on_nonfinite = {self.on_nonfinite!r}", "stop or skip:N", "e.g. --on-nonfinite skip:3")

        on_cpu = self.device == "cpu" or self.procs is not None
        check(not (self.cuda_graphs and on_cpu), "cuda_graphs on a CPU", "on a GPU", "leave --cuda-graphs out")
        # torch.compile chooses kernels by timing them, so the choice may differ from run to run.
        clash = bool(self.compile and self.deterministic)
        check(not clash, "compile together with deterministic", "one of them", "leave --compile out")

        words = self.keep.split(",")
        ok = all(w in ("best", "last") or (w.isdecimal() and 0 < int(w) < 10**6) for w in words)
        check(
            ok, f"keep = {self.keep!r}", "best, last, a number from 1, or several with commas", "e.g. --keep best,last"
        )

        words = self.bands.split(",") if self.bands not in (None, "all") else []
        ok = all(w.isdecimal() and len(w) < 4 for w in words) and len({int(w) for w in words}) == len(words)
        check(ok, f"bands = {self.bands!r}", "all, or numbers with commas, each once", "e.g. 0,1,3")
        ok = all(word in LOGS for word in self.logs)
        check(ok, f"log = {self.log!r}", f"{', '.join(LOGS)}, or several with commas", "e.g. --log csv,tensorboard")

    def bands_of(self, recipe: Recipe) -> tuple[int, ...]:
        """The spectral bands that are trained together, ascending; empty if a single network is trained.

        Raises ValueError for bands that the recipe does not have.
        """
        if self.bands is None:
            return ()
        count = recipe.augment.num_bands
        check(count > 0, f"bands = {self.bands} for {recipe.name}, which sees whole images", "none", "leave it out")
        if self.bands == "all":
            return tuple(range(count))
        wanted = sorted(int(word) for word in self.bands.split(","))
        check(wanted[-1] < count, f"bands = {self.bands} of {count}", f"0..{count - 1}", "name others")
        return tuple(wanted)

    @property
    def num_ranks(self) -> int:
        """How many ranks --gpus or --procs asks for; one if neither is given."""
        return self.gpus or self.procs or 1

    @property
    def logs(self) -> tuple[str, ...]:
        """The words of ``log``, each once."""
        return () if self.log is None else tuple(dict.fromkeys(self.log.split(",")))

    @property
    def keeps(self) -> tuple[int, bool]:
        """(number of newest checkpoints to keep, whether to keep the best). At least one stays, to resume from."""
        words = self.keep.split(",")
        return max(int(w) if w.isdecimal() else 1 for w in words), "best" in words

    @property
    def max_skips(self) -> int:
        """How many steps with a non-finite loss or gradient may be skipped."""
        return int(self.on_nonfinite.partition(":")[2] or 0)

    def as_ran(self, recipe: Recipe) -> RunOptions:
        """A copy in which options that are left open have the values with which the recipe's source ran it. Raises
        ValueError if the backend does not suit the recipe's optimiser."""
        kind, ran = recipe.optim.kind, recipe.ran
        ok = kind == "sgd" or self.optim_backend in ("auto", "torch")
        check(ok, f"optim_backend = {self.optim_backend} for {kind}", "sgd", "use --optim-backend torch")
        if ran is None:
            return self
        precision = ran.precision if self.precision == "auto" else self.precision
        return replace(self, precision=precision, eval_every_epochs=self.eval_every_epochs or ran.eval_every_epochs)
