"""The tables of docs/quantizing.md: INT8 on CPUs beside peers, how right it is, and what its parts gain."""

from __future__ import annotations

import json
from collections.abc import Container
from pathlib import Path
from typing import Any

from conformer_fast.tables import Column, Table

NATIVE, OPENVINO = "conformer_fast native int8", "conformer_fast int8"


def speed(files: list[Path]) -> str:
    """A table a CPU."""
    return "\n\n".join(_speed(json.loads(file.read_text())) for file in files)


def accuracy(files: list[Path]) -> str:
    """A table a CPU."""
    return "\n\n".join(_accuracy(json.loads(file.read_text())) for file in files)


def parts(files: list[Path]) -> str:
    """A table a CPU: a column a part."""
    return "\n\n".join(_parts(json.loads(file.read_text())) for file in files)


def speedups(report: dict[str, Any]) -> dict[tuple[str, int], tuple[float, float]]:
    """(variant, batch) -> how many times as fast ours in 8 bits is as ours around it, and as the fastest peer."""
    points: dict[tuple[str, int], dict[str, float]] = {}
    for row in report["speed"]:
        points.setdefault((row["variant"], row["batch"]), {})[row["implementation"]] = row["speedup"]
    found = {}
    for point, rows in points.items():
        ours = rows[ours_of(rows)]
        found[point] = ours, ours / max(gain for name, gain in rows.items() if not name.startswith("conformer_fast"))
    return found


def ours_of(names: Container[str]) -> str:
    """Ours that is taken: our own code, where it runs."""
    return NATIVE if NATIVE in names else OPENVINO


def _speed(report: dict[str, Any]) -> str:
    """Of one CPU."""
    rest, rows = report["rest"], {(row["variant"], row["batch"], row["implementation"]): row for row in report["speed"]}
    headings = {
        "OpenVINO int8 (NNCF)": "NNCF",
        "OpenVINO int8 (NNCF), streams": "NNCF, streams",
        "ONNX Runtime int8": "ONNX Runtime",
        f"conformer_fast {rest}": f"ours {rest}",
        OPENVINO: "ours int8, openvino",
        NATIVE: "ours int8, native",
    }
    headings = {name: heading for name, heading in headings.items() if any(name in key for key in rows)}
    ours = ours_of(headings)
    headings[ours] = f"**{headings[ours]}**"
    floor = ["of the products' floor"] if all("share_of_floor" in row for row in report["speed"]) else []
    table = Table(
        *map(Column, ("ms a batch", *headings.values(), f"over ours {rest}", "over the fastest other int8", *floor))
    ).markdown(
        (
            f"{variant}, B{batch}",
            *(milliseconds(rows[variant, batch, name]) for name in headings),
            *(f"{gain:.2f}x" for gain in gains),
            *(f"{rows[variant, batch, ours]['share_of_floor']:.0%}" for _ in floor),
        )
        for (variant, batch), gains in speedups(report).items()
    )
    return (
        f"{table}\n\n224x224, medians on {_cpu(report)}; OpenVINO {report['openvino'].partition('-')[0]}. Ratios are "
        f"medians over rounds in which all took turns, both to ours in {rest}."
    )


def _accuracy(report: dict[str, Any]) -> str:
    ours = ours_of([row["implementation"] for row in report["rows"]])
    headings = ("right", "as the reference", "scores off by", f"right, {ours} not", f"not, {ours} right")
    table = Table(Column(f"{report['rows'][0]['count']} held-out pictures"), *map(Column, headings)).markdown(
        (
            row["implementation"],
            row["correct"],
            row["agreement"],
            f"{row['relative_error']:.2%}",
            row["ours_wrong"],
            row["ours_alone"],
        )
        for row in report["rows"]
    )
    return f"{table}\n\nOn {_cpu(report)}; OpenVINO {report['openvino'].partition('-')[0]}."


def _parts(report: dict[str, Any]) -> str:
    gains: dict[str, dict[str, str]] = {}
    for row in report["rows"]:
        point = gains.setdefault(f"{row['variant']}, batch {row['batch']}", {})
        point[row["part"]] = f"{row['gain']:.2f}x"
    names = [*next(iter(gains.values()))]
    table = Table(*map(Column, ("gain of", *names))).markdown(
        (point, *(found[name] for name in names)) for point, found in gains.items()
    )
    return f"{table}\n\n{_cpu(report)}, the rest in {report['rest']}; medians over rounds in which all took turns."


def _cpu(report: dict[str, Any]) -> str:
    """In words."""
    known = f", family {report['family']}, model {report['model']}" if "family" in report else ""
    limit = f", its products limited to {report['limited to']}" if report.get("limited to") else ""
    return f"{report['threads']} threads of an {report.get('name') or report['cpu']}{known}{limit}"


def milliseconds(row: dict[str, Any] | None) -> str:
    if row is None or row["seconds"] is None:
        return "fails"
    return f"{row['seconds'] * 1e3:.1f}" if row["seconds"] < 0.1 else f"{row['seconds'] * 1e3:.0f}"
