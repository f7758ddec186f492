"""The backend "openvino": what is kept on disk and when it is built again, and what its bundles hold."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch
from bundle_samples import filled, images, same, saved

import conformer_fast as cf
from conformer_fast.bundles.folder import Bundle
from conformer_fast.engines import cache
from conformer_fast.engines.openvino.backend import OpenVINO
from conformer_fast.errors import BundleError, EngineMismatchError
from conformer_fast.model.reference import Conformer

pytest.importorskip("onnx")
engine_module = pytest.importorskip("conformer_fast.engines.openvino.engine", exc_type=ImportError)
device = import_module("conformer_fast.engines.openvino.device")
ov = engine_module.ov


def compiled(model, **options):
    return cf.compile(model, backend="openvino", **{"precision": "fp32", **options})


def keys() -> set[str]:
    """Of the engines, not of what holds their weights."""
    return {entry.key for entry in cache.cached_engines() if "height" in entry.fields}


# What decides whether an engine is built again


def test_the_same_graph_is_built_once(small_model, own_cache):
    batch = images(1, 3, 32, 32)
    expected = compiled(small_model)(batch)
    before = keys()
    assert len(before) == 1
    for options in ({}, {"threads": 1}):
        assert same(compiled(small_model, **options)(batch), expected)
    assert keys() == before


def test_another_graph_is_built_anew(small_model, own_cache):
    batch = images(1, 3, 32, 32)
    compiled(small_model)(batch)
    with torch.no_grad():
        small_model.trans_cls_head.bias[3] += 1
    compiled(small_model)(batch)
    compiled(small_model, precision="int8", quantization=[images(4, 3, 32, 32)])(batch)
    compiled(small_model, precision="int8", quantization=[3 * images(4, 3, 32, 32)])(batch)
    assert len(keys()) == 4


FOLDERS = {
    name: Path(import_module(f"conformer_fast.{name}".strip(".")).__file__).parent
    for name in ("", "engines", "kernels")
}
PROGRAM = """
import torch
import conformer_fast as cf
print(cf.__file__, cf.__version__)
model = cf.create_model("digits", weights="packaged")
cf.compile(model, backend="openvino", precision="fp32")(torch.zeros(1, 3, 64, 64))
"""


def run_changed(folder: Path, change: Callable[[str, str], str]) -> str:
    """Runs a copy of the package whose files `change` changed, given their names and texts. Returns its version."""
    changed = folder / "conformer_fast"
    for name, original in FOLDERS.items():
        shutil.copytree(original, changed / name, dirs_exist_ok=True)
    for file in changed.rglob("*.py"):
        file.write_text(change(file.name, file.read_text()))
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=folder, capture_output=True, text=True)
    file, _, version = done.stdout.strip().rpartition(" ")
    assert file == str(changed / "__init__.py"), done.stderr
    return version


def test_other_comments_docstrings_and_versions_build_nothing(own_cache, tmp_path):
    compiled(cf.create_model("digits", weights="packaged"))(images(1, 3, 64, 64))
    before = keys()

    def comment(file: str, text: str) -> str:
        text = text.replace('"""', '"""Another word: ', 1)
        return f"# Another comment.\n{text}\n# And one more.\n".replace(f'"{cf.__version__}"', '"9.9"')

    assert run_changed(tmp_path / "changed", comment) == "9.9"
    assert keys() == before


def test_another_formula_builds_anew(own_cache, tmp_path):
    """Even one that computes the same."""
    compiled(cf.create_model("digits", weights="packaged"))(images(1, 3, 64, 64))
    before = keys()
    add = "[self.cast(value, self._types[other]), other]"

    def turn(file: str, text: str) -> str:
        assert file != "typed_graph.py" or add in text
        return text.replace(add, "[other, self.cast(value, self._types[other])]")

    run_changed(tmp_path / "changed", turn)
    assert len(keys()) == 2
    assert keys() > before


def test_a_warm_start_writes_no_graph(small_model, own_cache, monkeypatch):
    from conformer_fast.engines.onnx import export

    written, write = [], export.onnx_from_model

    def spy(*args, **kwargs):
        written.append(args)
        return write(*args, **kwargs)

    monkeypatch.setattr(export, "onnx_from_model", spy)
    batch = images(1, 3, 32, 32)
    expected = compiled(small_model)(batch)
    assert len(written) == 1  # for its hash and for the engine
    assert same(compiled(small_model)(batch), expected)
    assert len(written) == 1
    cf.compile(small_model.eval(), backend="openvino", precision="fp32").engine(["logits"])(batch)
    assert len(written) == 2  # other outputs are another graph
    cache.clear_cache()
    assert same(compiled(small_model)(batch), expected)
    assert len(written) == 3


def test_a_compiled_model_stays_what_it_was_at_its_first_run(small_model, own_cache, tmp_path):
    """For all sizes. What it was made from may change, but is then not what a bundle would say it holds."""
    fast, batches = compiled(small_model), [images(1, 3, 32, 32), images(1, 3, 48, 32)]
    expected = [cf.compile(small_model, backend="reference")(batch) for batch in batches]
    first = fast(batches[0])
    with torch.no_grad():
        fast.reference.conv_cls_head.weight.zero_()
    assert same(fast(batches[0]), first)
    for batch, values in zip(batches, expected, strict=True):
        assert torch.allclose(fast(batch)[0], values[0], atol=1e-4)
    with pytest.raises(cf.ConformerFastError, match="the reference was changed after it was compiled"):
        fast.save(tmp_path / "bundle")
    assert len(keys()) == 2
    for batch, before in zip(batches, expected, strict=True):
        assert torch.allclose(compiled(small_model)(batch)[0], before[0], atol=1e-4)
        assert not torch.allclose(compiled(fast.reference)(batch)[0], before[0], atol=1e-2)


def test_a_graph_that_is_written_anew_is_checked(small_model, own_cache, monkeypatch):
    """Where its hash is remembered and the weights are gone from the cache. Else there would be, under the one's hash,
    the weights of another."""
    batch = images(1, 3, 32, 32)
    compiled(small_model)(batch)
    for path in own_cache.glob("*.engine*"):
        path.unlink()
    monkeypatch.setattr(OpenVINO, "graph", lambda *_: b"another")
    with pytest.raises(cf.ConformerFastError, match="the reference was changed after it was compiled"):
        compiled(small_model)(batch)
    assert not cache.cached_engines()


def test_code_that_is_not_what_was_imported_is_not_remembered(small_model, own_cache, monkeypatch):
    from conformer_fast.engines.openvino import graph_hash

    monkeypatch.setattr(graph_hash, "IMPORTED", "other code")
    compiled(small_model)(images(1, 3, 32, 32))
    assert len(keys()) == 1
    assert not list(own_cache.glob("*.text"))
    monkeypatch.setattr(graph_hash, "CODE", [])
    monkeypatch.setattr(graph_hash, "__file__", str(own_cache / "absent" / "graph_hash.py"))
    assert graph_hash._code_sha256() is None


# Bundles


def test_threads_are_used(small_model, tmp_path, monkeypatch):
    folder = saved(tmp_path / "bundle", "openvino", small_model)
    options, import_model = [], ov.Core.import_model

    def spy(self, content, device, given):
        options.append(given)
        return import_model(self, content, device, given)

    monkeypatch.setattr(ov.Core, "import_model", spy)
    for threads in (1, 2):
        loaded = cf.load(folder, threads=threads)
        assert loaded.settings.backend.threads == threads
        loaded(images(1, 3, 32, 32))
    assert [given["INFERENCE_NUM_THREADS"] for given in options] == ["1", "2"]


def engine_sizes(folder: Path) -> set[str]:
    return {path.name.partition("-")[0] for path in folder.glob("*.engine")}


def test_engines_of_the_sizes_that_ran_are_saved(small_model, own_cache, tmp_path):
    fast = compiled(small_model)
    for size in ((32, 32), (32, 48), (32, 32)):
        fast(images(3, 3, *size))
    assert engine_sizes(fast.save(tmp_path / "bundle")) == {"1x32x32", "1x32x48"}


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_bundle_runs_any_batch_without_a_build(precision, small_model, own_cache, tmp_path):
    """Of a model that ran whole rounds of several images alone, the engine for one image is there too."""
    batch = images(8, 3, 32, 32)
    calibration = {"quantization": [batch]} if precision == "int8" else {}
    fast = compiled(small_model, precision=precision, threads=2, **calibration)
    fast(batch)
    folder = fast.save(tmp_path / "bundle")
    assert engine_sizes(folder) == {"1x32x32", "4x32x32"}
    kept = sorted(own_cache.iterdir())
    cf.load(folder)(images(3, 3, 32, 32))
    assert sorted(own_cache.iterdir()) == kept


@pytest.mark.parametrize(("name", "size"), [("digits", 64), ("small", 224), ("patches", 240)])
def test_usual_size_is_saved_if_none_ran(name, size, small_config, own_cache, tmp_path):
    config = replace(small_config, patch_size=48 if name == "patches" else 16)
    model = cf.create_model("digits", weights="packaged") if name == "digits" else filled(Conformer(config))
    folder = compiled(model).save(tmp_path / "bundle")
    assert engine_sizes(folder) == {f"1x{size}x{size}"}
    kept = sorted(own_cache.iterdir())
    cf.load(folder)(images(1, 3, size, size))
    assert sorted(own_cache.iterdir()) == kept


def test_sizes_of_a_bundle_keep_their_engines(small_model, own_cache, tmp_path, monkeypatch):
    """Whatever other sizes come first."""
    monkeypatch.setattr(engine_module, "OWN_SIZES", 2)
    fast, batch = compiled(small_model), images(1, 3, 32, 48)
    expected = fast(batch)
    for width in (64, 80):
        fast(images(1, 3, 32, width))  # the second by an engine for any size
    folder = fast.save(tmp_path / "bundle")
    assert engine_sizes(folder) == {"1x32x48", "1x32x64", "1xanyxany"}
    loaded, kept = cf.load(folder), sorted(own_cache.iterdir())
    for width in (80, 96):
        loaded(images(1, 3, 32, width))
    assert same(loaded(batch), expected)
    assert sorted(own_cache.iterdir()) == kept


def test_another_size_is_built_from_the_network_and_cached(small_model, own_cache, tmp_path):
    folder = saved(tmp_path / "bundle", "openvino", small_model)
    before = len(list(own_cache.glob("*.engine")))
    batch = images(2, 3, 48, 32)
    for _ in range(2):
        result = cf.load(folder)(batch)
        assert len(list(own_cache.glob("*.engine"))) == before + 1
    with torch.no_grad():
        for ours, expected in zip(result, small_model(batch), strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_bundle_holds_the_weights_once(tmp_path, monkeypatch):
    """However many sizes it has engines for, and in the type that it runs in."""
    monkeypatch.setattr(device, "native_precisions", lambda _: ("fp32", "bf16"))
    model = filled(cf.create_model("tiny-p16", weights=None))
    weights = sum(value.numel() for value in model.state_dict().values())
    fast = compiled(model, precision="bf16")
    for width in (32, 48):
        fast(images(1, 3, 32, width))
    folder = fast.save(tmp_path / "bundle")
    engines = [path.stat().st_size for path in folder.glob("*.engine")]
    assert len(engines) == 2
    assert max(engines) < 3e6
    assert (folder / "model.bin").stat().st_size < 1.15 * 2 * weights


def test_another_cpu_costs_a_build(small_model, own_cache, tmp_path, monkeypatch):
    folder = saved(tmp_path / "bundle", "openvino", small_model)
    elsewhere = {**device.describe(), "device": "another"}
    monkeypatch.setattr(engine_module, "describe", lambda _: elsewhere)
    read = []
    original = Bundle.read
    monkeypatch.setattr(Bundle, "read", lambda self, name: read.append(name) or original(self, name))
    loaded = cf.load(folder)
    read.clear()
    batch = images(2, 3, 32, 32)
    with torch.no_grad():
        for ours, expected in zip(loaded(batch), small_model(batch), strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    assert read == ["model.xml", "model.bin"]


def test_precision_that_this_cpu_lacks(small_model, tmp_path, monkeypatch):
    monkeypatch.setattr(device, "native_precisions", lambda _: ("fp32", "bf16"))
    folder = compiled(small_model, precision="bf16").save(tmp_path / "bundle")
    monkeypatch.setattr(device, "native_precisions", lambda _: ("fp32",))
    with pytest.raises(
        EngineMismatchError, match=r"precision must be bf16, here it is fp32, .*\.save\('bundle'\)"
    ) as caught:
        cf.load(folder)
    assert (caught.value.field, caught.value.expected) == ("precision", "bf16")


def test_without_openvino(small_model, tmp_path, monkeypatch):
    folder = saved(tmp_path / "bundle", "openvino", small_model)
    monkeypatch.setitem(sys.modules, "conformer_fast.engines.openvino.device", None)
    with pytest.raises(
        EngineMismatchError, match=r'openvino must be installed, .* pip install "conformer-fast\[cpu\]"'
    ):
        cf.load(folder)


def test_file_that_changes_after_loading_is_not_run(small_model, own_cache, tmp_path):
    folder = saved(tmp_path / "bundle", "openvino", small_model)
    loaded = cf.load(folder)
    for path in (*folder.glob("*.engine"), folder / "model.bin"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    for size in (32, 48):
        with pytest.raises(BundleError, match="is not the file that the bundle was made with"):
            loaded(images(1, 3, size, size))
