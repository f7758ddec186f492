"""The result file for people: points, tests, and what each kernel loses."""

from __future__ import annotations

import runpy
from collections.abc import Sequence
from typing import Any

from .session import PEERS
from .steps import QUANTIZED
from .tree import ROOT

_PRINTER = runpy.run_path(str(ROOT / "conformer_fast" / "tables.py"))  # nothing of ours is installed in this process
Column, Table = _PRINTER["Column"], _PRINTER["Table"]
POINTS = Table(
    Column("milliseconds"),
    *(Column(name, ".3f") for name in ("eager", "compile", "autotune", "ours")),
    *(Column(f"x {name}", ".2f") for name in ("eager", "compile", "autotune")),
    Column("images/s", ".0f"),
    *(Column(name, ".0%") for name in ("of floor", "of fused")),
    Column("error", ".0e"),
    *(Column(precision, ".3f") for precision in QUANTIZED.values()),
)
KERNELS = (
    Column("n", "d"),
    Column("us", ".1f"),
    Column("pytorch", ">"),
    Column("floor", ".1f"),
    Column("lost ms", ".3f"),
    Column("share", ".1%"),
    Column("GB/s", ".0f"),
    Column("TFLOP/s", ".1f"),
    Column(),
)
WORDS = Table(Column(), Column())


def points_table(entry: dict[str, Any]) -> list[str]:
    """A line for each variant and batch: milliseconds, how many times faster ours is, its share of two floors, and what
    8 bits make of it.

    *: than the version of ours that was measured in turn with that peer, which is another one.
    """
    rows = {(row["implementation"], row["variant"], row["batch"]): row for row in entry["points"]}

    def line(variant: str, batch: int) -> list[object]:
        own = rows.get(("ours", variant, batch))
        beside = [rows.get((peer, variant, batch)) for peer in PEERS]
        stored = [rows.get((name, variant, batch)) for name in QUANTIZED]
        own_figures = ("images_per_second", "share_of_floor", "share_of_fused_floor", "error")
        return [
            f"{variant} B{batch}",
            *(figure(row, "ms") for row in (*beside, own)),
            *(gain(row, own) for row in beside),
            *(figure(own, name) for name in own_figures),
            *(figure(row, "ms") for row in stored),
        ]

    return POINTS.lines(line(*place) for place in sorted({key[1:] for key in rows})) if rows else []


def figure(row: dict[str, Any] | None, name: str) -> float | str | None:
    """A figure of a row, or why there is none."""
    if row is not None and "failed" in row:
        return "cut" if row.get("cut") else "fails"
    return None if row is None else row.get(name)


def gain(row: dict[str, Any] | None, own: dict[str, Any] | None) -> float | str | None:
    """How many times faster ours was than a peer; with a star where that was measured with another version of ours."""
    found = figure(row, "ours_speedup")
    if row and own and "ours_speedup" in row and row["source"] != own["source"]:
        return f"{found:.2f}*"
    return found


def kernels_table(row: dict[str, Any], most: int | None = None) -> list[str]:
    """The operations that lose most against their floors, first; what to do next is the first line. "pytorch": the same
    call by PyTorch, with "<" where that is faster."""
    title = f"{row['variant']} B{row['batch']}, {row['precision']}"
    if "operations" not in row:
        return [f"{title}: {row['failed']}"]
    title += f", {row['sum_ms']:.3f} ms" + (f", {row['failed']}" if "failed" in row else "")

    def line(one: dict[str, Any]) -> list[object]:
        pytorch = f"{one['pytorch_us']:.1f}" + ("<" if one["pytorch_us"] < one["us"] else " ")
        lost = one["count"] * (one["us"] - one["floor_us"]) / 1e3
        bound = one["bound"] + (" pytorch" if one["choice"] == "pytorch" else "")
        times = [one["count"], one["us"], pytorch, one["floor_us"], lost, one["share"]]
        return [one["problem"][:WIDEST_PROBLEM], *times, one["gbs"], one["tflops"], bound]

    return Table(Column(title[:WIDEST_PROBLEM], width=WIDEST_PROBLEM), *KERNELS).lines(
        map(line, row["operations"][:most])
    )


def steps_table(entry: dict[str, Any]) -> list[str]:
    table = Table(Column(), Column(form=">"), Column())
    rows = [row for row in entry["steps"] if "earlier" not in row]
    return table.lines((row["name"], f"{row.get('seconds', 0):.0f} s", outcome(row)) for row in rows)


def outcome(row: dict[str, Any]) -> str:
    return row["outcome"] + (f"  FAILED: {row['failed']}" if "failed" in row else "")


def checks_table(entry: dict[str, Any], source: str, most: int | None = None) -> list[str]:
    """How many operations are within their bounds, the one nearest to it, and those that are not; of this source."""
    rows = [row for row in entry["checks"] if row["source"] == source]
    if not rows:
        return []
    judged = [row for row in rows if row.get("error") is not None and row.get("bound") is not None]
    failed = [row for row in rows if "failed" in row]
    lines = [f"checks: {len(rows) - len(failed)} of {len(rows)} operations are within their bounds"]
    if judged:
        nearest = max(judged, key=lambda row: row["error"] / row["bound"])
        lines[0] += f"; nearest: {nearest['error'] / nearest['bound']:.2f} of it, {nearest['problem']}"
    return lines + _first([f"  {row['problem']}: {row['failed']}" for row in failed], most)


def files_table(entry: dict[str, Any], most: int | None = None) -> list[str]:
    rows = sorted(entry["tests"], key=lambda row: "failed" not in row)
    return _first(WORDS.lines((row["name"], outcome(row)) for row in rows), most)


def counters_table(entry: dict[str, Any]) -> list[str]:
    """What ncu says first of each kernel that was profiled, the last first."""
    words = ("Duration", "Compute (SM) Throughput", "DRAM Throughput", "L2 Cache Throughput", "Registers Per Thread")
    words += ("Achieved Occupancy", "Issued Warp Per Scheduler")
    return [
        f"{row['problem'][:40]}: " + ", ".join(f"{w} {row['metrics'][w]}" for w in words if w in row["metrics"])
        for row in sorted(entry["counters"], key=lambda row: row["date"], reverse=True)
    ]


def machine_line(entry: dict[str, Any]) -> str:
    machine = entry["machine"]
    versions = f"torch {machine['torch']}, triton {machine['triton']}"
    return f"{machine['gpu']}, driver {machine['driver']}, {versions}"


def ceilings_line(entry: dict[str, Any]) -> str:
    if "ceilings" not in entry:
        return "ceilings: not measured; floors are by an H100's, assumed"
    ceilings = entry["ceilings"]
    rates = ", ".join(f"{rate / 1e12:.0f} T/s {precision}" for precision, rate in ceilings["flops_per_second"].items())
    dependent = ceilings["dependent_gap"]
    return (
        f"ceilings: {ceilings['bytes_per_second'] / 1e12:.2f} TB/s, "
        f"{ceilings['l2_bytes_per_second'] / 1e12:.2f} in L2, {rates}, {ceilings['gap'] * 1e6:.2f} us between kernels"
        + (f", {dependent * 1e6:.2f} with dependent launch" if dependent is not None else "")
    )


def products_table(entry: dict[str, Any]) -> list[str]:
    """What PyTorch's matrix products reach, TFLOP/s (or 10^12 integer operations)."""
    rates = entry.get("products", {})
    if not rates:
        return []
    precisions = next(iter(rates.values()))
    table = Table(Column("PyTorch products, 10^12/s"), *(Column(precision, ".0f", 6) for precision in precisions))
    return table.lines((shape, *(rate / 1e12 for rate in row.values())) for shape, row in rates.items())


def everything(entry: dict[str, Any], source: str) -> str:
    """All tables, whole."""
    tables = {(row["variant"], row["precision"], row["batch"]): row for row in entry["kernels"]}
    return _joined(
        [
            [machine_line(entry)],
            steps_table(entry),
            checks_table(entry, source),
            files_table(entry),
            [ceilings_line(entry)],
            products_table(entry),
            points_table(entry),
            *(kernels_table(tables[key]) for key in sorted(tables)),
            counters_table(entry),
        ]
    )


SUMMARY_LINES, SUMMARY_CHARACTERS = 100, 11_500
WIDEST = 140  # characters of a line of the summary
WIDEST_PROBLEM = 51
TABLES_SHOWN = (("small-p16", "fp16", 128), ("small-p16", "fp16", 1), ("base-p16", "fp16", 128))


def summary(entry: dict[str, Any], source: str, failures: Sequence[str], left: Sequence[str]) -> str:
    """All that is known within SUMMARY_LINES and SUMMARY_CHARACTERS: of long tables their first rows; the tables of
    kernels get what the others leave."""
    tables = {(row["variant"], row["precision"], row["batch"]): row for row in entry["kernels"]}
    shown = [tables[key] for key in TABLES_SHOWN if key in tables]
    before = [
        [machine_line(entry), ceilings_line(entry)],
        steps_table(entry),
        checks_table(entry, source, most=4),
        files_table(entry, most=6),
        products_table(entry),
        points_table(entry),
    ]
    after = [
        counters_table(entry)[:4],
        _first([f"FAILED {failure}" for failure in failures], 6),
        [f"left: {', '.join(left)}"] if left else [],
    ]
    for rows in range(SUMMARY_LINES, -1, -1):
        kernels = [kernels_table(row, rows) for row in shown]
        lines = [line[:WIDEST].rstrip() for line in _joined([*before, *kernels, *after]).splitlines()]
        if len(lines) <= SUMMARY_LINES and len("\n".join(lines)) <= SUMMARY_CHARACTERS:
            break
    return "\n".join(lines[:SUMMARY_LINES])


def _first(lines: list[str], most: int | None) -> list[str]:
    if most is None or len(lines) <= most:
        return lines
    return [*lines[: most - 1], f"  and {len(lines) - most + 1} more in gpu.json"]


def _joined(parts: Sequence[Sequence[str]]) -> str:
    return "\n\n".join("\n".join(part) for part in parts if part)
