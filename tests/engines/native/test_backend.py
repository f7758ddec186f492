"""The backend of our own code for CPUs: when it is taken, what it refuses, and its bundles."""

import copy
import dataclasses
import pickle

import pytest
import torch
from bundle_samples import KEY, contents, images, rewrite, same
from detector_samples import small

import conformer_fast as cf
from conformer_fast.bundles.folder import read_bundle, write_bundle
from conformer_fast.bundles.manifest import DetectorManifest, Facts, StoredNetwork
from conformer_fast.engines.native.backend import NETWORK
from conformer_fast.engines.native.graph import Graph
from conformer_fast.engines.registry import choose, format_of, make
from conformer_fast.errors import BackendError, BundleError, EngineError, EngineMismatchError
from conformer_fast.inference.detector import outputs_of
from conformer_fast.inference.lower import lower
from conformer_fast.model.distance import relative_error
from conformer_fast.model.names import PRECISIONS

pytestmark = pytest.mark.filterwarnings("ignore:the int8 quantization may be far off")  # of so few images
NO_VNNI = "this CPU has no AVX-512 VNNI"


@pytest.fixture
def vnni(cpu, monkeypatch):
    """A CPU that it runs on, and no GPU."""
    cpu("avx512", "portable")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def openvino(monkeypatch):
    """OpenVINO seems to be here."""
    monkeypatch.setattr(cf.OpenVINO, "missing", lambda self: None)


@pytest.fixture
def calibrated(small_model):
    return cf.calibrate(small_model, [images(8, 3, 32, 32)], precision="int8")


@pytest.fixture
def fast(vnni, small_model, calibrated):
    return cf.compile(small_model, backend="native", precision="int8", quantization=calibrated)


# Choice


@pytest.mark.parametrize("instructions", [("amx", "avx512", "portable"), ("avx512", "portable")], ids=str)
def test_auto_takes_it_for_int8(instructions, vnni, cpu, openvino):
    cpu(*instructions)
    backend, precision, reason = choose(precision="int8")
    assert (backend, precision, backend.torch_device()) == (cf.Native(), "int8", "cpu")
    assert reason == "native int8: as asked; no triton (no CUDA device)"
    assert choose(precision="int8", device_type="cpu").backend == cf.Native()
    assert choose(precision="int8", options={"threads": 3}).backend == cf.Native(3)


def test_compile_takes_it_for_int8(vnni, small_model, calibrated, fast):
    taken = cf.compile(small_model, precision="int8", quantization=calibrated)
    assert taken.settings == fast.settings
    assert taken.settings.backend == cf.Native()
    assert same(taken(images(2, 3, 32, 48)), fast(images(2, 3, 32, 48)))


@pytest.mark.parametrize("precision", ["auto", *PRECISIONS])
def test_auto_takes_it_for_nothing_else(precision, vnni, monkeypatch):
    monkeypatch.setattr(cf.OpenVINO, "missing", lambda self: "gone")
    if precision in ("auto", "fp32"):
        backend, _, reason = choose(precision=precision)
        assert backend == cf.Reference()
        assert "native" not in reason
        assert "no openvino (gone)" in reason
    elif precision == "int8":
        assert choose(precision=precision).backend == cf.Native()
    else:
        with pytest.raises(BackendError, match=f"{precision!r} is not available on backend 'reference'"):
            choose(precision=precision)


@pytest.mark.parametrize(
    ("instructions", "unusable", "missing"),
    [
        (("portable",), "", NO_VNNI),
        (("amx", "avx512", "portable"), "csrc/ was not built", "csrc/ was not built"),
        (("avx512", "portable"), "", None),
        (("amx", "avx512", "portable"), "", None),
    ],
)
def test_what_is_missing(instructions, unusable, missing, cpu, openvino, monkeypatch):
    cpu(*instructions, unusable=unusable)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert make("native").missing() == missing
    if missing is None:
        assert make("native").precisions() == ((), ("int8",))
        return
    backend, _, reason = choose(precision="int8")
    assert backend == cf.OpenVINO()
    assert reason.endswith(f"; no native ({missing})")
    assert "native" not in choose(precision="fp32").reason
    with pytest.raises(BackendError) as caught:
        choose("native", "int8")
    assert str(caught.value) == f"backend 'native' cannot run here: {missing}; here there is openvino, reference"


@pytest.mark.parametrize("precision", ["auto", *(name for name in PRECISIONS if name != "int8")])
def test_it_has_int8_alone(precision, vnni, small_model):
    message = f"precision '{precision}' is not available on backend 'native' here; choose from int8$"
    with pytest.raises(BackendError, match=message):
        cf.compile(small_model, backend="native", precision=precision)


def test_int8_needs_a_quantization(vnni, small_model):
    with pytest.raises(cf.ArgumentError, match="'int8' takes its ranges from images"):
        cf.compile(small_model, backend="native", precision="int8")


def test_it_is_not_named_where_it_would_not_do(vnni, openvino):
    """For other precisions than its own."""
    with pytest.raises(BackendError, match="no CUDA device; here there is openvino, reference"):
        choose("triton", "fp32")
    with pytest.raises(BackendError, match="no CUDA device; here there is native, openvino, reference"):
        choose("triton", "int8")


@pytest.mark.parametrize("threads", [0, -1, 1.5, "2", True], ids=repr)
def test_threads_must_be_a_positive_number(threads):
    with pytest.raises(cf.ArgumentError, match=f"threads must be a whole number, at least 1, got {threads!r}"):
        cf.Native(threads)


def test_options(vnni, small_model):
    assert make("native", {"threads": 2}) == cf.Native(2)
    with pytest.raises(BackendError, match="backend 'native' has no option device; it has threads"):
        choose("native", "int8", {"device": "GPU"})


def test_info_lists_it(vnni):
    found = cf.info().backends["native"]
    assert (found.available, found.precisions, found.speeds, found.devices) == (True, ("int8",), {}, {})
    assert str(found) == "available: int8"


def test_info_says_what_is_missing(cpu):
    cpu("portable")
    assert str(cf.info().backends["native"]) == NO_VNNI


def test_no_ceiling_is_measured(vnni):
    assert cf.Native().ceiling("int8", "cpu") is None


# Detectors


def test_detectors_pass_it_over(vnni, openvino):
    backend, _, reason = choose(precision="int8", detector=True)
    assert backend == cf.OpenVINO()
    assert "native" not in reason


def test_detectors_are_refused(vnni, openvino, tmp_path):
    """Before their calibration."""
    message = "^backend 'native' cannot run here: it runs no detectors; here there is openvino, reference$"
    for backend in ("native", cf.Native()):
        with pytest.raises(BackendError, match=message):
            cf.compile(small(), backend=backend, precision="int8")
        with pytest.raises(BackendError, match=message):
            cf.build(small(), tmp_path / "bundle", backend=backend, precision="int8")
    assert not (tmp_path / "bundle").exists()


def test_an_auto_compiled_detector_is_openvinos(vnni):
    pytest.importorskip("openvino")
    fast = cf.compile(small(), precision="int8", quantization=cf.Quantization("int8", {"proposer.hidden": 3.0}))
    assert fast.settings.backend == cf.OpenVINO()


# What it computes


@pytest.mark.parametrize("shape", [(16, 3, 32, 32), (5, 3, 48, 80), (16, 3, 64, 48)])
def test_it_is_as_near_to_the_reference_as_the_lowered_network(shape, fast, small_model, calibrated):
    batch = images(*shape)
    network = lower(small_model, quantization=calibrated, attended=True)
    exact = small_model(batch)
    for ours, theirs, wanted in zip(fast(batch), network(batch), exact, strict=True):
        assert relative_error(ours, theirs) < 0.04  # of which only some numbers have a sign there
        assert relative_error(ours, wanted) < 1.2 * relative_error(theirs, wanted)


def test_products_may_not_stay_in_fp32(vnni, openvino, small_model, calibrated):
    """As the gate of `calibrate` may leave them: then another backend is taken."""
    ranges = {name: range for name, range in calibrated.ranges.items() if name != "trans_1.fc1"}
    few = dataclasses.replace(calibrated, ranges=ranges)
    why = r"its quantization has no ranges of trans_1\.fc1"
    with pytest.raises(BackendError, match=f"'native' cannot run this model in int8: {why}; 'openvino' can"):
        cf.compile(small_model, backend="native", precision="int8", quantization=few)
    taken = cf.compile(small_model, precision="int8", quantization=few)
    assert taken.settings.backend == cf.OpenVINO()
    why = "its quantization has no ranges of trans_1.fc1"
    assert taken.reason == f"openvino int8: as asked; no native ({why}); no triton (no CUDA device)"


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"num_heads": 4}, "a head has 24 channels, not a multiple of 16 up to 64"),
        ({"num_heads": 1}, "a head has 96 channels, not a multiple of 16 up to 64"),
        ({"in_channels": 5}, "images have 5 channels, more than 4"),
    ],
)
def test_models_that_it_refuses(changed, why, vnni, openvino, small_config):
    model = cf.Conformer(dataclasses.replace(small_config, **changed)).eval()
    quantization = cf.calibrate(model, [images(8, model.config.in_channels, 32, 32)], precision="int8")
    with pytest.raises(BackendError, match=why):
        cf.compile(model, backend="native", precision="int8", quantization=quantization)
    with pytest.raises(BackendError, match=why):
        cf.build(model, "bundle", backend="native", precision="int8", quantization=quantization)
    assert cf.compile(model, precision="int8", quantization=quantization).settings.backend == cf.OpenVINO()


def test_it_verifies(fast):
    report = fast.verify(images(4, 3, 32, 48))
    assert report.within
    assert (report.backend, len(report.blocks)) == ("native", 2 + 4 * 2)


def test_copies(fast, tmp_path):
    batch = images(2, 3, 32, 32)
    loaded = cf.load(fast.save(tmp_path / "bundle"), threads=1)
    for model in (fast, loaded):
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert other.settings == model.settings
            assert same(other(batch), fast(batch))


SURROUNDINGS = {
    "inference mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "meta by default": lambda: torch.device("meta"),
}


@pytest.mark.parametrize("surroundings", SURROUNDINGS.values(), ids=SURROUNDINGS)
def test_surroundings_change_nothing(surroundings, fast, small_model, calibrated, tmp_path):
    batch, folder = images(2, 3, 32, 32), fast.save(tmp_path / "bundle")
    expected = fast(batch)
    with surroundings():
        compiled = cf.compile(small_model, precision="int8", quantization=calibrated)
        models = (compiled, cf.load(folder), cf.load(compiled.save(tmp_path / "another")))
        assert all(same(model(batch), expected) for model in models)
    assert all(same(model(batch), expected) for model in models)


def test_default_dtype_changes_nothing(fast, small_model, calibrated, tmp_path):
    batch, folder = images(2, 3, 32, 32), fast.save(tmp_path / "bundle")
    expected = fast(batch)
    torch.set_default_dtype(torch.float64)
    try:
        compiled = cf.compile(small_model, precision="int8", quantization=calibrated)
        assert same(compiled(batch), expected)
        assert same(cf.load(folder)(batch), expected)
    finally:
        torch.set_default_dtype(torch.float32)


# Bundles


def test_a_bundle_is_the_network_alone(fast, tmp_path):
    folder = fast.save(tmp_path / "bundle", key=KEY)
    assert {path.name for path in folder.iterdir()} == {"manifest.json", "labels.txt", NETWORK}
    loaded = cf.load(folder, key=KEY, threads=2)
    assert loaded.settings.backend == cf.Native(2)
    manifest = loaded.manifest
    assert (manifest.backend, manifest.precision, manifest.shapes) == ("native", "int8", ())
    assert manifest.precisions == {"products": "int8", "the rest": "fp32"}
    assert manifest.runtime == {"instructions": "avx512"}
    assert manifest.sha256["onnx"] is None
    call = "conformer_fast.compile(model, backend='native', precision='int8', quantization=images)"
    assert manifest.rebuild == f"{call}.save('bundle')"
    for shape in ((1, 3, 32, 32), (3, 3, 48, 80)):
        assert same(loaded(images(*shape)), fast(images(*shape)))
    assert contents(loaded.save(tmp_path / "copy"))[NETWORK] == contents(folder)[NETWORK]
    assert loaded.verify(images(2, 3, 32, 32), fast.reference).within


def test_a_bundle_runs_on_other_instructions(fast, tmp_path, cpu):
    folder = fast.save(tmp_path / "bundle")
    cpu("amx", "avx512", "portable")
    assert same(cf.load(folder)(images(1, 3, 32, 32)), fast(images(1, 3, 32, 32)))


def test_build_makes_the_same(fast, small_model, calibrated, tmp_path):
    folder = cf.build(
        small_model,
        tmp_path / "bundle",
        backend="native",
        precision="int8",
        quantization=calibrated,
        outputs=["2.map", "logits"],
    )
    maps, logits = cf.load(folder)(images(2, 3, 32, 32))
    assert maps.shape[:2] == (2, small_model.config.map_channels(2))
    torch.testing.assert_close(logits, fast.engine(["logits"])(images(2, 3, 32, 32))[0])


def test_a_backbone(vnni, small_config, tmp_path):
    model = cf.Conformer(small_config, features_only=True).eval()
    fast = cf.compile(model, precision="int8", quantization=[images(8, 3, 32, 32)])
    loaded = cf.load(fast.save(tmp_path / "bundle"))
    assert loaded.labels == ()
    assert same(loaded(images(2, 3, 32, 32)), fast(images(2, 3, 32, 32)))


WRONG_TENSORS = {
    "a scale of 0": ("stem.input_scale", lambda tensor: tensor * 0),
    "a negative scale": ("conv_1.conv1.weight_scale", torch.neg),
    "a scale of many": ("stem.input_scale", lambda tensor: tensor.repeat(2)),
    "an infinite bias": ("trans_1.proj.bias", lambda tensor: tensor / 0),
    "half the depth": ("conv_1.conv1.weight", lambda tensor: tensor[:, ::2].contiguous()),
    "float32": ("conv_1.conv1.weight", torch.Tensor.float),
    "another class token": ("cls_token", lambda tensor: tensor.repeat(1, 1, 2)),
}


@pytest.mark.parametrize(("name", "change"), WRONG_TENSORS.values(), ids=WRONG_TENSORS)
def test_a_network_with_other_tensors_than_its_configuration_s_is_refused(name, change, fast, tmp_path):
    """Also where somebody wrote a manifest that fits the file."""
    folder = fast.save(tmp_path / "bundle")
    graph = Graph.from_bytes((folder / NETWORK).read_bytes())
    tensors = {**graph.tensors, name: change(graph.tensors[name])}
    rewrite(folder, NETWORK, dataclasses.replace(graph, tensors=tensors).to_bytes())
    with pytest.raises(BundleError, match=f"does not hold what its manifest says: its tensor {name}"):
        cf.load(folder)


def test_images_of_too_many_tokens_are_refused(fast):
    with pytest.raises(
        EngineError, match=r"at most 32,767 tokens, and of 16x524288 pixels it has 32,769; give smaller"
    ):
        fast(torch.zeros(1, 3, 16, 524288))


@pytest.mark.parametrize(
    ("instructions", "unusable", "why"),
    [(("portable",), "", NO_VNNI), (("amx", "portable"), "csrc/ was not built", "csrc/ was not built")],
)
def test_a_machine_that_it_does_not_fit(instructions, unusable, why, fast, tmp_path, cpu):
    folder = fast.save(tmp_path / "bundle")
    cpu(*instructions, unusable=unusable)
    with pytest.raises(EngineMismatchError) as caught:
        cf.load(folder)
    assert str(caught.value) == (
        "the engine does not fit this machine: CPU must be one that backend 'native' runs on, here it is none: "
        f"{why}; build it again here: conformer_fast.compile(model, precision='int8', quantization=images).save(folder)"
    )
    with pytest.raises(BackendError, match=f"backend 'native' cannot run here: {why}"):
        fast.save(tmp_path / "another")


def test_a_damaged_network_is_refused(fast, tmp_path):
    folder = fast.save(tmp_path / "bundle")
    content = (folder / NETWORK).read_bytes()
    one = Graph.from_bytes(content)
    fewer = dataclasses.replace(one, outputs=one.outputs[:1])
    for other, message in (
        (b"", "the file is no network in 8 bits: "),
        (content[:-4], "the file is no network in 8 bits: "),
        (fewer.to_bytes(), "its operators are not those of its configuration"),
    ):
        rewrite(folder, NETWORK, other)
        with pytest.raises(BundleError, match=rf"\A{folder} does not hold what .*: {message}[^\n]*; make it again: "):
            cf.load(folder)


def test_another_precision_is_refused(fast, tmp_path):
    folder = fast.save(tmp_path / "bundle")
    bundle = read_bundle(folder, format_of)
    files = {name: bundle.read(name) for name in bundle.manifest.files}
    write_bundle(folder, dataclasses.replace(bundle.manifest, precision="fp8"), files)
    with pytest.raises(EngineMismatchError, match="precision must be fp8, here it is int8 alone"):
        cf.load(folder)


def test_a_detectors_bundle_is_refused(fast, tmp_path):
    """Nothing of ours writes one."""
    bundle = read_bundle(fast.save(tmp_path / "bundle"), format_of)
    facts = {field.name: getattr(bundle.manifest, field.name) for field in dataclasses.fields(Facts)}
    detector = small(masks=False)
    networks = {name: StoredNetwork(outputs_of(name), None, ()) for name in ("proposer", "boxes")}
    files = {f"{name}.{NETWORK}": bundle.read(NETWORK) for name in networks}
    files["labels.txt"] = "".join(f"class {index}\n" for index in range(detector.config.num_classes)).encode()
    manifest = DetectorManifest(**facts | {"files": {}}, config=detector.config, networks=networks)
    write_bundle(tmp_path / "detector", manifest, files)
    with pytest.raises(BundleError, match="backend 'native' runs no detectors; make it again: "):
        cf.load(tmp_path / "detector")
