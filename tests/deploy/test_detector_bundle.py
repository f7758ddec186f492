"""A detector's save, load, build and verify: the same detections without the Detector, alike on every backend."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from detector_samples import SMALL, alike, filled, image, small
from fake_cuda import fake_cuda

import conformer_fast as cf
from conformer_fast.bundles.folder import read_bundle, write_bundle
from conformer_fast.deploy.load import load_classifier
from conformer_fast.engines.detector import pictures_of
from conformer_fast.engines.registry import format_of
from conformer_fast.engines.tensorrt import backend as tensorrt_backend
from conformer_fast.engines.tensorrt import engine as tensorrt_engine
from conformer_fast.engines.tensorrt.flavors import get_flavor
from conformer_fast.engines.tensorrt.plan import engine_from_onnx
from conformer_fast.inference.detector import outputs_of, parts_of
from conformer_fast.inference.lower import lower
from conformer_fast.model.digest import weights_sha256

KEY = b"a secret of 24 bytes ..."
NETWORKS = ("proposer", "boxes", "masks")
SIDES = (64, 96, 256)
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:the int8 quantization may be far off")]


@pytest.fixture(params=["openvino", "triton"])
def backend(request):
    """The GPU of "triton" is pretended, and is the CPU."""
    if request.param == "openvino":
        pytest.importorskip("openvino")
    with fake_cuda() if request.param == "triton" else nullcontext():
        yield request.param


@pytest.fixture(scope="module")
def calibrated() -> cf.Quantization:
    return cf.calibrate(small(), [image(96, 160)[0]])


def saved(folder, backend: str, detector: cf.Detector | None = None, **options):
    fast = cf.compile(detector or small(), backend=backend, precision="fp32")
    fast(*image(96, 160))
    return fast, fast.save(folder, **options)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An OpenVINO bundle, to be copied."""
    pytest.importorskip("openvino")
    return saved(tmp_path_factory.mktemp("made") / "bundle", "openvino")[1]


@pytest.mark.parametrize("masks", [True, False], ids=["masks", "boxes"])
def test_loaded_finds_the_same(backend, masks, tmp_path):
    fast, folder = saved(tmp_path / "bundle", backend, small(masks))
    loaded = cf.load(folder)
    assert isinstance(loaded, cf.FastDetector)
    assert (loaded.config, loaded.labels, loaded.reference) == (fast.config, fast.labels, None)
    assert [*loaded.manifest.networks] == [*NETWORKS[: 2 + masks]]
    assert loaded.manifest.sha256["weights"] == weights_sha256(small(masks)) == fast.identity["weights"]
    for size in ((96, 160), (64, 64)):  # the second has run nowhere
        images, sizes = image(*size)
        (expected,), (found,) = fast(images, sizes), loaded(images, sizes)
        assert len(expected.boxes) > 5
        alike(found, expected, atol=1e-4)
    for other in (copy.deepcopy(loaded), pickle.loads(pickle.dumps(loaded)), cf.load(loaded.save(tmp_path / "copy"))):
        alike(other(images, sizes)[0], found, atol=0)


def test_compiled_like_the_reference(backend):
    """Also on the pretended GPU, whose networks are recorded one by one, with their inputs in the networks' type."""
    images, sizes = image(96, 160)
    (found,) = cf.compile(small(), backend=backend, precision="fp32")(images, sizes)
    alike(found, small()(images, sizes)[0])


def test_in_8_bits(backend, calibrated, tmp_path):
    fast = cf.compile(small(), backend=backend, precision="int8", quantization=calibrated)
    images, sizes = image(96, 160)
    (expected,) = fast(images, sizes)
    loaded = cf.load(fast.save(tmp_path / "bundle"))
    alike(loaded(images, sizes)[0], expected, atol=0)
    assert fast.verify(images).within
    report = loaded.verify(images, small())
    assert report.within
    assert "as its quantization is not known here" in report.verdict


def test_a_detector_that_never_ran(backend, tmp_path):
    loaded = cf.load(cf.compile(small(), backend=backend, precision="fp32").save(tmp_path / "bundle"))
    images, sizes = image(64, 96)
    alike(loaded(images, sizes)[0], small()(images, sizes)[0])


def test_a_signed_bundle(tmp_path):
    pytest.importorskip("openvino")
    _, folder = saved(tmp_path / "bundle", "openvino", key=KEY)
    assert cf.load(folder, key=KEY).manifest.backend == "openvino"
    with pytest.raises(cf.BundleError, match="not signed with this key"):
        cf.load(folder, key=b"another key of this size")


def test_labels(tmp_path):
    pytest.importorskip("openvino")
    names = ["ant", "bee", "cat", "dog", "elk"]
    _, folder = saved(tmp_path / "bundle", "openvino", labels=names)
    loaded = cf.load(folder)
    assert loaded.labels == loaded.recipe.labels == tuple(names)
    assert (folder / "labels.txt").read_text() == "ant\nbee\ncat\ndog\nelk\n"
    others = cf.load(loaded.save(tmp_path / "other", labels=[*names[:-1], "fox"]))
    assert others.labels[-1] == "fox"
    for wrong, fast in ((names[:4], loaded), ([], loaded), ([], cf.compile(small(), precision="fp32"))):
        with pytest.raises(cf.ArgumentError, match=f"{len(wrong)} labels for a model of 5 classes"):
            fast.save(tmp_path / "third", labels=wrong)
    assert not (tmp_path / "third").exists()


def test_the_recipe_is_kept(tmp_path):
    pytest.importorskip("openvino")
    detector = filled(SMALL)
    detector.recipe = cf.Recipe(size=96, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    _, folder = saved(tmp_path / "bundle", "openvino", detector)
    loaded = cf.load(folder)
    assert (loaded.recipe.size, loaded.recipe.mean, loaded.recipe.std) == (96, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    stored = json.loads((folder / "manifest.json").read_text())["preprocessing"]
    assert (stored["edges"], stored["interpolation"]) == ([96, 96], "OpenCV's bilinear")


def test_what_runs_classifiers_refuses_it(made, tmp_path):
    folder = made
    with pytest.raises(cf.ArgumentError, match="holds a detector, and a classifier or a backbone is asked for"):
        load_classifier(folder)
    with pytest.raises(cf.BundleError, match="holds a detector, and the server's models are classifiers"):
        cf.export_server(folder, tmp_path / "models")


def test_another_bundle_in_its_place(tmp_path):
    pytest.importorskip("openvino")
    _, folder = saved(tmp_path / "bundle", "openvino")
    pickled = pickle.dumps(cf.load(folder))
    saved(folder, "openvino", small(masks=False))
    assert not [path.name for path in folder.iterdir() if path.name.startswith("masks.")]  # of the one before
    with pytest.raises(cf.BundleError, match="holds another bundle than when the model was copied"):
        pickle.loads(pickled)


@pytest.mark.parametrize("name", ["proposer.model.xml", "boxes.model.bin", "masks.model.xml", "labels.txt"])
def test_damage(name, made, tmp_path):
    folder = Path(shutil.copytree(made, tmp_path / "bundle"))
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(cf.BundleError, match=f"{name} is not the file that the bundle was made with"):
        cf.load(folder)


WRONG = {
    "another network": ({"networks": {"proposer": 1}}, "its network proposer needs outputs, onnx and shapes"),
    "a network missing": (lambda entry: entry["networks"].pop("boxes"), "its networks must be proposer, boxes, masks"),
    "no masks": (lambda entry: entry["config"].update(masks=False), "its networks must be proposer, boxes, got"),
    "outputs": (lambda entry: entry["networks"]["boxes"].update(outputs="all"), "the outputs 'all', which are no"),
    "onnx": (lambda entry: entry["networks"]["boxes"].update(onnx=1), "has the onnx 1"),
    "shapes": (lambda entry: entry["networks"]["boxes"].update(shapes=[1]), "shapes must have"),
    "config": (lambda entry: entry["config"].update(channels=0), "channels must be"),
    "backbone": (lambda entry: entry["config"].pop("backbone"), "its config lacks a backbone"),
    "files": (lambda entry: entry["files"].pop("boxes.model.xml"), "it lacks the files boxes.model.xml"),
    "labels": (lambda entry: entry.update(labels=None), "it has no labels"),
    "other outputs": (
        lambda entry: entry["networks"]["boxes"].update(outputs=["other"]),
        "has other outputs of its network boxes",
    ),
    "an entry": ({"pad": "stem"}, "its entries pad are missing or unknown"),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG)
def test_wrong_content_under_a_right_digest(change, message, made, tmp_path):
    folder = Path(shutil.copytree(made, tmp_path / "bundle"))
    bundle = read_bundle(folder, format_of)
    files = {name: bundle.read(name) for name in bundle.manifest.files}

    class Changed(type(bundle.manifest)):
        def to_json(self):
            entry = super().to_json()
            entry.update(change) if isinstance(change, dict) else change(entry)
            return entry

    write_bundle(folder, Changed(**{**vars(bundle.manifest), "files": {}}), files)
    with pytest.raises(cf.BundleError, match=message):
        cf.load(folder)


def test_verify(backend):
    fast = cf.compile(small(), backend=backend, precision="fp32")
    images, _ = image(96, 160)
    report = fast.verify(images)
    assert report.within
    maps = [f"{kind}.{level}" for kind in ("map", "regions") for level in range(5)]
    assert [row.name for row in report.results] == [*maps, "box_logits", "box_deltas", "mask_logits"]
    assert all(0 < row.error < 1e-5 for row in report.results)
    assert report.to_dict()["top1_agreement"] == {}


@pytest.mark.parametrize("part", ["boxes", "masks", "propose"])
def test_verify_tells_a_wrong_network(part, monkeypatch):
    pytest.importorskip("openvino")
    fast = cf.compile(small(), precision="fp32")
    right = getattr(fast.networks, part)

    def wrong(values):
        found = right(values)
        if part == "masks":
            return found * 1.001
        return (
            found._replace(maps=(*found.maps[:4], found.maps[4] * 1.001))
            if part == "propose"
            else (
                found[0],
                found[1] * 1.001,
            )
        )

    monkeypatch.setattr(fast.networks, part, wrong)
    report = fast.verify(image(96, 160)[0])
    over = {"boxes": "box_deltas", "masks": "mask_logits", "propose": "map.4"}[part]
    assert [row.name for row in report.results if not row.within] == [over]
    assert f"NOT within the bound for fp32: {over} errs by 0.001" in report.verdict


def test_verify_refuses(tmp_path):
    pytest.importorskip("openvino")
    fast, folder = saved(tmp_path / "bundle", "openvino")
    images, _ = image(96, 160)
    loaded = cf.load(folder)
    other = filled(replace(SMALL, channels=16))
    for call, message in (
        (lambda: loaded.verify(images), "a loaded detector has no reference"),
        (lambda: loaded.verify(images, filled(SMALL, torch.float32)), None),
        (lambda: fast.verify(images, other), "the reference is another detector"),
        (lambda: fast.verify(images, cf.create_model("digits")), "the reference must be a Detector"),
        (lambda: fast.verify(images * torch.nan), "values are not finite"),
        (lambda: fast.verify(images[:, :, :30]), "multiples of 32"),
    ):
        if message is None:
            assert call().within
            continue
        with pytest.raises(cf.ArgumentError, match=message):
            call()


@pytest.fixture
def rtx():
    pytest.importorskip("tensorrt_rtx_bindings")
    return get_flavor("tensorrt-rtx")


def build_in(folder, **options):
    shapes = cf.Shapes((1, 1, 1), SIDES, SIDES)
    given = {"shapes": shapes, "targets": ["sm86"], **options}
    return read_bundle(cf.build(small(), folder, **given), format_of)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_build(precision, rtx, calibrated, tmp_path):
    options = {"precision": "int8", "quantization": [image(96, 160)[0]]} if precision == "int8" else {}
    bundle = build_in(tmp_path / "bundle", **options)
    manifest = bundle.manifest
    assert (manifest.backend, manifest.precision, manifest.config) == ("tensorrt", precision, SMALL)
    sides = {name: network.shapes[0] for name, network in manifest.networks.items()}
    assert (sides["proposer"].height, sides["proposer"].width) == (SIDES, SIDES)
    assert (sides["boxes"].height, sides["boxes"].width) == ((25, 100, 100), (32 * 49,) * 3)
    assert (sides["masks"].batch, sides["masks"].width) == ((1, 20, 20), (32,) * 3)
    assert {f"{name}.model.plan" for name in NETWORKS} | {"labels.txt"} == manifest.files.keys()
    assert manifest.rebuild.startswith("conformer_fast.build(detector, 'bundle', backend='tensorrt'")
    errors = manifest.measured["error"]
    assert manifest.measured["source"] == ("calibration" if precision == "int8" else "noise")
    assert len(errors) == 13
    assert all(1e-5 < error < {"fp16": 3e-3, "int8": 0.08}[precision] for error in errors.values())


def test_built_and_run(rtx, tmp_path, monkeypatch):
    """The plans are TensorRT-RTX's own; on a pretended GPU the networks that they were made from run in their place."""
    folder = build_in(tmp_path / "bundle").folder
    parts = {outputs_of(name): lower(part, outputs_of(name)) for name, part in parts_of(small()).items()}
    made = []

    def engine(plan, flavor, outputs, device, runtime_cache=None):
        made.append((outputs, (folder / f"{NETWORKS[len(made) % 3]}.model.plan").read_bytes() == plan, runtime_cache))
        return parts[tuple(outputs)]

    monkeypatch.setattr(tensorrt_engine, "TensorRTEngine", engine)
    monkeypatch.setattr(tensorrt_backend, "gpu_target", lambda: "sm86")
    monkeypatch.setattr(tensorrt_backend, "current_device", lambda: "cpu")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Pretended 3090")
    loaded = cf.load(folder)
    assert [(outputs, same) for outputs, same, _ in made] == [(outputs_of(name), True) for name in NETWORKS]
    for name, (*_, kept) in zip(NETWORKS, made, strict=True):  # a file of kernels each
        kept.write(name.encode())
        assert (folder / f"{name}.runtime.cache").is_file()
    assert cf.load(folder).manifest == loaded.manifest  # they are no part of the bundle
    images, sizes = image(96, 160)
    alike(loaded(images, sizes)[0], small()(images, sizes)[0])
    monkeypatch.undo()
    build_in(folder, precision="fp32")
    assert not [path.name for path in folder.iterdir() if "runtime.cache" in path.name]


def test_what_cannot_be_built(rtx, tmp_path):
    for options, message in (
        ({"shapes": cf.Shapes((1, 1, 1), (64, 100, 256), SIDES)}, "sides of multiples of 32, got 100"),
        ({"outputs": ["0.pixels"]}, "outputs are of Conformers"),
        ({"labels": ["one"]}, "1 labels for a model of 5 classes"),
        ({"precision": "int8"}, "quantization"),
    ):
        with pytest.raises(cf.ArgumentError, match=message):
            build_in(tmp_path / "bundle", **options)
        assert not (tmp_path / "bundle").exists()
    assert pictures_of(None) == cf.Shapes((1, 1, 1), (32, 800, 1344), (32, 1344, 1344))
    assert pictures_of(100) == cf.Shapes((1, 1, 1), (32, 128, 128), (32, 128, 128))


REGIONS = [[0.0, 0.0, 30.0, 30.0], [5.0, 5.0, 20.0, 25.0]]
BETWEEN = {  # ONNX's operators between the networks, and what of them there must be beside images
    "RoiAlign": ({"output_height": 7, "output_width": 7, "spatial_scale": 0.25}, ["images", REGIONS, [0, 0]]),
    "NonMaxSuppression": ({}, [[REGIONS], [[[0.9, 0.8]]], [2], [0.5]]),
}


@pytest.mark.parametrize("operator", BETWEEN)
def test_why_there_are_several_engines(operator, rtx):
    """TensorRT-RTX builds neither operator, so no engine goes from pixels to detections. Once it does, one may."""
    onnx = pytest.importorskip("onnx")
    attributes, inputs = BETWEEN[operator]
    constants = {f"constant_{index}": value for index, value in enumerate(inputs) if value != "images"}
    names = [name if name == "images" else f"constant_{index}" for index, name in enumerate(inputs)]
    tensors = [
        onnx.numpy_helper.from_array(np.array(value, np.int64 if value in ([0, 0], [2]) else np.float32), name)
        for name, value in constants.items()
    ]
    found = onnx.helper.make_node(operator, names, ["found"], **attributes)
    nodes = [found, onnx.helper.make_node("Cast", ["found"], ["out"], to=onnx.TensorProto.FLOAT)]
    given, out = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in (("images", ["batch", 8, "height", "width"]), ("out", None))
    )
    graph = onnx.helper.make_graph(nodes, "between", [given], [out], tensors)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 16)], ir_version=10)
    with pytest.raises(cf.EngineError, match=r"ROIAlign plugin was not found|no runners that implement it"):
        engine_from_onnx(model.SerializeToString(), [cf.Shapes((1, 1, 1), SIDES, SIDES)], rtx, ["sm86"], "fp32")
