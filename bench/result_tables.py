"""Sections of RESULTS.md: each turns one JSON into Markdown. ``where`` is the machine, in words."""

from __future__ import annotations

from typing import Any

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


def throughput(data: dict[str, Any], where: str) -> str:
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
        f"{where}. MFU is counted FLOPs over a measured matrix product: {roofs}."
    )
    return f"## Throughput\n\n{text}\n\n" + table(head, lines)


def reference(data: dict[str, Any], where: str) -> str:
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
            f"{row['published_share_of_peak']:.1%}",
            "-" if row["projected_hours"] is None else f"{short(row['projected_hours'])} h",
            "-" if row["published_hours"] is None else f"{row['published_hours']:g} h",
            row["source"],
        ])  # fmt: skip
    head = ["network", "images/s", "batch", "published images/s", "ratio", "of peak", "of its peak",
            "full schedule here", "published", "source of the rate"]  # fmt: skip
    text = (
        f"End to end; {where}. A batch smaller than the recipe's, or few windows, make a rough figure. The full "
        "schedule here is projected from the rate, not run."
    )
    return f"## Against published throughput: {data['card']}\n\n{text}\n\n" + table(head, lines)


def models(data: dict[str, Any], where: str) -> str:
    """Our networks against timm's and torchvision's."""
    lines = []
    for row in data["rows"]:
        ratio = NOT_MEASURED
        if row["ratio_median"] is not None:
            ratio = f"{row['ratio_median']:.3f}x (IQR {row['ratio_iqr']:.3f}, best {row['ratio_best']:.3f}x)"
        rate = short(row["batch"] / row["ours"]["best_s"])
        lines.append([row["model"], str(row["px"]), str(row["batch"]), rate, ratio, row["peer"], str(row["n"])])
    head = ["network", "px", "batch", "images/s", "peer's time over ours", "peer", "n"]
    text = f"Forward, loss and backward at equal flags, CPU time per core, interleaved. {where}."
    return f"## Networks against timm's and torchvision's\n\n{text}\n\n" + table(head, lines)


def data(found: dict[str, Any], where: str) -> str:
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
    text = f"CPU time per core with that of ended workers, interleaved. {where}."
    return f"## Data\n\n{text}\n\n" + table(head, lines)


def scaling(data: dict[str, Any], where: str) -> str:
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
    text = f"{data['recipe']} ({data['model']}) over {data['backend']}, wall time of rank 0. {where}."
    return f"## Several ranks\n\n{text}\n\n" + table(head, lines)


def scaling_model(data: dict[str, Any]) -> str:
    """The model's figures at its largest number of GPUs and a few before."""
    lines = []
    for row in data["rows"]:
        figures = [f"{value:,.3g}" if isinstance(value, float) else str(value) for value in row.values()]
        lines.append(figures)
    about = f"{data['inputs']['job']['name']} on {data['inputs']['cluster']['name']}"
    return f"## Scaling on paper (predicted)\n\n{about}.\n\n" + table(list(data["rows"][0]), lines)
