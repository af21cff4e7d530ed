"""Kernel benchmarks on one CPU core: a correctness gate, then reference | compiled | host | peers, as JSON and a table.

python bench/bench_kernels.py [--family augment] [--compile] [--out bench/results/kernels-cpu.json]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "kernels"), str(ROOT), str(ROOT / "bench")]

import kernels_peers as peers  # noqa: E402
import kit  # noqa: E402
from imnet_kernels import tier  # noqa: E402
from imnet_kernels.family import Case, Family, error_ratio, families  # noqa: E402


class GateError(RuntimeError):
    """A tier disagrees with the reference: no speed is reported for it."""


def gate(family: Family, case: Case, dtype: torch.dtype) -> float:
    """The host tier's error against the reference; raises above the family's tolerance."""
    outputs = []
    for name in ("reference", "host"):
        with tier.using(name):
            call = family.make(case, dtype, "cpu")
            result = call.run()
            outputs.append(result if result is not None else torch.cat([t.flatten() for t in call.in_place]))
    error = error_ratio(outputs[1], outputs[0])
    if not error <= family.tolerance[dtype]:
        raise GateError(f"{family.name} {case.name} {dtype}: error {error:.2e}, allowed {family.tolerance[dtype]:.2e}")
    return error


def _tier_column(family: Family, case: Case, dtype: torch.dtype, name: str):
    call = family.make(case, dtype, "cpu")
    with tier.using(name):
        chosen = tier.snapshot()

    def run() -> None:
        tier.restore(chosen)
        with torch.no_grad():
            call.run()

    return run


def _columns(family: Family, case: Case, dtype: torch.dtype) -> dict[str, Any]:
    columns = {name: _tier_column(family, case, dtype, name) for name in ("reference", "host")}
    if family.name == "spectral":
        columns |= peers.spectral_forms(case, dtype)
    if family.name == "shake_shake" and not case.options.get("bn"):
        columns |= peers.shake_forms(case, dtype)[0]
    if family.name == "sgd_ema":
        columns |= peers.optimisers(case)
    return columns


def _with_compiled(columns: dict[str, Any], family: Family, case: Case, dtype: torch.dtype) -> None:
    torch._dynamo.reset()
    call = family.make(case, dtype, "cpu")
    with tier.using("reference"), torch.no_grad():
        chosen = tier.snapshot()
        compiled = torch.compile(call.run)
        compiled()

    def run() -> None:
        tier.restore(chosen)
        with torch.no_grad():
            compiled()

    columns["compiled"] = run


def measure(family: Family, case: Case, dtype: torch.dtype, with_compiled: bool, copy_rate: float) -> dict[str, Any]:
    """One row: CPU microseconds per call of every column, ratios to host, and host's share of copy bandwidth."""
    error = gate(family, case, dtype)
    columns = _columns(family, case, dtype)
    if with_compiled and family.name != "sgd_ema":
        _with_compiled(columns, family, case, dtype)
    seconds = kit.interleaved(columns)
    host, moved = seconds["host"], family.bytes_moved(case, dtype)
    return {
        "family": family.name,
        "case": case.name,
        "dtype": str(dtype).removeprefix("torch."),
        "gate_error": error,
        "cpu_us": {name: round(1e6 * s, 1) for name, s in seconds.items()},
        "ratio_to_host": {name: round(s / host, 2) for name, s in seconds.items() if name != "host"},
        "host_gb_per_s": round(moved / host / 1e9, 2),
        "share_of_copy": round(moved / host / copy_rate, 3),
    }


def shake_backward_row(case: Case, dtype: torch.dtype) -> dict[str, Any]:
    """The backward alone: two products of the incoming gradient."""
    from imnet_kernels.shake_shake import _host, reference

    grad = torch.randn(case.options["shape"]).to(dtype).contiguous(memory_format=torch.channels_last)
    beta = torch.rand(grad.shape[0])
    for got, want in zip(_host.combine_backward(grad, beta), reference.combine_backward(grad, beta), strict=True):
        if not error_ratio(got, want) <= 1e-3:
            raise GateError(f"shake_shake backward {dtype} disagrees with its reference")
    columns = {"host": lambda: _host.combine_backward(grad, beta), **peers.shake_forms(case, dtype)[1]}
    seconds = kit.interleaved(columns)
    ratio = {name: round(s / seconds["host"], 2) for name, s in seconds.items() if name != "host"}
    micro = {name: round(1e6 * s, 1) for name, s in seconds.items()}
    name = f"{case.name} backward"
    return {"family": "shake_shake", "case": name, "dtype": str(dtype)[6:], "cpu_us": micro, "ratio_to_host": ratio}


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
        "| family | case | dtype | host us | times slower than host | GB/s | of copy |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in report["rows"]:
        ratios = ", ".join(f"{name} {value}x" for name, value in row["ratio_to_host"].items())
        bandwidth = f"{row.get('host_gb_per_s', '')} | {row.get('share_of_copy', '')}"
        lines.append(
            f"| {row['family']} | {row['case']} | {row['dtype']} | {row['cpu_us']['host']} | {ratios} | {bandwidth} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=tier.FAMILIES)
    parser.add_argument("--compile", action="store_true", help="also torch.compile of the reference (minutes)")
    parser.add_argument("--out", type=Path, help="write the JSON here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    copy_rate = kit.copy_bytes_per_s()
    rows = []
    for family in families():
        if options.family not in (None, family.name):
            continue
        for case in (c for c in family.cases if c.real):
            for dtype in (d for d in (torch.float32, torch.bfloat16) if d in family.tolerance):
                rows.append(measure(family, case, dtype, options.compile, copy_rate))
                print(".", end="", file=sys.stderr, flush=True)
                if family.name == "shake_shake" and not case.options.get("bn"):
                    rows.append(shake_backward_row(case, dtype))
    torchvision_rows(rows)
    environment = {**kit.environment(), "copy_gb_per_s": round(copy_rate / 1e9, 2), **peers.absent_peers()}
    report = {"environment": environment, "rows": rows}
    print(json.dumps(environment, indent=1), table(report), sep="\n")
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
