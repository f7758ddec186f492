"""Renders the tables of README.md and docs/ from the stored results. Run by `make readme`."""

from __future__ import annotations

import json
import re
import statistics
from collections import Counter
from collections.abc import Callable
from itertools import chain, starmap
from pathlib import Path
from typing import Any

from conformer_fast.tables import Column, Table

from . import render_detector, render_int8
from .gpu import roofline, steps
from .gpu.session import PEERS
from .gpu.steps import BATCHES, VARIANTS
from .gpu.tables import ceilings_line, figure, gain, machine_line
from .render_int8 import milliseconds

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"  # a folder a CPU and a GPU
FIRST = RESULTS / "amd-epyc-family-26-model-2"  # of which there is most
TOKEN_PRECISION = FIRST / "token_precision.json"
ENGINES = FIRST / "engines.json"
VERDICTS = FIRST / "verdicts.json"
HOSTILE = FIRST / "hostile.json"
PREPROCESSING = FIRST / "preprocessing.json"
ACCURACY = RESULTS / "intel-xeon-processor-family-6-model-167" / "accuracy.json"
ESTIMATES = RESULTS / "nvidia-h100" / "estimate.json"
SIZES = RESULTS / "amd-epyc-family-25-model-1" / "sizes.json"
SERVING = RESULTS / "amd-epyc-family-25-model-1" / "serving.json"
DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
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


def load_points(path: Path) -> Points:
    """(variant, batch) -> implementation -> its extra_info with the median added as "seconds" (None if it failed)."""
    points: Points = {}
    for row in json.loads(path.read_text())["benchmarks"]:
        info = dict(row["extra_info"])
        info["seconds"] = None if "failed" in info else row["stats"]["median"]
        points.setdefault((info["variant"], info["batch"]), {})[info["implementation"]] = info
    return points


def precisions(points: Points) -> list[str]:
    """Those that the CPU computes in."""
    return [name for name in ("fp32", "bf16") if all(f"conformer_fast {name}" in rows for rows in points.values())]


def ratios(points: Points, precision: str) -> dict[tuple[str, int], float]:
    """Our speed over OpenVINO on the unfused model in the same precision, as the median of paired rounds."""
    name = f"conformer_fast {precision}"
    return {point: rows[name]["speedup_over_rival"] for point, rows in points.items()}


def eager_gains(points: Points, precision: str) -> dict[tuple[str, int], float]:
    """Our speed over PyTorch's own in fp32, by the medians."""
    name = f"conformer_fast {precision}"
    return {point: rows["eager fp32"]["seconds"] / rows[name]["seconds"] for point, rows in points.items()}


def noise(points: Points) -> float:
    """How far a peer timed against itself strays from 1: what a ratio cannot tell apart in this run."""
    rivals = [f"OpenVINO unfused {precision}" for precision in precisions(points)]
    return max(abs(rows[name]["speedup_over_rival"] - 1) for rows in points.values() for name in rivals)


def speed_table(points: Points) -> str:
    """The last columns are of the last precision."""
    names = [name for name in COLUMNS if any(name in rows for rows in points.values())]
    last = precisions(points)[-1]
    ours = {point: rows[f"conformer_fast {last}"] for point, rows in points.items()}
    floors = [f"{last}: of the products' floor"] if all("share_of_floor" in row for row in ours.values()) else []
    headings = ("ms a batch", *(COLUMNS[name] for name in names), f"{last}: ours / OpenVINO", *floors)
    return Table(*map(Column, headings)).markdown(
        (
            f"{variant}, B{batch}",
            *(milliseconds(rows.get(name)) for name in names),
            f"{ours[variant, batch]['speedup_over_rival']:.2f}x",
            *(f"{ours[variant, batch]['share_of_floor']:.0%}" for _ in floors),
        )
        for (variant, batch), rows in points.items()
    )


def summary(path: Path) -> str:
    machine, points = json.loads(path.read_text())["machine_info"], load_points(path)
    cpu, known = machine["cpu"], machine.get("conformer_fast")
    both = {precision: ratios(points, precision) for precision in reversed(precisions(points))}
    means = " and ".join(
        f"{statistics.geometric_mean(found.values()):.2f}x in {precision}" for precision, found in both.items()
    )
    worst = min(ratio for values in both.values() for ratio in values.values())
    streams = [
        ratio / points[point][f"OpenVINO unfused {precision}, streams"]["speedup_over_rival"]
        for precision, values in both.items()
        for point, ratio in values.items()
        if point[1] > 1
    ]
    eager = []
    for precision in both:
        gains = eager_gains(points, precision).values()
        eager.append(f"{min(gains):.1f}x to {max(gains):.1f}x in {precision}")
    rates = known and ", ".join(f"{rate / 1e9:.0f} Gop/s in {name}" for name, rate in known["product_rates"].items())
    return (
        f"Median milliseconds on {cpu['count']} cores of an {cpu['brand_raw']} (family {cpu['family']}, model "
        f"{cpu['model']}"
        + (f": {', '.join(known['flags'])}" if known else "")
        + "), 224x224; OpenVINO runs the unfused model with its defaults. "
        + ("Each ran in a process of its own, stopped while others ran" if known else "All ran in one process")
        + ", on a machine whose speed drifts, so the ratio is taken round by round: against OpenVINO in the same "
        f"precision ours is {means} (geometric means), {worst:.2f}x at the worst point; OpenVINO timed against itself "
        f"strays from 1 by {noise(points):.0%}. Against OpenVINO's throughput mode at batch 8 (both ratios to its "
        f"default, divided): {min(streams):.2f}x to {max(streams):.2f}x. Against eager fp32: {', '.join(eager)}."
        + (
            f" The floor is the time of the products alone, at the best that OpenVINO reaches: {rates}."
            if rates
            else ""
        )
    )


def speed() -> str:
    return "\n\n".join(f"{speed_table(load_points(path))}\n\n{summary(path)}" for path in cpu_files("speed.json"))


def speed_in_short() -> str:
    """Of FIRST, in its last precision, point by point; of all CPUs in a sentence."""
    points = load_points(FIRST / "speed.json")
    last = precisions(points)[-1]
    eager, rival = eager_gains(points, last), ratios(points, last)
    table = Table(
        *map(Column, ("224x224", f"ours {last}, ms a batch", f"times as fast as: PyTorch fp32 / OpenVINO {last}"))
    ).markdown(
        (
            f"{variant}, B{batch}",
            milliseconds(rows[f"conformer_fast {last}"]),
            f"{eager[variant, batch]:.1f}x / {rival[variant, batch]:.2f}x",
        )
        for (variant, batch), rows in points.items()
    )
    ratios_are = (
        "The ratio to OpenVINO is the median over rounds in which both took turns, as the machine's speed drifts; that "
        "to PyTorch is of the medians, which the picture shows."
    )
    return f"{table}\n\n{ratios_are} {' '.join(map(_speed_sentence, cpu_files('speed.json')))}"


def _speed_sentence(path: Path) -> str:
    points, cpu = load_points(path), json.loads(path.read_text())["machine_info"]["cpu"]
    last = precisions(points)[-1]
    eager, rival = eager_gains(points, last).values(), ratios(points, last).values()
    return (
        f"{cpu['count']} cores of an {cpu['brand_raw']} (family {cpu['family']}, model {cpu['model']}) in {last}: "
        f"{min(eager):.1f}x to {max(eager):.1f}x as fast as PyTorch eager in fp32, {min(rival):.2f}x to "
        f"{max(rival):.2f}x as fast as OpenVINO in {last}."
    )


def accuracy() -> str:
    report = json.loads(ACCURACY.read_text())
    variants = ", ".join(report["variants"])
    table = Table(Column("backend, precision"), Column("digits, held out"), Column(f"error of the scores, {variants}"))
    lines = table.markdown(
        (f"{row['backend']} {row['precision']}", _of(row["correct"], row["count"]), _errors(row["errors"]))
        for row in report["rows"]
    )
    return (
        f"{lines}\n\nErrors are medians of {report['images']} images of noise. On an {report['name']} (family "
        f"{report['family']}, model {report['model']}), OpenVINO {report['openvino'].partition('-')[0]}."
    )


def token_precision() -> str:
    rows = json.loads(TOKEN_PRECISION.read_text())["rows"]
    table = Table(Column(), Column("tokens in fp32"), Column("tokens in the products' precision")).markdown(
        (f"{row['variant']}, {row['precision']}", *(_errors(row["errors"][key]) for key in ("fp32", "products")))
        for row in rows
    )
    largest = max(row["largest"] for row in rows)
    return f"{table}\n\nThe largest token is {largest:,.0f} there; fp16 holds up to 65,504."


def engines() -> str:
    report = json.loads(ENGINES.read_text())
    words = map(Column, ("engine", "for", "batch", "image side"))
    figures = (Column(heading, ".1f") for heading in ("ONNX, MB", "plan, MB", "built in, s"))
    table = Table(*words, *figures).markdown(
        (
            f"{row['variant']} {row['precision']}",
            ", ".join(row["targets"]),
            *(_limits(row["shapes"][name]) for name in ("batch", "height")),
            row["onnx_bytes"] / 1e6,
            row["plan_bytes"] / 1e6,
            row["seconds"],
        )
        for row in report["engines"]
    )
    machine = f"{report['flavor']} {report['version']} on {report['threads']} threads of an {report['cpu']}"
    return f"{table}\n\nBuilt without a GPU by {machine}."


def _limits(limits: list[int]) -> str:
    """What shapes say of one dimension: the smallest, the one it is tuned for, the largest."""
    return str(limits[0]) if limits[0] == limits[2] else ", ".join(map(str, limits))


def held_out_rows() -> list[dict[str, Any]]:
    """What was measured on some CPU, and of what was on several, by others than FIRST, whose rows are the oldest. In
    the order of the file that has the most."""
    files = sorted(RESULTS.glob("*/held_out.json"), key=lambda path: (path.parent == FIRST, path))
    rows = [json.loads(path.read_text())["rows"] for path in files]
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for row in sorted(chain(*rows), key=lambda row: "missing" in row):  # measured ones first
        found.setdefault(_path_of(row), row)
    order = dict.fromkeys(map(_path_of, chain(*sorted(rows, key=len, reverse=True))))
    return sorted((found[path] for path in order), key=lambda row: row["model"] != "digits")


def _path_of(row: dict[str, Any]) -> tuple[str, ...]:
    return row["model"], row["implementation"], row["precision"]


def held_out() -> str:

    def line(row: dict[str, Any]) -> list[object]:
        path = [row["model"], f"{row['implementation']} {row['precision']}"]
        if "missing" in row:
            return [*path, row["missing"], "", ""]
        right, reference = (_of(row[key], row["count"]) for key in ("correct", "reference_correct"))
        return [*path, right, reference, row["agreement"]]

    table = Table(*map(Column, ("model", "path", "right", "the reference, of these", "same class")))
    return table.markdown(map(line, held_out_rows()))


def verdicts() -> str:
    """A line for what int8 was calibrated on, a column a model."""
    cells: dict[str, dict[str, str]] = {}
    for row in json.loads(VERDICTS.read_text())["rows"]:
        figures = f"{row['sqnr_db']:.1f} dB, {100 * row['agreement']:.1f} %"
        cells.setdefault(row["calibrated_on"], {})[f"{row['model']}, {row['images']} images"] = figures
    table = Table(*map(Column, ("calibrated on", *next(iter(cells.values())))))
    return table.markdown((what, *found.values()) for what, found in cells.items())


def cpu_files(name: str) -> list[Path]:
    """One a CPU, that of FIRST first."""
    return sorted(RESULTS.glob(f"*/{name}"), key=lambda path: (path.parent != FIRST, path))


def preprocessing() -> str:
    report = json.loads(PREPROCESSING.read_text())
    names = list(report["rows"][0]["measured"])
    table = Table(Column("picture"), *(Column(name, ".2f") for name in names), Column("times as fast")).markdown(
        (
            f"{row['width']}x{row['height']}",
            *(row["measured"][name]["ms"] for name in names),
            f"{row['measured']['ours']['times as fast']:.1f}x",
        )
        for row in report["rows"]
    )
    machine = f"Pillow {report['pillow']}, NumPy {report['numpy']}; {report['machine']}"
    return f"{table}\n\nMilliseconds of one core. {machine}."


def sizes() -> str:
    """What an image size costs on a CPU, a column a variant."""
    report = json.loads(SIZES.read_text())
    rows = report["rows"]
    ratios = {(found["height"], found["width"]): [] for found in rows[0]["any_size"]}
    for row in rows:
        for found in row["any_size"]:
            ratios[found["height"], found["width"]].append(f"{found['times']:.2f}x")
    lines = [
        ("a bundle with one size", [f"{row['bundle_bytes'] / 1e6:.0f} MB" for row in rows]),
        ("`cf.load` to the first answer", [f"{row['load_seconds']:.1f} s" for row in rows]),
        ("a new size to its first answer, its engine built", [f"{row['built_seconds']:.1f} s" for row in rows]),
        ("the same, its engine in the cache", [f"{row['kept_seconds']:.1f} s" for row in rows]),
        *((f"{height}x{width} by the engine for any size", found) for (height, width), found in ratios.items()),
    ]
    table = Table(*map(Column, ("", *(row["variant"] for row in rows)))).markdown(
        (name, *cells) for name, cells in lines
    )
    return (
        f"{table}\n\nfp32 on {report['threads']} threads of an {report['name']} (family {report['family']}, model "
        f"{report['model']}), OpenVINO {report['openvino']}. The last rows are times over those of an engine of the "
        "size's own, medians of turns; the others the least of several processes that have imported PyTorch."
    )


def served() -> str:
    """A server and its peer, a row a number of clients."""
    report = json.loads(SERVING.read_text())
    servers = ("conformer_fast", "LitServe")
    found = {(row["server"], row["clients"]): row for row in report["rows"]}

    def line(clients: int) -> list[object]:
        rows = [found[server, clients] for server in servers]
        cells = [(f"{row['per_second']:.1f}", f"{row['p50_ms']:.0f} / {row['p99_ms']:.0f}") for row in rows]
        return [clients, *cells[0], *cells[1], f"{rows[0]['per_second'] / rows[1]['per_second']:.2f}x"]

    heads = [head for server in servers for head in (f"{server}, pictures a second", "p50 / p99 ms")]
    table = Table(*map(Column, ("clients", *heads, "ours / LitServe")))
    lines = table.markdown(line(clients) for clients in dict.fromkeys(row["clients"] for row in report["rows"]))
    return (
        f"{lines}\n\n500x375 JPEGs through {report['variant']} in {report['precision']} on {report['threads']} threads "
        f"of an {report['name']} (family {report['family']}, model {report['model']}), clients on the same machine, "
        f"batches of {report['max_batch']} at most; LitServe {report['litserve']} runs the same bundle with the same "
        "decoding."
    )


def serving() -> str:
    """The server beside its engine, and under load for long."""
    report = json.loads(SERVING.read_text())
    alone, soak, start = report["alone"], report["soak"], report["start"]
    found = {row["clients"]: row for row in report["rows"] if row["server"] == "conformer_fast"}
    most, first = found[64], found[1]
    engine = statistics.mean(report[when]["batch_per_second"] for when in ("alone", "alone_after"))
    seen, memory = soak["seen"], soak["memory_mb"]
    good = seen["good"]
    sentences = (
        f"The engine alone runs {engine:.1f} pictures a second in such batches, already decoded; decoding takes "
        f"{alone['decode_ms']:.1f} ms of a core.",
        f"With 64 clients the server gives {most['per_second'] / engine:.2f} of the engine's rate.",
        f"A loop in Python takes {alone['loop_ms']:.1f} ms from a file to its scores, a client alone waits "
        f"{first['p50_ms']:.0f} ms.",
        f"A saved bundle answers {start['/v2/health/live']:.1f} s after the command, and all its batches are warm "
        f"after {start['/v2/health/ready']:.1f} s.\n\n"
        f"Under {soak['rate']:.1f} requests a second for {soak['seconds'] / 60:.0f} minutes, with "
        f"{seen['damaged']['requests']} damaged pictures and {seen['gone']['requests']} clients that hung up:",
        f"{good['failed']} of {good['requests']} good requests failed, p50 / p99 were {good['p50_ms']:.0f} / "
        f"{good['p99_ms']:.0f} ms, and the server's memory went from {memory['first']:.0f} to {memory['last']:.0f} MB.",
    )
    return f"{served()}\n\n{' '.join(sentences)}"


def cluster() -> str:
    """What must stand around a GPU so that it does not wait, by arithmetic."""
    report, estimate = json.loads(SERVING.read_text()), json.loads(ESTIMATES.read_text())
    wanted = {"variant": "small-p16", "batch": 128, "precision": "fp16"}
    (seconds,) = (row["seconds"] for row in estimate["networks"] if wanted.items() <= row.items())
    rate, decode, size = 128 / seconds, report["alone"]["decode_ms"] / 1e3, report["picture_bytes"]
    sentences = (
        f"small-p16 at batch 128 in fp16 is *estimated* at {rate:,.0f} pictures a second on one H100 "
        "([performance](performance-gpu.md); no GPU has run it).",
        f"A 500x375 JPEG of {size / 1e3:.0f} kB takes {1e3 * decode:.1f} ms of a core of the CPU above to decode and "
        "resize.",
        f"So such a GPU is fed by {rate * decode:,.0f} such cores, and by {8 * rate * size / 1e9:.0f} Gbit/s of "
        f"network; {rate * 3 * 224 * 224 / 1e9:.1f} GB/s go to the GPU as pixels of 8 bits, and next to nothing comes "
        "back.",
        f"With fewer cores these decide: {1 / decode:,.0f} pictures a second each, whatever the GPU.",
        "Pictures that are resized to 256 pixels once, and stored so, ask for a fraction of both.",
        "Ray's object store holds rows of results alone, as actors decode what they run.",
    )
    return " ".join(sentences)


def hostile() -> str:
    """What `make hostile` has tried, and what came of it."""
    report = json.loads(HOSTILE.read_text())
    table = Table(Column("tried"), Column("what came"))
    lines = (
        (row["what"], ", ".join(f"{name} {count:,}" for name, count in row["counts"].items())) for row in report["rows"]
    )
    machine = f"{report['cores']} cores of an {report['cpu']}"
    return f"{table.markdown(lines)}\n\nWith EFFORT={report['effort']}, where CI has 1, on {machine}."


def floors() -> str:
    """Computed, not measured: for the ceilings that are assumed of a GPU until one has been measured."""

    def line(variant: str, batch: int) -> list[object]:
        found = roofline.floors(variant, batch, "fp16", ASSUMED)
        assert found.dependent_launch is not None
        int8 = roofline.floors(variant, batch, "int8", ASSUMED).floor
        times = (found.floor, int8, found.fused, found.launch, found.dependent_launch)
        return [f"{variant}, B{batch}", *(1e3 * seconds for seconds in times)]

    headings = ("floor", "int8", "fused floor", "launch floor", "with dependent launch")
    table = Table(Column(), *(Column(heading, ".3g") for heading in headings))
    return table.markdown(line(variant, batch) for variant in VARIANTS for batch in BATCHES)


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
    table = Table(Column(), *(Column(variant, ".1%") for variant in VARIANTS))
    return table.markdown((name, *(shares[variant][name] or "" for variant in VARIANTS)) for name in names)


def estimates() -> str:
    """Computed from the compiled kernels; a measured time of the same network takes the place of its estimate."""
    report = json.loads(ESTIMATES.read_text())
    networks = {(row["variant"], row["batch"], row["precision"]): row for row in report["networks"]}
    measured = {
        (row["variant"], row["batch"]): row["ms"]
        for file in sorted(RESULTS.glob("*/gpu.json"))
        for entry in json.loads(file.read_text())["machines"]
        if "H100" in machine_line(entry)
        for row in entry["points"]
        if row["implementation"] == "ours" and "ms" in row
    }

    def line(variant: str, batch: int) -> list[object]:
        row = networks[variant, batch, "fp16"]
        found = measured.get((variant, batch))
        estimated = (1e3 * networks[variant, batch, precision]["seconds"] for precision in ("int8", "fp8"))
        return [
            f"{variant}, B{batch}",
            row["kernels"],
            1e3 * row["floor"],
            f"{found:.3f} measured" if found else f"{1e3 * row['seconds']:.3f}",
            1e3 * row["floor"] / found if found else row["floor"] / row["seconds"],
            *estimated,
        ]

    table = Table(
        Column(),
        Column("kernels", "d"),
        Column("floor", ".3f"),
        Column("fp16", ">"),
        Column("of the floor", ".0%"),
        Column("int8", ".3f"),
        Column("fp8", ".3f"),
    )
    parts = [table.markdown(line(variant, batch) for variant in VARIANTS for batch in BATCHES)]
    lines = Table(*starmap(Column, report["headings"].items()))
    for variant, batch in (("small-p16", 128), ("small-p16", 1)):
        operations = networks[variant, batch, "fp16"]["operations"]
        parts.append(f"What loses most of {variant} at batch {batch} in fp16:\n\n{lines.markdown(operations)}")
    return "\n\n".join([*parts, f"Compiled by Triton {report['triton']}."])


def gpus() -> str:
    """A table for each machine in benchmarks/results/*/gpu.json, written by `make gpu`."""
    files = sorted(RESULTS.glob("*/gpu.json"))
    entries = [entry for file in files for entry in json.loads(file.read_text())["machines"]]
    return "\n\n".join(map(_gpu, entries)) or "No GPU has run this yet."


def _gpu(entry: dict[str, Any]) -> str:
    """Milliseconds a batch, and how many times faster ours was than each peer, in turn with it."""
    rows = {(row["implementation"], row["variant"], row["batch"]): row for row in entry["points"]}
    lines = []
    for variant, batch in [(variant, batch) for variant in VARIANTS for batch in BATCHES]:
        own = rows.get(("ours", variant, batch))
        beside = [rows.get((peer, variant, batch)) for peer in PEERS]
        if own or any(beside):
            times = [figure(row, "ms") for row in (*beside, own)]
            gains = [gain(row, own) for row in beside]
            judged = [figure(own, "share_of_floor"), figure(own, "error")]
            lines.append([f"{variant}, B{batch}", *times, *gains, *judged])
    table = Table(
        Column(),
        *(Column(name, ".3f") for name in (*PEERS, "**ours**")),
        *(Column(f"ours / {peer}", ".2f") for peer in PEERS),
        Column("of the floor", ".0%"),
        Column("error", ".0e"),
    )
    return f"{machine_line(entry)}; {ceilings_line(entry)}.\n\n{table.markdown(lines)}"


BLOCKS: dict[str, Callable[[], str]] = {
    "speed-in-short": speed_in_short,
    "speed": speed,
    "accuracy": accuracy,
    "token-precision": token_precision,
    "engines": engines,
    "held-out": held_out,
    "verdicts": verdicts,
    "int8": lambda: render_int8.speed(cpu_files("int8.json")),
    "int8-accuracy": lambda: render_int8.accuracy(cpu_files("int8_accuracy.json")),
    "int8-parts": lambda: render_int8.parts(cpu_files("int8_parts.json")),
    "preprocessing": preprocessing,
    "serving": serving,
    "cluster": cluster,
    "sizes": sizes,
    "detector": lambda: render_detector.tables(cpu_files("detector.json")),
    "detector-accuracy": lambda: render_detector.accuracy(cpu_files("detector_accuracy.json")),
    "hostile": hostile,
    "floors": floors,
    "floor-parts": floor_parts,
    "estimates": estimates,
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


def _of(part: int, count: int) -> str:
    return f"{part} of {count} ({part / count:.2%})"


def _errors(errors: list[float]) -> str:
    return ", ".join(f"{error:.1e}" for error in errors)


if __name__ == "__main__":
    for path in DOCUMENTS:
        path.write_text(render(path.read_text()))
