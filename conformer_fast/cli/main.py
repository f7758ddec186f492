"""The command line: one function a command, or one module of its own. `conformer-fast --help` lists them."""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import torch
from tqdm import tqdm

from ..checkpoints.create import create_model
from ..checkpoints.weights import convert
from ..deploy.compile import CompiledConformer, compile
from ..deploy.load import LoadedConformer, load
from ..engines.cuda import bucket
from ..engines.module import FastConformer
from ..engines.registry import BACKENDS, choose
from ..errors import BackendError, BundleError, CheckpointError, DownloadError, EngineError, ImageError
from ..inference.lower import lower
from ..model.class_names import labels_for
from ..model.config import PACKAGED, VARIANTS
from ..model.outputs import LOGITS
from ..model.precision import DTYPES, PRECISIONS
from ..model.reference import Conformer
from ..model.shapes import Shapes, usual_side
from ..preprocessing.cpu import image_path, load_batch
from ..storage.paths import cache_root
from ..verification.timing import time_in_turn
from ..version import __version__
from .arguments import add_calibration_arguments, add_model_arguments, calibration_of, key_of, model_of, positive
from .build import add_commands
from .calibrate import add_calibrate
from .diff import add_diff
from .evaluate import add_evaluate

BATCH = 8  # images decoded and run together
ERRORS = (
    BackendError,
    BundleError,
    CheckpointError,
    DownloadError,
    EngineError,
    ImageError,
    OSError,
    ValueError,
    torch.OutOfMemoryError,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit status: 0, 1 if some of the input failed, 2 if nothing could be done."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except KeyboardInterrupt:
        print(f"conformer-fast {options.command}: interrupted", file=sys.stderr)
        return 130
    except ERRORS as error:
        print(f"conformer-fast {options.command}: {error}", file=sys.stderr)
        return 2


def _predict(options: argparse.Namespace) -> int:
    fast, labels = _predictor(options)
    profiles = fast.manifest.profiles if isinstance(fast, LoadedConformer) else ()
    size = options.size or (profiles[0].height[1] if profiles else usual_side(fast.config))
    batch = min([BATCH, *(profile.batch[2] for profile in profiles[:1])])
    topk = min(options.topk, len(labels))
    results, failed = [], []
    progress = tqdm(total=len(options.images), unit="image", disable=not sys.stderr.isatty(), leave=False)
    for start in range(0, len(options.images), batch):
        paths = options.images[start : start + batch]
        good, images = [], []
        for path in paths:
            try:
                images.append(load_batch([path], size))
                good.append(path)
            except ImageError as error:
                failed.append({"image": path, "error": str(error)})
                print(f"conformer-fast predict: {error}", file=sys.stderr)
        if good:
            scores, indices = fast(torch.cat(images).to(fast.device)).probabilities.topk(topk)
            for path, row, where in zip(good, scores.tolist(), indices.tolist(), strict=True):
                top = [
                    {"index": index, "label": labels[index], "probability": score}
                    for index, score in zip(where, row, strict=True)
                ]
                results.append({"image": path, "top": top})
        progress.update(len(paths))
    progress.close()
    if options.json:
        source = {"bundle": options.bundle} if options.bundle else {"model": options.model, "weights": options.weights}
        print(json.dumps({**source, "run": fast.reason, "images": results, "failed": failed}))
    else:
        for result in results:
            print(result["image"])
            for entry in result["top"]:
                print(f"  {entry['probability']:7.2%}  {entry['label']} ({entry['index']})")
    return 1 if failed else 0


def _predictor(options: argparse.Namespace) -> tuple[FastConformer, Sequence[str]]:
    """What classifies images, and its classes' names."""
    if options.bundle:
        refused = "weights", "backend", "precision", "calibration"
        chosen = [f"--{name}" for name in refused if getattr(options, name) not in (None, "auto")]
        if chosen:
            raise ValueError(f"--bundle says which model runs, and how; leave out {', '.join(chosen)}")
        loaded = load(options.bundle, key=key_of(options.key))
        if loaded.outputs != LOGITS:
            raise BundleError(
                f"{options.bundle} returns {', '.join(loaded.outputs)}; predict needs {', '.join(LOGITS)}"
            )
        return loaded, loaded.labels
    model = model_of(options)
    side = options.size or usual_side(model.config)
    fast = _compiled(model, options, side, BATCH)
    return fast, labels_for(model.config)


def _compiled(model: Conformer, options: argparse.Namespace, side: int, batch: int) -> CompiledConformer:
    profile = Shapes((1, batch, batch), (side,) * 3, (side,) * 3) if options.backend == "tensorrt" else None
    calibration = calibration_of(options, side)
    return compile(
        model, backend=options.backend, precision=options.precision, profile=profile, calibration=calibration
    )


def _bench(options: argparse.Namespace) -> int:
    rows = []
    for name in options.models:
        model = create_model(name)
        fast = _compiled(model, options, options.size, max(options.batch))
        model.to(fast.device)
        for batch in options.batch:
            images = torch.randn(batch, model.config.in_channels, options.size, options.size, device=fast.device)
            with torch.inference_mode():
                timings = time_in_turn({"reference": model, "compiled": fast}, images, options.rounds)
            reference, compiled = timings["reference"], timings["compiled"]
            row: dict[str, Any] = {"model": name, "batch": batch, "run": fast.reason}
            row |= {"reference_ms": reference.median * 1e3, "compiled_ms": compiled.median * 1e3}
            row |= {"images_per_second": batch / compiled.median, "speedup": compiled.speedup}
            rows.append(row)
            if not options.json:
                if len(rows) == 1:
                    print(f"{fast.reason}; {torch.get_num_threads()} threads, {options.size}x{options.size}")
                    print(
                        f"{'model':<10}{'batch':>6}{'eager fp32 ms':>15}{'compiled ms':>13}{'img/s':>8}{'speed-up':>10}"
                    )
                print(
                    f"{name:<10}{batch:>6}{row['reference_ms']:>15.1f}{row['compiled_ms']:>13.1f}"
                    f"{row['images_per_second']:>8.1f}{row['speedup']:>9.2f}x",
                    flush=True,
                )
    if options.json:
        print(json.dumps(rows))
    return 0


def _tune(options: argparse.Namespace) -> int:
    settings, _ = choose("triton", options.precision)
    from ..engines.triton import tuning

    gpu = tuning.gpu_name(torch.device(settings.device))
    found: dict[str, tuning.Tuned] = {}
    status = 0
    if not options.json:
        print(f"{gpu}, {settings.precision}, {options.size}x{options.size}; microseconds a launch")
        print(tuning.HEADER)
    for name in options.models:
        torch.manual_seed(0)
        model = lower(create_model(name).eval()).in_precision(DTYPES[settings.precision]).to(settings.device)
        for batch in sorted({bucket(batch) for batch in options.batch}):  # the sizes that compiled models run
            try:
                images = tuning.random_images(model, batch, options.size, options.size)
                new = tuning.tune(model, images, skip=found)
            except torch.OutOfMemoryError:
                print(f"conformer-fast tune: {name}: the GPU has no room for a batch of {batch}", file=sys.stderr)
                status = 1
                continue
            tuning.save(gpu, new.values())  # each time: this takes long, and may be broken off
            found |= new
            for tuned in () if options.json else new.values():
                print(tuned, flush=True)
    file = tuning.table_file(gpu)
    if options.json:
        print(json.dumps({"gpu": gpu, "file": str(file), "tuned": [tuned.facts for tuned in found.values()]}))
    else:
        changed = sum(tuned.choice != tuned.rule for tuned in found.values())
        print(f"{len(found)} problems, {changed} with another choice than the rule's; written to {file}")
    return status


def _info(options: argparse.Namespace) -> int:
    missing = {name: backend.missing() for name, backend in BACKENDS.items()}
    _, reason = choose()
    packages = ("torch", "numpy", "pillow", "openvino", "onnx", "triton", "tensorrt", "tensorrt-rtx-cu13-bindings")
    facts = {
        "conformer_fast": __version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads",
        "packages": {name: _version(name) for name in packages},
        "backends": {
            name: why or "available: " + ", ".join(BACKENDS[name].precisions()) for name, why in missing.items()
        },
        "auto": reason,
        "images": image_path(),
        "cache": str(cache_root()),
        "models": [*VARIANTS, *PACKAGED],
    }
    if options.json:
        print(json.dumps(facts))
        return 0
    for key, value in facts.items():
        if isinstance(value, dict):
            print(f"{key}:")
            print("\n".join(f"  {name:<26} {what or 'not installed'}" for name, what in value.items()))
        else:
            print(f"{key}: {', '.join(value) if isinstance(value, list) else value}")
    return 0


def _convert(options: argparse.Namespace) -> int:
    report = convert(options.input, options.output, options.to)
    print(
        f"{options.output}: {report.matched} tensors, {report.dialect} -> {options.to}, {report.ignored} keys left out"
    )
    return 0


def _cache(options: argparse.Namespace) -> int:
    from ..engines import cache as cache_module

    if options.action == "clear":
        print(f"freed {cache_module.clear() / 1e6:.1f} MB in {cache_module.engines_folder()}")
        return 0
    entries = cache_module.entries()
    if options.json:
        print(json.dumps([{"key": e.key, "bytes": e.size, "used": e.used, "fields": dict(e.fields)} for e in entries]))
        return 0
    print(
        f"{len(entries)} engines, {sum(entry.size for entry in entries) / 1e6:.1f} MB, "
        f"in {cache_module.engines_folder()}"
    )
    for entry in entries:
        fields = entry.fields
        what = (
            f"{fields.get('height')}x{fields.get('width')}"
            if "height" in fields
            else ",".join(fields.get("targets", ()))
        )
        used = time.strftime("%F %R", time.localtime(entry.used))
        backend, precision = fields.get("backend"), fields.get("precision")
        print(f"  {entry.key[:8]}  {backend} {precision} {what:<16}{entry.size / 1e6:7.1f} MB  last used {used}")
    return 0


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("conformer-fast", description="Fast, verified inference for the vision Conformer.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    engine = argparse.ArgumentParser(add_help=False)
    engine.add_argument("--backend", default="auto", choices=["auto", *BACKENDS])
    engine.add_argument("--precision", default="auto", choices=["auto", *PRECISIONS])
    output = argparse.ArgumentParser(add_help=False)
    output.add_argument("--json", action="store_true", help="print JSON for a program to read")

    predict = commands.add_parser("predict", parents=[engine, output], help="classify images")
    predict.set_defaults(run=_predict)
    predict.add_argument("images", nargs="+", metavar="IMAGE")
    add_model_arguments(predict)
    add_calibration_arguments(predict)
    predict.add_argument("--bundle", metavar="DIR", help="run this engine instead of a model")
    predict.add_argument("--key", metavar="FILE", help="the key that the bundle is signed with")
    predict.add_argument("--topk", type=positive, default=5, metavar="K", help="classes to print an image (default 5)")
    predict.add_argument("--size", type=positive, metavar="PIXELS", help="side of the model's input (default 224)")

    add_evaluate(commands, engine, output)

    bench = commands.add_parser("bench", parents=[engine, output], help="time the compiled model against eager PyTorch")
    bench.set_defaults(run=_bench)
    bench.add_argument("--models", nargs="+", default=list(VARIANTS), choices=[*VARIANTS, *PACKAGED], metavar="MODEL")
    bench.add_argument("--batch", nargs="+", type=positive, default=[1, 8], metavar="N")
    bench.add_argument("--size", type=positive, default=224, metavar="PIXELS")
    add_calibration_arguments(bench)
    bench.add_argument("--rounds", type=positive, default=5, metavar="N")

    tune = commands.add_parser("tune", parents=[output], help="measure the kernels' tiles on this GPU; takes minutes")
    tune.set_defaults(run=_tune)
    tune.add_argument("--models", nargs="+", default=list(VARIANTS), choices=[*VARIANTS, *PACKAGED], metavar="MODEL")
    tune.add_argument("--batch", nargs="+", type=positive, default=[1, 8, 32, 128], metavar="N")
    tune.add_argument("--size", type=positive, default=224, metavar="PIXELS")
    tune.add_argument("--precision", default="auto", choices=["auto", *PRECISIONS])

    add_diff(commands, output)
    add_calibrate(commands, output)
    add_commands(commands, output)

    info = commands.add_parser("info", parents=[output], help="what this installation can do here, and why")
    info.set_defaults(run=_info)

    conversion = commands.add_parser("convert", help="rewrite a checkpoint as safetensors")
    conversion.set_defaults(run=_convert)
    conversion.add_argument("input", metavar="IN")
    conversion.add_argument("output", metavar="OUT.safetensors")
    conversion.add_argument("--to", choices=["official", "mmpretrain"], default="official", help="whose names to write")

    cache = commands.add_parser("cache", parents=[output], help="list or clear the built engines")
    cache.set_defaults(run=_cache)
    cache.add_argument("action", choices=["list", "clear"])
    return parser


if __name__ == "__main__":
    sys.exit(main())
