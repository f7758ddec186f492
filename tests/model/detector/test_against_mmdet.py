"""The real mmdet, where it is installed, prepares pictures as we do and finds in them what our detector finds."""

from dataclasses import replace
from pathlib import Path

import mmcv_operators
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from conformer_fast.model.config import ConformerConfig
from conformer_fast.model.detector import operators
from conformer_fast.model.detector.boxes import BOX_STDS, REGION_STDS, anchors, moved
from conformer_fast.model.detector.config import BOX_SIDE, MASK_SIDE, detector_config
from conformer_fast.model.detector.detect import ImageSize, regions_of
from conformer_fast.model.detector.masks import pasted
from conformer_fast.model.detector.reference import Detector
from conformer_fast.model.recipe import MEAN, STD
from conformer_fast.model.reference import Conformer
from conformer_fast.preprocessing.detection import fit_pictures

pytest.importorskip("mmdet", reason="mmdet and mmcv-lite, which judge the detector, are not installed")
import mmdet
from mmcv.ops import batched_nms
from mmcv.transforms import LoadImageFromFile
from mmdet.datasets.transforms import Resize
from mmdet.models import detectors  # noqa: F401 -- registers MaskRCNN and FasterRCNN
from mmdet.models.roi_heads.mask_heads import fcn_mask_head
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import DefaultScope

pytestmark = pytest.mark.filterwarnings("ignore")  # mmcv and mmengine warn on import

BACKBONE = ConformerConfig(patch_size=16, channel_ratio=1, embed_dim=64, num_heads=4, depth=6, mlp_ratio=2)
FACTORS = {"fpn_convs": 1 / 150, "rpn_reg": 0.3, "shared_fcs": 5, "fc_cls": 40, "fc_reg": 20}  # of random weights
H, W = 224, 256  # pixels of the images
MAPS = [(H // stride, W // stride) for stride in (4, 8, 16, 32)]
SIZES = [ImageSize(200, 256, 150, 190), ImageSize(224, 170, 300, 230)]
PICTURES = [  # width x height
    [(640, 480), (427, 640)],
    [(333, 501), (97, 31)],  # odd sides
    [(2688, 1600), (1344, 800)],  # twice the pixels, and all of them as they are
    [(2001, 1337)],
    [(3000, 211)],
]


class _Backbone(Conformer):
    """As a detector of mmdet calls it."""

    def forward(self, images):
        return self.forward_features(images).maps


@pytest.fixture(autouse=True)
def _mmdet_in_float64(monkeypatch):
    """What no type is given for is float64, in mmdet too, so that rounding does not decide what is found."""
    monkeypatch.setattr(fcn_mask_head, "_do_paste_mask", mmcv_operators.in_float64(fcn_mask_head._do_paste_mask))
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(3)  # of which there are 1000 regions, and objects of several classes
    with DefaultScope.overwrite_default_scope("mmdet"):
        yield
    torch.set_default_dtype(torch.float32)


def _detectors(name, **limits):
    """Ours and theirs, with the same random weights. Theirs has the settings of mmdet's own file, but for the sizes."""
    config = replace(detector_config(name, BACKBONE, 5), channels=32, hidden=64, **limits)
    ours = Detector(config).eval().requires_grad_(False)
    for part in (ours.neck, ours.rpn_head, ours.roi_head):
        part.apply(_drawn)
    for key, parameter in ours.named_parameters():
        parameter.mul_(next((factor for part, factor in FACTORS.items() if part in key), 1))
        if key.endswith("bias") and not key.startswith("backbone"):
            parameter.normal_(std=0.1)
    settings = Config.fromfile(Path(mmdet.__file__).parent / f".mim/configs/_base_/models/{name}_r50_fpn.py").model
    settings.backbone = {"type": _Backbone, "config": BACKBONE, "features_only": True}
    settings.neck.update(in_channels=[64, 128, 256, 256], out_channels=32)
    settings.rpn_head.update(in_channels=32, feat_channels=32)
    settings.roi_head.bbox_roi_extractor.update(out_channels=32)
    settings.roi_head.bbox_head.update(in_channels=32, fc_out_channels=64, num_classes=5)
    if config.masks:
        settings.roi_head.mask_roi_extractor.update(out_channels=32)
        settings.roi_head.mask_head.update(in_channels=32, conv_out_channels=32, num_classes=5)
    if limits:
        settings.test_cfg.rcnn.max_per_img = limits["detections"]
    theirs = MODELS.build(settings).eval().requires_grad_(False)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def _drawn(layer):
    """Draws weights, whatever a detector starts with: the FACTORS are of these."""
    if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(layer, nn.Linear):
        nn.init.normal_(layer.weight, std=0.01)


def _images():
    """Images of two pictures, and what mmdet is told of those."""
    images, samples = torch.zeros(2, 3, H, W), []
    for image, (height, width, *original) in zip(images, SIZES, strict=True):
        spots = F.interpolate(torch.randn(1, 3, 7, 8), (height, width), mode="bilinear")
        image[:, :height, :width] = spots[0] + 0.3 * torch.randn(3, height, width)
        factors = (width / original[1], height / original[0])
        samples.append(
            DetDataSample(metainfo={"img_shape": (height, width), "ori_shape": original, "scale_factor": factors})
        )
    return images, samples


def _random_boxes(count):
    """Boxes in an image, from a pixel to all of it."""
    corners = torch.rand(count, 2, 2).pow(2) * torch.tensor([W, H])
    corners[::2] = torch.tensor([W, H]) - corners[::2]
    return corners.sort(1).values.flatten(1)


def _close(ours, theirs, atol=1e-9):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)


def _same(boxes, scores, instances):
    """Their order: of the exact scores, where ours is of those in float32."""
    order = scores.argsort(descending=True)
    _close(boxes[order], instances.bboxes)
    _close(scores[order], instances.scores)
    _close(scores, instances.scores, atol=1e-6)
    return order


@pytest.mark.parametrize(("name", "limits"), [("mask-rcnn", {}), ("faster-rcnn", {"detections": 5000})])
def test_the_same_is_found(name, limits):
    """In the first as many as may be, in the second all that score enough."""
    ours, theirs = _detectors(name, **limits)
    images, samples = _images()
    for found, sample in zip(ours(images, SIZES), theirs.predict(images, samples), strict=True):
        instances = sample.pred_instances
        order = _same(found.boxes, found.scores, instances)
        assert torch.equal(found.labels[order], instances.labels)
        assert len(found.labels.unique()) > 1
        assert (found.masks is None) == (name == "faster-rcnn")
        if found.masks is not None:
            assert torch.equal(found.masks[order], instances.masks)
            assert len(found.masks) == ours.config.detections


def test_the_same_regions_are_proposed():
    ours, theirs = _detectors("faster-rcnn")
    images, samples = _images()
    proposed = ours.propose(images).regions
    judged = theirs.rpn_head.predict(theirs.extract_feat(images), samples)
    for index, (size, instances) in enumerate(zip(SIZES, judged, strict=True)):
        boxes, scores = regions_of([values[index] for values in proposed], size, ours.config)
        assert len(boxes) == 1000  # as many as may be
        _same(boxes, scores, instances)


def test_anchors_are_alike():
    generator = _detectors("faster-rcnn")[1].rpn_head.prior_generator
    sizes = [*MAPS, (4, 4)]
    judged = generator.grid_priors(sizes, dtype=torch.float64, device="cpu")
    for (height, width), stride, theirs in zip(sizes, (4, 8, 16, 32, 64), judged, strict=True):
        _close(anchors(height, width, stride, like=theirs), theirs)


def test_boxes_are_moved_alike():
    _, theirs = _detectors("faster-rcnn")
    boxes, deltas = _random_boxes(300), torch.randn(300, 4) * torch.tensor([0.5, 0.5, 3, 3])
    for head, stds in ((theirs.rpn_head, REGION_STDS), (theirs.roi_head.bbox_head, BOX_STDS)):
        scaled = deltas / torch.tensor(stds)
        _close(moved(boxes, scaled, stds, 200, 250), head.bbox_coder.decode(boxes, scaled, max_shape=(200, 250)))


def test_pyramids_are_alike():
    ours, theirs = _detectors("faster-rcnn")
    maps = [torch.randn(2, channels, *size) for channels, size in zip((64, 128, 256, 256), MAPS, strict=True)]
    for our_map, their_map in zip(ours.neck(maps), theirs.neck(maps), strict=True):
        _close(our_map, their_map)


@pytest.mark.parametrize("extension", [operators._C, None], ids=["extension", "plain"])
def test_overlapping_boxes_are_removed_alike(extension, monkeypatch):
    monkeypatch.setattr(operators, "_C", extension)
    boxes, scores, groups = _random_boxes(500), torch.randperm(500) / 500, torch.randint(3, (500,))
    _, judged = batched_nms(boxes, scores, groups, {"type": "nms", "iou_threshold": 0.5})
    assert 100 < len(judged) < 400
    assert torch.equal(operators.nms(boxes, scores, groups, 0.5), judged)


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-4), (torch.float64, 1e-12)])
@pytest.mark.parametrize("side", [BOX_SIDE, MASK_SIDE])
def test_regions_are_read_alike(side, dtype, atol):
    ours, theirs = _detectors("mask-rcnn")
    head = theirs.roi_head
    extractor = head.bbox_roi_extractor if side == BOX_SIDE else head.mask_roi_extractor
    maps = [torch.randn(32, *size, dtype=dtype) for size in MAPS]
    special = torch.tensor([[0, 0, W, H], [9, 9, 9, 20], [8, 8, 119.99999, 119.99999]])  # all, empty, a level's edge
    boxes = torch.cat([_random_boxes(200), special]).to(dtype)
    judged = extractor([feature_map[None] for feature_map in maps], F.pad(boxes, (1, 0)))
    _close(operators.read_regions(maps, boxes, ours.config.strides, side), judged, atol)


def test_masks_are_pasted_alike():
    head = _detectors("mask-rcnn")[1].roi_head.mask_head
    logits, boxes, labels = torch.randn(100, 5, 28, 28), _random_boxes(100), torch.randint(5, (100,))
    meta = {"scale_factor": (1.0, 1.0), "ori_shape": (H, W)}
    judged = head._predict_by_feat_single(logits, boxes, labels, meta, Config({"mask_thr_binary": 0.5}), rescale=True)
    assert torch.equal(pasted(logits[torch.arange(100), labels].sigmoid(), boxes, H, W), judged)


@pytest.mark.parametrize("sides", PICTURES, ids=str)
def test_pictures_are_prepared_alike(sides, tmp_path):
    pictures, loaded = [], []
    for index, (width, height) in enumerate(sides):
        pictures.append(Image.fromarray(torch.randint(256, (height, width, 3), dtype=torch.uint8).numpy()))
        pictures[-1].save(tmp_path / f"{index}.bmp")
        read = LoadImageFromFile()({"img_path": str(tmp_path / f"{index}.bmp")})
        loaded.append(Resize(scale=(1344, 800), keep_ratio=True)(read))
    images, sizes = fit_pictures(pictures)
    pixels = (images * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)) * 255
    for picture, size, theirs in zip(pixels, sizes, loaded, strict=True):
        assert size == (*theirs["img_shape"], *theirs["ori_shape"])
        assert (size.width / size.original_width, size.height / size.original_height) == theirs["scale_factor"]
        ours = picture[:, : size.height, : size.width].permute(1, 2, 0).round()
        assert np.array_equal(ours, theirs["img"][..., ::-1])  # of red, green, blue
    inputs = [torch.from_numpy(theirs["img"]).permute(2, 0, 1) for theirs in loaded]
    preprocess = _detectors("faster-rcnn")[1].data_preprocessor
    _close(images, preprocess({"inputs": inputs, "data_samples": None})["inputs"].float(), atol=1e-5)
