"""The result file for people: points, tests, and what each kernel loses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .session import PEERS
from .steps import QUANTIZED


def points_table(entry: dict[str, Any]) -> list[str]:
    """A line for each variant and batch: milliseconds, how many times faster ours is, its share of two floors, and what
    8 bits make of it.

    *: than the version of ours that was measured in turn with that peer, which is another one.
    """
    rows = {(row["implementation"], row["variant"], row["batch"]): row for row in entry["points"]}
    names = ("eager", "compile", "autotune")
    head = "".join(f"{name:>9}" for name in (*names, "ours")) + "".join(f"{f'x {name}':>11}" for name in names)
    head += f"{'images/s':>9}{'of floor':>9}{'of fused':>9}{'error':>8}"
    if not rows:
        return []
    lines = [f"{'milliseconds':<15}{head}" + "".join(f"{precision:>8}" for precision in QUANTIZED.values())]
    for variant, batch in sorted({key[1:] for key in rows}):
        own = rows.get(("ours", variant, batch))
        found = [rows.get((peer, variant, batch)) for peer in PEERS]
        times = "".join(f"{number(row, 'ms', '.3f'):>9}" for row in (*found, own))
        gains = "".join(f"{number(row, 'ours_speedup', '.2f') + older(row, own):>11}" for row in found)
        rate = f"{number(own, 'images_per_second', '.0f'):>9}{number(own, 'share_of_floor', '.0%'):>9}"
        rate += f"{number(own, 'share_of_fused_floor', '.0%'):>9}{number(own, 'error', '.0e'):>8}"
        stored = "".join(f"{number(rows.get((name, variant, batch)), 'ms', '.3f'):>8}" for name in QUANTIZED)
        lines.append(f"{f'{variant} B{batch}':<15}{times}{gains}{rate}{stored}")
    return lines


def number(row: dict[str, Any] | None, name: str, form: str) -> str:
    """A figure of a row, or why there is none."""
    if row is None:
        return "-"
    if "failed" in row:
        return "cut" if row.get("cut") else "fails"
    return "-" if row.get(name) is None else format(row[name], form)


def older(row: dict[str, Any] | None, own: dict[str, Any] | None) -> str:
    """A star where a peer was measured in turn with another version of ours."""
    return "*" if row and own and "ours_speedup" in row and row["source"] != own["source"] else ""


def kernels_table(row: dict[str, Any], most: int | None = None) -> list[str]:
    """The operations that lose most against their floors, first; what to do next is the first line. "pytorch": the same
    call by PyTorch, with "<" where that is faster."""
    title = f"{row['variant']} B{row['batch']}, {row['precision']}"
    if "operations" not in row:
        return [f"{title}: {row['failed']}"]
    title += f", {row['sum_ms']:.3f} ms" + (f", {row['failed']}" if "failed" in row else "")
    lines = [f"{title[:51]:<52}  n{'us':>9}{'pytorch':>9} {'floor':>8}{'lost ms':>8}  share  GB/s TFLOP/s"]
    for one in row["operations"][:most]:
        lost = one["count"] * (one["us"] - one["floor_us"]) / 1e3
        times = f"{one['count']:>3}{one['us']:>9.1f}{one['pytorch_us']:>9.1f}"
        times += (
            f"{'<' if one['pytorch_us'] < one['us'] else ' '}{one['floor_us']:>8.1f}{lost:>8.3f}{one['share']:>7.1%}"
        )
        own = " pytorch" if one["choice"] == "pytorch" else ""
        lines.append(f"{one['problem'][:51]:<52}{times}{one['gbs']:>6.0f}{one['tflops']:>8.1f} {one['bound']}{own}")
    return lines


def steps_table(entry: dict[str, Any]) -> list[str]:
    return [
        f"{row['name']:<10}{row.get('seconds', 0):>6.0f} s  {row['outcome']}"
        + (f"  FAILED: {row['failed']}" if "failed" in row else "")
        for row in entry["steps"]
        if "earlier" not in row
    ]


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
    return _first(
        [
            f"{row['name']:<34}{row['outcome']}" + (f"  FAILED: {row['failed']}" if "failed" in row else "")
            for row in rows
        ],
        most,
    )


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
    lines = [f"{'PyTorch products, 10^12/s':<28}" + "".join(f"{precision:>8}" for precision in precisions)]
    return lines + [
        f"{shape:<28}" + "".join(f"{rate / 1e12:>8.0f}" for rate in row.values()) for shape, row in rates.items()
    ]


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
