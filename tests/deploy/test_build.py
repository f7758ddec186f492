"""build(): real TensorRT-RTX engines, which need no GPU, and what their bundles say of themselves."""

import hashlib
import math
import re
import sys
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec

import lookalikes
import onnx
import pytest
import torch

import conformer_fast as cf
from conformer_fast.bundles.folder import read_bundle
from conformer_fast.bundles.manifest import Manifest
from conformer_fast.calibration import resolve
from conformer_fast.datasets.digits import IMAGE_SIZE, load_digits_split
from conformer_fast.deploy import build as build_module
from conformer_fast.deploy.build import build
from conformer_fast.engines import cache
from conformer_fast.engines.onnx import export
from conformer_fast.engines.registry import format_of
from conformer_fast.engines.tensorrt import backend as backend_module
from conformer_fast.engines.tensorrt import flavors
from conformer_fast.engines.tensorrt import plan as plan_module
from conformer_fast.engines.tensorrt.backend import TensorRT
from conformer_fast.engines.tensorrt.flavors import Flavor
from conformer_fast.errors import BackendError, EngineError
from conformer_fast.model.config import PACKAGED
from conformer_fast.model.digest import weights_sha256
from conformer_fast.model.distance import ALLOWANCE, FLOOR, relative_error
from conformer_fast.model.outputs import LOGITS, feature_names
from conformer_fast.model.precision import DTYPES
from conformer_fast.model.reference import Conformer, ConformerOutput
from conformer_fast.model.shapes import Shapes, usual_shapes
from conformer_fast.preprocessing.cpu import MEAN, STD

pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.skipif(
    not any(map(find_spec, flavors.MODULES["tensorrt-rtx"])), reason="needs TensorRT-RTX to build with"
)
SHAPES = Shapes(batch=(1, 2, 4), height=(32, 32, 64), width=(32, 64, 64))
TARGETS = {"fp32": ["sm86"], "fp16": ["sm86"], "bf16": ["sm86"], "int8": ["sm86"], "fp8": ["sm120", "sm89"]}
KERNEL = b"_gemm_mha_v2"  # TensorRT-RTX's attention with its softmax


@pytest.fixture
def fresh_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("CONFORMER_FAST_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def built(monkeypatch):
    """The arguments of each engine that is built anew."""
    calls, original = [], plan_module.engine_from_onnx

    def spy(*args):
        calls.append(args)
        return original(*args)

    monkeypatch.setattr(plan_module, "engine_from_onnx", spy)
    return calls


@pytest.fixture
def no_work(monkeypatch):
    """Fails a test in which anything is calibrated or exported."""

    def refuse(*args, **kwargs):
        pytest.fail("this should have been refused before any work")

    monkeypatch.setattr(resolve, "calibrate", refuse)
    monkeypatch.setattr(export, "onnx_from_model", refuse)
    monkeypatch.setattr(plan_module, "engine_from_onnx", refuse)


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def calibration() -> list[torch.Tensor]:
    return [images(4, 3, 32, 32), images(8, 3, 32, 32, seed=1)]


def build_in(folder, model, precision="fp16", **options):
    """A bundle of `model`, built by TensorRT-RTX. Returns its manifest."""
    given = {"shapes": [SHAPES], "targets": TARGETS[precision], "flavor": "tensorrt-rtx"}
    if precision not in DTYPES:
        given["quantization"] = calibration()
    return read_bundle(build(model, folder, precision=precision, **{**given, **options}), format_of).manifest


def eager_errors(model: Conformer, precision: str, batch: torch.Tensor) -> list[float]:
    """How far PyTorch's own run in this precision is, head by head."""
    with torch.no_grad():
        exact = model.double()(batch.double())
        eager = model.to(DTYPES[precision])(batch.to(DTYPES[precision]))
    return [relative_error(*pair) for pair in zip(eager, exact, strict=True)]


@pytest.mark.parametrize("precision", TARGETS)
def test_the_manifest_says_what_was_built(precision, small_model, tmp_path):
    folder = tmp_path / "bundle"
    manifest = build_in(folder, small_model, precision)
    rtx = flavors.get_flavor("tensorrt-rtx")
    plan = (folder / "model.plan").read_bytes()
    assert plan.startswith(b"vtrt")
    assert (KERNEL in plan) == (precision != "fp32")
    assert {path.name for path in folder.iterdir()} == {"manifest.json", "model.plan", "labels.txt"}
    assert manifest.files["model.plan"] == (hashlib.sha256(plan).hexdigest(), len(plan))
    assert (folder / "labels.txt").read_text().splitlines() == [f"class {index}" for index in range(7)]
    assert manifest == Manifest(
        backend="tensorrt",
        precision=precision,
        precisions={
            "products": precision,
            "attention, maps": precision if precision in DTYPES else "fp16",
            "tokens, norms, softmax, heads, images, outputs": "fp32",
        },
        config=small_model.config,
        pad="stem",
        outputs=LOGITS,
        structure=ConformerOutput(*LOGITS),
        shapes=(SHAPES,),
        runtime={
            "flavor": "tensorrt-rtx",
            "version": rtx.version,
            "targets": sorted(TARGETS[precision], key=flavors.capability),
            "gpu": "",
        },
        preprocessing=manifest.preprocessing,
        labels="labels.txt",
        sha256={"weights": weights_sha256(small_model), "onnx": manifest.sha256["onnx"]},
        rebuild=manifest.rebuild,
        measured=manifest.measured,
        files=manifest.files,
    )
    assert (manifest.preprocessing["mean"], manifest.preprocessing["std"]) == (list(MEAN), list(STD))
    assert manifest.rebuild == (
        f"conformer_fast.build(model, 'bundle', backend='tensorrt', precision={precision!r}, shapes={[SHAPES]!r}, "
        f"flavor='tensorrt-rtx'{'' if precision in DTYPES else ', quantization=images'})"
    )


def test_the_stored_hash_is_that_of_the_graph_that_was_built(small_model, tmp_path, fresh_cache, built):
    manifest = build_in(tmp_path / "bundle", small_model)
    ((graph, shapes, _, targets, precision),) = built
    assert manifest.sha256["onnx"] == hashlib.sha256(graph).hexdigest()
    assert (shapes, list(targets), precision) == ((SHAPES,), ["sm86"], "fp16")


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_the_measured_error_is_within_the_bound(precision, small_model, tmp_path, record_property):
    measured = build_in(tmp_path / "bundle", small_model, precision).measured
    assert measured["by"] == f"ONNX Runtime {version('onnxruntime')}, of the engine's graph"
    assert measured["images"] == "2 of noise"
    assert measured["top1_agreement"] == 1
    assert list(measured["error"]) == list(LOGITS)
    eager = eager_errors(small_model, precision, images(2, 3, 32, 64))
    for (name, error), limit in zip(measured["error"].items(), eager, strict=True):
        record_property("table", ("measured error of built engines' graphs", f"small {precision}", name, error))
        assert 0 < error <= ALLOWANCE * limit + FLOOR[precision]


# The floors are some 3 dB below what the worse head has: a grid with one bit less would lose 6.
FLOORS_DB = {("small", "int8"): 29, ("small", "fp8"): 19, ("digits", "int8"): 36, ("digits", "fp8"): 25}


@pytest.mark.parametrize(("name", "precision"), FLOORS_DB)
def test_the_measured_error_of_8_bits(name, precision, small_model, tmp_path, record_property):
    model, options = small_model, {}
    if name == "digits":
        pytest.importorskip("sklearn")
        model = cf.create_model("digits", weights="packaged")
        size = (IMAGE_SIZE,) * 3
        batches = load_digits_split().train_images[:64].split(5)
        options = {"shapes": [Shapes((1, 2, 4), size, size)], "quantization": batches}
    manifest = build_in(tmp_path / "bundle", model, precision, **options)
    measured = manifest.measured
    assert measured["images"] == "8 of the calibration"
    assert measured["top1_agreement"] == 1
    assert manifest.config == (PACKAGED["digits"] if name == "digits" else small_model.config)
    for head, error in measured["error"].items():
        decibels = -20 * math.log10(error)
        record_property("table", ("SQNR of built engines' graphs, dB", f"{name} {precision}", head, decibels))
        assert decibels >= FLOORS_DB[name, precision]


def test_bf16_is_not_measured(small_model, tmp_path):
    assert build_in(tmp_path / "bundle", small_model, "bf16").measured is None


def test_nothing_is_measured_without_onnx_runtime(small_model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert build_in(tmp_path / "bundle", small_model).measured is None


# What is built


@pytest.mark.parametrize("outputs", [["logits"], ["trans_logits", "3.tokens"]], ids=str)
def test_chosen_outputs(outputs, small_model, tmp_path, fresh_cache, built):
    manifest = build_in(tmp_path / "bundle", small_model, outputs=outputs)
    assert manifest.outputs == tuple(outputs)
    assert manifest.structure == (outputs[0] if len(outputs) == 1 else outputs)
    assert manifest.labels == "labels.txt"
    assert list(manifest.measured["error"]) == outputs
    assert manifest.measured["top1_agreement"] == 1
    assert f"outputs={outputs!r}" in manifest.rebuild
    assert output_names(built[0][0]) == outputs


def test_a_backbone(small_config, tmp_path, fresh_cache, built):
    model = lookalikes.fill(Conformer(small_config, features_only=True)).eval()
    manifest = build_in(tmp_path / "bundle", model)
    names = list(feature_names(small_config))
    assert list(manifest.outputs) == names == output_names(built[0][0])
    assert manifest.labels is None
    assert set(manifest.files) == {"model.plan"}
    assert manifest.measured["top1_agreement"] is None
    assert max(manifest.measured["error"].values()) < 2e-3


def output_names(graph: bytes) -> list[str]:
    return [output.name for output in onnx.load_from_string(graph).graph.output]


@pytest.mark.filterwarnings("ignore:these weights have the sizes of no published variant")
@pytest.mark.parametrize("given", ["official", "mmpretrain", "state dict", "checkpoint"])
def test_every_kind_of_model_gives_the_same_engine(given, small_config, tmp_path, fresh_cache, built):
    config = replace(small_config, embed_dim=128)  # a file alone tells no number of heads: 64 channels each
    reference = lookalikes.fill(Conformer(config)).eval()
    build_in(tmp_path / "reference", reference)
    if given in ("official", "mmpretrain"):
        kind = lookalikes.OfficialConformer if given == "official" else lookalikes.MMPretrainClassifier
        model = lookalikes.fill(kind(config))
        model.eval()
    else:
        model = reference.state_dict()
        if given == "checkpoint":
            torch.save({"state_dict": model}, tmp_path / "model.pth")
            model = tmp_path / "model.pth"
    manifest = build_in(tmp_path / "bundle", model)
    assert len(built) == 1  # the second came from the cache
    assert manifest.sha256["weights"] == weights_sha256(reference)
    assert type(manifest.structure) is {"official": list, "mmpretrain": tuple}.get(given, ConformerOutput)


def test_several_shapes(small_model, tmp_path, fresh_cache, built):
    shapes = (Shapes((1, 1, 1), (64, 64, 64), (64, 64, 64)), SHAPES)
    manifest = build_in(tmp_path / "bundle", small_model, shapes=list(shapes))
    assert manifest.shapes == built[0][1] == shapes


def test_the_model_is_left_alone(small_model, tmp_path):
    before = {name: tensor.clone() for name, tensor in small_model.state_dict().items()}
    build_in(tmp_path / "bundle", small_model, "int8")
    assert all(torch.equal(tensor, before[name]) for name, tensor in small_model.state_dict().items())


def test_a_key_signs(small_model, tmp_path):
    build_in(tmp_path / "bundle", small_model, key=b"secret")
    assert read_bundle(tmp_path / "bundle", format_of, b"secret").signed
    with pytest.raises(cf.BundleError, match="not signed with this key"):
        read_bundle(tmp_path / "bundle", format_of, b"other")


def test_an_engine_of_another_backend(small_model, tmp_path):
    pytest.importorskip("openvino")
    folder = build(small_model, tmp_path / "bundle", backend="openvino", precision="fp32", outputs=["logits"])
    manifest = read_bundle(folder, format_of).manifest
    assert manifest.rebuild == (
        "conformer_fast.build(model, 'bundle', backend='openvino', precision='fp32', outputs=['logits'])"
    )
    logits = cf.load(folder)(images(2, 3, 32, 32))
    with torch.no_grad():
        torch.testing.assert_close(logits, small_model(images(2, 3, 32, 32)).logits, rtol=1e-4, atol=1e-4)


def test_a_command_to_rebuild_with_may_be_given(small_model, tmp_path):
    assert build_in(tmp_path / "bundle", small_model, rebuild="make engine").rebuild == "make engine"


# The cache


def test_the_same_build_again_comes_from_the_cache(small_model, tmp_path, fresh_cache, built):
    first = build_in(tmp_path / "first", small_model)
    again = build_in(tmp_path / "again", small_model, targets=["SM86", "sm86"])
    build(small_model, tmp_path / "class", backend=TensorRT([SHAPES], "tensorrt-rtx", ["sm86"]))
    assert len(built) == 1
    assert replace(again, rebuild=first.rebuild) == first
    (entry,) = cache.entries()
    assert entry.size == first.files["model.plan"].bytes
    assert (entry.fields["backend"], entry.fields["targets"]) == ("tensorrt", ["sm86"])


OTHER = {
    "precision": {"precision": "fp32"},
    "shapes": {"shapes": [replace(SHAPES, batch=(1, 2, 3))]},
    "two shapes": {"shapes": [SHAPES, SHAPES]},
    "target": {"targets": ["sm89"]},
    "two targets": {"targets": ["sm86", "sm89"]},
    "outputs": {"outputs": ["logits"]},
}


@pytest.mark.parametrize("changed", OTHER.values(), ids=OTHER)
def test_another_engine_is_built_anew(changed, small_model, tmp_path, fresh_cache, built):
    build_in(tmp_path / "bundle", small_model)
    build_in(tmp_path / "bundle", small_model, **changed)
    assert len(built) == 2


def test_other_weights_or_ranges_are_built_anew(small_model, tmp_path, fresh_cache, built):
    first = build_in(tmp_path / "bundle", small_model, "int8")
    other_ranges = build_in(tmp_path / "bundle", small_model, "int8", quantization=[3 * images(4, 3, 32, 32)])
    with torch.no_grad():
        small_model.trans_cls_head.bias[3] += 1
    other_weights = build_in(tmp_path / "bundle", small_model, "int8")
    assert len(built) == 3
    assert first.sha256["weights"] == other_ranges.sha256["weights"] != other_weights.sha256["weights"]
    assert len({manifest.sha256["onnx"] for manifest in (first, other_ranges, other_weights)}) == 3


def test_another_tensorrt_builds_anew(small_model, tmp_path, fresh_cache, built, monkeypatch):
    build_in(tmp_path / "bundle", small_model)
    rtx = flavors.get_flavor("tensorrt-rtx")
    newer = Flavor(rtx.name, rtx.module, f"{rtx.version}.1")
    monkeypatch.setattr(backend_module, "get_flavor", lambda name: newer)
    assert build_in(tmp_path / "bundle", small_model).runtime["version"] == newer.version
    assert len(built) == 2


# Calibration


def test_ranges_come_from_every_batch(small_model, tmp_path, fresh_cache, built):
    """Also from batches of another size, of other floating point types, and from a generator."""
    plain = [images(2, 3, 32, 32), 2 * images(1, 3, 64, 32)]
    first = build_in(tmp_path / "first", small_model, "int8", quantization=plain)
    other = (batch.double() for batch in [*plain, images(0, 3, 32, 32)])
    again = build_in(tmp_path / "again", small_model, "int8", quantization=other)
    alone = build_in(tmp_path / "alone", small_model, "int8", quantization=plain[:1])
    assert first.sha256["onnx"] == again.sha256["onnx"] != alone.sha256["onnx"]
    assert first.measured["images"] == "2 of the calibration"  # one batch for ONNX Runtime: of the first size
    assert len(built) == 2


def test_the_calibrations_batches_are_not_kept(small_model, monkeypatch):
    """A thousand photographs are more than the memory should hold."""
    alive: list[torch.Tensor] = []

    def batches():
        for seed in range(5):
            alive.append(images(4, 3, 32, 32, seed=seed))
            yield alive[-1]

    _, first = resolve.resolve(small_model, "int8", batches())
    assert first.shape == (8, 3, 32, 32)
    assert torch.equal(first[4:], alive[1])
    assert all(first.untyped_storage().data_ptr() != batch.untyped_storage().data_ptr() for batch in alive)


BAD_CALIBRATION = {
    "none": ([], ValueError, "calibration got no images"),
    "empty batches": ([torch.zeros(0, 3, 32, 32)], ValueError, "calibration got no images"),
    "one image": (torch.zeros(2, 3, 32, 32), ValueError, r"images must have shape \(batch, 3, height, width\)"),
    "gray": ([torch.zeros(2, 1, 32, 32)], ValueError, r"images must have shape .*got \(2, 1, 32, 32\)"),
    "small": ([torch.zeros(2, 3, 8, 8)], ValueError, "smaller than one 16x16 patch"),
    "NaN": ([torch.full((1, 3, 32, 32), math.nan)], ValueError, "NaN or infinite"),
    "pixels": ([torch.zeros(1, 3, 32, 32, dtype=torch.uint8)], TypeError, "floating point images, got torch.uint8"),
    "paths": (["a.png"], TypeError, "floating point images, got str"),
}


@pytest.mark.parametrize(("batches", "error", "message"), BAD_CALIBRATION.values(), ids=BAD_CALIBRATION)
def test_bad_calibration(batches, error, message, small_model, tmp_path):
    with pytest.raises(error, match=message):
        build_in(tmp_path / "bundle", small_model, "int8", quantization=batches)
    assert list(tmp_path.iterdir()) == []


# Refusals

WRONG = {
    "precision": ({"precision": "fp64", "targets": ["sm86"]}, ValueError, "unknown precision 'fp64'"),
    "flavor": ({"flavor": "onnx"}, ValueError, "unknown flavor 'onnx'"),
    "target's name": ({"targets": ["8.6"]}, ValueError, "a target is a compute capability written like"),
    "Hopper": ({"targets": ["sm86", "sm90"]}, BackendError, "cannot build for sm90; it can for "),
    "Turing": ({"targets": ["sm75"]}, BackendError, "needs sm80 or newer"),
    "fp8 on Ampere": ({"precision": "fp8", "targets": ["sm86"]}, BackendError, "'fp8' needs sm89 or newer"),
    "shapes": (
        {"shapes": [SHAPES, Shapes(height=(8, 32, 32))]},
        ValueError,
        "images are 8x224, smaller than one 16x16 patch",
    ),
    "no output": ({"outputs": []}, ValueError, "outputs must be one or more"),
    "output": ({"outputs": ["scores"]}, ValueError, "no such outputs: .*'scores'"),
    "output of 8 bits": (
        {"outputs": ["scores"], "precision": "int8", "quantization": calibration()},
        ValueError,
        "no such outputs: .*'scores'",
    ),
    "option": ({"threads": 2}, BackendError, "backend 'tensorrt' has no option threads; it has shapes, flavor, targ"),
    "output twice": ({"outputs": ["logits", "logits"]}, ValueError, "different names"),
    "no images": ({"precision": "int8", "quantization": None}, ValueError, "takes its ranges from images"),
    "images in vain": ({"quantization": calibration()}, ValueError, "quantization is for int8 and fp8; leave it"),
}


@pytest.mark.parametrize(("options", "error", "message"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_built_is_refused_before_any_work(options, error, message, small_model, tmp_path, no_work):
    given = {"precision": "fp16", "targets": ["sm86"], "shapes": [SHAPES], "flavor": "tensorrt-rtx"}
    with pytest.raises(error, match=message):
        build(small_model, tmp_path / "bundle", **{**given, **options})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("backend", "message"),
    [
        ("reference", "'reference' has no engine to save; compile with backend triton, tensorrt, openvino"),
        ("triton", "'triton' cannot run here: no CUDA device"),
        ("openvino", "precision 'fp16' is not available on backend 'openvino' here"),
    ],
)
def test_backends_that_cannot_build_it_here(backend, message, small_model, tmp_path, no_work):
    if backend == "openvino":
        pytest.importorskip("openvino")
    if backend == "triton" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(BackendError, match=message):
        build(small_model, tmp_path / "bundle", backend=backend)
    assert list(tmp_path.iterdir()) == []


def test_no_target_and_no_gpu(small_model, tmp_path, no_work, monkeypatch):
    monkeypatch.setattr(plan_module, "gpu_target", lambda: None)
    with pytest.raises(BackendError, match="there is no CUDA GPU here to build for: give --target"):
        build(small_model, tmp_path / "bundle", flavor="tensorrt-rtx")


def test_a_model_that_does_not_pad_takes_whole_patches_only(small_config, tmp_path, no_work):
    model = lookalikes.fill(Conformer(small_config, pad="none")).eval()
    with pytest.raises(ValueError, match="a 40x64 image gives a 10x16 stem map, which is not whole 16x16 patches"):
        build_in(tmp_path / "bundle", model, shapes=[replace(SHAPES, height=(32, 40, 64))])


def test_a_model_in_training_mode(small_model, tmp_path, no_work):
    with pytest.raises(ValueError, match=r"in training mode; call model.eval\(\) first"):
        build_in(tmp_path / "bundle", small_model.train())


def test_a_model_beyond_the_range_of_fp16(small_model, tmp_path, fresh_cache, built):
    """Found by ONNX Runtime, before TensorRT starts."""
    with torch.no_grad():
        small_model.conv_1.bn1.weight *= 1e6
        small_model.conv_1.bn3.weight *= 1e3
    with pytest.raises(ValueError, match=r"of the typed graph is NaN or infinite.*use bf16 or fp32"):
        build_in(tmp_path / "bundle", small_model)
    assert built == []
    assert build_in(tmp_path / "bundle", small_model, "bf16").measured is None


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_failed_build_writes_nothing(small_model, tmp_path, fresh_cache, monkeypatch):
    build_in(tmp_path / "old", small_model)
    before = contents(tmp_path / "old")

    def fail(*args):
        raise EngineError("TensorRT-RTX built no engine")

    monkeypatch.setattr(plan_module, "engine_from_onnx", fail)
    for folder in ("old", "new"):
        with pytest.raises(EngineError, match="built no engine"):
            build_in(tmp_path / folder, small_model, targets=["sm89"])
    assert contents(tmp_path / "old") == before
    assert {path.name for path in tmp_path.iterdir()} == {"old", "cache"}
    assert len(cache.entries()) == 1


def test_a_new_build_replaces_the_old_one(small_model, tmp_path):
    build_in(tmp_path / "bundle", small_model)
    assert build_in(tmp_path / "bundle", small_model, "int8").precision == "int8"
    assert {path.name for path in tmp_path.iterdir()} == {"bundle"}


def test_a_folder_with_other_files_is_left_alone(small_model, tmp_path, monkeypatch):
    monkeypatch.setattr(TensorRT, "graph", lambda *_: pytest.fail("worked before it looked at the folder"))
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(cf.BundleError, match=r"holds files that are no bundle's: notes\.txt"):
        build_in(tmp_path, small_model)
    assert contents(tmp_path) == {"notes.txt": b"mine"}


def test_the_command_that_rebuilds_is_python(small_model, tmp_path, monkeypatch):
    """It names no target: it is for the machine that the engine does not fit."""
    manifest = build_in(tmp_path / "bundle", small_model, "int8", outputs=["logits"])
    asked = {}
    monkeypatch.setattr(build_module, "build", lambda *args, **options: asked.update(options, folder=args[1]))
    call = re.sub(r"^conformer_fast\.build", "builder.build", manifest.rebuild)
    eval(call, {"builder": build_module, "model": small_model, "Shapes": Shapes, "images": "images"})
    assert asked == {
        "folder": "bundle",
        "backend": "tensorrt",
        "precision": "int8",
        "shapes": [SHAPES],
        "flavor": "tensorrt-rtx",
        "outputs": ["logits"],
        "quantization": "images",
    }


@pytest.mark.parametrize("name", ["targets", "outputs"])
def test_one_name_is_no_list(name, small_model, tmp_path):
    with pytest.raises(TypeError, match=rf"{name} must be a list of names, such as \['sm86'\]"):
        cf.build(small_model, tmp_path / "engine", **{name: "sm86"})


def test_the_usual_shapes_is_the_models():
    assert usual_shapes(cf.VARIANTS["base-p16"]) == Shapes((1, 8, 64), (224,) * 3, (224,) * 3)
    assert usual_shapes(cf.create_model("digits").config) == Shapes((1, 8, 64), (64,) * 3, (64,) * 3)
