"""The result file for people: points, tests, and what each kernel loses."""

from __future__ import annotations

from typing import Any

from .stages import PEERS


def points_table(entry: dict[str, Any]) -> list[str]:
    """A line for each variant and batch: milliseconds, how many times faster ours is, its share of the floor.

    *: than the version of ours that was measured in turn with that peer, which is another one.
    """
    rows = {(row["implementation"], row["variant"], row["batch"]): row for row in entry["points"]}
    names = ("eager", "compile", "autotune")
    head = "".join(f"{name:>10}" for name in (*names, "ours")) + "".join(f"{f'x {name}':>12}" for name in names)
    lines = [f"{'milliseconds':<15}{head}{'images/s':>10}{'of floor':>9}{'error':>9}"]
    for variant, batch in sorted({key[1:] for key in rows}):
        own = rows.get(("ours", variant, batch))
        found = [rows.get((peer, variant, batch)) for peer in PEERS]
        times = "".join(f"{_number(row, 'ms', '.3f'):>10}" for row in (*found, own))
        gains = "".join(f"{_number(row, 'ours_speedup', '.2f') + _older(row, own):>12}" for row in found)
        rate = f"{_number(own, 'images_per_second', '.0f'):>10}{_number(own, 'share_of_floor', '.0%'):>9}"
        lines.append(f"{f'{variant} B{batch}':<15}{times}{gains}{rate}{_number(own, 'error', '.1e'):>9}")
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
    title = f"{row['variant']} B{row['batch']}"
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
    return (
        f"{machine['gpu']}, driver {machine['driver']}, torch {machine['torch']}, triton {machine['triton']}: "
        f"{ceilings['bytes_per_second'] / 1e12:.2f} TB/s, {ceilings['flops_per_second'] / 1e12:.0f} TFLOP/s fp16, "
        f"{ceilings['gap'] * 1e6:.2f} us between kernels"
    )


def everything(entry: dict[str, Any], most: int | None = None) -> str:
    """All tables; with `most`, that many kernels of each variant's largest batch only."""
    tables = {(row["variant"], row["batch"]): row for row in entry["kernels"]}
    if most is not None:
        largest = dict(sorted(tables))
        tables = {key: row for key, row in tables.items() if largest[key[0]] == key[1]}
    parts = [tests_table(entry), [ceilings_line(entry)], points_table(entry)]
    parts += [kernels_table(row, most) for row in tables.values()]
    return "\n\n".join("\n".join(part) for part in parts if part)
