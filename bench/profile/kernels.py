"""`imnet-profile kernels FAMILY`: the time of every case against its least traffic, and its kernels' resources."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from imnet_kernels import tier
from imnet_kernels.family import Case, Family, families

from imnet import device
from imnet.command import suggest
from imnet.device import PRECISIONS
from imnet.errors import DeviceError, UsageError
from imnet.files import check_output, write_json

from .. import machine
from ..case import run_options
from ..clock import on_device
from ..form import aligned, clipped, duration, grouped, percent, plural, scaled
from ..kernels import Job
from ..pictures import DRAWN_BY, roofline
from . import resources
from .cli import captured, commands, usable_folder

NAME_CHARACTERS = 44


def run(values: argparse.Namespace, arguments: Sequence[str]) -> None:
    """Time the cases, compile the kernels, write ``kernels-<family>.json`` and ``.svg``, print the tables.

    ``arguments`` are the command line's, for the nsys and ncu lines of this run.
    """
    family = next(family for family in families() if family.name == values.family)
    dtype = _dtype(family, values.dtype)
    cases = _cases(family, values.case)
    options = run_options(values)
    place = device.resolve(options).device
    chosen = _tier(values.tier, family.name, place.type)
    folder, name = usable_folder(values.out), f"kernels-{family.name}"
    check_output(folder / f"{name}.json", b'"matmul_flops_per_s"')
    check_output(folder / f"{name}.svg", DRAWN_BY.encode())
    with device.threads(options) as threads, tier.using(f"{family.name}={chosen}"):
        copy = machine.copy_bytes_per_s(place)
        with captured(place):
            timed = [timed_case(Job(family, case, dtype), chosen, place.type, copy) for case in cases]
        product = {"fp32": _fp32_peak(place)}
    where = torch.cuda.get_device_name(place) if place.type == "cuda" else "cpu"
    found: dict[str, Any] = {"family": family.name, "dtype": _short(dtype), "tier": chosen, "threads": threads}
    found |= {"device": where, "copy_bytes_per_s": copy, "matmul_flops_per_s": product, "cases": timed}
    compiled, missing = ([], []) if values.no_resources else resources.of_family(family.name, _short(dtype))
    found |= {"torch": torch.__version__, "resources": [r.as_dict() for r in compiled], "missing": missing}
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{name}.json", found)
    print(text(found))
    title = f"{family.name}, {chosen}, {_short(dtype)}, {where}, {plural(threads, 'thread')}"
    print(roofline(folder / f"{name}.svg", title, timed, copy, product))
    print(f"written: {folder / name}.json")
    print(commands(arguments, folder, name))


def _fp32_peak(place: torch.device) -> float:
    """The rate of an fp32 matrix product without TF32: most kernels compute in fp32 without tensor cores."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        return machine.matmul_flops_per_s(place, torch.float32)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def timed_case(job: Job, name: str, kind: str, copy: float) -> dict[str, Any]:
    """One row: seconds per call (median, IQR), bytes, FLOPs, share of the copy's bandwidth."""
    case, moved = job.case, job.num_bytes
    taken = on_device(lambda: job.run(name, kind), moved, kind)
    rate = moved / taken.median_s
    row: dict[str, Any] = {"case": case.name, "real": case.real, "median_s": taken.median_s, "iqr_s": taken.iqr_s}
    row |= {"bytes": moved, "flops": flops(job.family.name, case)}
    return row | {"bytes_per_s": rate, "of_copy": rate / copy}


def flops(family: str, case: Case) -> int:
    """The FLOPs of one call by the family's definition; a multiply-add counts as two.

    augment: x scale + shift. shake_shake: residual + a x1 + (1 - a) x2. dense_stage: its convolutions.
    shake_batch_norm: those of two norms, and a multiply-add for either.
    batch_norm: sum, sum of squares about the mean, (x - mean) scale + shift, and the residual's or the sum's addition.
    sgd_ema: each of weight decay, momentum, Nesterov and update is a multiply-add, the average one more addition.
    spectral: s = r r inputs folded by the DCT's even-odd symmetry, then s / 2 multiply-adds a band, and normalised.
    """
    o = case.options
    if family == "augment":
        _, height, width, channels = o["shape"]
        return 2 * o["batch"] * height * width * channels
    if family == "shake_shake":
        return 4 * torch.Size(o["shape"]).numel()
    if family == "shake_batch_norm":
        return 18 * torch.Size(o["shape"]).numel()
    if family == "batch_norm":
        return (7 + bool(o.get("residual") or o.get("sum"))) * torch.Size(o["shape"]).numel()
    if family == "dense_stage":
        batch, channels, height, width = o["shape"]
        read = sum(channels + index * o["growth"] for index in range(o["layers"]))
        return 2 * batch * height * width * 4 * o["growth"] * (read + 9 * o["growth"] * o["layers"])
    if family == "sgd_ema":
        per_element = 2 + 2 * bool(o["weight_decay"]) + 2 * (o["momentum"] > 0) + 2 * o["nesterov"]
        per_element += 3 * (o["ema_decay"] is not None)
        return per_element * sum(torch.Size(shape).numel() for shape in o["shapes"])
    s, bands = o["r"] ** 2, o.get("bands")
    num_bands = s if bands is None else len(bands)
    per_block = s + num_bands * (s + (2 if o.get("normalise") else 0))
    return torch.Size(o["shape"]).numel() // s * per_block


def _cases(family: Family, name: str | None) -> list[Case]:
    """All cases of the contract that move any bytes, or the named case, which may be a ``gpu`` one."""
    if name is None:
        return [case for case in family.contract if family.bytes_moved(case, torch.float32)]
    known = {case.name: case for case in family.cases if family.bytes_moved(case, torch.float32)}
    if name not in known:
        what = f"got --case {name!r}; allowed of {family.name}, since they move something: {', '.join(known)}"
        raise UsageError(what, hint=suggest(name, known) or None)
    return [known[name]]


def _dtype(family: Family, name: str | None) -> torch.dtype:
    if name is None:
        return torch.bfloat16 if torch.bfloat16 in family.tolerance else torch.float32
    if PRECISIONS[name] not in family.tolerance:
        allowed = ", ".join(_short(d) for d in family.tolerance if d in PRECISIONS.values())
        raise UsageError(f"got --dtype {name} for {family.name}; allowed: {allowed}", hint="leave --dtype out")
    return PRECISIONS[name]


def _short(dtype: torch.dtype) -> str:
    return next(name for name, value in PRECISIONS.items() if value == dtype)


def _tier(name: str, family: str, kind: str) -> str:
    """The tier to time; raises DeviceError for one that cannot run here."""
    if name == "auto":
        return tier.report(kind)[family][0]
    problem = tier.missing(name, kind)
    if problem:
        raise DeviceError(f"got --tier {name}: {problem}")
    try:
        with tier.using(f"{family}={name}"):
            return tier.choose(family, kind)
    except RuntimeError as error:
        raise UsageError(f"got --tier {name}: {error}") from error


def text(found: dict[str, Any]) -> str:
    """The text that the command prints from the JSON."""
    where = f"{found['device']}, {plural(found['threads'], 'thread')}; copy {scaled(found['copy_bytes_per_s'], 'B/s')}"
    lines = [f"{found['family']}, tier {found['tier']}, {found['dtype']}, {where}", "", _case_table(found["cases"])]
    if any(row["of_copy"] > 1 for row in found["cases"]):
        lines.append(machine.OVER_COPY)
    shown = [row for row in found["resources"] if _of_dtype(row["name"], found["dtype"])]
    if shown:
        lines += ["", _resource_table(shown)]
        if len(shown) < len(found["resources"]):
            lines.append(f"and {len(found['resources']) - len(shown)} rows of other dtypes: in the JSON")
    return "\n".join([*lines, *found["missing"]])


def _case_table(timed: Sequence[dict[str, Any]]) -> str:
    cells: Callable[[dict[str, Any]], list[str]] = lambda r: [  # noqa: E731
        r["case"] + ("" if r["real"] else " (odd)"), duration(r["median_s"]), duration(r["iqr_s"]),
        scaled(r["bytes"], "B"), scaled(r["bytes_per_s"], "B/s"), percent(r["of_copy"]),
        f"{r['flops'] / r['bytes']:.2f}", scaled(r["flops"] / r["median_s"], "FLOP/s"),
    ]  # fmt: skip
    head = ["case", "median", "IQR", "bytes", "bytes/s", "of copy", "FLOP/B", "FLOP/s"]
    return aligned(head, [cells(row) for row in timed])


def _resource_table(found: Sequence[dict[str, Any]]) -> str:
    """One line per kernel; values that differ by architecture are given as ``first / second``."""
    names = ("registers", "shared_bytes", "spill_bytes", "threads", "active_warps", "limit", *_COUNTED)
    lines = []
    for (kind, name), rows in grouped(found, "tier", "name").items():
        cells = [" / ".join(dict.fromkeys(str(row.get(column, "-")) for row in rows)) for column in names]
        lines.append([clipped(name, NAME_CHARACTERS), kind, *cells])
    sm = " / ".join(dict.fromkeys(f"sm_{row['architecture']}" for row in found))
    head = [f"kernel ({sm})", "tier", "registers", "shared B", "spilled B", "threads", "warps of 64", "limited by"]
    return aligned([*head, *_COUNTED.values()], lines)


_COUNTED = {"per_element": "instr/element", "load_bytes": "load B", "store_bytes": "store B", "local": "local"}
_CPP_TYPES = {"fp32": "float", "bf16": "__nv_bfloat16", "fp16": "__half"}


def _of_dtype(name: str, dtype: str) -> bool:
    """Whether a C++ kernel's name contains no floating type other than ``dtype``."""
    types = {word for word in _CPP_TYPES.values() if re.search(rf"\b{word}\b", name)}
    return types <= {_CPP_TYPES[dtype]}
