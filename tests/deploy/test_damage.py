"""A damaged bundle is never run: whatever changes, it is noticed before a runtime is given a byte."""

import hashlib
import json
import shutil
from contextlib import nullcontext
from itertools import pairwise

import pytest
import safetensors.torch
from bundle_samples import fake_runtime, filled, images, need_openvino, saved
from fake_cuda import fake_cuda

import conformer_fast as cf
from conformer_fast import Conformer
from conformer_fast.engines.tensorrt import engine as engine_module
from conformer_fast.errors import BundleError

BACKENDS = ["openvino", "triton", "tensorrt"]


@pytest.fixture(scope="module")
def sound(small_config, tmp_path_factory):
    """A bundle of each backend, to be copied."""
    need_openvino()
    folder = tmp_path_factory.mktemp("sound")
    model = filled(Conformer(small_config))
    with fake_cuda():
        return {backend: saved(folder / backend, backend, model) for backend in BACKENDS}


@pytest.fixture(params=BACKENDS)
def damaged(request, sound, tmp_path, small_model):
    """A copy of a bundle that fits this machine, where handing a byte to a runtime fails the test."""
    folder = tmp_path / "bundle"
    shutil.copytree(sound[request.param], folder)

    def run(*_, **__):
        raise AssertionError("a damaged bundle was run")

    gpu = fake_cuda() if request.param == "triton" else nullcontext()
    with gpu, fake_runtime(small_model), pytest.MonkeyPatch.context() as patch:
        cf.load(folder)
        patch.setattr("conformer_fast.engines.openvino.engine.OpenVINOEngine", run)
        patch.setattr("conformer_fast.engines.openvino.engine.ov.Core.import_model", run)
        patch.setattr("conformer_fast.engines.openvino.engine.ov.Core.read_model", run)
        patch.setattr(safetensors.torch, "load", run)
        patch.setattr(engine_module, "TensorRTEngine", run)
        with pytest.raises(AssertionError, match="a damaged bundle was run"):
            cf.load(folder)  # sound, so these are the ways into a runtime
        yield folder


def flipped(content: bytes, at: int, _: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :]


def truncated(content: bytes, at: int, _: int) -> bytes:
    return content[:at]


def zeroed(content: bytes, at: int, end: int) -> bytes:
    return content[:at] + bytes(end - at) + content[end:]


def inserted(content: bytes, at: int, _: int) -> bytes:
    return content[:at] + b"\0" + content[at:]


def appended(content: bytes, at: int, _: int) -> bytes:
    return content + content[: at + 1]


@pytest.mark.parametrize("damage", [flipped, truncated, zeroed, inserted, appended])
def test_damage_in_each_sixteenth_of_each_file(damage, damaged):
    for path in sorted(damaged.iterdir()):
        content = path.read_bytes()
        bounds = [index * len(content) // 16 for index in range(17)]
        tried = 0
        for at, end in pairwise(bounds):
            broken = damage(content, at, max(end, at + 1))
            if broken != content:  # zeros may be zeroed
                tried += 1
                path.write_bytes(broken)
                with pytest.raises(BundleError):
                    cf.load(damaged)
        assert tried
        path.write_bytes(content)
    with pytest.raises(AssertionError, match="a damaged bundle was run"):
        cf.load(damaged)


def test_deleted_file(damaged):
    for path in sorted(damaged.iterdir()):
        content = path.read_bytes()
        path.unlink()
        with pytest.raises(BundleError, match=r"cannot be read \(No such file or directory\)"):
            cf.load(damaged)
        path.write_bytes(content)


def test_swapped_files(damaged):
    for one, other in pairwise(sorted(damaged.iterdir())):
        contents = one.read_bytes(), other.read_bytes()
        one.write_bytes(contents[1])
        other.write_bytes(contents[0])
        with pytest.raises(BundleError):
            cf.load(damaged)
        one.write_bytes(contents[0])
        other.write_bytes(contents[1])


def test_manifest_with_another_hash_and_a_right_digest(damaged):
    path = damaged / "manifest.json"
    for name in json.loads(path.read_bytes())["files"]:
        for entry, value in (("sha256", "0" * 64), ("bytes", 1)):
            kept = path.read_bytes()
            content = json.loads(kept)
            content["files"][name][entry] = value
            del content["digest"]
            text = json.dumps(content, indent=1) + "\n"
            content["digest"] = hashlib.sha256(text.encode()).hexdigest()
            path.write_text(json.dumps(content, indent=1) + "\n")
            with pytest.raises(BundleError, match=f"{name} is not the file that the bundle was made with"):
                cf.load(damaged)
            path.write_bytes(kept)


def test_other_files_do_not_matter(sound, tmp_path):
    folder = tmp_path / "bundle"
    shutil.copytree(sound["openvino"], folder)
    (folder / "notes.txt").write_text("mine")
    (folder / "0x0-0.engine").write_bytes(b"no engine")
    cf.load(folder)(images(1, 3, 32, 32))
