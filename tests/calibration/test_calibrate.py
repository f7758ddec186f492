"""Ranges are those of what the reference model's own modules read, by the names of the inference model's products."""

import json
from dataclasses import replace

import goldens
import lookalikes
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from conformer_fast.calibration import calibrate as calibrate_module
from conformer_fast.calibration.calibrate import calibrate, input_ranges
from conformer_fast.datasets.batches import images_in
from conformer_fast.errors import ImageError
from conformer_fast.inference.lower import lower
from conformer_fast.inference.quantization import Quantization, addend_of, load_quantization, save_quantization
from conformer_fast.model.config import VARIANTS
from conformer_fast.model.reference import Bottleneck, Conformer, TransformerBlock
from conformer_fast.preprocessing.cpu import load_batch


class Watched:
    """Hooks on the modules of a reference model; `largest` is what its calls have shown, by the product's name."""

    def __init__(self, model: Conformer) -> None:
        self.largest: dict[str, float] = {}
        self.see("stem", model.conv1)
        self.see("patch_embed", model.trans_patch_conv)
        self.see_bottleneck("conv_1", model.conv_1)
        self.see_transformer("trans_1", model.trans_1)
        for index in range(2, model.config.depth + 1):
            name, block = f"conv_trans_{index}", model.coupled_block(index)
            self.see_bottleneck(f"{name}.cnn_block", block.cnn_block)
            self.see_bottleneck(f"{name}.fusion_block", block.fusion_block)
            self.see_transformer(f"{name}.trans_block", block.trans_block)
            self.see(f"{name}.up", block.expand_block.conv_project)  # without the class token, at token resolution
            # The reference pools after its projection. Both are linear: the product of the inference model reads this.
            stride = block.squeeze_block.stride
            self.see(f"{name}.down.project", block.squeeze_block, lambda x, S=stride: F.avg_pool2d(x, S))

    def see(self, name, module, read=lambda x: x) -> None:
        module.register_forward_pre_hook(lambda module, inputs: self.keep(name, read(inputs[0])))

    def see_bottleneck(self, name: str, block: Bottleneck) -> None:
        for part in ("conv1", "conv2", "conv3"):  # conv2 of a fusion block has the tokens' map added
            self.see(f"{name}.{part}", block.get_submodule(part))
        if block.project:
            self.see(f"{name}.residual", block.residual_conv)
            block.residual_bn.register_forward_hook(
                lambda module, inputs, output: self.keep(addend_of(f"{name}.conv3"), output)
            )
        else:
            self.see(addend_of(f"{name}.conv3"), block)

    def see_transformer(self, name: str, block: TransformerBlock) -> None:
        for part, module in {
            "qkv": block.attn.qkv,
            "proj": block.attn.proj,
            "fc1": block.mlp.fc1,
            "fc2": block.mlp.fc2,
        }.items():
            self.see(f"{name}.{part}", module)

    def keep(self, name: str, value: torch.Tensor) -> None:
        self.largest[name] = max(self.largest.get(name, 0.0), value.abs().max().item())


def watched_ranges(model: Conformer, *batches: torch.Tensor) -> dict[str, float]:
    """What `model`, which keeps the hooks, shows in float64."""
    watched = Watched(model.double())
    with torch.no_grad():
        for images in batches:
            model(images.double())
    return watched.largest


CASES = {
    "small": {},
    "deep": {"depth": 6},
    "patch-32": {"patch_size": 32},
    "patch-48-one-head": {"patch_size": 48, "num_heads": 1},
    "gray-ratio-3": {"in_channels": 1, "channel_ratio": 3},
}


@pytest.mark.parametrize("features_only", [False, True], ids=["classifier", "features"])
@pytest.mark.parametrize("case", CASES)
def test_ranges_are_what_the_reference_reads(case, features_only, small_config):
    config = replace(small_config, **CASES[case])
    model = lookalikes.fill(Conformer(config, features_only=features_only)).eval()
    batches = [torch.randn(B, config.in_channels, H, W) for B, H, W in [(1, 64, 96), (3, 50, 70)]]
    measured = input_ranges(lower(model), batches)
    expected = watched_ranges(model, *batches)
    assert measured.keys() == expected.keys()
    for name, largest in expected.items():
        assert largest > 0
        assert measured[name] == pytest.approx(largest, rel=1e-4), name


def test_a_published_variant():
    model = lookalikes.fill(Conformer(VARIANTS["tiny-p16"])).eval()
    measured = input_ranges(lower(model), [goldens.image(2, 64, 96)])
    assert measured == pytest.approx(watched_ranges(model, goldens.image(2, 64, 96)), rel=1e-3)


def test_products_and_what_bottlenecks_add_have_ranges(small_model):
    """And nothing else: heads stay as they are, and no residual of the tokens is rounded."""
    fused = lower(small_model)
    ranges = input_ranges(fused, [goldens.image(1, 64, 96)])
    weights = {name.removesuffix(".weight") for name, value in fused.named_buffers() if value.ndim > 1}
    products = weights - {"conv_head", "trans_head", "cls_token"}
    bottlenecks = {name.removesuffix(".conv1") for name in products if name.endswith(".conv1")}
    assert len(bottlenecks) == 1 + 2 * 2
    assert ranges.keys() == products | {addend_of(f"{name}.conv3") for name in bottlenecks}


def test_ranges_of_an_inner_output_are_those_of_what_it_needs(small_model):
    ranges = input_ranges(lower(small_model).with_outputs(["1.map"]), [goldens.image(1, 64, 96)])
    assert {name.partition(".")[0] for name in ranges} == {"stem", "conv_1"}


def test_the_largest_of_all_images_counts(small_model):
    fused = lower(small_model)
    images = torch.cat([goldens.image(4, 64, 96) * scale for scale in (1, 3, 0.5)])
    together = input_ranges(fused, [images])
    for sizes in ([1] * 12, [5, 7], [4, 4, 4], [11, 1]):
        assert input_ranges(fused, images.split(sizes)) == pytest.approx(together, rel=1e-5)
    apart = [input_ranges(fused, [batch]) for batch in images.split(4)]
    for name, largest in together.items():
        assert largest == pytest.approx(max(ranges[name] for ranges in apart), rel=1e-5)
    assert together["patch_embed"] > 1.5 * apart[0]["patch_embed"]


def test_batches_may_come_one_by_one(small_model):
    """From a generator, in several sizes; an empty one says nothing."""
    images = [goldens.image(1, 64, 96), goldens.image(2, 50, 70), goldens.image(1, 64, 96)[:0]]
    fused = lower(small_model)
    assert input_ranges(fused, (batch for batch in images)) == input_ranges(fused, images[:2])


def test_signs_do_not_matter(small_model):
    """The most negative value counts as the most positive does: what norms return has both."""
    fused = lower(small_model)
    before = input_ranges(fused, [goldens.image(1, 64, 96)])
    norm = fused.trans_1.norm1
    norm.weight.neg_()
    norm.bias.neg_()
    after = input_ranges(fused, [goldens.image(1, 64, 96)])
    assert after["trans_1.qkv"] == before["trans_1.qkv"]


@pytest.mark.parametrize("batches", [[], [torch.zeros(0, 3, 64, 96)]], ids=["none", "empty"])
def test_no_images(batches, small_model):
    with pytest.raises(ValueError, match="calibration got no images; give some that are like those"):
        input_ranges(lower(small_model), batches)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("position", [0, 2])
def test_images_that_are_not_numbers(value, position, small_model):
    """In whichever batch, before and after good ones."""
    batches = [goldens.image(1, 64, 96).clone() for _ in range(3)]
    batches[position][0, 0, 30, 30] = value
    with pytest.raises(ValueError, match=r"calibration: the input of \S+ is NaN or infinite; check the images"):
        input_ranges(lower(small_model), batches)


def test_the_product_that_overflows_is_named(small_model):
    fused = lower(small_model)
    fused.conv_trans_3.fusion_block.conv1.bias[0] = float("inf")
    with pytest.raises(ValueError, match=r"the input of conv_trans_3\.fusion_block\.conv2 is NaN or infinite"):
        input_ranges(fused, [goldens.image(1, 64, 96)])


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 1, 64, 96), r"images must have shape \(batch, 3, height, width\), got \(1, 1, 64, 96\)"),
        ((3, 64, 96), r"images must have shape \(batch, 3, height, width\), got \(3, 64, 96\)"),
        ((1, 3, 8, 96), "images are 8x96, smaller than one 16x16 patch; resize them first"),
    ],
)
def test_images_that_do_not_fit_the_model(shape, message, small_model):
    with pytest.raises(ValueError, match=message):
        input_ranges(lower(small_model), [goldens.image(1, 64, 96), torch.zeros(shape)])


def test_the_model_is_untouched(small_model):
    fused = lower(small_model)
    before = {name: value.clone() for name, value in fused.state_dict().items()}
    images = goldens.image(1, 64, 96)
    scores = fused(images)
    input_ranges(fused, [images])
    assert fused.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in fused.state_dict().items())
    assert all(map(torch.equal, fused(images), scores))
    assert torch.is_grad_enabled()


def test_autocast_around_it_changes_nothing(small_model):
    fused, images = lower(small_model), goldens.image(1, 64, 96)
    plain = input_ranges(fused, [images])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert input_ranges(fused, [images]) == plain


@pytest.fixture
def pictures(tmp_path):
    """Ten gray pictures in two folders, in order of their brightness and names; one's name is in capitals."""
    for index in range(10):
        folder = tmp_path / ("ab"[index // 5])
        folder.mkdir(exist_ok=True)
        name = f"{index}.PNG" if index == 3 else f"{index}.png"
        Image.new("RGB", (40, 30), (index * 20,) * 3).save(folder / name)
    (tmp_path / "a" / "labels.txt").write_text("not a picture")
    return tmp_path


@pytest.mark.parametrize(
    ("limit", "batch", "taken"),
    [
        (100, 8, [[0, 1, 2, 3, 4, 5, 6, 7], [8, 9]]),
        (10, 5, [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]),
        (4, 8, [[0, 2, 5, 7]]),
        (3, 2, [[0, 3], [6]]),
        (1, 1, [[0]]),
    ],
)
def test_pictures_are_taken_evenly(limit, batch, taken, pictures):
    paths = sorted(pictures.glob("*/*.[pP]*"), key=lambda path: int(path.stem))
    found = list(images_in(pictures, 32, limit, batch))
    assert [len(images) for images in found] == [len(part) for part in taken]
    for images, part in zip(found, taken, strict=True):
        assert torch.equal(images, load_batch([paths[index] for index in part], 32))


def test_folder_without_pictures(tmp_path):
    (tmp_path / "notes.txt").write_text("none")
    with pytest.raises(ValueError, match=r"has no pictures for calibration \(\.bmp, .*\.png"):
        images_in(tmp_path, 32, 8)


def test_damaged_picture_is_named(pictures):
    (pictures / "b" / "6.png").write_bytes(b"\x89PNG damaged")
    with pytest.raises(ImageError, match=r"6\.png"):
        list(images_in(pictures, 32, 10))


def test_hidden_files_are_no_pictures(tmp_path):
    """Such as those that macOS leaves beside pictures."""
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    (tmp_path / "._a.png").write_bytes(b"no picture")
    assert [len(batch) for batch in images_in(tmp_path, 32, 10)] == [1]


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"there is no folder .*none"):
        images_in(tmp_path / "none", 32, 10)


def test_pictures_are_told_apart_by_their_contents(pictures):
    """Not by names or dates; and by how they are read."""
    known = images_in(pictures, 32, 10).identity
    assert images_in(pictures, 32, 10).identity == known
    assert len({known, *(images_in(pictures, *other).identity for other in [(48, 10), (32, 9), (32, 10, 4)])}) == 4
    (pictures / "a" / "0.png").rename(pictures / "a" / "00.png")
    assert images_in(pictures, 32, 10).identity == known
    Image.new("RGB", (40, 30), (1, 2, 3)).save(pictures / "a" / "00.png")
    assert images_in(pictures, 32, 10).identity != known


# calibrate


def batches() -> list[torch.Tensor]:
    """Ten batches of two images, of growing magnitude."""
    return [goldens.image(2, 64, 96) * (1 + index / 4) for index in range(10)]


@pytest.fixture
def passes(monkeypatch):
    """How many images were run to be counted, and a batch at which the pass is interrupted."""
    original, state = calibrate_module.Observer.observe, {"images": 0, "stop": None}

    def observe(self, images, see):
        if state["stop"] is not None and state["images"] >= state["stop"]:
            raise KeyboardInterrupt
        state["images"] += len(images)
        return original(self, images, see)

    monkeypatch.setattr(calibrate_module.Observer, "observe", observe)
    return state


@pytest.mark.parametrize("method", ["max", "percentile", "entropy", "mse"])
def test_how_images_are_batched_does_not_matter(method, small_model):
    images = torch.cat(batches())
    whole = calibrate(small_model, images.split(5), method=method, smoothquant=False)
    single = calibrate(small_model, list(reversed(images.split(1))), method=method, smoothquant=False)
    assert whole.ranges.keys() == single.ranges.keys()
    for name, limit in whole.ranges.items():
        assert single.ranges[name] == pytest.approx(limit, rel=0.05 if method in ("entropy", "mse") else 1e-3), name
    assert (whole.origin["images"], whole.origin["method"]) == (20, method)


def test_max_is_what_input_ranges_measures(small_model):
    found = calibrate(small_model, batches(), method="max", smoothquant=False)
    assert found.precision == "int8"
    assert found.ranges == pytest.approx(input_ranges(lower(small_model), batches()), rel=1e-6)


def test_ranges_suit_the_format(small_model):
    """By the usual methods int8 clips what is rare, fp8 covers it."""
    int8, fp8 = (
        calibrate(small_model, batches(), precision=precision, smoothquant=False) for precision in ("int8", "fp8")
    )
    largest = input_ranges(lower(small_model), batches())
    assert (int8.origin["method"], fp8.origin["method"]) == ("mse", "mse")
    assert all(int8.ranges[name] <= largest[name] for name in largest)
    clipped = {
        kind: sum(found.ranges[name] < 0.95 * largest[name] for name in fp8.ranges)
        for kind, found in {"int8": int8, "fp8": fp8}.items()
    }
    assert clipped["int8"] > clipped["fp8"]


def test_the_quantized_model_is_close(small_model):
    fused = lower(small_model)
    found = calibrate(fused, batches())
    images = goldens.image(4, 64, 96)
    for mine, exact in zip(fused.quantized(found)(images), fused(images), strict=True):
        assert (mine - exact).norm() < 0.1 * exact.norm()


def test_smoothing_is_measured_with_the_ranges(small_model):
    """Ranges are those of what the smoothed model reads."""
    norm, product = small_model.trans_1.norm1, small_model.trans_1.attn.qkv
    with torch.no_grad():
        norm.weight[5] *= 80
        norm.bias[5] *= 80
        product.weight[:, 5] /= 80
    found = calibrate(small_model, batches(), method="max")
    plain = calibrate(small_model, batches(), method="max", smoothquant=False)
    assert set(found.smoothing) == {"trans_1.qkv"}
    assert plain.smoothing == {}
    assert found.ranges == pytest.approx(input_ranges(lower(small_model).smoothed(found.smoothing), batches()))
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


def test_another_method_or_precision_runs_nothing_again(small_model, passes, tmp_path):
    calibrate(small_model, batches(), smoothquant=False, cache=tmp_path)
    passes.update(stop=passes["images"])
    for precision, method in [("int8", "max"), ("int8", "mse"), ("fp8", "entropy")]:
        found = calibrate(small_model, batches(), precision=precision, method=method, smoothquant=False, cache=tmp_path)
        assert found.origin["images"] == 20


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
    assert int8.ranges.keys() - fp8.ranges.keys() == {"stem", *(f"conv_1.{name}" for name in convolutions)}
    assert int8.ranges.keys() == input_ranges(lower(small_model), batches()).keys()


@pytest.mark.parametrize("damage", ["cut", "empty", "other"])
def test_a_damaged_cache_is_measured_anew(damage, small_model, passes, tmp_path):
    expected = calibrate(small_model, batches(), smoothquant=False, cache=tmp_path)
    (file,) = tmp_path.glob("*.npz")
    content = file.read_bytes()
    file.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "other": b"PK\x03\x04 something"}[damage])
    assert calibrate(small_model, batches(), smoothquant=False, cache=tmp_path) == expected
    assert passes["images"] == 2 * 20
    assert file.read_bytes() == content


def test_a_generator_is_as_good_as_a_list(small_model):
    assert calibrate(small_model, iter(batches())) == calibrate(small_model, batches())


def test_the_gate_is_part_of_it(small_model):
    """With the same images, and their labels."""
    free = calibrate(small_model, batches())
    strict = calibrate(small_model, batches(), max_drop=0, labels=[0] * 20)
    report = strict.origin["gate"]
    assert (report["images"], report["max_drop"], report["holds"]) == (20, 0, True)
    assert free.ranges.keys() - strict.ranges.keys() == {
        name for name in free.ranges for back in report["restored"] if name.removesuffix(".addend") == back["product"]
    }


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"precision": "fp16"}, ValueError, "calibration is for int8 and fp8, got precision 'fp16'"),
        ({"method": "best"}, ValueError, "unknown calibration method 'best'; choose from max, percentile"),
        ({"labels": [0] * 20}, ValueError, "labels are for the gate: give max_drop too"),
        (
            {"images": [torch.zeros(1, 3, 64, 64, dtype=torch.uint8)]},
            TypeError,
            "floating point images, got torch.uint8",
        ),
        ({"images": []}, ValueError, "calibration got no images"),
    ],
)
def test_bad_arguments(options, error, message, small_model):
    with pytest.raises(error, match=message):
        calibrate(small_model, **{"images": batches(), **options})


# The file


def test_a_quantization_survives_its_file(tmp_path):
    quantization = Quantization("fp8", {"a": 0.1, "b": 3e38}, {"a": (0.5, 1 / 3)}, {"method": "mse", "images": 7})
    file = save_quantization(quantization, tmp_path / "q.json")
    found = load_quantization(file)
    assert found == quantization
    assert found.origin == quantization.origin


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is no JSON"),
        ("[]", "is no quantization: its format is None"),
        ('{"format": "other"}', "is no quantization: its format is 'other'"),
        ('{"format": "conformer-fast quantization 1"}', "is a damaged quantization .*precision"),
        ({"precision": "int4"}, "precision 'int4' is none of int8, fp8"),
        ({"ranges": {"a": -1}}, "-1 is no magnitude"),
        ({"ranges": {"a": "1"}}, "'1' is no magnitude"),
        ({"ranges": {"a": None}}, "damaged quantization"),
        ({"ranges": {"a": float("inf")}}, "inf is no magnitude"),
        ({"smoothing": {"a": [True]}}, "True is no magnitude"),
        ({"ranges": []}, "damaged quantization"),
    ],
)
def test_files_that_are_none(content, message, tmp_path):
    file = tmp_path / "q.json"
    if isinstance(content, dict):
        save_quantization(Quantization("int8", {"a": 1.0}), file)
        content = json.dumps({**json.loads(file.read_text()), **content})
    file.write_text(content)
    with pytest.raises(ValueError, match=message):
        load_quantization(file)
