"""Mask R-CNN on small-p32 at 800x1344, one image, on a CPU: detector.py OUT.json. Run by `make bench`.

All in turn, in one process whose waiting threads sleep: the detector compiled in each precision, eager PyTorch, and
OpenVINO with the networks as its converter reads them. What stands between the networks, proposals, RoIAlign and
suppression, is the same code for all. Weights and image are random, so that there are as many regions and detections
as there may be. "operations" and "product_rates" say what the products alone take.

"stages": seconds of each in our engines, in turn; "between": what is left of the whole. "operators": RoIAlign and
suppression of these regions beside OpenVINO's own, with which the whole could be one of its engines. "sizes": what a
picture of another size costs: "first" and "later" seconds of an engine of its own, and of one for any size. "first" of
an own size has the graph there already.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

os.environ["OMP_WAIT_POLICY"] = "passive"  # before PyTorch: spinning threads would slow whoever runs next

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import conformer_fast as cf
from conformer_fast.engines.base import Settings
from conformer_fast.engines.openvino import engine
from conformer_fast.engines.openvino.device import describe, native_precisions
from conformer_fast.engines.openvino.products import product_rates
from conformer_fast.engines.openvino.runtime import core, ov
from conformer_fast.engines.timing import seconds_of, time_in_turn
from conformer_fast.model.detector.boxes import areas
from conformer_fast.model.detector.config import BOX_SIDE, LEVELS, MASK_SIDE
from conformer_fast.model.detector.detect import (
    PYTORCH,
    REGION_OVERLAP,
    Networks,
    detect,
    regions_of,
)
from conformer_fast.model.detector.operators import FINEST, LAST_LEVEL, nms, read_regions
from conformer_fast.model.detector.parts import Proposed
from conformer_fast.model.distance import relative_error
from conformer_fast.model.outputs import feature_names

from .cpu import identity
from .peers import OPENVINO

SIZE = 800, 1344
ROUNDS, STAGE_ROUNDS = 5, 4
CALIBRATION = 2  # images of noise: here only the speed counts
SPREAD = {  # deviation of what each layer returns: so that scores differ, and boxes lie apart
    "rpn_head.rpn_cls": 1.0,
    "rpn_head.rpn_reg": 0.3,
    "roi_head.bbox_head.fc_cls": 3.0,
    "roi_head.bbox_head.fc_reg": 1.0,
}


def main(path: Path) -> None:
    torch.manual_seed(0)
    detector = cf.create_detector("mask-rcnn").requires_grad_(False)
    spread(detector, torch.randn(1, 3, 320, 320))
    images = torch.randn(1, 3, *SIZE)
    ours = {f"conformer_fast {name}": fast for name, fast in compiled(detector)}
    calls: dict[str, Callable[[Tensor], Any]] = {**ours}
    calls["PyTorch eager fp32"] = no_gradients(detector.to(memory_format=torch.channels_last))
    for precision in OPENVINO:
        if precision in native_precisions():
            calls[f"OpenVINO {precision}"] = no_gradients(Converted(detector, precision).detect)
    report: dict[str, Any] = {**identity(), "openvino": describe()["openvino"], "height": SIZE[0], "width": SIZE[1]}
    report["operations"] = operations(detector.config)
    precisions = [name for name in native_precisions() if name != "fp16"]
    report["product_rates"] = product_rates(precisions, torch.get_num_threads())
    report["rows"] = [
        {"implementation": name, "seconds": timing.median, "low": timing.low, "high": timing.high}
        for name, timing in time_in_turn(calls, images, ROUNDS).items()
    ]
    print(*report["rows"], sep="\n", flush=True)
    report["stages"] = [stages(name, fast, images) for name, fast in ours.items()]
    print(*report["stages"], sep="\n", flush=True)
    report["operators"] = operators(detector, images)
    print(*report["operators"], sep="\n", flush=True)
    report["sizes"] = [sizes(detector, precision) for precision in native_precisions() if precision != "fp16"]
    print(*report["sizes"], sep="\n", flush=True)
    path.write_text(json.dumps(report, indent=1) + "\n")


def operations(config: cf.DetectorConfig) -> int:
    """Of the products of all networks with as many regions and detections as there may be, a multiplication and an
    addition being two."""
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        detector = cf.Detector(config).eval()
        detector.propose(torch.empty(1, 3, *SIZE))
        detector.boxes(torch.empty(config.proposals, config.channels, BOX_SIDE, BOX_SIDE))
        detector.masks(torch.empty(config.detections, config.channels, MASK_SIDE, MASK_SIDE))
    return counter.get_total_flops()


def spread(detector: cf.Detector, images: Tensor) -> None:
    def rescale(layer: Any, inputs: Any, output: Tensor, deviation: float) -> Tensor:
        factor = deviation / output.std()
        layer.weight.mul_(factor)
        return output * factor  # its bias is 0

    handles = [
        detector.get_submodule(name).register_forward_hook(partial(rescale, deviation=deviation))
        for name, deviation in SPREAD.items()
    ]
    detector(images)
    for handle in handles:
        handle.remove()


def compiled(detector: cf.Detector) -> Iterator[tuple[str, cf.FastDetector]]:
    for precision in native_precisions():
        if precision != "fp16":
            yield precision, cf.compile(detector, backend="openvino", precision=precision)
    noise = [torch.randn(1, 3, 256, 320) for _ in range(CALIBRATION)]
    yield "int8", cf.compile(detector, backend="openvino", precision="int8", quantization=noise)


def no_gradients(run: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    def call(images: Tensor) -> Any:
        with torch.inference_mode():
            return run(images)

    return call


class Converted:
    """The networks as OpenVINO's own converter reads the reference's parts."""

    operators = PYTORCH

    def __init__(self, detector: cf.Detector, precision: str) -> None:
        self._config = detector.config
        head, channels = detector.roi_head, detector.config.channels
        assert head.mask_head is not None
        features = torch.zeros(2, channels, 7, 7), torch.zeros(2, channels, 14, 14)
        given = (
            (detector.proposer, torch.zeros(1, 3, *SIZE), [1, 3, *SIZE]),
            (head.bbox_head, features[0], [-1, *features[0].shape[1:]]),
            (head.mask_head, features[1], [-1, *features[1].shape[1:]]),
        )
        self._requests = []
        for part, example, shape in given:
            model = ov.convert_model(part, example_input=example, input=[shape])
            options = {"INFERENCE_PRECISION_HINT": OPENVINO[precision], "PERFORMANCE_HINT": "LATENCY"}
            self._requests.append(core().compile_model(model, "CPU", options).create_infer_request())

    def detect(self, images: Tensor) -> list[cf.Detections]:
        height, width = images.shape[2:]
        return detect(self, self._config, images, [cf.ImageSize(height, width, height, width)])

    def propose(self, images: Tensor) -> Proposed:
        found = self._run(0, images)
        return Proposed(found[:LEVELS], found[LEVELS:])

    def boxes(self, features: Tensor) -> tuple[Tensor, Tensor]:
        logits, deltas = self._run(1, features)
        return logits, deltas

    def masks(self, features: Tensor) -> Tensor:
        return self._run(2, features)[0]

    def _run(self, part: int, images: Tensor) -> tuple[Tensor, ...]:
        results = self._requests[part].infer([np.ascontiguousarray(images.numpy())], share_outputs=True)
        return tuple(torch.from_numpy(value) for value in results.values())


def stages(name: str, fast: cf.FastDetector, images: Tensor) -> dict[str, Any]:
    """Seconds of each part: medians over rounds in which all take turns."""
    networks: Networks = fast.networks
    detector, settings = fast.reference, fast.settings
    quantization = settings.quantization and settings.quantization.part("proposer").part("backbone")
    alone = Settings(settings.backend, settings.precision, settings.device, quantization)
    backbone = settings.backend.engine(detector.backbone, alone, feature_names(fast.config.backbone)[:-1])
    size = cf.ImageSize(*images.shape[2:], *images.shape[2:])
    proposed = networks.propose(images)
    levels, maps = [values[0] for values in proposed.regions], [feature_map[0] for feature_map in proposed.maps]
    regions, _ = regions_of(levels, size, fast.config)
    (found,) = fast(images)
    features, masked = (
        read_regions(maps, boxes, fast.config.strides, side) for boxes, side in ((regions, 7), (found.boxes, 14))
    )
    parts: dict[str, Callable[[Tensor], Any]] = {
        "backbone": backbone,
        "backbone, pyramid and proposals' network": networks.propose,
        "proposals and their suppression": lambda _: regions_of(levels, size, fast.config),
        "RoIAlign": lambda _: read_regions(maps, regions, fast.config.strides, 7),
        "box head": lambda _: networks.boxes(features),
        "mask head": lambda _: networks.masks(masked),
        "whole": fast,
    }
    seconds: dict[str, list[float]] = {part: [] for part in parts}
    with torch.inference_mode():
        for turn in range(1 + STAGE_ROUNDS):
            for part, call in parts.items():
                found_seconds = seconds_of(call, images)
                if turn > 0:  # the first warms up
                    seconds[part].append(found_seconds)
    medians = {part: statistics.median(values) for part, values in seconds.items()}
    known = sum(value for part, value in medians.items() if part not in ("backbone", "whole"))
    return {
        "implementation": name,
        "regions": len(regions),
        "detections": len(found.boxes),
        "seconds": {**medians, "between": medians["whole"] - known},
    }


def sizes(detector: cf.Detector, precision: str) -> dict[str, Any]:
    height, width = SIZE
    across, down = torch.randn(1, 3, height, width), torch.randn(1, 3, width, height)
    own = cf.compile(detector, backend="openvino", precision=precision)
    with tempfile.TemporaryDirectory() as cache, pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONFORMER_FAST_CACHE", cache)
        own(across)  # writes the graph
        found = {"precision": precision, "own": _first_and_later(own, down)}
        patch.setattr(engine, "OWN_SIZES", 0)
        shared = cf.compile(detector, backend="openvino", precision=precision)
        found["shared"] = _first_and_later(shared, down)
    return found


def _first_and_later(fast: cf.FastDetector, images: Tensor) -> dict[str, float]:
    first = seconds_of(fast, images)
    return {"first": first, "later": statistics.median(seconds_of(fast, images) for _ in range(ROUNDS))}


def operators(detector: cf.Detector, images: Tensor) -> list[dict[str, Any]]:
    config, size = detector.config, cf.ImageSize(*images.shape[2:], *images.shape[2:])
    with torch.inference_mode():
        proposed = detector.propose(images)
        maps = [feature_map[0] for feature_map in proposed.maps]
        candidates: list[tuple[Tensor, Tensor, Tensor]] = []

        def noted(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float) -> Tensor:
            candidates.append((boxes, scores, groups))
            return nms(boxes, scores, groups, threshold)

        regions, _ = regions_of([values[0] for values in proposed.regions], size, config, noted)
        pairs = {
            f"RoIAlign of {len(regions)} regions": (
                lambda _: read_regions(maps, regions, config.strides, BOX_SIDE),
                openvino_read_regions(maps, regions, config.strides),
            ),
            f"suppression among {len(candidates[0][0])} boxes": (
                lambda _: nms(*candidates[0], REGION_OVERLAP),
                openvino_nms(*candidates[0]),
            ),
        }
        found = []
        for name, (ours, theirs) in pairs.items():
            assert relative_error(theirs(images), ours(images)) < 1e-4, name
            timings = time_in_turn({"conformer_fast": ours, "OpenVINO": theirs}, images, ROUNDS)
            found.append({"operator": name, **{who: timing.median for who, timing in timings.items()}})
    return found


def openvino_read_regions(
    maps: Sequence[Tensor], regions: Tensor, strides: Sequence[int]
) -> Callable[[Tensor], Tensor]:
    """Each map's regions in a node of their own, in one engine."""
    op, inputs, nodes, members = ov.opset13, [], [], []
    level = (areas(regions).sqrt() / FINEST + 1e-6).log2().floor().clamp(0, LAST_LEVEL)
    for index, (feature_map, stride) in enumerate(zip(maps, strides[: LAST_LEVEL + 1], strict=False)):
        places = (level == index).nonzero()[:, 0]
        if len(places):
            shape, boxes = [1, *feature_map.shape], regions[places].numpy()
            inputs.append((op.parameter(shape, np.float32), feature_map[None].contiguous().numpy()))
            node = op.roi_align(
                inputs[-1][0],
                op.constant(boxes),
                op.constant(np.zeros(len(boxes), np.int32)),
                pooled_h=BOX_SIDE,
                pooled_w=BOX_SIDE,
                sampling_ratio=0,
                spatial_scale=1 / stride,
                mode="avg",
                aligned_mode="half_pixel_for_nn",
            )
            nodes.append(node)
            members.append(places)
    request = request_of(ov.Model(nodes, [parameter for parameter, _ in inputs]))

    def run(images: Tensor) -> Tensor:
        found = request.infer([values for _, values in inputs], share_inputs=True, share_outputs=True)
        out = torch.empty(len(regions), len(maps[0]), BOX_SIDE, BOX_SIDE)
        for places, value in zip(members, found.values(), strict=True):
            out[places] = torch.from_numpy(value)
        return out

    return run


def openvino_nms(boxes: Tensor, scores: Tensor, groups: Tensor) -> Callable[[Tensor], Tensor]:
    """Of all groups at once, moved apart."""
    op = ov.opset13
    apart = (boxes + groups[:, None] * (boxes.max() + 1)).numpy()[None]
    inputs = op.parameter(apart.shape, np.float32), op.parameter([1, 1, len(boxes)], np.float32)
    node = op.non_max_suppression(
        *inputs,
        op.constant(np.int64(len(boxes))),
        op.constant(np.float32(REGION_OVERLAP)),
        op.constant(np.float32(-1)),
        box_encoding="corner",
        sort_result_descending=True,
        output_type="i64",
    )
    request = request_of(ov.Model([node.output(0)], [*inputs]))

    def run(images: Tensor) -> Tensor:
        (found,) = request.infer([apart, scores.numpy()[None, None]], share_inputs=True).values()
        return torch.from_numpy(found[:, 2])

    return run


def request_of(model: ov.Model) -> ov.InferRequest:
    return core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}).create_infer_request()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
