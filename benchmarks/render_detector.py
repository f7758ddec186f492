"""The tables of docs/detecting.md: what an image takes a detector, beside peers and part by part."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from conformer_fast.tables import Column, Table

PEER = "OpenVINO fp32"  # the better one in fp32
OURS = "conformer_fast"


def tables(files: list[Path]) -> str:
    """Two a CPU."""
    return "\n\n".join(_tables(json.loads(file.read_text())) for file in files)


def accuracy(files: list[Path]) -> str:
    """One a CPU."""
    return "\n\n".join(_accuracy(json.loads(file.read_text())) for file in files)


def _accuracy(report: dict[str, Any]) -> str:
    columns = [f"{what} {kind} AP" for what in ("", "by reference's,") for kind in ("box", "mask")]
    table = Table(Column("precision"), *(Column(name.strip(), ".3f") for name in columns))
    reference = report["rows"][0]["reference"]
    rows = [("the reference", reference["box"], reference["mask"], None, None)]
    rows += [
        (row["precision"], *(row[of][kind] for of in ("compiled", "agreement") for kind in ("box", "mask")))
        for row in report["rows"]
    ]
    return (
        f"{table.markdown(rows)}\n\n{report['pictures']} held-out pictures, on an {report['name']} (family "
        f"{report['family']}, model {report['model']}), OpenVINO {report['openvino'].partition('-')[0]}. By "
        "reference's: what the reference found with a score of 0.3 or more is taken as the truth."
    )


def _tables(report: dict[str, Any]) -> str:
    seconds = {row["implementation"]: row["seconds"] for row in report["rows"]}
    floors = {name: report["operations"] / rate for name, rate in report["product_rates"].items()}
    times = Table(
        Column("Mask R-CNN, small-p32"),
        Column("seconds", ".2f"),
        Column(f"{PEER} / this", ".2f"),
        Column("products alone, summed directly", ".2f"),
    ).markdown(
        (_bold(name), value, seconds[PEER] / value, floors.get(name.split()[-1])) for name, value in seconds.items()
    )
    stages = {row["implementation"]: row["seconds"] for row in report["stages"]}
    parts = Table(Column("seconds of"), *(Column(name, ".3f") for name in stages)).markdown(
        (part, *(found[part] for found in stages.values())) for part in next(iter(stages.values()))
    )
    operators = Table(Column("milliseconds of"), Column(OURS, ".1f"), Column("OpenVINO's own", ".1f")).markdown(
        (row["operator"], row[OURS] * 1e3, row["OpenVINO"] * 1e3) for row in report["operators"]
    )
    sizes = Table(
        Column("a picture of another size"),
        Column("own engine: first", ".2f"),
        Column("later", ".2f"),
        Column("any size: first", ".2f"),
        Column("later", ".2f"),
    ).markdown(
        (row["precision"], *(row[of][when] for of in ("own", "shared") for when in ("first", "later")))
        for row in report["sizes"]
    )
    first = report["stages"][0]
    return (
        f"{times}\n\n{parts}\n\n{operators}\n\n{sizes}\n\n"
        f"Medians of calls in turn, one image of {report['height']}x{report['width']} with {first['regions']} regions "
        f"and {first['detections']} detections, random weights, on {report['threads']} threads of an {report['name']} "
        f"(family {report['family']}, model {report['model']}), OpenVINO {report['openvino'].partition('-')[0]}. It "
        "runs the reference's parts as its converter reads them; between the networks is the same code for all. The "
        f"products are {report['operations'] / 1e9:.0f} billion operations; alone: at the best rate that OpenVINO "
        "reaches on this CPU for any of a few shapes. The parts took turns of their own; `between` is what is left of "
        "the whole: masks' regions, the second suppression, pasting. The last table is in seconds."
    )


def _bold(name: str) -> str:
    return f"**{name}**" if name.startswith(OURS) else name
