"""Sections of RESULTS.md: each turns one JSON into Markdown."""

from __future__ import annotations

import statistics
from collections import defaultdict
from typing import Any

from .fingerprint import PEERS
from .fingerprint import text as machine_text

NOT_MEASURED = "not measured"


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def short(value: float | None, digits: int = 3) -> str:
    """A number for people."""
    if value is None:
        return NOT_MEASURED
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.{digits}g}"


def where(data: dict[str, Any]) -> str:
    """The machine of a JSON in one line; files from before the fingerprint say it in other words."""
    if "fingerprint" in data:
        versions = data["fingerprint"]["versions"]
        peers = [f"{name} {versions[name]}" for name in PEERS if name in versions and name not in ("triton", "numpy")]
        return f"{machine_text(data['fingerprint'])}; {', '.join(peers)}"
    found = data.get("machine", data)
    return f"{found['hardware']['cpu']}, {found['threads']} threads, torch {found['versions']['torch']}"


def spread(values: list[float], scale: float, digits: int) -> str:
    """mean +- sample standard deviation."""
    mean = statistics.fmean(values) * scale
    if len(values) == 1:
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} ± {statistics.stdev(values) * scale:.{digits}f}"


def runs(data: dict[str, Any]) -> str:
    """Whole trainings, grouped by recipe."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in data["rows"]:
        groups[row["recipe"]].append(row)
    lines = []
    for name, rows in groups.items():
        first = rows[0]
        seeds = ", ".join(str(r["seed"]) for r in rows)
        flips = [r["top1_flip"] for r in rows if r["top1_flip"] is not None]
        lines.append([
            name,
            f"{first['parameters']:,}",
            str(first["epochs"]),
            spread([r["top1"] for r in rows], 100, 2),
            spread(flips, 100, 2) if flips else "not measured",
            spread([r["seconds"] for r in rows], 1, 0),
            f"{len(rows)} (seeds {seeds})",
            f"{first['hardware']['cpu']}, {first['hardware']['cores']} cores, {first['precision']}, "
            f"torch {first['versions']['torch']}",
        ])  # fmt: skip
    head = ["recipe", "parameters", "epochs", "top-1 %, last epoch", "with flip TTA", "seconds", "n", "hardware"]
    return "## Whole trainings\n\n" + table(head, lines)


def throughput(data: dict[str, Any]) -> str:
    """Loader, model, both; what bounds."""
    lines = []
    for row in data["rows"]:
        rates = [
            f"{short(r['images_per_s'])} (IQR {short(r['images_per_s_iqr'])})"
            for r in (row["rates"][name] for name in ("loader", "model", "end to end"))
        ]
        size = f"{row['recipe']}, {row['image_px']} px, batch {row['batch_images']}, {row['precision']}"
        memory, n = f"{row['peak_memory_bytes'] / 2**30:.2f} GiB", str(row["rates"]["model"]["n"])
        lines.append([size, *rates, f"{row['mfu']:.1%}", f"{row['first_step_s']:.1f}", memory, n, row["bound"]])
    head = ["recipe", "loader", "model", "end to end", "MFU", "first step, s", "peak memory", "windows", "bound"]
    first = data["rows"][0]
    roofs = f"{short(first['matmul_flops_per_s'] / 1e12)} TFLOP/s, copy {short(first['copy_bytes_per_s'] / 1e9)} GB/s"
    text = (
        f"Images/s by the wall's clock, median of windows taken in turn; the last column is by {first['clock']}. "
        f"{where(data)}. MFU is counted FLOPs over a measured matrix product: {roofs}."
    )
    return f"## Throughput\n\n{text}\n\n" + table(head, lines)


def reference(data: dict[str, Any]) -> str:
    """Measured here against published for a card."""
    lines = []
    for row in data["rows"]:
        rough = "" if row["batch_images"] == row["recipe_batch_images"] else f" of {row['recipe_batch_images']}"
        lines.append([
            f"{row['model']}, {row['image_px']} px",
            f"{short(row['images_per_s'])} (IQR {short(row['images_per_s_iqr'])}, n = {row['n']})",
            f"{row['batch_images']}{rough}",
            short(row["published_images_per_s"]),
            f"{row['ratio']:.3g}x",
            f"{row['share_of_peak']:.1%}",
            "-" if row["published_share_of_peak"] is None else f"{row['published_share_of_peak']:.1%}",
            "-" if row["projected_hours"] is None else f"{short(row['projected_hours'])} h",
            "-" if row["published_hours"] is None else f"{row['published_hours']:g} h",
            row["source"],
        ])  # fmt: skip
    head = ["network", "images/s", "batch", "published images/s", "ratio", "of peak", "of its peak",
            "full schedule here", "published", "source of the rate"]  # fmt: skip
    text = (
        f"End to end; {where(data)}. A batch smaller than the recipe's, or few windows, make a rough figure. The full "
        "schedule here is projected from the rate, not run."
    )
    return f"## Against published throughput: {data['card']}\n\n{text}\n\n" + table(head, lines)


def data(found: dict[str, Any]) -> str:
    """Packing, reading and augmenting against their peers."""
    lines = []
    for row in found["rows"]:
        if row["ratio_median"] is None or row["ours"] is None or row["theirs"] is None:
            lines.append([row["row"], row["peer"], "-", "-", f"{NOT_MEASURED}: {row['why']}", "-"])
            continue
        rates = [short(row["images"] / row[side]["median_s"]) for side in ("ours", "theirs")]
        ratio = f"{row['ratio_median']:.2f}x (IQR {row['ratio_iqr']:.2f}, best {row['ratio_best']:.2f}x)"
        lines.append([row["row"], row["peer"], *rates, ratio, str(row["n"])])
    head = ["what", "peer", "images/s", "peer, images/s", "peer's time over ours", "n"]
    text = f"CPU time per core with that of ended workers, interleaved. {where(found)}."
    return f"## Data\n\n{text}\n\n" + table(head, lines)


def scaling(data: dict[str, Any]) -> str:
    """1 to N ranks, really run."""
    lines = [
        [
            row["kind"],
            str(row["ranks"]) + (" (more than cores)" if row["oversubscribed"] else ""),
            str(row["batch_images"]),
            f"{row['step_s'] * 1e3:.1f} (IQR {row['step_s_iqr'] * 1e3:.1f})",
            short(row["batch_images"] / row["step_s"]),
            f"{row['efficiency']:.1%}",
            str(row["n"]),
        ]
        for row in data["rows"]
    ]
    head = ["kind", "ranks", "global batch", "ms a step", "images/s", "efficiency", "n"]
    text = f"{data['recipe']} ({data['model']}) over {data['backend']}, wall time of rank 0. {where(data)}."
    return f"## Several ranks\n\n{text}\n\n" + table(head, lines)


def scaling_model(data: dict[str, Any]) -> str:
    """The model's figures at its largest number of GPUs and a few before."""
    lines = []
    for row in data["rows"]:
        figures = [f"{value:,.3g}" if isinstance(value, float) else str(value) for value in row.values()]
        lines.append(figures)
    about = f"{data['inputs']['job']['name']} on {data['inputs']['cluster']['name']}"
    return f"## Scaling on paper (predicted)\n\n{about}.\n\n" + table(list(data["rows"][0]), lines)


def step(data: dict[str, Any]) -> str:
    """The training step against timm's."""
    lines = []
    for row in data["rows"]:
        times = [row["times"].get(k) for k in ("timm defaults", "timm flags", "imnet")]
        shown = [f"{t['best_s'] * 1e3:.1f} (IQR {t['iqr_s'] * 1e3:.1f})" if t else NOT_MEASURED for t in times]
        size = f"{row['network']}, {row['image_px']} px, batch {row['batch_images']}"
        ratios = [NOT_MEASURED if row[k] is None else f"{row[k]:.2f}x" for k in ("ratio_to_defaults", "ratio_to_flags")]
        lines.append([size, *shown, *ratios, str(row["times"]["imnet"]["n"])])
    head = ["network", "timm defaults, ms", "timm, equal flags, ms", "imnet, ms", "to defaults", "to equal flags", "n"]
    text = (
        f"CPU time per core, interleaved, best of n; {where(data)}, timm {data['timm']}. Defaults: fp32, NCHW, eager. "
        "Equal flags: channels-last, bf16 autocast, eager. timm's own parts in the order of its training script."
    )
    return f"## The training step against timm's\n\n{text}\n\n" + table(head, lines)


def kernels(data: dict[str, Any]) -> str:
    """The host tier against its peers."""
    lines = []
    for row in data["rows"]:
        peers = ", ".join(f"{name} {ratio:.2f}x" for name, ratio in row["ratio_to_host"].items())
        share = row.get("share_of_copy")
        case = f"{row['family']} {row['case']}"
        lines.append([case, row["dtype"], host_us(row), peers or "-", "-" if share is None else f"{share:.0%}"])
    about = ", ".join(f"{k} {v}" for k, v in data["environment"].items())
    if "fingerprint" in data:
        about = f"{where(data)}; {about}"
    head = ["case", "dtype", "host, us CPU", "peers take", "of copy bandwidth"]
    return f"## Kernels, host tier\n\n{about}.\n\n" + table(head, lines)


def host_us(row: dict[str, Any]) -> str:
    """The best of the host tier, with the median and the quartiles' distance where the file has them."""
    best = row["cpu_us"].get("host")
    if best is None:
        return "-"
    times = row.get("times", {}).get("host")
    spread = f" (median {1e6 * times['median_s']:,.0f}, IQR {1e6 * times['iqr_s']:,.0f})" if times else ""
    return f"{best:,.0f}{spread}"


def whole(data: dict[str, Any]) -> str:
    """The whole command against timm's own script."""
    lines = []
    for row in data["rows"]:
        about = f"{row['model']}, {row['image_px']} px, {row['train_images']:,} pictures, {row['epochs']} epochs"
        for name, label in (("wall", "wall s"), ("cpu", "CPU s")):
            found = row[name]
            sides = [f"{found[side]['median_s']:.1f} (IQR {found[side]['iqr_s']:.1f})" for side in ("imnet", "timm")]
            lines.append([about, label, *sides, f"{found['ratio_median']:.2f}x", str(found["imnet"]["n"])])
    head = ["what", "clock", "imnet", "timm", "timm's over ours", "n"]
    text = (
        "From class folders to a judged network, start-up, packing, evaluation and checkpoints too; bf16, channels "
        f"last, batch {data['rows'][0]['batch_images']}, in turn. {where(data)}."
    )
    return f"## The whole command against timm's train.py\n\n{text}\n\n" + table(head, lines)
