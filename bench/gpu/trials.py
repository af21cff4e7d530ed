"""Trials: timings of changes that might make the whole training step faster; predictions are in NEGATIVES.md.

Every trial runs in its own process, and so does the unchanged step that it is compared with, because cuDNN keeps the
algorithm that it once chose for a shape. A dry run runs all in one process, and each restores what it changed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch

from imnet import step
from imnet.half_weights import HalfWeights
from imnet.models import shake_shake

from .plan import BASELINE, DEVICE, Figures, Row, Setting
from .processes import ERROR_CHARACTERS, ROOT, environment
from .steps import DRY_NETS, NETS, VARIANTS, Variant, in_tier, measure, net_of

OURS, COMPILED = (next(v for v in VARIANTS if v.name == n) for n in ("captured + our kernels", "compiled + captured"))


@dataclass(frozen=True)
class Trial:
    """A change that the context manager ``setting`` makes while a step is built and run; ``cost_s`` is a guess."""

    name: str
    cost_s: float
    setting: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext
    variant: Variant = OURS
    models: tuple[str, ...] = ("wrn36_5", "wrn28_10")


@contextlib.contextmanager
def every_algorithm() -> Iterator[None]:
    """Let cuDNN time all of its algorithms for a convolution, not only the first ten that its heuristic lists."""
    before, torch.backends.cudnn.benchmark_limit = torch.backends.cudnn.benchmark_limit, 0
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark_limit = before


def tuned() -> contextlib.AbstractContextManager[object]:
    """Let Inductor time more configurations of the kernels that it generates."""
    import torch._inductor.config

    return torch._inductor.config.patch(coordinate_descent_tuning=True, max_autotune_pointwise=True)


def one_stream() -> contextlib.AbstractContextManager[object]:
    """Run Shake-Shake's two branches one after the other, on one stream."""

    def never(x: torch.Tensor) -> bool:  # a Mock would keep a reference to every map that it is called with
        return False

    return mock.patch.object(shake_shake, "in_flight", never)


def cast_one_by_one() -> contextlib.AbstractContextManager[object]:
    """Let autocast cast every weight in a kernel of its own."""
    return mock.patch.object(step, "HalfWeights", lambda net, dtype: HalfWeights(net, None))


@contextlib.contextmanager
def launched_early() -> Iterator[None]:
    """Launch every Triton kernel while the one before it ends (programmatic dependent launch, sm_90 and newer).

    A kernel's first instruction waits until the results of the kernel before are in memory, so that it reads the same
    values. Its second allows the launch of the next kernel, which starts on multiprocessors with room. Triton has an
    option for the launch and offers both instructions to kernels that use them; here they are added to every kernel's
    PTX.
    """
    from triton.backends.nvidia.compiler import CUDABackend

    options, make_ptx = CUDABackend.parse_options, CUDABackend.make_ptx

    def early(self: CUDABackend, given: dict[str, object]) -> object:
        return options(self, given | {"launch_pdl": True})

    def waiting(self: CUDABackend, *args: object) -> str:
        body = r"(\.visible \.entry [^{]*\{\n)"
        ptx, entries = re.subn(body, rf"\1\t{WAIT}\n\tgriddepcontrol.launch_dependents;\n", make_ptx(self, *args))
        if entries != 1:
            raise RuntimeError(f"{entries} entries in the PTX of one kernel: it would not wait for the one before it")
        return ptx

    with mock.patch.multiple(CUDABackend, parse_options=early, make_ptx=waiting):
        yield


@contextlib.contextmanager
def loads_ahead() -> Iterator[None]:
    """Let the norms' kernels copy their next two tiles to shared memory while they work on one (sm_80 and newer).

    As they are, a program asks for a tile when it has stored the one before, so that it waits for the memory once per
    tile. The kernels that join read what they do not sum first, not last. No value changes.
    """
    import triton
    from imnet_kernels.batch_norm import _triton_kernels as norms
    from imnet_kernels.shake_batch_norm import _triton as shake

    found = {id(k): k for k in (*vars(norms).values(), *vars(shake).values()) if isinstance(k, triton.JITFunction)}
    with contextlib.ExitStack() as stack:
        for kernel in found.values():
            stack.callback(kernel._unsafe_update_src, kernel.src)
            ahead = re.sub(r" in (tl\.static_)?range\((.+)\):", r" in tl.range(\2, num_stages=3):", kernel.src)
            ahead = re.sub(UNSUMMED, r"\1\3\2", ahead)
            kernel._unsafe_update_src(ahead)
        yield


@contextlib.contextmanager
def early_and_ahead() -> Iterator[None]:
    """Both of the above."""
    with launched_early(), loads_ahead():
        yield


UNSUMMED = r"(?s)(    wide = column < channels\n)(.*?)((?:    (?:old_mean|old_var|inverse) = load\([^\n]*\n)+)"
WAIT = "griddepcontrol.wait;"
SHAKE = ("shake_shake26_2x96d",)
APART = dataclasses.replace(OURS, kernels="shake_batch_norm=reference")

# In order of value, after the step that they are compared with.
TRIALS = (
    Trial(BASELINE, 20.0, models=("wrn36_5", "wrn28_10", *SHAKE)),
    Trial("last norms, mix and ReLU apart", 20.0, variant=APART, models=SHAKE),
    Trial("one stream", 20.0, one_stream, models=SHAKE),
    Trial("weights cast one by one", 20.0, cast_one_by_one, models=("wrn36_5", "wrn28_10", *SHAKE)),
    Trial("kernels launched early", 20.0, launched_early, models=("wrn36_5", "wrn28_10", *SHAKE)),
    Trial("norms' loads ahead", 20.0, loads_ahead, models=("wrn36_5", "wrn28_10", *SHAKE)),
    Trial("launched early, loads ahead", 20.0, early_and_ahead, models=("wrn36_5", "wrn28_10", *SHAKE)),
    Trial("every algorithm of cuDNN", 45.0, every_algorithm, models=("wrn36_5", "wrn28_10", *SHAKE)),
    Trial("compiled as it is", 70.0, variant=COMPILED, models=("wrn28_10",)),
    Trial("compiled, tuned", 120.0, tuned, variant=COMPILED, models=("wrn28_10",)),
)


def trial_rows(setting: Setting) -> Iterator[Row]:
    for trial in TRIALS:
        for net in DRY_NETS[:1] if setting.dry else [net for net in NETS if net.model in trial.models]:
            work = functools.partial(take if setting.dry else apart, trial.name, net.label, setting)
            yield Row("trials", net.label, trial.name, trial.cost_s, work, DEVICE)


def take(name: str, label: str, setting: Setting, limit_s: float = 0.0) -> Figures:
    """The figures of a step with the trial's change, measured as in bench.gpu.steps."""
    trial = next(trial for trial in TRIALS if trial.name == name)
    with trial.setting():
        return in_tier(measure, net_of(label, setting.dry), trial.variant, setting)


def apart(name: str, label: str, setting: Setting, limit_s: float) -> Figures:
    """As ``take``, in a process of its own; raises RuntimeError with its last line if it fails."""
    command = [sys.executable, "-m", f"{__package__}.trials", name, label, *(["--dry"] if setting.dry else [])]
    env = environment(setting.dry, setting.scratch)
    options = {"capture_output": True, "text": True, "stdin": subprocess.DEVNULL, "timeout": limit_s}
    done = subprocess.run(command, cwd=ROOT, env=env, check=False, **options)
    if done.returncode:
        raise RuntimeError(" ".join(done.stderr.strip().splitlines()[-1:])[:ERROR_CHARACTERS])
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    print(json.dumps(take(sys.argv[1], sys.argv[2], Setting(dry="--dry" in sys.argv, scratch=Path()))))
