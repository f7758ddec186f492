"""Bundles of the backend "tensorrt": which fit this machine, and what of them reaches the runtime, which is a fake."""

import json
import warnings
from dataclasses import replace

import pytest
import torch
from bundle_samples import KEY, PLAN, REBUILD, SHAPES, fake_runtime, images, write_plan

import conformer_fast as cf
from conformer_fast.bundles.folder import read_bundle, write_bundle
from conformer_fast.engines.registry import format_of
from conformer_fast.engines.tensorrt.backend import TensorRT
from conformer_fast.errors import BackendError, BundleError, EngineMismatchError
from conformer_fast.model.shapes import Shapes


@pytest.fixture
def tensorrt(small_model):
    with fake_runtime(small_model) as fake:
        yield fake


def test_plan_reaches_the_runtime(small_model, tmp_path, tensorrt):
    folder = write_plan(tmp_path / "bundle", small_model)
    assert (folder / "model.plan").read_bytes() == PLAN
    loaded = cf.load(folder)
    assert tensorrt.made == [(PLAN, tensorrt.flavor, ("conv_logits", "trans_logits"), torch.device("cuda:0"), None)]
    assert loaded.settings.backend == TensorRT(SHAPES, "tensorrt")
    assert (loaded.settings.backend.name, loaded.settings.precision) == ("tensorrt", "fp16")
    assert loaded.device == torch.device("cuda:0")
    assert loaded.shapes == (SHAPES,)
    expected = {"flavor": "tensorrt", "version": "10.13.2.6", "targets": ["sm86", "sm120"], "gpu": ""}
    assert loaded.manifest.runtime == expected


MISMATCHES = {
    "flavor": (
        lambda fake: fake.flavor.__dict__.update(name="tensorrt-rtx"),
        "tensorrt",
        "not usable: .* not instal",
    ),
    "version": (lambda fake: fake.flavor.__dict__.update(version="10.13.3.0"), "10.13.2.6", r"10\.13\.3\.0"),
    "GPU": (lambda fake: fake.__dict__.update(target="sm90"), "one of sm86, sm120", "sm90"),
    "no GPU": (lambda fake: fake.__dict__.update(target=None), "one of sm86, sm120", "none: no CUDA device"),
}


@pytest.mark.parametrize(("name", "here"), MISMATCHES.items(), ids=MISMATCHES)
def test_mismatch(name, here, small_model, tmp_path, tensorrt):
    change, expected, found = here
    folder = write_plan(tmp_path / "bundle", small_model)
    change(tensorrt)
    with pytest.raises(EngineMismatchError, match=found) as caught:
        cf.load(folder)
    assert (caught.value.field, caught.value.expected) == (name.removeprefix("no "), expected)
    assert caught.value.rebuild == REBUILD
    assert tensorrt.made == []


def test_patch_version_counts_but_no_build_number(small_model, tmp_path, tensorrt):
    folder = write_plan(tmp_path / "bundle", small_model)
    tensorrt.flavor.version = "10.13.2.9"
    cf.load(folder)


def test_hashes_come_before_what_is_here(small_model, tmp_path, tensorrt):
    folder = write_plan(tmp_path / "bundle", small_model)
    (folder / "model.plan").write_bytes(b"")
    tensorrt.target = None
    with pytest.raises(BundleError, match="is not the file that the bundle was made with"):
        cf.load(folder)


def test_plan_that_the_runtime_refuses(small_model, tmp_path, tensorrt):
    folder = write_plan(tmp_path / "bundle", small_model, plan=b"no plan")
    with pytest.raises(
        BundleError, match="cannot be loaded: TensorRT cannot load the plan; make it again: conformer-fas"
    ):
        cf.load(folder)


def test_engine_of_another_gpu_is_a_warning(small_model, tmp_path, tensorrt):
    """Of the same compute capability; TensorRT runs it, but promises nothing."""
    with pytest.warns(
        UserWarning, match=r"was built on NVIDIA L4, here is Pretended 4090: .*conformer-fast build \.\.\."
    ):
        cf.load(write_plan(tmp_path / "bundle", small_model, gpu="NVIDIA L4"))
    with pytest.warns(UserWarning, match=r"was built on \\x1b\[2J\\n.{,200}, here is"):
        cf.load(write_plan(tmp_path / "bundle", small_model, gpu="\x1b[2J\n" * 5000))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cf.load(write_plan(tmp_path / "bundle", small_model, gpu="Pretended 4090"))


def test_a_flavor_that_is_none(small_model, tmp_path, tensorrt):
    folder = write_plan(tmp_path / "bundle", small_model)
    bundle = read_bundle(folder, format_of)
    files = {name: bundle.read(name) for name in bundle.manifest.files}
    runtime = {**bundle.manifest.runtime, "flavor": "\x1b"}
    write_bundle(folder, replace(bundle.manifest, runtime=runtime), files)
    with pytest.raises(BundleError, match=r"bundle has an engine that cannot be: unknown flavor '\\x1b'"):
        cf.load(folder)


@pytest.mark.parametrize("option", [{"shapes": Shapes()}, {"flavor": "tensorrt-rtx"}, {"targets": ["sm90"]}], ids=str)
def test_a_bundle_says_itself_what_its_engine_takes(option, small_model, tmp_path, tensorrt):
    folder = write_plan(tmp_path / "bundle", small_model)
    with pytest.raises(BackendError, match="the bundle says for what its engine was built; load it without "):
        cf.load(folder, **option)
    assert tensorrt.made == []


def test_kernels_of_tensorrt_rtx_are_kept_in_the_bundle_if_they_can_be_trusted(small_model, tmp_path, tensorrt):
    tensorrt.flavor.has_runtime_cache = True
    unsigned, signed = write_plan(tmp_path / "a", small_model), write_plan(tmp_path / "b", small_model, key=KEY)
    cf.load(unsigned)
    cf.load(signed, key=KEY)
    cf.load(signed)
    first, second, none = (arguments[-1] for arguments in tensorrt.made)
    assert none is None
    for kept in (first, second):
        kept.write(b"kernels")
    assert first.read() == second.read() == b"kernels"
    for folder, signature in ((unsigned, False), (signed, True)):
        (record,) = json.loads((folder / "runtime.cache.hash").read_bytes())
        assert ("hmac" in record) is signature


def test_kernels_are_not_kept_beside_a_bundle_of_a_key_pair(small_model, tmp_path, tensorrt):
    """Its public key is no secret: everybody could sign kernels with it."""
    tensorrt.flavor.has_runtime_cache = True
    ed25519 = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ed25519")
    serialization = pytest.importorskip("cryptography.hazmat.primitives.serialization")
    private = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32))
    pem = serialization.Encoding.PEM
    key = private.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    public = private.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    folder = write_plan(tmp_path / "bundle", small_model, key=key)
    for given in (public, key):
        cf.load(folder, key=given)
    assert [arguments[-1] for arguments in tensorrt.made] == [None, None]


def test_the_floor_is_the_bound_of_eight_bits(small_model, tmp_path, tensorrt, monkeypatch):
    """A loaded model knows nothing of its quantization."""
    monkeypatch.setattr(TensorRT, "torch_device", lambda self: "cpu")
    factor = 1.01
    monkeypatch.setattr(tensorrt, "model", lambda batch: [factor * logits for logits in small_model(batch)])
    loaded = cf.load(write_plan(tmp_path / "bundle", small_model, precision="int8"))
    report = loaded.verify(images(2, 3, 32, 32), small_model)
    assert [row.error for row in report.results] == [pytest.approx(0.01, rel=1e-3)] * 2
    assert report.top1_agreement == {"conv": 1, "trans": 1, "sum": 1}
    assert report.within
    assert "logits errs by 0.01, 0.05 of its bound, the floor of 14 dB" in report.verdict
    assert report.to_dict()["results"][0]["bound"] == pytest.approx(0.2, rel=0.01)
    factor = 1.21
    report = loaded.verify(images(2, 3, 32, 32), small_model)
    assert not report.within
    assert "conv_logits errs by 0.21, 1.05 of its bound, the floor of 14 dB" in report.verdict
