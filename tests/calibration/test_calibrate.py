"""Ranges and smoothing that are measured once, for both formats, from any images, and go on after an interruption."""

import errno
from dataclasses import dataclass, replace
from typing import ClassVar

import goldens
import pytest
import torch
from data_samples import picture, write
from eight_bits import is_result, largest_inputs
from toy_backend import Toy, ToyEngine

from conformer_fast.calibration import calibrate as calibrate_module
from conformer_fast.calibration import counts as counts_module
from conformer_fast.calibration.calibrate import calibrate
from conformer_fast.calibration.resolve import resolve
from conformer_fast.datasets.batches import images_in
from conformer_fast.engines.base import Precisions
from conformer_fast.errors import ArgumentError, ArgumentTypeError, BackendError
from conformer_fast.inference.lower import lower
from conformer_fast.inference.quantization import product_of
from conformer_fast.model.outputs import LOGITS
from conformer_fast.storage import hashed
from conformer_fast.storage.hashed import HashedFile

pytestmark = pytest.mark.slow


def batches() -> list[torch.Tensor]:
    """Ten batches of two images, of growing magnitude."""
    return [goldens.image(2, 64, 96) * (1 + index / 4) for index in range(10)]


@pytest.fixture
def passes(monkeypatch):
    """How many images were run to be counted, and a batch at which the pass is interrupted."""
    original, state = counts_module.Observer.observe, {"images": 0, "stop": None}

    def observe(self, images, see):
        if state["stop"] is not None and state["images"] >= state["stop"]:
            raise KeyboardInterrupt
        state["images"] += len(images)
        return original(self, images, see)

    monkeypatch.setattr(counts_module.Observer, "observe", observe)
    return state


def test_batches_may_come_one_by_one(small_model):
    """From a generator, in several sizes; an empty one says nothing."""
    images = [goldens.image(1, 64, 96), goldens.image(2, 50, 70), goldens.image(1, 64, 96)[:0]]
    assert calibrate(small_model, (batch for batch in images)) == calibrate(small_model, images[:2])


@pytest.mark.parametrize("batches", [[], [torch.zeros(0, 3, 64, 96)]], ids=["none", "empty"])
def test_no_images(batches, small_model):
    with pytest.raises(ValueError, match="calibration got no images; give some that are like those"):
        calibrate(small_model, batches)


@pytest.mark.parametrize("smoothquant", [True, False], ids=["smoothed", "not smoothed"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("position", [0, 2])
def test_images_that_are_not_numbers(value, position, smoothquant, small_model):
    """In whichever batch, before and after good ones."""
    batches = [goldens.image(1, 64, 96).clone() for _ in range(3)]
    batches[position][0, 0, 30, 30] = value
    with pytest.raises(ValueError, match=r"calibration: the input of \S+ is NaN or infinite; check the images"):
        calibrate(small_model, batches, smoothquant=smoothquant)


def test_the_product_that_overflows_is_named(small_model):
    network = lower(small_model)
    network.conv_trans_3.fusion_block.conv1.bias[0] = float("inf")
    with pytest.raises(ValueError, match=r"the input of conv_trans_3\.fusion_block\.conv2 is NaN or infinite"):
        calibrate(network, [goldens.image(1, 64, 96)])


def test_how_images_are_batched_does_not_matter(small_model):
    images = torch.cat(batches())
    whole = calibrate(small_model, images.split(5), smoothquant=False)
    single = calibrate(small_model, list(reversed(images.split(1))), smoothquant=False)
    assert whole.ranges == pytest.approx(single.ranges, rel=0.05)  # a range tried is 4 % from the next
    assert whole.origin["images"] == 20


def test_ranges_suit_the_format(small_model):
    """INT8 clips what is rare, FP8 covers it."""
    int8, fp8 = (
        calibrate(small_model, batches(), precision=precision, smoothquant=False) for precision in ("int8", "fp8")
    )
    largest = largest_inputs(lower(small_model), batches())
    assert all(largest[name] / 16.1 < int8.ranges[name] < 1.001 * largest[name] for name in largest)
    clipped = {
        kind: sum(found.ranges[name] < 0.95 * largest[name] for name in fp8.ranges)
        for kind, found in {"int8": int8, "fp8": fp8}.items()
    }
    assert clipped["int8"] > clipped["fp8"]


def test_the_quantized_model_is_close(small_model):
    network = lower(small_model)
    found = calibrate(network, batches())
    images = goldens.image(4, 64, 96)
    for mine, exact in zip(network.quantized(found)(images), network(images), strict=True):
        assert (mine - exact).norm() < 0.1 * exact.norm()


def test_smoothing_is_measured_with_the_ranges(small_model):
    """Ranges are those of what the smoothed model reads."""
    norm, product = small_model.trans_1.norm1, small_model.trans_1.attn.qkv
    with torch.no_grad():
        norm.weight[5] *= 80
        norm.bias[5] *= 80
        product.weight[:, 5] /= 80
    found, plain = (calibrate(small_model, batches(), smoothquant=smoothquant) for smoothquant in (True, False))
    assert set(found.smoothing) == {"trans_1.qkv"}
    assert plain.smoothing == {}
    assert found.ranges == calibrate(lower(small_model).smoothed(found.smoothing), batches(), smoothquant=False).ranges
    assert found.ranges["trans_1.qkv"] < 0.2 * plain.ranges["trans_1.qkv"]


@pytest.mark.parametrize("stop", [6, 8, 18, 20], ids="after-{}".format)
def test_an_interrupted_calibration_goes_on(stop, small_model, passes, tmp_path):
    """To the same result to the last bit, from the last four batches that were kept."""
    expected = calibrate(small_model, batches(), smoothquant=False)
    passes.update(images=0, stop=stop)
    with pytest.raises(KeyboardInterrupt) if stop < 20 else pytest.MonkeyPatch.context():
        calibrate(small_model, batches(), smoothquant=False, cache=tmp_path)
    passes.update(images=0, stop=None)
    assert calibrate(small_model, batches(), smoothquant=False, cache=tmp_path) == expected
    assert passes["images"] == 20 - stop // 8 * 8 if stop < 20 else passes["images"] == 0


def test_another_precision_runs_nothing_again(small_model, passes, tmp_path):
    expected = calibrate(small_model, batches(), precision="fp8", smoothquant=False)
    calibrate(small_model, batches(), precision="int8", smoothquant=False, cache=tmp_path)
    passes.update(stop=passes["images"])
    assert calibrate(small_model, batches(), precision="fp8", smoothquant=False, cache=tmp_path) == expected


def test_smoothing_is_kept_too(small_model, passes, tmp_path, monkeypatch):
    first = calibrate(small_model, batches(), cache=tmp_path)
    monkeypatch.setattr(calibrate_module, "smoothing_factors", lambda *_: pytest.fail("measured again"))
    passes.update(stop=0)
    assert calibrate(small_model, batches(), cache=tmp_path) == first


@pytest.mark.parametrize("what", ["weights", "images", "batches"])
def test_anything_else_is_measured_anew(what, small_model, passes, tmp_path):
    calibrate(small_model, batches(), smoothquant=False, cache=tmp_path)
    images = batches()
    if what == "weights":
        with torch.no_grad():
            small_model.trans_1.norm1.bias[0] += 1
    if what == "images":
        images[3] = images[3] * 1.01
    if what == "batches":
        images = list(torch.cat(images).split(4))
    passes.update(images=0)
    found = calibrate(small_model, images, smoothquant=False, cache=tmp_path)
    assert passes["images"] == 20
    assert found == calibrate(small_model, images, smoothquant=False)


def test_fp8_leaves_the_first_products_in_16_bits(small_model):
    int8, fp8 = (calibrate(small_model, batches(), precision=precision) for precision in ("int8", "fp8"))
    convolutions = ("conv1", "conv2", "residual", "conv3", "conv3.addend")
    attended = {name for name in int8.ranges if is_result(name)}
    assert len(attended) == small_model.config.depth
    assert int8.ranges.keys() - fp8.ranges.keys() == {"stem", *(f"conv_1.{name}" for name in convolutions), *attended}
    assert int8.ranges.keys() == largest_inputs(lower(small_model), batches()).keys()


@pytest.mark.parametrize("damage", ["cut", "empty", "other"])
def test_a_damaged_cache_is_measured_anew(damage, small_model, passes, tmp_path):
    expected = calibrate(small_model, batches(), smoothquant=False, cache=tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    content = file.read_bytes()
    file.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "other": b"PK\x03\x04 something"}[damage])
    with pytest.warns(UserWarning, match=rf"{file} is damaged; its images are counted again"):
        assert calibrate(small_model, batches(), smoothquant=False, cache=tmp_path) == expected
    assert passes["images"] == 2 * 20
    assert file.read_bytes() == content


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        ("safetensors", b"something", "holds no counts .*; its images are counted again"),
        ("json", b'{"trans_1.qkv": [NaN]}', "holds no smoothing .*; smoothing is measured again"),
        ("json", b'{"trans_1.qkv": 3}', "holds no smoothing"),
        ("json", b'{"no.such": []}', "holds no smoothing"),
        ("json", b"[" * 100_000, "holds no smoothing"),
    ],
    ids=["counts", "NaN", "a number", "a foreign name", "deep"],
)
def test_what_somebody_else_wrote_is_measured_anew(kind, content, message, small_model, tmp_path):
    """With a hash that fits."""
    images = batches()[:1]
    expected = calibrate(small_model, images, cache=tmp_path)
    (file,) = tmp_path.glob(f"*.{kind}")
    HashedFile(file).write(content)
    with pytest.warns(UserWarning, match=message):
        assert calibrate(small_model, images, cache=tmp_path) == expected
    assert HashedFile(file).read() != content


def test_other_code_counts_anew(small_model, passes, tmp_path, monkeypatch):
    images = batches()[:1]
    calibrate(small_model, images, smoothquant=False, cache=tmp_path)
    monkeypatch.setattr(calibrate_module, "sources_sha256", lambda folders: "other")
    monkeypatch.setattr(calibrate_module, "IMPORTED", "other")
    calibrate(small_model, images, smoothquant=False, cache=tmp_path)
    assert passes["images"] == 4


@pytest.mark.parametrize("imported", [None, "of other sources"])
def test_code_that_is_not_what_was_imported_keeps_nothing(imported, small_model, tmp_path, monkeypatch):
    monkeypatch.setattr(calibrate_module, "IMPORTED", imported)
    calibrate(small_model, batches()[:1], smoothquant=False, cache=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_costs_only_the_keeping(small_model, tmp_path, monkeypatch):
    def full(file, *_):
        raise OSError(errno.ENOSPC, "No space left on device", str(file))

    monkeypatch.setattr(hashed, "replace_file", full)
    with pytest.warns(UserWarning, match="counts are not kept in .*No space left"):
        found = calibrate(small_model, batches()[:1], smoothquant=False, cache=tmp_path)
    assert found == calibrate(small_model, batches()[:1], smoothquant=False)


def test_a_cache_that_cannot_be_written_costs_only_the_keeping(small_model, tmp_path):
    (tmp_path / "cache").write_text("in the way")
    with pytest.warns(UserWarning, match="are not kept in") as caught:
        found = calibrate(small_model, batches(), cache=tmp_path / "cache")
    assert [str(warning.message).partition(" are")[0] for warning in caught] == ["smoothing factors", "counts"]
    assert found == calibrate(small_model, batches())


def test_a_generator_is_as_good_as_a_list(small_model):
    assert calibrate(small_model, iter(batches())) == calibrate(small_model, batches())


def test_labels_beside_the_images_are_left_out(small_model):
    """As a DataLoader gives them, in a list or one by one."""
    images = torch.cat(batches()[:2])
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, torch.arange(4)), batch_size=2)
    known = calibrate(small_model, batches()[:2])
    assert calibrate(small_model, list(loader)) == known
    found, first = resolve(small_model, "int8", loader)
    assert found == known
    assert torch.equal(first, images)


def test_a_folders_path_is_its_pictures(small_model, tmp_path):
    write(tmp_path, {f"{index}.png": picture(80 * index) for index in range(3)})
    known = calibrate(small_model, images_in(tmp_path, 224, 512))
    assert calibrate(small_model, tmp_path) == calibrate(small_model, str(tmp_path)) == known
    with pytest.raises(ArgumentError, match="there is no folder absent"):
        calibrate(small_model, "absent")


def test_the_gate_is_part_of_it(small_model):
    """With the same images, and their labels."""
    free = calibrate(small_model, batches())
    strict = calibrate(small_model, batches(), max_drop=0, labels=[0] * 20)
    report = strict.origin["gate"]
    assert (report["images"], report["max_drop"], report["holds"]) == (20, 0, True)
    assert free.ranges.keys() - strict.ranges.keys() == {
        name for name in free.ranges for back in report["restored"] if product_of(name) == back["product"]
    }


@dataclass(frozen=True)
class Timed(Toy):
    """Says that it takes 8 bits, and notes what it makes engines for."""

    made: ClassVar[list] = []

    def precisions(self):
        return Precisions(("fp32",), ("int8",))

    def for_images(self, shape):
        return replace(self, at_once=shape[0])

    def engine(self, reference, settings, outputs):
        self.made.append((settings, outputs))
        return super().engine(reference, settings, outputs)


def test_what_it_costs_is_timed(small_model, monkeypatch):
    """By engines with the quantization before and after the gate, on a batch of the images."""
    monkeypatch.setattr("conformer_fast.calibration.accuracy_gate.SQNR_FLOOR", 50.0)  # so that the gate acts
    calls, original = [], ToyEngine.__call__
    monkeypatch.setattr(ToyEngine, "__call__", lambda self, images: (calls.append(images), original(self, images))[1])
    Timed.made.clear()
    given = [batches()[0][:0], *batches()[:2]]
    found = calibrate(small_model, given, max_drop=0, timed=Timed(at_once=1))
    assert all(torch.equal(images, batches()[0]) for images in calls)
    before, after = found.origin["gate"]["seconds"]
    assert min(before, after) > 0
    (first, outputs), (second, _) = Timed.made
    assert outputs == LOGITS
    assert (first.backend, first.precision, first.device) == (Timed(at_once=2), "int8", "cpu")
    assert second.backend == first.backend
    assert second.quantization.ranges == found.ranges
    assert first.quantization.ranges == calibrate(small_model, given).ranges != found.ranges


def test_the_report_is_given(small_model):
    given = []
    found = calibrate(small_model, batches(), max_drop=0, report=given.append)
    assert [report.to_dict() for report in given] == [found.origin["gate"]]
    with pytest.raises(ArgumentError, match="report: for the gate; give max_drop too"):
        calibrate(small_model, batches(), report=pytest.fail)


def test_a_backend_that_cannot_time_is_refused_before_any_work(small_model, passes):
    with pytest.raises(BackendError, match="precision 'int8' is not available on backend 'reference'"):
        calibrate(small_model, batches(), max_drop=0, timed="reference")
    with pytest.raises(ArgumentError, match="timed makes engines of the model itself"):
        calibrate(lower(small_model), batches(), max_drop=0, timed=Timed(at_once=1))
    assert passes["images"] == 0


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"precision": "fp16"}, ValueError, "calibration is for int8 and fp8, got precision 'fp16'"),
        ({"labels": [0] * 20}, ValueError, "labels: for the gate; give max_drop too"),
        ({"timed": "openvino"}, ValueError, "timed: for the gate; give max_drop too"),
        (
            {"images": [torch.zeros(1, 3, 64, 64, dtype=torch.uint8)]},
            TypeError,
            "images for quantization must be batches of normalized, floating point images, got torch.uint8",
        ),
        ({"images": 5}, ArgumentTypeError, "images for quantization must be a list, got 5"),
        ({"images": []}, ValueError, "calibration got no images"),
    ],
)
def test_bad_arguments(options, error, message, small_model):
    with pytest.raises(error, match=message):
        calibrate(small_model, **{"images": batches(), **options})


def test_a_batch_is_no_list_of_batches(small_model):
    with pytest.raises(ArgumentTypeError, match=r"a list of batches, such as images.split\(32\), got one"):
        calibrate(small_model, batches()[0])
