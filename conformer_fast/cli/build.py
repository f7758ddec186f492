"""The commands that make what is deployed: conformer-fast export | build | triton-repo."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path
from typing import Any

from ..bundles.folder import check_writable, read_bundle
from ..bundles.manifest import PLAN
from ..calibration.resolve import quantization_of
from ..deploy.build import build
from ..deploy.triton_server import write_model
from ..engines.onnx.export import graph_of
from ..engines.tensorrt.flavors import get_flavor
from ..engines.tensorrt.plan import check_options
from ..inference.lower import lower
from ..model.precision import PRECISIONS
from ..model.shapes import Range, Shapes, usual_side
from ..storage.atomic import replace_file
from .arguments import add_calibration_arguments, add_model_arguments, calibration_of, key_of, model_of, positive


def add_commands(commands: Any, output: argparse.ArgumentParser) -> None:
    """Adds the three to the command line's; `output` has the options that every command has."""
    graph = argparse.ArgumentParser(add_help=False)
    add_model_arguments(graph)
    graph.add_argument("--precision", default="fp16", choices=PRECISIONS)
    graph.add_argument("--features", action="store_true", help="a backbone: feature maps and tokens, no scores")
    graph.add_argument("--outputs", type=_names, metavar="NAME,NAME", help="such as 'logits', the sum of both heads")
    add_calibration_arguments(graph)

    export = commands.add_parser("export", parents=[graph, output], help="write the typed ONNX graph")
    export.set_defaults(run=_export)
    export.add_argument("--size", type=positive, metavar="N", help="side of the calibration's pictures (default 224)")
    export.add_argument("-o", "--output", required=True, metavar="FILE.onnx")

    engine = commands.add_parser("build", parents=[graph, output], help="build a TensorRT engine, as a bundle")
    engine.set_defaults(run=_build)
    engine.add_argument(
        "--size", type=_range, metavar="N|N,N,N", help="image side: smallest, tuned for, largest (default 224)"
    )
    engine.add_argument(
        "--batch", type=_range, default=(1, 8, 64), metavar="N|N,N,N", help="smallest, tuned for, largest"
    )
    engine.add_argument(
        "--target", type=_names, default=(), metavar="SM,SM", help="such as sm86,sm120 (default: the GPU here)"
    )
    engine.add_argument("--flavor", default="auto", choices=["auto", "tensorrt", "tensorrt-rtx"])
    engine.add_argument("--labels", metavar="FILE", help="the classes' names, one a line (default: ImageNet's)")
    engine.add_argument("--key", metavar="FILE", help="signs the bundle with the bytes of this file")
    engine.add_argument("-o", "--output", required=True, metavar="DIR")

    server = commands.add_parser(
        "triton-repo", parents=[output], help="add a bundle to a model repository of NVIDIA Triton Inference Server"
    )
    server.set_defaults(run=_triton_repo)
    server.add_argument("bundle", metavar="BUNDLE")
    server.add_argument("-o", "--output", required=True, metavar="DIR", help="the model repository")
    server.add_argument("--name", metavar="NAME", help="of the model (default: that of the bundle's folder)")
    server.add_argument("--instances", type=positive, default=1, metavar="N", help="batches run at once on a GPU")
    server.add_argument("--key", metavar="FILE", help="the key that the bundle is signed with")


def _export(options: argparse.Namespace) -> int:
    path = Path(options.output)
    if not path.parent.is_dir():
        raise ValueError(f"{path}: the folder {path.parent} does not exist; create it first")
    model = model_of(options, options.features)
    fused = lower(model)
    if options.outputs is not None:
        fused = fused.with_outputs(options.outputs)
    side = options.size or usual_side(model.config)
    quantization, _ = quantization_of(fused, options.precision, calibration_of(options, side))
    graph = graph_of(fused, options.precision, quantization)
    replace_file(path, graph, 0o666)
    facts = {"file": str(path), "bytes": len(graph), "precision": options.precision, "outputs": list(fused.outputs)}
    if options.json:
        print(json.dumps(facts))
    else:
        print(f"{path}: {len(graph) / 1e6:.1f} MB, {options.precision}, outputs {', '.join(fused.outputs)}")
    return 0


def _build(options: argparse.Namespace) -> int:
    check_options(get_flavor(options.flavor), options.target, options.precision)  # before a download
    check_writable(options.output, key_of(options.key))
    model = model_of(options, options.features)
    side = options.size or (usual_side(model.config),) * 3
    folder = build(
        model,
        options.output,
        precision=options.precision,
        profiles=[Shapes(options.batch, side, side)],
        targets=options.target,
        flavor=options.flavor,
        outputs=options.outputs,
        calibration=calibration_of(options, side[1]),
        key=key_of(options.key),
        labels=_labels(options.labels),
        rebuild=_again(options),
    )
    manifest = read_bundle(folder).manifest
    if options.json:
        print(json.dumps({"folder": str(folder), **manifest.to_json()}))
        return 0
    runtime = manifest.runtime
    size = manifest.files[PLAN].bytes
    print(f"{folder}: {size / 1e6:.1f} MB, {runtime['flavor']} {runtime['version']}, {', '.join(runtime['targets'])}")
    if manifest.measured:
        errors = ", ".join(f"{name} {error:.2g}" for name, error in manifest.measured["error"].items())
        print(f"error of the graph ({manifest.measured['by']}, {manifest.measured['images']}): {errors}")
    return 0


def _triton_repo(options: argparse.Namespace) -> int:
    name = options.name or Path(options.bundle).resolve().name
    folder = write_model(options.bundle, options.output, name, options.instances, key_of(options.key))
    print(json.dumps({"folder": str(folder), "name": name}) if options.json else folder)
    return 0


def _again(options: argparse.Namespace) -> str:
    """The command that builds the same for the GPU where it is given."""
    words = ["conformer-fast", "build"]
    for name, value in vars(options).items():
        if value and name not in ("command", "run", "json", "target"):
            words.append("--" + name.replace("_", "-"))
            if value is not True:
                words.append(",".join(map(str, value)) if isinstance(value, list | tuple) else str(value))
    return shlex.join(words)


def _labels(path: str | None) -> list[str] | None:
    return Path(path).read_text(encoding="utf-8").splitlines() if path else None


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _range(text: str) -> Range:
    """One number, or smallest, tuned for and largest."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) == 1:
        numbers *= 3
    if len(numbers) != 3 or not 1 <= numbers[0] <= numbers[1] <= numbers[2]:
        raise argparse.ArgumentTypeError(f"must be one number, or three that do not fall such as 1,8,32; got {text!r}")
    return numbers[0], numbers[1], numbers[2]
