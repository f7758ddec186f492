"""The result file for people: points, tests, and what each kernel loses."""

from __future__ import annotations

from typing import Any

from .stages import PEERS, QUANTISED


def points_table(entry: dict[str, Any]) -> list[str]:
    """A line for each variant and batch: milliseconds, how many times faster ours is, its share of two floors, and what
    8 bits make of it.

    *: than the version of ours that was measured in turn with that peer, which is another one.
    """
    rows = {(row["implementation"], row["variant"], row["batch"]): row for row in entry["points"]}
    names = ("eager", "compile", "autotune")
    head = "".join(f"{name:>9}" for name in (*names, "ours")) + "".join(f"{f'x {name}':>11}" for name in names)
    head += f"{'images/s':>9}{'of floor':>9}{'of fused':>9}{'error':>8}"
    lines = [f"{'milliseconds':<15}{head}" + "".join(f"{precision:>8}" for precision in QUANTISED.values())]
    for variant, batch in sorted({key[1:] for key in rows}):
        own = rows.get(("ours", variant, batch))
        found = [rows.get((peer, variant, batch)) for peer in PEERS]
        times = "".join(f"{_number(row, 'ms', '.3f'):>9}" for row in (*found, own))
        gains = "".join(f"{_number(row, 'ours_speedup', '.2f') + _older(row, own):>11}" for row in found)
        rate = f"{_number(own, 'images_per_second', '.0f'):>9}{_number(own, 'share_of_floor', '.0%'):>9}"
        rate += f"{_number(own, 'share_of_fused_floor', '.0%'):>9}{_number(own, 'error', '.0e'):>8}"
        stored = "".join(f"{_number(rows.get((name, variant, batch)), 'ms', '.3f'):>8}" for name in QUANTISED)
        lines.append(f"{f'{variant} B{batch}':<15}{times}{gains}{rate}{stored}")
    return lines


def _number(row: dict[str, Any] | None, name: str, form: str) -> str:
    if row is None:
        return "-"
    if "failed" in row:
        return "fails"
    return "-" if row.get(name) is None else format(row[name], form)


def _older(row: dict[str, Any] | None, own: dict[str, Any] | None) -> str:
    return "*" if row and own and "ours_speedup" in row and row["source"] != own["source"] else ""


def kernels_table(row: dict[str, Any], most: int | None = None) -> list[str]:
    """The operations that lose most against their floors, first; what to do next is the first line."""
    title = f"{row['variant']} B{row['batch']}, {row['precision']}"
    if "failed" in row:
        return [f"{title}: {row['failed']}"]
    title += f", {row['sum_ms']:.3f} ms"
    lines = [f"{title:<52}  n{'us':>9}{'floor':>9}{'lost ms':>9}  share  GB/s TFLOP/s"]
    for one in row["operations"][:most]:
        lost = one["count"] * (one["us"] - one["floor_us"]) / 1e3
        times = f"{one['count']:>3}{one['us']:>9.1f}{one['floor_us']:>9.1f}{lost:>9.3f}{one['share']:>7.1%}"
        own = " pytorch" if one["choice"] == "pytorch" else ""
        lines.append(f"{one['problem'][:51]:<52}{times}{one['gbs']:>6.0f}{one['tflops']:>8.1f} {one['bound']}{own}")
    return lines


def tests_table(entry: dict[str, Any]) -> list[str]:
    return [f"{row['name']:<34}{row['outcome']}{'  FAILED' * ('failed' in row)}" for row in entry["tests"]]


def ceilings_line(entry: dict[str, Any]) -> str:
    machine, ceilings = entry["machine"], entry["ceilings"]
    rates = ", ".join(f"{rate / 1e12:.0f} T/s {precision}" for precision, rate in ceilings["flops_per_second"].items())
    dependent = ceilings["dependent_gap"]
    return (
        f"{machine['gpu']}, driver {machine['driver']}, torch {machine['torch']}, triton {machine['triton']}: "
        f"{ceilings['bytes_per_second'] / 1e12:.2f} TB/s, {ceilings['l2_bytes_per_second'] / 1e12:.2f} in L2, {rates}, "
        f"{ceilings['gap'] * 1e6:.2f} us between kernels"
        + (f", {dependent * 1e6:.2f} with dependent launch" if dependent is not None else "")
    )


def products_table(entry: dict[str, Any]) -> list[str]:
    """What PyTorch's matrix products reach, TFLOP/s (or 10^12 integer operations)."""
    rates = entry["products"]
    precisions = next(iter(rates.values()))
    lines = [f"{'PyTorch products, 10^12/s':<28}" + "".join(f"{precision:>8}" for precision in precisions)]
    return lines + [
        f"{shape:<28}" + "".join(f"{rate / 1e12:>8.0f}" for rate in row.values()) for shape, row in rates.items()
    ]


def everything(entry: dict[str, Any], most: int | None = None) -> str:
    """All tables; with `most`, that many kernels of each variant's largest batch only."""
    tables = {(row["variant"], row["precision"], row["batch"]): row for row in entry["kernels"]}
    if most is not None:
        largest = {(variant, precision): batch for variant, precision, batch in sorted(tables)}
        tables = {key: row for key, row in tables.items() if key[1] == "fp16" and largest[key[:2]] == key[2]}
    parts = [tests_table(entry), [ceilings_line(entry)], products_table(entry), points_table(entry)]
    parts += [kernels_table(row, most) for row in tables.values()]
    return "\n\n".join("\n".join(part) for part in parts if part)
