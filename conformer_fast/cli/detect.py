"""conformer-fast detect: objects in picture files, with their boxes and masks."""

from __future__ import annotations

import argparse
import sys
from io import BytesIO
from pathlib import Path

import conformer_fast as cf

from ..errors import ArgumentError, a_path, shown
from .arguments import add_bundle, add_engine, add_pictures, add_quantization, pictures_of, show
from .detectors import detector_of

EXAMPLE = "handwritten_digits.png"
MIN_SCORE = 0.3
FILES = (".png", ".jpg", ".jpeg")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_pictures(parser, "handwritten digits on a texture, by the detector that ships, which never saw them")
    parser.add_argument(
        "--weights", metavar="FILE", help="a detector's checkpoint, or 'packaged' (digits scattered on textures)"
    )
    add_engine(parser)
    add_quantization(parser)
    add_bundle(parser, "run this detector's engines instead")
    parser.add_argument(
        "--min-score", type=share, default=MIN_SCORE, metavar="S", help=f"of what is shown (default {MIN_SCORE})"
    )
    parser.add_argument(
        "--draw",
        metavar="OUT",
        help="draw it: into a .png or .jpg file for one picture, for several into a folder, as NAME.detected.png",
    )


def share(text: str) -> float:
    """A number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be from 0 to 1, got {text!r}")
    return value


def run(options: argparse.Namespace) -> int:
    from ..deploy.detect import Damaged

    paths = pictures_of(options, EXAMPLE, ("weights", "bundle"))
    if options.example:
        options.weights = "packaged"
    if (options.weights is None) == (options.bundle is None):
        raise ArgumentError("give either --weights or --bundle, a detector's")
    places = drawings(options.draw, paths)
    detector = detector_of(options)
    pictures, damaged = [], []
    for path, found in zip(paths, detector.predict(paths), strict=True):
        if isinstance(found, Damaged):
            damaged.append({"path": path, "error": found.error})
            print(f"conformer-fast detect: {shown(found.error, 1000)}", file=sys.stderr)
            continue
        objects = found.objects(options.min_score)
        pictures.append({"path": path, "width": found.width, "height": found.height, "objects": objects})
        lines = [shown(path, 1000)]
        for one in objects:
            sides = " ".join(f"{side:.0f}" for side in one["box"])
            lines.append(f"  {one['score']:7.2%}  {shown(one['label'])} ({one['index']})  {sides}")
        if path in places:
            draw(places[path], found, options.min_score)
            lines.append(f"  drawn in {shown(places[path], 1000)}")
        if not options.json:
            print("\n".join(lines), flush=True)
    result = {
        "weights": options.weights,
        "bundle": options.bundle,
        "backend": detector.settings.backend.name,
        "precision": detector.settings.precision,
        "pictures": pictures,
        "damaged": damaged,
    }
    show(options, result, "")
    return 1 if damaged else 0


def drawings(out: str | None, images: list[str]) -> dict[str, Path]:
    """Where each picture is drawn. Raises ArgumentError, before any work, for a place that cannot be."""
    from ..datasets.labels import PICTURES
    from ..storage.outputs import check_output

    if out is None:
        return {}
    path = a_path("--draw", out)
    is_file = path.suffix.lower() in FILES
    if (path.suffix.lower() in PICTURES and not is_file) or out == "-":
        raise ArgumentError(f"--draw writes {', '.join(FILES)} files, or into a folder, got {shown(out)}")
    if is_file and len(images) > 1:
        raise ArgumentError(f"{len(images)} pictures are drawn into a folder; give --draw one, not {shown(out)}")
    if is_file:
        places = {images[0]: path}
    else:
        places = {image: path / f"{Path(image).stem}.detected.png" for image in images}
        if len(set(places.values())) != len(places):
            raise ArgumentError("two of the pictures have the same name, and would be drawn into the same file")
        path.mkdir(parents=True, exist_ok=True)
    for place in places.values():
        check_output(place, images)
    return places


def draw(place: Path, found: cf.DetectedPicture, min_score: float) -> None:
    from ..deploy.draw import drawn
    from ..preprocessing.detection import load_upright
    from ..storage.outputs import write_output

    picture, file = drawn(load_upright(found.path), found.detections, found.labels, min_score), BytesIO()
    picture.save(file, "PNG" if place.suffix.lower() == ".png" else "JPEG")
    write_output(place, file.getvalue())
