"""Kernel benchmarks on one CPU core: a correctness gate, then reference | compiled | host | peers, as JSON and a table.

python -m bench.bench_kernels [--family augment] [--quick] [--compile-all] [--json bench/results/kernels-cpu.json]

CPU time, one thread, interleaved A B A B, freed memory kept; best, median, quartiles' distance and n per figure. Five
minutes on two cores for everything, --quick one. `pytest bench/test_kernels_benchmark.py` times the same cases.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from imnet_kernels import native, tier
from imnet_kernels.family import Case, Family, families

from . import kernels_peers as peers
from . import roof
from .fingerprint import fingerprint
from .timing import Timing, interleaved, keep_memory

SLICE_S = 0.03
ROUNDS = 12
QUICK_ROUNDS = 5


DTYPES = (torch.float32, torch.bfloat16)
COMPILE_LIMIT_S = 60


def real_cases(only: str | None = None) -> Iterator[tuple[Family, Case, torch.dtype]]:
    """The recipes' own shapes of every family, or of one, in fp32 and bf16 where the family has them."""
    for family in families():
        if only not in (None, family.name):
            continue
        for case in (c for c in family.cases if c.real):
            yield from ((family, case, dtype) for dtype in DTYPES if dtype in family.tolerance)


def is_first(family: Family, case: Case, dtype: torch.dtype) -> bool:
    """Whether this is the case for which a family's compiled reference is shown."""
    first = next(c for c in family.cases if c.real)
    return case is first and dtype is next(d for d in DTYPES if d in family.tolerance)


def column(family: Family, case: Case, dtype: torch.dtype, name: str, device: str = "cpu") -> Callable[[], None]:
    """The family's public function on the tier ``name``, without gradients."""
    return with_tier(family.make(case, dtype, device).run, name)


def compiled(family: Family, case: Case, dtype: torch.dtype, device: str = "cpu") -> tuple[Callable[[], None], float]:
    """torch.compile of the reference, already run once, and the seconds that took."""
    torch._dynamo.reset()
    run = with_tier(torch.compile(family.make(case, dtype, device).run), "reference")
    start = time.perf_counter()
    run()
    return run, time.perf_counter() - start


def with_tier(call: Callable[[], Any], name: str) -> Callable[[], None]:
    """``call`` on the tier ``name``, without gradients."""
    with tier.using(name):
        chosen = tier.snapshot()

    def run() -> None:
        tier.restore(chosen)
        with torch.no_grad():
            call()

    return run


def _columns(family: Family, case: Case, dtype: torch.dtype) -> peers.Columns:
    call = family.make(case, dtype, "cpu")
    found: peers.Columns = {name: with_tier(call.run, name) for name in ("reference", "host")}
    if family.name == "augment":
        found |= peers.dali_forms(case, dtype)
    if family.name == "spectral":
        found |= peers.spectral_forms(case, dtype)
    if family.name == "shake_shake":
        x1, x2, residual = (leaf.detach() for leaf in call.leaves)
        found |= peers.shake_forms(x1, x2, residual)
    if family.name == "sgd_ema":
        found |= peers.optimisers(case)
    return found


def _figures(times: dict[str, Timing]) -> dict[str, Any]:
    """CPU microseconds, spread and ratio to host of every column."""
    host = times["host"].best_s
    return {
        "cpu_us": {name: round(1e6 * t.best_s, 1) for name, t in times.items()},
        "times": {name: t.as_dict() for name, t in times.items()},
        "ratio_to_host": {name: round(t.best_s / host, 2) for name, t in times.items() if name != "host"},
        "ratio_of_medians": {
            name: round(t.median_s / times["host"].median_s, 2) for name, t in times.items() if name != "host"
        },
    }


def measure(family: Family, case: Case, dtype: torch.dtype, rounds: int, with_compiled: bool) -> dict[str, Any]:
    """One row: gate, then every column's time, ratios to host, and host's share of the copy bandwidth."""
    error = family.check(case, dtype, "host").forward
    columns, took = _columns(family, case, dtype), None
    if with_compiled:
        columns["compiled"], took = compiled(family, case, dtype)
    times = interleaved(columns, rounds, slice_s=SLICE_S)
    rate = family.bytes_moved(case, dtype) / times["host"].best_s
    return {
        "family": family.name,
        "case": case.name,
        "dtype": str(dtype).removeprefix("torch."),
        "gate_error": error,
        "bytes": family.bytes_moved(case, dtype),
        **_figures(times),
        **({} if took is None else {"compile_s": round(took, 1)}),
        "host_gb_per_s": round(rate / 1e9, 2),
        "share_of_copy": round(rate / roof.copy_bytes_per_s("cpu"), 3),
    }


def shake_backward_row(case: Case, dtype: torch.dtype, rounds: int) -> dict[str, Any]:
    """The backward alone: two products of the incoming gradient, which the case's own gate has checked."""
    from imnet_kernels.shake_shake import _host

    grad = torch.randn(case.options["shape"]).to(dtype).contiguous(memory_format=torch.channels_last)
    beta = torch.rand(grad.shape[0])
    columns: peers.Columns = {"host": lambda: _host.combine_backward(grad, beta), **peers.shake_backward_forms(grad)}
    times = interleaved(columns, rounds, slice_s=SLICE_S)
    name = f"{case.name} backward"
    return {"family": "shake_shake", "case": name, "dtype": str(dtype).removeprefix("torch."), **_figures(times)}


def torchvision_rows(rows: list[dict[str, Any]]) -> None:
    """Adds torchvision v2 to augment's two 256-image rows: 2 workers at 64 px, in the process at 28 px."""
    for name, shape, workers, images in (
        ("imagenet64", (1, 64, 64, 3), 2, 8192),
        ("fashion28", (1, 28, 28, 1), 0, 8192),
    ):
        for row in rows:
            if row["family"] == "augment" and row["case"] == name and row["dtype"] == "bfloat16":
                seconds = 256 * peers.torchvision_seconds_per_image(shape, workers, images)
                label = f"torchvision v2, {workers} workers"
                row["cpu_us"][label] = round(1e6 * seconds, 1)
                row["ratio_to_host"][label] = round(1e6 * seconds / row["cpu_us"]["host"], 1)


def table(report: dict[str, Any]) -> str:
    """Markdown: one line per row."""
    lines = [
        "| family | case | dtype | host us (median, IQR) | times slower than host | GB/s | of copy |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in report["rows"]:
        ratios = ", ".join(f"{name} {value}x" for name, value in row["ratio_to_host"].items())
        bandwidth = f"{row.get('host_gb_per_s', '')} | {row.get('share_of_copy', '')}"
        host = row["times"]["host"]
        spread = f"{row['cpu_us']['host']} ({1e6 * host['median_s']:.0f}, {1e6 * host['iqr_s']:.0f})"
        lines.append(f"| {row['family']} | {row['case']} | {row['dtype']} | {spread} | {ratios} | {bandwidth} |")
    return "\n".join(lines)


def report(family: str | None, quick: bool, compile_all: bool) -> dict[str, Any]:
    """{"benchmark": "kernels", fingerprint, environment, rows}."""
    warm = keep_memory()
    rounds, rows = QUICK_ROUNDS if quick else ROUNDS, []
    for each, case, dtype in real_cases(family):
        rows.append(measure(each, case, dtype, rounds, not quick and (compile_all or is_first(each, case, dtype))))
        if each.name == "shake_shake":
            rows.append(shake_backward_row(case, dtype, rounds))
        print(".", end="", file=sys.stderr, flush=True)
    if not quick:
        torchvision_rows(rows)
    kept = "freed memory kept" if warm else "allocator as it is"
    environment = {
        "isa": native.host().isa(),
        "method": f"CPU time, one thread, interleaved, best of {rounds}, {kept}",
        "copy_gb_per_s": round(roof.copy_bytes_per_s("cpu") / 1e9, 2),
        **peers.absent_peers(),
    }
    machine = fingerprint("fp32, bf16", rounds)
    return {"benchmark": "kernels", "fingerprint": machine, "environment": environment, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=tier.FAMILIES)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, no compiled column, no torchvision")
    parser.add_argument("--compile-all", action="store_true", help="compile every case, not one a family (minutes)")
    parser.add_argument("--json", type=Path, help="write the JSON here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    found = report(options.family, options.quick, options.compile_all)
    print(json.dumps(found["environment"], indent=1), table(found), sep="\n")
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
