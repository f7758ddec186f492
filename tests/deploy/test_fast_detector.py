"""Compiled detectors against the reference, and what they refuse."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from detector_samples import SMALL, alike, filled, image, small, smooth
from PIL import Image

import conformer_fast as cf
from conformer_fast.deploy.draw import drawn
from conformer_fast.engines.openvino.device import native_precisions
from conformer_fast.model.detector.boxes import overlaps
from conformer_fast.model.detector.masks import run_lengths
from conformer_fast.model.distance import relative_error

pytest.importorskip("openvino")


@pytest.fixture(scope="module")
def fast() -> cf.FastDetector:
    return cf.compile(small(), precision="fp32")


@pytest.mark.parametrize("size", [(96, 160), (250, 200), (64, 64)], ids=str)
def test_the_same_as_the_reference(fast, size):
    images, sizes = image(*size)
    (found,), (expected,) = fast(images, sizes), small()(images, sizes)
    assert len(expected.boxes) >= 5
    alike(found, expected)
    twice = fast(images.expand(2, -1, -1, -1), sizes * 2)
    for one in twice:
        alike(one, expected)


def test_without_masks():
    images, sizes = image(96, 96)
    fast = cf.compile(small(masks=False), precision="fp32")
    (found,), (expected,) = fast(images, sizes), small(masks=False)(images, sizes)
    alike(found, expected)
    assert found.masks is None


def test_boxes_and_masks_are_of_the_original_picture(fast):
    images, ((height, width, *_),) = image(96, 160)
    (found,) = fast(images, [cf.ImageSize(height, width, 2 * height, 3 * width)])
    (plain,) = fast(images, [cf.ImageSize(height, width, height, width)])
    torch.testing.assert_close(found.boxes, plain.boxes * torch.tensor([3.0, 2.0, 3.0, 2.0]))
    assert found.masks.shape[1:] == (2 * height, 3 * width)


@pytest.mark.parametrize("precision", [name for name in native_precisions() if name != "fp32"])
def test_in_16_bits(precision):
    """Of two boxes of nearly one score either may be kept, so most are compared, and not in order."""
    images, sizes = image(160, 192)
    (expected,) = small()(images, sizes)
    (found,) = cf.compile(small(), precision=precision)(images, sizes)
    nearest = overlaps(expected.boxes, found.boxes).max(1)
    right = (nearest.values > 0.8) & (found.labels[nearest.indices] == expected.labels)
    assert right.double().mean() > 0.7


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the int8 quantization may be far off")
def test_in_8_bits(tmp_path):
    calibration = [image(160, 192)[0], image(128, 256)[0]]
    quantization = cf.calibrate(small(), calibration)
    assert {name.partition(".")[0] for name in quantization.ranges} == {"proposer", "boxes", "masks"}
    assert "proposer.hidden" in quantization.ranges
    assert not {"proposer.regions", "boxes.regions", "masks.masks"} & set(quantization.ranges)
    quantization.save(tmp_path / "int8.json")
    images, sizes = image(160, 192)
    proposed = small().propose(images)
    for given in (cf.Quantization.load(tmp_path / "int8.json"), calibration):
        fast = cf.compile(small(), precision="int8", quantization=given)
        found = fast.networks.propose(images)
        for value, expected in zip([*found.maps, *found.regions], [*proposed.maps, *proposed.regions], strict=True):
            assert 1e-3 < relative_error(value, expected) < 0.08
        assert len(fast(images, sizes)[0].boxes) > 5


@pytest.mark.filterwarnings("ignore:the int8 quantization may be far off")
def test_a_folder_of_pictures_calibrates(tmp_path):
    detector = small(masks=False)
    for index in range(3):
        Image.fromarray(smooth(20 + index, 400)).save(tmp_path / f"{index}.png")
    quantization = cf.calibrate(detector, tmp_path, smoothquant=False)
    assert quantization.origin["images"] == 3
    assert {name.partition(".")[0] for name in quantization.ranges} == {"proposer", "boxes"}


def test_quantizations_that_do_not_fit():
    of_another = cf.Quantization("int8", {"stem": 1.0})
    with pytest.raises(cf.ArgumentError, match="ranges of stem, which this detector does not have"):
        cf.compile(small(), precision="int8", quantization=of_another)
    unknown = cf.Quantization("int8", {"boxes.nothing": 1.0})
    with pytest.raises(cf.ArgumentError, match="no products nothing"):
        cf.compile(small(), precision="int8", quantization=unknown)
    of_a_detector = cf.Quantization("int8", {"proposer.hidden": 1.0})
    with pytest.raises(cf.ArgumentError, match=r"no products proposer\.hidden"):
        cf.compile(cf.create_model("digits"), precision="int8", quantization=of_a_detector)
    for options, message in (
        ({"precision": "fp8"}, "put in int8, got precision 'fp8'"),
        ({"max_drop": 0.5}, "without max_drop"),
        ({"images": []}, "got no images"),
        ({"images": [torch.zeros(1, 3, 30, 32)]}, "multiples of 32"),
    ):
        with pytest.raises(cf.ArgumentError, match=message):
            cf.calibrate(small(), **{"images": [image(64, 64)[0]], **options})


def test_the_reference_backend():
    images, sizes = image(64, 96)
    fast = cf.compile(small(), backend="reference")
    (found,), (expected,) = fast(images, sizes), small()(images, sizes)
    alike(found, expected, atol=0)


def test_what_becomes_of_the_model_changes_nothing():
    detector = filled(SMALL)
    fast = cf.compile(detector, precision="fp32")
    images, sizes = image(64, 96)
    (expected,) = small()(images, sizes)
    for parameter in detector.parameters():
        parameter.zero_()
    (found,) = fast(images, sizes)
    alike(found, expected)


def test_copies_find_the_same(fast):
    images, sizes = image(64, 96)
    (expected,) = fast(images, sizes)
    for other in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        (found,) = other(images, sizes)
        alike(found, expected, atol=0)


def test_several_threads(fast):
    images, sizes = image(96, 64)
    (expected,) = fast(images, sizes)
    with ThreadPoolExecutor(4) as pool:
        for (found,) in pool.map(lambda _: fast(images, sizes), range(8)):
            alike(found, expected)


def all_is_background(detector):
    detector.roi_head.bbox_head.fc_cls.weight.zero_()
    detector.roi_head.bbox_head.fc_cls.bias.copy_(torch.tensor([0.0] * 5 + [20.0]))


def no_box_is_in_the_image(detector):
    detector.rpn_head.rpn_reg.bias.fill_(-50.0)


@pytest.mark.parametrize("spoil", [all_is_background, no_box_is_in_the_image])
def test_nothing_is_found(spoil):
    detector = filled(SMALL)
    spoil(detector)
    images, sizes = image(64, 96)
    for run in (detector, cf.compile(detector, precision="fp32")):
        (found,) = run(images, sizes)
        assert found.boxes.shape == (0, 4)
        assert found.masks.shape == (0, 64, 96)


def test_values_that_are_not_finite_are_refused():
    for name, message in (("rpn_head.rpn_cls", "proposals are NaN"), ("roi_head.bbox_head.fc_cls", "scores are NaN")):
        detector = filled(SMALL)
        detector.get_parameter(f"{name}.bias").fill_(torch.nan)
        images, sizes = image(64, 96)
        for run in (detector, cf.compile(detector, precision="fp32")):
            with pytest.raises(cf.ArgumentError, match=message):
                run(images, sizes)


def test_results_are_ordinary_tensors_wherever_pytorch_makes_them(fast):
    images, sizes = image(64, 96)
    with torch.device("meta"):
        (found,) = fast(images, sizes)
    found.boxes.mul_(2)
    assert found.boxes.device.type == "cpu"


def test_a_picture_is_turned_as_its_file_says(fast, tmp_path):
    picture = Image.fromarray(smooth(60, 90))
    exif = picture.getexif()
    exif[0x0112] = 6  # the first row is the right side
    picture.save(tmp_path / "turned.png", exif=exif)
    picture.rotate(-90, expand=True).save(tmp_path / "plain.png")
    turned, plain = fast.predict([tmp_path / "turned.png", tmp_path / "plain.png"])
    assert (turned.width, turned.height) == (60, 90)
    alike(turned.detections, plain.detections, atol=0)


@pytest.mark.parametrize(
    ("images", "sizes", "message"),
    [
        (torch.zeros(3, 64, 64), None, "must have shape"),
        (torch.zeros(1, 1, 64, 64), None, "must have shape"),
        (torch.zeros(0, 3, 64, 64), None, "none empty"),
        (torch.zeros(1, 3, 64, 65), None, "multiples of 32, got 64x65"),
        (torch.zeros(1, 3, 64, 64), [], "0 sizes for 1 images"),
        (torch.zeros(1, 3, 64, 64), [(64, 64)], "four whole numbers"),
        (torch.zeros(1, 3, 64, 64), [(65, 64, 9, 9)], "a picture of 65x64 is not in an image of 64x64"),
        (torch.zeros(1, 3, 64, 64), [(64, 0, 9, 9)], "four whole numbers"),
        (torch.full((1, 3, 64, 64), torch.nan), None, "12288 of the images' 12288 values are not finite"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), None, "floating point and normalized"),
        (torch.zeros(1, 3, 64, 64).to_sparse(), None, "one dense tensor"),
        (torch.zeros(1, 3, 64, 64), [(64, 64, 10**30, 9)], "four whole numbers"),
        ("picture.jpg", None, "must be a tensor"),
    ],
    ids=str,
)
def test_wrong_images(fast, images, sizes, message):
    for run in (fast, fast.reference):
        with pytest.raises(cf.ArgumentError, match=message):
            run(images, sizes)


def test_what_runs_no_detectors():
    for backend in ("triton", "tensorrt"):
        with pytest.raises(cf.BackendError):
            cf.compile(small(), backend=backend)
    with pytest.raises(cf.ArgumentError, match="takes its ranges from images"):
        cf.compile(small(), precision="int8")
    with pytest.raises(cf.ArgumentError, match="training mode"):
        cf.compile(cf.Detector(SMALL))


def test_files(fast, tmp_path):
    Image.fromarray(smooth(90, 120)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no picture")
    with pytest.warns(UserWarning, match="assumed: ImageNet's normalization"):
        found, damaged = fast.predict([tmp_path / "a.png", tmp_path / "b.png"])
    assert (found.width, found.height, found.detections.masks.shape[1:]) == (120, 90, (90, 120))
    assert "b.png" in damaged.error
    first = found.objects(0.0)[0]
    assert set(first) == {"label", "index", "score", "box", "mask"}
    assert found.objects(1.0) == []
    with pytest.raises(cf.ArgumentTypeError, match="paths must be a list"):
        fast.predict("a.png")


def test_run_lengths():
    mask = torch.tensor([[0, 1], [1, 1]]).bool()
    assert run_lengths(mask) == {"size": [2, 2], "counts": [1, 3]}
    assert run_lengths(~mask) == {"size": [2, 2], "counts": [0, 1, 3]}
    assert run_lengths(torch.zeros(2, 3).bool())["counts"] == [6]


def test_drawn():
    picture = Image.new("RGB", (80, 60), "gray")
    mask = torch.zeros(2, 60, 80, dtype=torch.bool)
    mask[0, 30:40, 20:50] = True
    found = cf.Detections(
        torch.tensor([[10.0, 20.0, 70.0, 50.0], [0.0, 0.0, 5.0, 5.0]]),
        torch.tensor([0.9, 0.1]),
        torch.tensor([1, 0]),
        mask,
    )
    out = drawn(picture, found, ("a", "b"), min_score=0.5)
    assert out.size == picture.size
    assert out.getpixel((30, 35)) != picture.getpixel((30, 35))  # in the mask
    assert out.getpixel((30, 45)) == picture.getpixel((30, 45))  # in the box
    assert out.getpixel((10, 45)) != picture.getpixel((10, 45))  # on its edge
    assert out.getpixel((75, 55)) == picture.getpixel((75, 55))
    assert drawn(picture, found, ("a", "b"), min_score=1.0).tobytes() == picture.tobytes()


@pytest.mark.filterwarnings("ignore:the int8 quantization may be far off")
def test_calibration_on_pictures_without_objects():
    detector = filled(SMALL)
    background = detector.roi_head.bbox_head.fc_cls.bias
    background[-1] += 50
    images, sizes = image(64, 96)
    assert not len(detector(images, sizes)[0].boxes)
    quantization = cf.calibrate(detector, [images])
    assert {name.partition(".")[0] for name in quantization.ranges} == {"proposer", "boxes"}
    fast = cf.compile(detector, precision="int8", quantization=quantization)
    assert not len(fast(images, sizes)[0].boxes)


def test_batches_for_calibration():
    images = image(64, 96)[0]
    with pytest.raises(cf.ArgumentTypeError, match=r"must be a list of batches, such as images\.split\(1\), got one"):
        cf.calibrate(small(), images)
    with pytest.warns(UserWarning, match="may be far off"):
        pair, plain = (cf.calibrate(small(), [given], smoothquant=False) for given in ((images, [3]), images))
    assert pair.ranges == plain.ranges


@pytest.mark.parametrize("layer", ["bbox_head.fc_reg", "mask_head.convs.0.conv"])
def test_a_head_beyond_the_range_is_said(layer):
    """Silence would be boxes of NaN, or masks of nothing."""
    detector = filled(SMALL)
    detector.roi_head.get_submodule(layer).weight.mul_(torch.inf)
    images, sizes = image(64, 96)
    what = "boxes" if "fc_reg" in layer else "masks"
    for run in (detector, cf.compile(detector, backend="reference")):
        with pytest.raises(cf.ArgumentError, match=f"the detector's {what} are NaN or infinite"):
            run(images, sizes)


def test_pytorchs_defaults_change_nothing(fast):
    images, sizes = image(64, 96)
    (expected,) = fast(images, sizes)
    try:
        torch.set_default_dtype(torch.float64)
        torch.set_default_device("meta")
        other = cf.compile(small(), precision="fp32")
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device("cpu")
    assert {(tensor.dtype, tensor.device.type) for tensor in other.reference.parameters()} == {(torch.float32, "cpu")}
    alike(other(images, sizes)[0], expected, atol=0)


def test_names_of_other_classes_are_refused():
    with pytest.raises(cf.ArgumentError, match="2 labels for a model of 5 classes"):
        filled(SMALL).recipe = cf.Recipe(labels=("a", "b"))


def test_masks_that_no_memory_holds(fast):
    images, _ = image(96, 160)
    with pytest.raises(cf.ArgumentError, match=r"masks of a picture of 100000x100000 take [\d,]+ bytes"):
        fast(images, [cf.ImageSize(96, 160, 100_000, 100_000)])


def test_what_takes_classifiers_names_what_takes_detectors(fast, tmp_path):
    images = image(64, 64)[0]
    for call in (
        lambda: cf.explain(small(), images),
        lambda: cf.diff(small(), images),
        lambda: cf.export(small(), tmp_path / "x.onnx"),
    ):
        with pytest.raises(cf.ArgumentTypeError, match="a Detector is given where a Conformer is asked for"):
            call()
    with pytest.raises(cf.ArgumentTypeError, match="or give a detector to evaluate_detector"):
        cf.evaluate(fast, tmp_path)
    with pytest.raises(cf.ArgumentTypeError, match="serve needs a classifier that compile or load returned"):
        cf.serve(fast)
    with pytest.raises(cf.ArgumentTypeError, match="batch needs a classifier that compile or load returned"):
        cf.batch(fast, tmp_path, tmp_path / "x.csv")
    with pytest.raises(cf.ArgumentTypeError, match="compiled already"):
        cf.compile(fast)


def test_a_detectors_weights_as_a_backbone(tmp_path):
    """Which is said: most who give them want the detector."""
    with pytest.warns(
        UserWarning, match="the weights are a detector's: taken as its backbone; create_detector takes all"
    ):
        fast = cf.compile(small().state_dict(), backend="reference")
    assert fast.labels == ()
    torch.save(small().state_dict(), tmp_path / "d.pth")
    with pytest.warns(UserWarning, match="is a detector's: its backbone alone is written"):
        cf.convert(tmp_path / "d.pth", tmp_path / "b.safetensors")
