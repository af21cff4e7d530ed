"""imnet-train --doctor: what this machine has, which kernel tier runs, and the one command that would improve each."""

from __future__ import annotations

import shutil

import imnet_kernels.tier
import torch

from imnet import device
from imnet.data.pipelines import has_dali
from imnet.environment import environment, version


def text() -> str:
    """Return the whole report."""
    found = environment()
    v, hardware = found["versions"], found["hardware"]
    gpus = ", ".join(hardware["gpus"]) or "none that torch can use"
    precision, why = device.resolve_precision("auto", "cuda" if device.num_gpus() else "cpu")
    lines = [
        f"imnet       {v['imnet']}" + (f" at {found['git_sha'][:12]}" if found["git_sha"] else ""),
        f"python      {v['python']}",
        f"torch       {v['torch']}, torchvision {v['torchvision']}, CUDA {v['cuda'] or 'none (a CPU build)'}",
        f"cpu         {hardware['cpu']}, {hardware['cores']} cores usable, {torch.backends.cpu.get_cpu_capability()}",
        f"gpu         {gpus}",
        f"precision   auto means {precision} here ({why})",
        f"triton      {version('triton') or 'not installed'}",
        f"DALI        {_dali()}",
        f"compiler    {shutil.which('g++') or shutil.which('clang++') or 'none: torch.compile on a CPU needs one'}",
        f"nvcc        {shutil.which('nvcc') or 'none: only building the CUDA kernels needs it'}",
        "",
        "kernel tiers (auto)",
    ]
    chosen = imnet_kernels.tier.report()
    widest = max(map(len, chosen))
    lines += [f"  {family:<{widest}} {tier:<11}{why}" for family, (tier, why) in chosen.items()]
    return "\n".join(lines)


def _dali() -> str:
    if has_dali():
        return next((f"{n} {found}" for n in _DALI if (found := version(n)) is not None), "installed")
    return "not installed (optional): pip install 'imnet[dali]'"


_DALI = ("nvidia-dali-cuda130", "nvidia-dali-cuda120")
