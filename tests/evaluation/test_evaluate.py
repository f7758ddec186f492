"""evaluate(): the numbers are exactly those of a plain loop, whatever the processes, interruptions and damage."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os

import numpy as np
import pytest
import torch

import conformer_fast as cf
from conformer_fast.datasets.dataset import open_dataset
from conformer_fast.datasets.digits import digit_image, load_digits_split, load_pixels, split_indices
from conformer_fast.errors import DatasetError, ImageError
from conformer_fast.evaluation import evaluate as evaluate_module
from conformer_fast.evaluation.evaluate import evaluate
from conformer_fast.evaluation.published import Published, published_for
from conformer_fast.evaluation.report import Evaluation, Score
from conformer_fast.evaluation.resume import MAGIC, Record
from conformer_fast.inference.quantization import Quantization
from conformer_fast.model.config import VARIANTS, ConformerConfig

pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def held_out(tmp_path_factory):
    """The 359 digits that training never saw, as PNG files in class folders, called by their place in the data set."""
    folder = tmp_path_factory.mktemp("digits")
    pixels, labels = load_pixels()
    for index in split_indices(labels)[1]:
        place = folder / str(labels[index])
        place.mkdir(exist_ok=True)
        digit_image(pixels[index]).save(place / f"{index:04d}.png")
    return folder


@pytest.fixture(scope="module")
def fast():
    return cf.compile(cf.create_model("digits", "packaged"), backend="reference")


@pytest.fixture(scope="module")
def whole(fast, held_out):
    """The evaluation of everything by this process."""
    return evaluate(fast, held_out, reference=fast.reference, workers=0)


def same(first: Evaluation, second: Evaluation) -> bool:
    """In all but what one process and hour differ from another."""
    varying = {"workers": 0, "seconds": {}, "memory": {}, "images_run": 0}
    return dataclasses.replace(first, **varying) == dataclasses.replace(second, **varying)


def test_the_digits_have_the_accuracy_that_a_plain_loop_finds(whole, fast):
    split = load_digits_split()
    with torch.no_grad():
        output = fast.reference(split.test_images)
    for head, scores in {"conv": output.conv_logits, "trans": output.trans_logits, "sum": output.logits}.items():
        top = scores.topk(5).indices == split.test_labels[:, None]
        expected = Score(int(top[:, 0].sum()), int(top.any(1).sum()))
        assert whole.compiled[head] == whole.reference[head] == expected, head
    assert whole.compiled["sum"].top1 == 357
    assert (whole.pictures, whole.evaluated, whole.damaged) == (359, 359, {})
    assert whole.agreement == {"conv": 359, "trans": 359, "sum": 359}
    assert (whole.size, whole.kind, whole.published) == (64, "folder", ())


def test_speed_and_memory_are_measured(whole):
    assert whole.images_run == 359
    assert whole.seconds["end_to_end"] >= whole.seconds["compiled"] + whole.seconds["reference"] > 0
    assert whole.images_per_second["compiled"] == 359 / whole.seconds["compiled"]
    assert whole.memory["process"] > 50e6


def test_agreement_counts_where_the_two_differ(held_out, fast, monkeypatch):
    run = fast.run

    def turned(images):  # the classes of one head, one on
        conv, trans = run(images)
        return conv.roll(1, 1), trans

    monkeypatch.setattr(fast, "run", turned)
    found = evaluate(fast, held_out, reference=fast.reference, workers=0, limit=40)
    dataset = open_dataset(held_out).evenly(40)
    images, labels = torch.stack([dataset.input(index, 64) for index in range(40)]), torch.tensor(dataset.labels)
    conv, trans = run(images)
    summed = conv.roll(1, 1) + trans
    assert found.agreement == {"conv": 0, "trans": 40, "sum": int((summed.argmax(1) == (conv + trans).argmax(1)).sum())}
    assert found.compiled["sum"].top1 == int((summed.argmax(1) == labels).sum())
    assert found.reference["sum"].top1 == int(((conv + trans).argmax(1) == labels).sum())
    assert found.pictures == 40


def test_the_number_of_processes_does_not_matter(held_out, fast, whole):
    """Spawned: each must get the data set and import what it needs."""
    found = evaluate(fast, held_out, reference=fast.reference, workers=2)
    assert same(found, whole)
    assert found.workers == 2


def test_pytorchs_random_numbers_are_left_alone(held_out, fast):
    before = torch.get_rng_state()
    evaluate(fast, held_out, workers=0, limit=2)
    assert torch.equal(torch.get_rng_state(), before)


def _break_after(patch: pytest.MonkeyPatch, calls: int) -> None:
    """Models end the program at their next call after so many, as Ctrl-C would."""
    call, made = evaluate_module._Model.__call__, []

    def ending(model, images):
        if len(made) == calls:
            raise KeyboardInterrupt
        made.append(images)
        return call(model, images)

    patch.setattr(evaluate_module._Model, "__call__", ending)


@pytest.mark.slow
@pytest.mark.parametrize("calls", [0, 5, 12])
def test_an_interrupted_evaluation_goes_on(held_out, fast, whole, tmp_path, monkeypatch, calls):
    options = {"reference": fast.reference, "workers": 0, "resume": tmp_path / "state.npz"}
    with monkeypatch.context() as patch:
        _break_after(patch, calls)
        with pytest.raises(KeyboardInterrupt):
            evaluate(fast, held_out, **options)
    found = evaluate(fast, held_out, **options)
    assert same(found, whole)
    assert found.images_run == 359 - 32 * (calls // 2)  # two models a batch
    again = evaluate(fast, held_out, **options)
    assert same(again, whole)
    assert (again.images_run, again.seconds) == (0, {})
    assert "img/s" not in str(again)


def test_what_is_done_is_kept_now_and_then(held_out, fast, tmp_path, monkeypatch):
    """A killed program has no time to write."""
    file, kept = tmp_path / "state.npz", []
    save = Record.save
    monkeypatch.setattr(evaluate_module, "SAVE_EVERY", 0.0)
    monkeypatch.setattr(Record, "save", lambda record, path: (save(record, path), kept.append(record.known)))
    evaluate(fast, held_out, workers=0, limit=100, resume=file)
    assert kept == [0, 32, 64, 96, 100, 100]


@pytest.mark.parametrize(
    ("changed", "difference"),
    [
        ({"batch": 16}, "batch was 32 and is 16;"),
        ({"size": 96, "batch": 16}, "size was 64 and is 96, batch was 32 and is 16;"),
        ({"limit": 30}, "of other pictures or labels, pictures was 40 and is 30;"),
        ({"reference": None}, "reference was True and is False;"),
    ],
    ids=str,
)
def test_another_evaluation_is_not_continued(held_out, fast, tmp_path, changed, difference):
    options = {"reference": fast.reference, "workers": 0, "limit": 40, "resume": tmp_path / "state.npz"}
    evaluate(fast, held_out, **options)
    with pytest.raises(DatasetError, match=f"is of another evaluation: {difference}"):
        evaluate(fast, held_out, **(options | changed))


def test_other_weights_or_pictures_are_not_continued(held_out, fast, tmp_path):
    options = {"workers": 0, "limit": 40, "resume": tmp_path / "state.npz"}
    evaluate(fast, held_out, **options)
    with pytest.raises(DatasetError, match="another evaluation: of other weights; name another"):
        evaluate(cf.compile(cf.create_model("digits"), backend="reference"), held_out, **options)
    if "openvino" in cf.compile(fast.reference).settings.backend.name:
        with pytest.raises(DatasetError, match=r"another evaluation: (backend|precision) was"):
            evaluate(cf.compile(fast.reference, backend="openvino", precision="fp32"), held_out, **options)


def test_another_quantization_is_not_continued(held_out, fast, tmp_path):
    options = {"workers": 0, "limit": 5, "resume": tmp_path / "state.npz"}
    quantized = cf.compile(fast.reference, backend="reference")
    quantized.settings = dataclasses.replace(fast.settings, quantization=Quantization("int8", {"conv_1.conv1": 1.0}))
    evaluate(quantized, held_out, **options)
    quantized.settings = dataclasses.replace(fast.settings, quantization=Quantization("int8", {"conv_1.conv1": 2.0}))
    with pytest.raises(DatasetError, match="another evaluation: of another quantization; name another"):
        evaluate(quantized, held_out, **options)


@pytest.mark.parametrize(("code", "at_start"), [(errno.ENOSPC, "a warning"), (errno.EIO, "an error")])
def test_what_cannot_be_kept_costs_only_the_keeping(held_out, fast, tmp_path, monkeypatch, code, at_start):
    """A full disk at any time; another failure once something has been run. It is said once."""
    file, calls = tmp_path / "state.npz", []
    save = Record.save
    monkeypatch.setattr(evaluate_module, "SAVE_EVERY", 0.0)

    def failing(record, path):
        calls.append(path)
        if len(calls) > 1 or at_start == "a warning":
            raise OSError(code, os.strerror(code), str(path))
        save(record, path)

    monkeypatch.setattr(Record, "save", failing)
    with pytest.warns(UserWarning, match=f"what is done is not kept in .*{os.strerror(code)}") as said:
        found = evaluate(fast, held_out, workers=0, limit=40, batch=10, resume=file)
    assert (found.evaluated, len(said), len(calls)) == (40, 1, 6)
    if at_start == "an error":
        calls[:] = [None]
        with pytest.raises(OSError, match=os.strerror(code)):
            evaluate(fast, held_out, workers=0, limit=40, batch=10, resume=file)


def test_an_error_is_not_hidden_by_one_of_the_keeping(held_out, fast, tmp_path, monkeypatch):
    def failing(record, path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(Record, "save", failing)
    monkeypatch.setattr(fast, "run", lambda images: 1 / 0)
    with pytest.warns(UserWarning, match="is not kept"), pytest.raises(ZeroDivisionError):
        evaluate(fast, held_out, workers=0, limit=4, resume=tmp_path / "state.npz")


def test_any_damaged_byte_of_a_resume_file_is_found(tmp_path):
    record = Record(5, 1, 3, 5, {"batch": 8})
    record.add([0, 2], np.arange(30).reshape(2, 1, 3, 5))
    record.add_damaged({4: "cut \x1b[31m"})
    file = tmp_path / "state"
    record.save(file)
    again = Record(5, 1, 3, 5, {"batch": 8})
    again.load(file)
    assert (again.top == record.top).all()
    assert (again.states.tolist(), again.errors) == (record.states.tolist(), record.errors)
    whole = file.read_bytes()
    for content in [*(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in range(len(whole))), whole[:-1]]:
        file.write_bytes(content)
        with pytest.raises(DatasetError, match="holds no evaluation"):
            again.load(file)


@pytest.mark.parametrize(
    ("header", "text"),
    [
        ("[" * 100_000, "holds no evaluation"),
        ('{"fields": {"batch": NaN}, "errors": {}}', "batch was nan and is 8"),
        ('{"fields": {"batch": 8, "\\u001b[2J": 1}, "errors": {}}', r"'\\x1b\[2J' was 1 and is None"),
        ('{"fields": {"batch": "%s"}, "errors": {}}' % ("x" * 100_000), r"batch was 'x{96}\.\.\. and is 8"),
        ('{"fields": {"batch": 8}, "errors": {"7": "x"}}', "unknown states"),
        ('{"fields": {"batch": 8}, "errors": {"x": "x"}}', "holds no evaluation"),
        ('{"fields": 8, "errors": {}}', "holds no evaluation"),
    ],
    ids=["depth", "NaN", "foreign names", "length", "pictures", "no number", "no fields"],
)
def test_a_foreign_resume_file_with_a_right_hash(tmp_path, header, text):
    record = Record(2, 1, 1, 1, {"batch": 8})
    content = header.encode() + b"\n" + record.top.tobytes() + record.states.tobytes()
    digest = hashlib.sha256(content).hexdigest().encode()
    (tmp_path / "state").write_bytes(MAGIC + digest + b"\n" + content)
    with pytest.raises(DatasetError, match=text):
        record.load(tmp_path / "state")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")
def test_a_resume_file_that_is_none(held_out, fast, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name in ("fifo", "zero", "."):
        with pytest.raises(DatasetError, match=r"cannot be read \((a pipe or a device|Is a directory)"):
            evaluate(fast, held_out, workers=0, resume=tmp_path / name)
    assert os.path.islink(tmp_path / "zero")


def test_a_size_beyond_all_memory_is_refused(held_out, fast):
    with pytest.raises(ValueError, match="size must be at most 8750 pixels, got 1000000"):
        evaluate(fast, held_out, workers=0, size=1_000_000)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and no more", b"\x80\x04N."])
def test_a_file_that_is_no_evaluation(held_out, fast, tmp_path, content):
    (tmp_path / "state.npz").write_bytes(content)
    with pytest.raises(DatasetError, match="holds no evaluation"):
        evaluate(fast, held_out, workers=0, resume=tmp_path / "state.npz")


def test_a_resume_file_is_never_unpickled(held_out, fast, tmp_path):
    trap = np.array([[object()]], dtype=object)
    np.savez(tmp_path / "state.npz", header=trap, top=trap, states=trap)
    with pytest.raises(DatasetError, match="holds no evaluation"):
        evaluate(fast, held_out, workers=0, resume=tmp_path / "state.npz")


@pytest.fixture
def damaged(tmp_path):
    """12 digits, two of them damaged."""
    pixels, labels = load_pixels()
    for digit in range(10):
        (tmp_path / "data" / str(digit)).mkdir(parents=True)
    for index in range(10, 20):
        digit_image(pixels[index]).save(tmp_path / "data" / str(labels[index]) / f"{index}.png")
    for name in ("2/cut.png", "7/text.png"):
        whole = (tmp_path / "data" / str(labels[12]) / "12.png").read_bytes()
        (tmp_path / "data" / name).write_bytes(whole[:70] if "cut" in name else b"not an image")
    return tmp_path / "data"


def test_a_damaged_picture_is_an_error(fast, damaged):
    with pytest.raises(ImageError, match=r"2/cut\.png: .*skip_damaged leaves"):
        evaluate(fast, damaged, workers=0)


@pytest.mark.parametrize(("workers", "batch"), [(0, 32), (0, 1), (1, 3)])
def test_damaged_pictures_can_be_left_out(fast, damaged, workers, batch):
    found = evaluate(fast, damaged, workers=workers, batch=batch, skip_damaged=True)
    assert (found.pictures, found.evaluated) == (12, 10)
    assert found.compiled["sum"] == Score(10, 10)
    assert list(found.damaged) == ["2/cut.png", "7/text.png"]
    text = str(found)
    assert "10 of 12 pictures evaluated, 2 damaged and left out" in text
    assert "100.00% (10)" in text
    assert text.count("damaged: ") == 2
    assert [entry["picture"] for entry in found.to_dict()["damaged"]] == ["2/cut.png", "7/text.png"]


def test_damaged_pictures_are_tried_again(fast, damaged, tmp_path):
    """With a resume file they are known; without leave to skip them they are an error again."""
    state = tmp_path / "state.npz"
    first = evaluate(fast, damaged, workers=0, batch=3, skip_damaged=True, resume=state)
    again = evaluate(fast, damaged, workers=0, batch=3, skip_damaged=True, resume=state)
    assert same(again, first)
    assert again.images_run == 0
    with pytest.raises(ImageError, match="2/cut"):
        evaluate(fast, damaged, workers=0, batch=3, resume=state)


def test_nothing_but_damage(fast, damaged):
    for file in damaged.rglob("*.png"):
        file.write_bytes(b"not an image")
    with pytest.raises(ImageError, match=r"none of the 12 pictures could be used; the first: 0/10\.png"):
        evaluate(fast, damaged, workers=0, skip_damaged=True)


def test_data_opened_without_the_models_names_of_classes(tmp_path):
    """Their order may be another than the model's: in words, by the alphabet."""
    words = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    model = cf.create_model("digits", "packaged")
    model.recipe = dataclasses.replace(model.recipe, labels=words)
    fast = cf.compile(model, backend="reference")
    pixels, labels = load_pixels()
    for index in split_indices(labels)[1][:40]:
        place = tmp_path / words[labels[index]]
        place.mkdir(exist_ok=True)
        digit_image(pixels[index]).save(place / f"{index}.png")
    for dataset in (tmp_path, open_dataset(tmp_path, class_names=words).evenly(39)):
        found = evaluate(fast, dataset, workers=0)
        assert found.compiled["sum"].top1 >= found.evaluated - 1
    with pytest.raises(DatasetError, match=r"opened without this model's names of classes, and eight, five, .* taken "):
        evaluate(fast, open_dataset(tmp_path).evenly(39), workers=0)


def test_a_model_without_classes_is_refused_before_its_data(tmp_path, fast):
    backbone = cf.compile(cf.create_model("digits", features_only=True), backend="reference")
    with pytest.raises(ValueError, match="evaluation needs conv_logits, trans_logits or logits"):
        evaluate(backbone, tmp_path / "absent")


def test_data_must_fit_the_model(held_out, fast):
    with pytest.raises(DatasetError, match=r"has the classes 0, 1, .* called by numbers are 0 \.\.\. 2"):
        evaluate(cf.compile(cf.create_model("digits", num_classes=3), backend="reference"), held_out)
    dataset = open_dataset(held_out)
    with pytest.raises(DatasetError, match=r"labels 0 \.\.\. 9, the model has the classes 0 \.\.\. 2"):
        evaluate(cf.compile(cf.create_model("digits", num_classes=3), backend="reference"), dataset)
    with pytest.raises(ValueError, match="the reference is a ConformerConfig"):
        evaluate(fast, held_out, reference=cf.create_model("digits", num_classes=3))


def test_models_must_have_scores(held_out, small_config):
    backbone = cf.compile(cf.create_model("digits", features_only=True), backend="reference")
    with pytest.raises(ValueError, match="evaluation needs conv_logits, trans_logits"):
        evaluate(backbone, held_out)
    gray = cf.compile(cf.create_model(dataclasses.replace(small_config, in_channels=1)), backend="reference")
    with pytest.raises(ValueError, match="the model reads 1"):
        evaluate(gray, open_dataset(held_out))


@pytest.mark.parametrize("option", ["batch", "size", "limit", "workers"])
def test_options_are_checked(held_out, fast, option):
    with pytest.raises(ValueError, match=rf"{option} must be a whole number, at least \d, got -1"):
        evaluate(fast, held_out, **{option: -1})


def model_returning(scores: dict[str, torch.Tensor], heads=("conv", "trans", "sum"), best=5) -> evaluate_module._Model:
    return evaluate_module._Model("compiled", lambda images: tuple(scores.values()), tuple(scores), heads, best)


def test_equal_scores_go_to_the_lower_class():
    flat = torch.zeros(2, 1000)
    flat[1, [700, 30, 900]] = 1.0
    top = model_returning({"conv_logits": flat, "trans_logits": flat})(torch.zeros(2, 3, 8, 8))
    assert top.shape == (2, 3, 5)
    for head in range(3):
        assert top[:, head].tolist() == [[0, 1, 2, 3, 4], [30, 700, 900, 0, 1]]


def test_a_model_that_returns_the_sum_alone_has_one_head():
    top = model_returning({"logits": torch.tensor([[1.0, 3.0, 2.0]])}, ("sum",), 3)(torch.zeros(1, 3, 8, 8))
    assert top.tolist() == [[[1, 2, 0]]]
    both = {"conv_logits": torch.tensor([[1.0, 3.0, 0.0]]), "trans_logits": torch.tensor([[0.0, 0.0, 2.0]])}
    assert model_returning(both, ("sum",), 3)(torch.zeros(1, 3, 8, 8)).tolist() == [[[1, 2, 0]]]  # its reference


def test_scores_that_are_no_numbers_are_an_error():
    scores = torch.zeros(3, 4)
    scores[1, 2] = torch.nan
    with pytest.raises(ValueError, match="compiled model's scores of 1 pictures are NaN or infinite"):
        model_returning({"conv_logits": scores, "trans_logits": scores})(torch.zeros(3, 3, 8, 8))


def test_a_bundle_is_evaluated_beside_the_reference_it_was_made_from(held_out, fast, whole, tmp_path):
    pytest.importorskip("openvino")
    compiled = cf.compile(fast.reference, backend="openvino", precision="fp32")
    loaded = cf.load(compiled.save(tmp_path / "bundle"))
    found = evaluate(loaded, held_out, reference=fast.reference, workers=0)
    assert found.reference == whole.reference
    assert found.compiled["sum"].top1 == 357
    assert (found.backend, found.precision) == ("openvino", "fp32")
    for model in (loaded, compiled):
        with pytest.raises(cf.ArgumentError, match="the reference has other weights: this was made from those"):
            evaluate(model, held_out, reference=cf.create_model("digits"), workers=0)


def test_the_reference_may_be_given_in_any_form(held_out, fast, whole):
    found = evaluate(fast, held_out, reference=fast.reference.state_dict(), workers=0)
    assert (found.reference, found.agreement) == (whole.reference, whole.agreement)


def test_an_engine_of_certain_shapes_is_evaluated_in_these(held_out, fast, monkeypatch):
    monkeypatch.setattr(type(fast), "shapes", (cf.Shapes((1, 4, 8), (96, 96, 128), (96, 96, 128)),))
    found = evaluate(fast, held_out, limit=10, workers=0)
    assert (found.size, found.batch) == (96, 8)


# The report


@pytest.fixture
def imagenet():
    """As if small-p16 had been evaluated on ImageNet."""
    score = Score(41_700, 48_230)
    return Evaluation(
        data="val",
        kind="folder",
        pictures=50_000,
        evaluated=50_000,
        damaged={},
        backend="openvino",
        precision="bf16",
        device="cpu",
        reason="openvino bf16: as asked",
        size=224,
        batch=32,
        workers=1,
        compiled={"conv": score, "trans": score, "sum": score},
        reference={},
        agreement={},
        published=tuple(published_for(VARIANTS["small-p16"])),
        images_run=50_000,
        seconds={"end_to_end": 1000.0, "compiled": 800.0},
        memory={"process": 10**9, "largest_worker": 10**8, "gpu": 10**7},
    )


def test_published_figures_are_compared(imagenet):
    first, second = imagenet.to_dict()["published"]
    assert first["source"] == "mmpretrain"
    assert first["difference"] == pytest.approx({"top1": 0.08, "top5": 0.0})
    assert second["difference"] == pytest.approx({"top1": 0.0})
    assert first["comparable"] is True
    text = str(imagenet)
    assert "published by mmpretrain: top-1 83.32% (+0.08 here), top-5 96.46% (+0.00 here)\n" in text
    assert "published by official repository: top-1 83.40% (+0.00 here)\n" in text
    assert "img/s, of 50000: end to end 50.0, compiled 62.5\n" in text
    assert text.startswith("openvino bf16: as asked\n")
    assert text.endswith("peak memory: process 1000 MB, largest worker 100 MB, GPU 10 MB")


def test_a_part_of_the_pictures_is_not_comparable(imagenet):
    part = dataclasses.replace(imagenet, evaluated=49_999)
    assert part.to_dict()["published"][0]["comparable"] is False
    assert "not comparable, that is of 50000 pictures at 224x224" in str(part)
    assert "not comparable" in str(dataclasses.replace(imagenet, size=256))


def test_the_report_is_json(whole):
    values = json.loads(json.dumps(whole.to_dict(), allow_nan=False))
    assert (values["backend"], values["precision"], values["device"]) == ("reference", "fp32", "cpu")
    assert all(name.isidentifier() for part in ("seconds", "memory") for name in values[part])
    assert values["compiled"]["sum"]["top1"] == {"count": 357, "percent": 100 * 357 / 359}
    assert values["reference"]["conv"].keys() == {"top1", "top5"}
    assert values["agreement"]["trans"] == {"count": 359, "percent": 100.0}
    assert values["images_per_second"].keys() == {"end_to_end", "compiled", "reference"}
    assert (values["evaluated"], values["pictures"], values["damaged"]) == (359, 359, [])


def test_each_variant_has_its_figures():
    assert published_for(VARIANTS["small-p32"]) == [Published("mmpretrain", 81.96, 96.02)]
    assert published_for(ConformerConfig(num_classes=10)) == []
    assert [figures.source for figures in published_for(VARIANTS["base-p16"])] == ["mmpretrain", "official repository"]
    assert all(figures.top1 > 80 for variant in VARIANTS.values() for figures in published_for(variant))
