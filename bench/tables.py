"""The tables of the benchmarks: one section each, used for RESULTS.md and for single rows on the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from .form import NOT_MEASURED, Row, grouped, markdown, short, spread
from .machine import OVER_COPY, PEERS
from .machine import text as machine_text

LINE_CHARACTERS = 180
Cells = list[str]


@dataclass(frozen=True)
class Section:
    """A benchmark's table: ``lines`` turns rows into cells; ``title`` and ``about`` take the whole JSON."""

    title: Callable[[Row], str]
    about: Callable[[Row], str]
    head: Cells
    lines: Callable[[list[Row]], list[Cells]]


def section(data: Row) -> str:
    """A section of RESULTS.md: ``## title``, a text on what was measured how and where, and the table."""
    found = SECTIONS[data["benchmark"]]
    parts = [f"## {found.title(data)}", found.about(data), markdown(found.head, found.lines(data["rows"]))]
    return "\n\n".join(part for part in parts if part)


def shown(benchmark: str, row: Row) -> str:
    """A row for the terminal: on one line if it fits, else one line per column."""
    found, blocks = SECTIONS[benchmark], []
    for name, *cells in found.lines([row]):
        named = list(zip(found.head[1:], cells, strict=True))
        line = f"{name}: " + "; ".join(f"{head} {cell}" for head, cell in named)
        wide = "\n".join([name, *(f"  {head:<22} {cell}" for head, cell in named)])
        blocks.append(line if len(line) <= LINE_CHARACTERS else wide)
    return "\n".join(blocks)


def where(data: Row) -> str:
    """The machine of a JSON in one line, with the peers' versions; shorter for a file without a fingerprint."""
    if "fingerprint" not in data:
        return f"{data['hardware']['cpu']}, {data['threads']} threads, torch {data['versions']['torch']}"
    versions = data["fingerprint"]["versions"]
    peers = [f"{name} {versions[name]}" for name in PEERS if name in versions and name not in ("triton", "numpy")]
    return f"{machine_text(data['fingerprint'])}; {', '.join(peers)}"


def _optional(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _runs(rows: list[Row]) -> list[Cells]:
    lines = []
    groups = grouped(rows, "recipe", "experiment")
    several = {name for name, count in Counter(name for name, _ in groups).items() if count > 1}
    for (name, experiment), runs in groups.items():
        first, flips = runs[0], [r["top1_flip"] for r in runs if r["top1_flip"] is not None]
        hardware = f"{first['hardware']['cpu']}, {first['hardware']['cores']} cores, {first['precision']}, "
        lines.append([
            f"{name} ({experiment or 'older'})" if name in several else name,
            f"{first['parameters']:,}",
            str(first["epochs"]),
            spread([r["top1"] for r in runs], 100, 2),
            spread(flips, 100, 2) if flips else NOT_MEASURED,
            spread([r["seconds"] for r in runs], 1, 0),
            f"{len(runs)} (seeds {', '.join(str(r['seed']) for r in runs)})",
            f"{hardware}torch {first['versions']['torch']}",
        ])  # fmt: skip
    return lines


def _throughput(row: Row) -> Cells:
    rates = [
        f"{short(r['images_per_s'])} (IQR {short(r['images_per_s_iqr'])})"
        for r in (row["rates"][name] for name in ("loader", "model", "end to end"))
    ]
    size = f"{row['recipe']}, {row['image_px']} px, batch {row['batch_images']}, {row['precision']}"
    memory, n = f"{row['peak_memory_bytes'] / 2**30:.2f} GiB", str(row["rates"]["model"]["n"])
    return [size, *rates, f"{row['mfu']:.1%}", f"{row['first_step_s']:.1f}", memory, n, row["bound"]]


def _about_throughput(data: Row) -> str:
    first = data["rows"][0]
    roofs = f"{short(first['matmul_flops_per_s'] / 1e12)} TFLOP/s, copy {short(first['copy_bytes_per_s'] / 1e9)} GB/s"
    return (
        f"Images/s in wall time, median of interleaved windows; the last column is in {first['clock']}. "
        f"{where(data)}. MFU is counted FLOPs over a measured matrix product: {roofs}."
    )


def _reference(row: Row) -> Cells:
    rough = "" if row["batch_images"] == row["recipe_batch_images"] else f" of {row['recipe_batch_images']}"
    hours = row["projected_hours"]
    return [
        f"{row['model']}, {row['image_px']} px",
        f"{short(row['images_per_s'])} (IQR {short(row['images_per_s_iqr'])}, n = {row['n']})",
        f"{row['batch_images']}{rough}",
        short(row["published_images_per_s"]),
        f"{row['ratio']:.3g}x",
        f"{row['share_of_peak']:.1%}",
        _optional(row["published_share_of_peak"], "{:.1%}"),
        "-" if hours is None else f"{short(hours)} h",
        _optional(row["published_hours"], "{:g} h"),
        row["source"],
    ]


def _data(row: Row) -> Cells:
    if row["ratio_median"] is None or row["ours"] is None or row["theirs"] is None:
        return [row["row"], row["peer"], "-", "-", f"{NOT_MEASURED}: {row['why']}", "-"]
    rates = [short(row["images"] / row[side]["median_s"]) for side in ("ours", "theirs")]
    ratio = f"{row['ratio_median']:.2f}x (IQR {row['ratio_iqr']:.2f}, best {row['ratio_best']:.2f}x)"
    return [row["row"], row["peer"], *rates, ratio, str(row["n"])]


def _scaling(row: Row) -> Cells:
    ranks = str(row["ranks"]) + (" (more than cores)" if row["oversubscribed"] else "")
    ms = f"{row['step_s'] * 1e3:.1f} (IQR {row['step_s_iqr'] * 1e3:.1f})"
    rate = short(row["batch_images"] / row["step_s"])
    of_model = f"{row['predicted_efficiency']:.1%}" if "predicted_efficiency" in row else NOT_MEASURED
    return [row["kind"], ranks, str(row["batch_images"]), ms, rate, f"{row['efficiency']:.1%}", of_model, str(row["n"])]


def _on_paper(row: Row) -> Cells:
    parts = " + ".join(short(row[f"{name}_ms"]) for name in ("compute", "all_reduce", "waiting"))
    sizes = [f"{row['gpus']:,}", short(row["images_per_gpu"])]
    rate, efficiency = short(row["images_per_s"]), f"{row['efficiency']:.1%}"
    return [row["curve"], *sizes, f"{short(row['step_ms'])} ({parts})", rate, efficiency]


def _step(row: Row) -> Cells:
    times = [row["times"].get(k) for k in ("timm defaults", "timm flags", "imnet")]
    ms = [f"{t['best_s'] * 1e3:.1f} (IQR {t['iqr_s'] * 1e3:.1f})" if t else NOT_MEASURED for t in times]
    size = f"{row['network']}, {row['image_px']} px, batch {row['batch_images']}"
    ratios = [NOT_MEASURED if row[k] is None else f"{row[k]:.2f}x" for k in ("ratio_to_defaults", "ratio_to_flags")]
    return [size, *ms, *ratios, str(row["times"]["imnet"]["n"])]


def _kernel(row: Row) -> Cells:
    peers = ", ".join(f"{name} {ratio:.2f}x" for name, ratio in row["ratio_to_host"].items())
    host = row["times"]["host"]
    us = f"{1e6 * host['best_s']:,.0f} (median {1e6 * host['median_s']:,.0f}, IQR {1e6 * host['iqr_s']:,.0f})"
    return [
        f"{row['family']} {row['case']}",
        row["dtype"],
        us,
        peers or "-",
        _optional(row.get("share_of_copy"), "{:.0%}"),
    ]


def _about_kernels(data: Row) -> str:
    above = any((row.get("share_of_copy") or 0) > 1 for row in data["rows"])
    measured = f"{where(data)}; {', '.join(f'{k} {v}' for k, v in data['environment'].items())}"
    return f"{measured}; {OVER_COPY}." if above else f"{measured}."


def _whole(rows: list[Row]) -> list[Cells]:
    lines = []
    for row in rows:
        about = f"{row['model']}, {row['image_px']} px, {row['train_images']:,} pictures, {row['epochs']} epochs"
        for name, label in (("wall", "wall s"), ("cpu", "CPU s")):
            found = row[name]
            sides = [f"{found[side]['median_s']:.1f} (IQR {found[side]['iqr_s']:.1f})" for side in ("imnet", "timm")]
            lines.append([about, label, *sides, f"{found['ratio_median']:.2f}x", str(found["imnet"]["n"])])
    return lines


def _parity(row: Row) -> Cells:
    """A row's cells: accuracies in %, and their difference in percentage points with its 95 % interval."""
    sides = {side: list(runs.values()) for side, runs in row["runs"].items()}
    top1 = {side: spread([run["top1"] for run in runs], 100, 2) for side, runs in sides.items()}
    times = [
        " / ".join(spread([run[clock] for run in sides[side]], 1, 0) for side in ("imnet", "plain"))
        for clock in ("seconds", "cpu_s")
    ]
    found = row["parity"]
    apart = f"{100 * found['difference']:+.2f} ({100 * found['low']:+.2f} to {100 * found['high']:+.2f})"
    counts = f"{len(sides['imnet'])} + {len(sides['plain'])}"
    fault = f"{top1['fault']} ({row['fault']}, n = {len(sides['fault'])})"
    return [row["system"], row["what"], top1["imnet"], top1["plain"], apart, fault, *times, counts]


def _each(cells: Callable[[Row], Cells]) -> Callable[[list[Row]], list[Cells]]:
    """The ``lines`` function of a table with one line per row."""
    return lambda rows: [cells(row) for row in rows]


# In the order of RESULTS.md.
SECTIONS = {
    "runs": Section(
        lambda data: "Whole trainings",
        lambda data: "",
        ["recipe", "parameters", "epochs", "top-1 %, last epoch", "with flip TTA", "seconds", "n", "hardware"],
        _runs,
    ),
    "parity": Section(
        lambda data: "Parity with plain PyTorch",
        lambda data: "Each document's recipe, scaled down, by `imnet-train` and by a plain trainer of "
        "[tests/parity](../tests/parity) that was written from the document and imports nothing of imnet. Both sides "
        "train on the same images; order, initial weights and augmentation are each side's own. Top-1 of the last "
        "epoch; seconds of training and evaluation; processor seconds of the whole command with its start-up. The peer "
        f"runs in NCHW, ours in channels last. {where(data)}. {data['note']}".rstrip(". ") + ".",
        ["system", "network, images", "imnet, top-1 %", "plain, top-1 %", "difference, points (95 %)",
         "plain with a fault", "seconds, imnet / plain", "processor s, imnet / plain", "n"],
        _each(_parity),
    ),
    "throughput": Section(
        lambda data: "Throughput",
        _about_throughput,
        ["recipe", "loader", "model", "end to end", "MFU", "first step, s", "peak memory", "windows", "bound"],
        _each(_throughput),
    ),
    "reference": Section(
        lambda data: f"Against published throughput: {data['card']}",
        lambda data: f"End to end; {where(data)}. A figure from few windows, or with a batch below the recipe's, is "
        "rough. The full schedule here is projected from the rate, not run. FLOPs are counted for plain "
        "convolutions: a card above 100 % of its peak used a faster algorithm, or ran above its maker's clock.",
        ["network", "images/s", "batch", "published images/s", "ratio", "of peak", "of its peak",
         "full schedule here", "published", "source of the rate"],
        _each(_reference),
    ),
    "whole": Section(
        lambda data: "The whole command against timm's train.py",
        lambda data: "From class folders to an evaluated network, with start-up, packing, evaluation and checkpoints; "
        f"bf16, channels last, batch {data['rows'][0]['batch_images']}, both sides in turn. {where(data)}.",
        ["what", "clock", "imnet", "timm", "timm's over ours", "n"],
        _whole,
    ),
    "step": Section(
        lambda data: "The training step against timm's",
        lambda data: f"CPU time per core, interleaved, best of n; {where(data)}, timm {data['timm']}. Defaults: fp32, "
        "NCHW, eager. Equal flags: channels-last, bf16 autocast, eager. timm's side runs its own parts in the order of "
        "its training script.",
        ["network", "timm defaults, ms", "timm, equal flags, ms", "imnet, ms", "to defaults", "to equal flags", "n"],
        _each(_step),
    ),
    "data": Section(
        lambda data: "Data",
        lambda data: f"CPU time per core, including that of finished workers, interleaved. {where(data)}.",
        ["what", "peer", "images/s", "peer, images/s", "peer's time over ours", "n"],
        _each(_data),
    ),
    "scaling": Section(
        lambda data: "Several ranks",
        lambda data: f"{data['recipe']} ({data['model']}) over {data['backend']}, wall time of rank 0. {where(data)}.",
        ["kind", "ranks", "global batch", "ms a step", "images/s", "efficiency", "the model's", "n"],
        lambda rows: [_scaling(row) for row in sorted(rows, key=lambda row: row["kind"] != "weak")],
    ),
    "scaling model": Section(
        lambda data: "Scaling on paper (predicted)",
        lambda data: f"{data['inputs']['job']['name']} on {data['inputs']['cluster']['name']}; a step is computing, "
        "all-reduce and waiting for the slowest. Nothing was measured.",
        ["curve", "GPUs", "images each", "ms a step", "images/s", "efficiency"],
        _each(_on_paper),
    ),
    "kernels": Section(
        lambda data: "Kernels, host tier",
        _about_kernels,
        ["case", "dtype", "host, us CPU", "peers take", "of copy bandwidth"],
        _each(_kernel),
    ),
}  # fmt: skip
