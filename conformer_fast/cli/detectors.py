"""What the commands that run detectors share."""

from __future__ import annotations

import argparse

import conformer_fast as cf

from ..errors import ArgumentError
from .arguments import ENGINE, KEYWORDS, check_pictures, check_quantization, key_of, refuse


def detector_of(options: argparse.Namespace) -> cf.FastDetector:
    """Of --bundle, or compiled as it was asked for."""
    if options.bundle:
        refuse(options, ENGINE, "--bundle says how its detector runs")
        check_pictures(options)
        fast = cf.load(options.bundle, key=key_of(options.key))
        if not isinstance(fast, cf.FastDetector):
            raise ArgumentError(f"{options.bundle} holds a classifier or a backbone, and a detector is asked for")
        return fast
    refuse(options, ("key",), "a key is for a --bundle")
    refuse(options, ("calibration_limit",), "of a folder 64 pictures are taken for a detector")
    check_quantization(options, [options.precision or "auto"])
    check_pictures(options)
    return cf.compile(
        cf.create_detector(weights=options.weights),
        backend=options.backend or "auto",
        precision=options.precision or "auto",
        quantization=asked_quantization(options),
    )


def asked_quantization(options: argparse.Namespace) -> cf.Quantization | str | None:
    """A file's content, or the folder of pictures to measure."""
    return cf.Quantization.load(options.quantization) if options.quantization else options.calibration


def asks_for_detector(options: argparse.Namespace) -> bool:
    """Whether --weights is a detector's file, or 'packaged' without the name of a classifier. Raises CheckpointError
    for a file that is no checkpoint."""
    from ..checkpoints.reading import of_detector, read_state_dict

    if options.weights in (None, *KEYWORDS):
        return options.weights == "packaged" and options.model is None
    return of_detector(read_state_dict(options.weights))
