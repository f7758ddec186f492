"""Renders the tables of README.md and docs/ from the stored results. Run by `make readme`."""

from __future__ import annotations

import json
import re
import statistics
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .gpu import roofline, steps
from .gpu.session import PEERS
from .gpu.steps import BATCHES, VARIANTS
from .gpu.tables import ceilings_line, machine_line, number, older

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "cpu" / "speed.json"
ACCURACY = RESULTS.with_name("accuracy.json")
TOKEN_PRECISION = RESULTS.with_name("token_precision.json")
ENGINES = RESULTS.with_name("engines.json")
HELD_OUT = RESULTS.with_name("held_out.json")
INT8 = RESULTS.with_name("int8.json")
PREPROCESSING = RESULTS.with_name("preprocessing.json")
GPUS = ROOT / "benchmarks" / "results"  # a folder a GPU
DOCUMENTS = (
    ROOT / "README.md",
    *(ROOT / "docs" / f"{name}.md" for name in ("accuracy", "deploying", "images", "kernels", "performance")),
)
COLUMNS = {
    "eager fp32": "PyTorch eager fp32",
    "eager bf16": "eager bf16",
    "torch.compile fp32": "torch.compile fp32",
    "torch.compile bf16": "torch.compile bf16",
    "ONNX Runtime fp32": "ONNX Runtime fp32",
    "OpenVINO unfused fp32": "OpenVINO fp32",
    "OpenVINO unfused bf16": "OpenVINO bf16",
    "conformer_fast fp32": "**ours fp32**",
    "conformer_fast bf16": "**ours bf16**",
}
ASSUMED = roofline.Ceilings(**steps.ASSUMED)
LEAST_SHARE = 0.02  # of all four floors together
Points = dict[tuple[str, int], dict[str, dict[str, Any]]]


def load_points(path: Path = RESULTS) -> Points:
    """(variant, batch) -> implementation -> its extra_info with the median added as "seconds" (None if it failed)."""
    points: Points = {}
    for row in json.loads(path.read_text())["benchmarks"]:
        info = dict(row["extra_info"])
        info["seconds"] = None if "failed" in info else row["stats"]["median"]
        points.setdefault((info["variant"], info["batch"]), {})[info["implementation"]] = info
    return points


def ratios(points: Points, precision: str) -> dict[tuple[str, int], float]:
    """Our speed over OpenVINO on the unfused model in the same precision, as the median of paired rounds."""
    name = f"conformer_fast {precision}"
    return {point: rows[name]["speedup_over_rival"] for point, rows in points.items()}


def noise(points: Points) -> float:
    """How far a peer timed against itself strays from 1: what a ratio cannot tell apart in this run."""
    rivals = ("OpenVINO unfused fp32", "OpenVINO unfused bf16")
    return max(abs(rows[name]["speedup_over_rival"] - 1) for rows in points.values() for name in rivals)


def speed_table(points: Points) -> str:
    lines = [
        "| ms a batch | " + " | ".join(COLUMNS.values()) + " | bf16: ours / OpenVINO |",
        "|---" * (len(COLUMNS) + 2) + "|",
    ]
    for (variant, batch), rows in points.items():
        cells = [_milliseconds(rows.get(name)) for name in COLUMNS]
        ratio = rows["conformer_fast bf16"]["speedup_over_rival"]
        lines.append(f"| {variant}, B{batch} | {' | '.join(cells)} | {ratio:.2f}x |")
    return "\n".join(lines)


def summary(points: Points) -> str:
    cpu = json.loads(RESULTS.read_text())["machine_info"]["cpu"]
    both = {precision: ratios(points, precision) for precision in ("fp32", "bf16")}
    means = {precision: statistics.geometric_mean(values.values()) for precision, values in both.items()}
    worst = min(ratio for values in both.values() for ratio in values.values())
    streams = [
        ratio / points[point][f"OpenVINO unfused {precision}, streams"]["speedup_over_rival"]
        for precision, values in both.items()
        for point, ratio in values.items()
        if point[1] > 1
    ]
    eager = {}
    for precision in both:
        name = f"conformer_fast {precision}"
        gains = [rows["eager fp32"]["seconds"] / rows[name]["seconds"] for rows in points.values()]
        eager[precision] = f"{min(gains):.1f}x to {max(gains):.1f}x in {precision}"
    return (
        f"Median milliseconds on {cpu['count']} cores of an {cpu['brand_raw']}, 224x224; OpenVINO runs the unfused "
        "model with its defaults. Columns were measured minutes apart on a machine whose speed drifts, so the ratio is "
        f"taken round by round: in the same precision ours is {means['bf16']:.2f}x OpenVINO in bf16 and "
        f"{means['fp32']:.2f}x in fp32 (geometric means), {worst:.2f}x at the worst point; OpenVINO timed against "
        f"itself strays from 1 by {noise(points):.0%}. Against OpenVINO's throughput mode at batch 8 (both ratios to "
        f"its default, divided): {min(streams):.2f}x to {max(streams):.2f}x. Against eager fp32: {eager['bf16']}, "
        f"{eager['fp32']}."
    )


def speed() -> str:
    points = load_points()
    return f"{speed_table(points)}\n\n{summary(points)}"


def accuracy() -> str:
    results = json.loads(ACCURACY.read_text())
    lines = ["| backend, precision | digits, held out | error of the scores, " + ", ".join(results["variants"]) + " |"]
    lines.append("|---" * 3 + "|")
    for row in results["rows"]:
        digits = f"{row['correct']} of {row['count']} ({row['correct'] / row['count']:.2%})"
        errors = ", ".join(f"{error:.1e}" for error in row["errors"])
        lines.append(f"| {row['backend']} {row['precision']} | {digits} | {errors} |")
    return "\n".join(lines)


def token_precision() -> str:
    rows = json.loads(TOKEN_PRECISION.read_text())["rows"]
    lines = ["| | tokens in fp32 | tokens in the products' precision |", "|---" * 3 + "|"]
    for row in rows:
        fp32, products = (", ".join(f"{error:.1e}" for error in row["errors"][key]) for key in ("fp32", "products"))
        lines.append(f"| {row['variant']}, {row['precision']} | {fp32} | {products} |")
    largest = max(row["largest"] for row in rows)
    return "\n".join([*lines, "", f"The largest token is {largest:,.0f} there; fp16 holds up to 65,504."])


def engines() -> str:
    report = json.loads(ENGINES.read_text())
    lines = ["| engine | for | batch | image side | ONNX, MB | plan, MB | built in, s |", "|---" * 7 + "|"]
    for row in report["engines"]:
        shapes = " | ".join(_limits(row["profile"][name]) for name in ("batch", "height"))
        figures = f"{row['onnx_bytes'] / 1e6:.1f} | {row['plan_bytes'] / 1e6:.1f} | {row['seconds']:.1f}"
        lines.append(f"| {row['variant']} {row['precision']} | {', '.join(row['targets'])} | {shapes} | {figures} |")
    machine = f"{report['flavor']} {report['version']} on {report['threads']} threads of an {report['cpu']}"
    return "\n".join([*lines, "", f"Built without a GPU by {machine}."])


def _limits(limits: list[int]) -> str:
    """What a profile says of one dimension: the smallest, the one it is tuned for, the largest."""
    return str(limits[0]) if limits[0] == limits[2] else ", ".join(map(str, limits))


def held_out() -> str:
    rows = json.loads(HELD_OUT.read_text())["rows"]
    lines = ["| model | path | right | the reference, of these | same class |", "|---" * 5 + "|"]
    for row in rows:
        path = f"{row['model']} | {row['implementation']} {row['precision']}"
        if "missing" in row:
            lines.append(f"| {path} | {row['missing']} | | |")
            continue
        count = row["count"]
        right, reference = (
            f"{row[key]} of {count} ({row[key] / count:.2%})" for key in ("correct", "reference_correct")
        )
        lines.append(f"| {path} | {right} | {reference} | {row['agreement']} |")
    return "\n".join(lines)


def int8() -> str:
    report = json.loads(INT8.read_text())
    rest = report["rest"]
    seconds = {(row["variant"], row["batch"], row["implementation"]): row for row in report["speed"]}
    names = ("OpenVINO int8 (NNCF)", "OpenVINO int8 (NNCF), streams", f"conformer_fast {rest}", "conformer_fast int8")
    lines = [
        "| ms a batch | NNCF | NNCF, streams | ours " + rest + " | **ours int8** | over ours " + rest + " | over NNCF |"
    ]
    lines.append("|---" * 7 + "|")
    for variant, batch in dict.fromkeys((row["variant"], row["batch"]) for row in report["speed"]):
        rows = [seconds[variant, batch, name] for name in names]
        nncf = rows[3]["speedup"] / max(row["speedup"] for row in rows[:2])
        cells = " | ".join(_milliseconds(row) for row in rows)
        lines.append(f"| {variant}, B{batch} | {cells} | {rows[3]['speedup']:.2f}x | {nncf:.2f}x |")
    reference, *others = report["accuracy"]
    found = "; ".join(
        f"{row['implementation']} {row['correct']} right, {row['agreement']} as the reference, scores "
        f"{row['relative_error']:.1%} off"
        for row in others
    )
    nncf = next(row for row in others if "NNCF" in row["implementation"])
    return "\n".join(
        [
            *lines,
            "",
            f"224x224, medians on {report['threads']} threads of an {report['cpu']}, OpenVINO {report['openvino']}. "
            "All took turns, and the ratios are medians over the turns (the last column: of both ratios to ours in "
            f"{rest}, to the faster NNCF). Of {reference['count']} held-out pictures of two-digit numbers the "
            f"reference has {reference['correct']} right; {found}. {nncf['ours_wrong']} pictures only NNCF has right, "
            f"{nncf['ours_alone']} only ours in int8.",
        ]
    )


def preprocessing() -> str:
    report = json.loads(PREPROCESSING.read_text())
    names = list(report["rows"][0]["measured"])
    lines = ["| picture | " + " | ".join(names) + " | times as fast |", "|---" * (len(names) + 2) + "|"]
    for row in report["rows"]:
        cells = " | ".join(f"{row['measured'][name]['ms']:.2f}" for name in names)
        lines.append(f"| {row['width']}x{row['height']} | {cells} | {row['measured']['ours']['times as fast']:.1f}x |")
    machine = f"Pillow {report['pillow']}, NumPy {report['numpy']}; {report['machine']}"
    return "\n".join([*lines, "", f"Milliseconds of one core. {machine}."])


def floors() -> str:
    """Computed, not measured: for the ceilings that are assumed of a GPU until one has been measured."""
    lines = ["| | floor | int8 | fused floor | launch floor | with dependent launch |", "|---" * 6 + "|"]
    for variant in VARIANTS:
        for batch in BATCHES:
            found = roofline.floors(variant, batch, "fp16", ASSUMED)
            assert found.dependent_launch is not None
            int8 = roofline.floors(variant, batch, "int8", ASSUMED).floor
            times = (found.floor, int8, found.fused, found.launch, found.dependent_launch)
            cells = " | ".join(f"{1e3 * seconds:.3g}" for seconds in times)
            lines.append(f"| {variant}, B{batch} | {cells} |")
    return "\n".join(lines)


def floor_parts() -> str:
    """What the floor of batch 128 is made of, for the same ceilings; the least of it left out."""
    shares = {}
    for variant in VARIANTS:
        operations = roofline.network(variant, 128)
        total = sum(operation.count * operation.floor(ASSUMED) for operation in operations)
        shares[variant] = Counter[str]()
        for operation in operations:
            name = f"{operation.name}, bound by {operation.bound(ASSUMED)}"
            shares[variant][name] += operation.count * operation.floor(ASSUMED) / total
    names = [name for name, share in sum(shares.values(), Counter[str]()).most_common() if share > LEAST_SHARE]
    lines = ["| | " + " | ".join(VARIANTS) + " |", "|---" * (len(VARIANTS) + 1) + "|"]
    for name in names:
        cells = " | ".join(f"{shares[variant][name]:.1%}" if shares[variant][name] else "" for variant in VARIANTS)
        lines.append(f"| {name} | {cells} |")
    return "\n".join(lines)


def gpus() -> str:
    """A table for each machine in benchmarks/results/*/gpu.json, written by `make gpu`."""
    files = sorted(GPUS.glob("*/gpu.json"))
    entries = [entry for file in files for entry in json.loads(file.read_text())["machines"]]
    return "\n\n".join(map(_gpu, entries)) or "No GPU has run this yet."


def _gpu(entry: dict[str, Any]) -> str:
    """Milliseconds a batch, and how many times faster ours was than each peer, in turn with it."""
    rows = {(row["implementation"], row["variant"], row["batch"]): row for row in entry["points"]}
    lines = [f"{machine_line(entry)}; {ceilings_line(entry)}.", ""]
    head = [*PEERS, "**ours**", *(f"ours / {peer}" for peer in PEERS), "of the floor", "error"]
    lines += ["| | " + " | ".join(head) + " |", "|---" * (len(head) + 1) + "|"]
    for variant, batch in [(variant, batch) for variant in VARIANTS for batch in BATCHES]:
        own = rows.get(("ours", variant, batch))
        beside = [rows.get((peer, variant, batch)) for peer in PEERS]
        if own or any(beside):
            cells = [number(row, "ms", ".3f") for row in (*beside, own)]
            cells += [number(row, "ours_speedup", ".2f") + older(row, own) for row in beside]
            cells += [number(own, "share_of_floor", ".0%"), number(own, "error", ".0e")]
            lines.append(f"| {variant}, B{batch} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


BLOCKS: dict[str, Callable[[], str]] = {
    "speed": speed,
    "accuracy": accuracy,
    "token-precision": token_precision,
    "engines": engines,
    "held-out": held_out,
    "int8": int8,
    "preprocessing": preprocessing,
    "floors": floors,
    "floor-parts": floor_parts,
    "gpus": gpus,
}


def render(document: str) -> str:
    """`document` with what stands between its markers replaced by the stored results."""
    for name, block in BLOCKS.items():
        if f"<!-- {name} -->" in document:
            replacement = f"<!-- {name} -->\n{block()}\n<!-- /{name} -->"
            pattern = f"<!-- {name} -->.*<!-- /{name} -->"
            document = re.sub(pattern, lambda _, r=replacement: r, document, flags=re.DOTALL)
    return document


def _milliseconds(row: dict[str, Any] | None) -> str:
    if row is None or row["seconds"] is None:
        return "fails"
    return f"{row['seconds'] * 1e3:.1f}" if row["seconds"] < 0.1 else f"{row['seconds'] * 1e3:.0f}"


if __name__ == "__main__":
    for path in DOCUMENTS:
        path.write_text(render(path.read_text()))
