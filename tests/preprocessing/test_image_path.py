"""The extension against Pillow, bit for bit: each instruction set of this machine, all types and layouts, batches."""

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import pytest
import torch
from PIL import Image

from conformer_fast.errors import ImageError
from conformer_fast.model.recipe import MEAN, STD
from conformer_fast.preprocessing import cpu as module
from conformer_fast.preprocessing.cpu import cut_of, image_path, level_values, load_batch, preprocess, preprocess_batch

extension = pytest.importorskip("conformer_fast._C", reason="the extension was not built: no compiler")
INSTRUCTIONS = pytest.mark.parametrize("instructions", extension.instruction_sets())
DTYPES = pytest.mark.parametrize("dtype", module.DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
LAYOUTS = pytest.mark.parametrize("channels_last", [False, True], ids=["channels-first", "channels-last"])


def noise(width: int, height: int, seed: int = 0, extreme: bool = False) -> Image.Image:
    """Random levels; extreme ones, 0 and 255 alone, make the filter overshoot."""
    generator = np.random.default_rng(seed)
    levels = generator.integers(0, 2 if extreme else 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(levels * 255 if extreme else levels)


def by_pillow(image: Image.Image, size: int) -> np.ndarray:
    """(size, size, 3) uint8."""
    cut = cut_of(image, size)
    resized = cut.image.resize((cut.width, cut.height), Image.Resampling.BICUBIC)
    return np.asarray(resized.crop((cut.left, cut.top, cut.left + size, cut.top + size)))


def by_extension(image: Image.Image, size: int, instructions: str = "", copied: bool = False) -> np.ndarray:
    """The same of the extension; `copied`: from an array of three bytes a pixel, not as preprocess_batch() gives it."""
    resample = extension.resample

    def run(pictures, out, *arguments):
        if copied:
            ((_, *rest),) = pictures
            pictures = [(np.array(cut_of(image, size).image), *rest)]
        out[:] = 77
        resample(pictures, out, *arguments, instructions)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extension, "resample", run)
        batch = preprocess_batch([image], size, dtype=torch.uint8, channels_last=True, threads=1)
    return batch[0].permute(1, 2, 0).numpy()


def assert_same(image: Image.Image, size: int, instructions: str = "") -> None:
    expected = by_pillow(image, size)
    for copied in (False, True):
        ours = by_extension(image, size, instructions, copied)
        assert np.array_equal(ours, expected), (
            f"{image.size} to {size}, {instructions}, copied: {copied}: "
            f"{np.count_nonzero(ours != expected)} of {expected.size} differ"
        )


@contextmanager
def not_built() -> Iterator[None]:
    """Inside, the extension is away."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_C", None)
        yield


@pytest.fixture(params=["extension", "pillow"])
def path(request):
    """Both ways of preprocess.py."""
    with not_built() if request.param == "pillow" else nullcontext():
        yield request.param


@pytest.fixture
def handed(monkeypatch) -> list[type]:
    """What the extension reads each picture from: an array, Pillow's memory (a tuple), or strips of it (a list)."""
    types, resample = [], extension.resample

    def noted(pictures, *arguments):
        types.extend(type(pixels) for pixels, *_ in pictures)
        resample(pictures, *arguments)

    monkeypatch.setattr(extension, "resample", noted)
    return types


# --- bit for bit ------------------------------------------------------------------------------------------------------


@INSTRUCTIONS
def test_random_sizes(instructions):
    """Also far from square, enlarged, and with windows that are no multiple of any vector."""
    generator = random.Random(0)
    for seed in range(120):
        width, height = (generator.choice([generator.randint(1, 9), generator.randint(1, 330)]) for _ in range(2))
        size = generator.choice([generator.randint(1, 20), generator.randint(21, 110)])
        if max(width, height) / min(width, height) * size < 4000:
            assert_same(noise(width, height, seed, extreme=seed % 3 == 0), size, instructions)


@pytest.mark.parametrize(
    ("width", "height", "size"),
    [
        (1, 1, 1),
        (1, 1, 65),
        (1, 300, 7),
        (300, 1, 7),
        (1, 2, 224),
        (2, 1, 224),
        (3, 2, 33),
        (6000, 40, 32),
        (40, 6000, 32),
        (2000, 1, 1),
        (1, 2000, 1),
        (1023, 769, 2),  # 500 taps
        (1600, 900, 224),
        (256, 256, 224),  # nothing to resize
        (300, 256, 224),
        (256, 900, 224),
        (500, 375, 224),
        (375, 500, 224),
        (375, 1200, 224),  # Pillow 13 takes the vertical pass first
        (120, 90, 224),
        (100, 201, 31),
        (100, 199, 31),
    ],
)
@INSTRUCTIONS
def test_chosen_sizes(width, height, size, instructions):
    assert_same(noise(width, height), size, instructions)
    assert_same(noise(width, height, extreme=True), size, instructions)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1", "YCbCr", "I;16", "RGBX"])
def test_modes(mode):
    image = noise(61, 43)
    if mode == "I;16":
        given = Image.fromarray(np.random.default_rng(0).integers(0, 2**16, (43, 61), dtype=np.uint16))
    elif mode == "LA":
        given = image.convert("L").convert("LA")
    else:
        given = image.convert(mode)
    assert given.mode == mode
    ours = preprocess(given, 32)
    with not_built():
        assert torch.equal(preprocess(given, 32), ours)


def test_pillows_own_choice_of_the_first_pass():
    """Just above, at and below where each version's rule turns; the other order would show."""
    sizes = [(100, h) for h in range(190, 216)] + [(h, 100) for h in range(190, 216)]
    sizes += [(12, h) for h in range(1190, 1212)]
    for width, height in sizes:
        image = noise(width, height, height)
        assert_same(image, 30)
        cut = cut_of(image, 30)
        turned = np.empty((1, 30, 30, 3), np.uint8)
        given = (np.asarray(image), width, height, *cut[1:5], not cut.vertical_first)
        extension.resample([given], turned, True, None, 1)
        assert not np.array_equal(turned[0], by_pillow(image, 30)), (width, height)


@pytest.mark.parametrize(
    ("pillow", "tall", "very_tall"), [((10, 3), False, False), ((12, 2), False, True), ((13, 0), True, True)]
)
def test_each_pillows_choice(monkeypatch, pillow, tall, very_tall):
    monkeypatch.setattr(module, "PILLOW", pillow)
    assert cut_of(Image.new("RGB", (100, 300)), 30).vertical_first == tall
    assert cut_of(Image.new("RGB", (50, 5050)), 30).vertical_first == very_tall
    for width, height in [(300, 100), (5050, 50), (100, 150), (5, 600)]:
        assert not cut_of(Image.new("RGB", (width, height)), 30).vertical_first


@INSTRUCTIONS
def test_both_orders_of_the_passes(instructions):
    """Whatever Pillow prefers: one pass is one resize along one axis."""
    for seed, (width, height, size) in enumerate([(97, 61, 24), (61, 97, 24), (5, 9, 40), (130, 130, 33)]):
        image = noise(width, height, seed)
        cut = cut_of(image, size)
        for vertical_first in (False, True):
            first = (width, cut.height) if vertical_first else (cut.width, height)
            resized = image.resize(first, Image.Resampling.BICUBIC)
            resized = resized.resize((cut.width, cut.height), Image.Resampling.BICUBIC)
            expected = np.asarray(resized)[cut.top : cut.top + size, cut.left : cut.left + size]
            out = np.empty((1, size, size, 3), np.uint8)
            given = [(np.asarray(image), width, height, *cut[1:5], vertical_first)]
            extension.resample(given, out, True, None, 1, instructions)
            assert np.array_equal(out[0], expected)


def test_a_window_anywhere():
    image = noise(80, 60)
    for vertical_first, first in [(False, (50, 60)), (True, (80, 40))]:
        resized = image.resize(first, Image.Resampling.BICUBIC).resize((50, 40), Image.Resampling.BICUBIC)
        for left, top, size in [(0, 0, 40), (10, 0, 40), (49, 39, 1), (0, 39, 1), (31, 21, 19)]:
            out = np.empty((1, size, size, 3), np.uint8)
            extension.resample([(np.asarray(image), 80, 60, 50, 40, left, top, vertical_first)], out, True, None, 1)
            assert np.array_equal(out[0], np.asarray(resized)[top : top + size, left : left + size])


@contextmanager
def small_blocks() -> Iterator[None]:
    """Inside, Pillow keeps a new picture as one above 16 MB: in several blocks of memory, here of 4 kB."""
    size = Image.core.get_block_size()
    Image.core.set_block_size(4096)
    try:
        yield
    finally:
        Image.core.set_block_size(size)


@pytest.mark.skipif(module.PILLOW < (11, 2), reason="this Pillow does not give its memory away")
@pytest.mark.parametrize(("width", "height"), [(120, 90), (90, 120), (3, 2000), (2000, 3), (60, 500)])
@INSTRUCTIONS
def test_a_picture_in_blocks(monkeypatch, handed, width, height, instructions):
    with small_blocks():
        image = noise(width, height).copy()
    for strip in (1, 1000, 10_000, 1_000_000):
        monkeypatch.setattr(module, "STRIP_BYTES", strip)
        handed.clear()
        assert_same(image, 32, instructions)
        assert handed == [list, np.ndarray]  # the second is the copy that it is compared with


def test_memory_that_pillow_does_not_show_is_copied(monkeypatch, handed):
    image = noise(120, 90)
    expected = preprocess(image, 32)
    with monkeypatch.context() as patch:
        patch.setattr(Image.core, "get_alignment", lambda: 16)
        handed.clear()
        assert torch.equal(preprocess(image, 32), expected)
        assert handed == [np.ndarray]
    with small_blocks():  # the strips are in several blocks too
        handed.clear()
        assert torch.equal(preprocess(image.copy(), 32), expected)
        assert handed == [np.ndarray]


# --- types and layouts ------------------------------------------------------------------------------------------------


@DTYPES
def test_values_are_those_of_the_formula(dtype):
    if dtype == torch.uint8:
        return
    levels = torch.arange(256).float()
    mean, std = torch.tensor(MEAN)[:, None], torch.tensor(STD)[:, None]
    assert torch.equal(level_values(dtype), ((levels / 255 - mean) / std).to(dtype))


@pytest.mark.parametrize("size", [1, 3, 35])  # at 1 and 3 the shapes of both layouts look alike
@LAYOUTS
@DTYPES
def test_types_and_layouts(path, dtype, channels_last, size):
    images = [noise(61, 43, 1), noise(20, 30, 2), noise(40, 95, 3).convert("L")]
    batch = preprocess_batch(images, size, dtype=dtype, channels_last=channels_last, threads=2)
    assert batch.shape == (3, 3, size, size)
    assert batch.dtype == dtype
    assert batch.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    for image, result in zip(images, batch, strict=True):
        pixels = torch.from_numpy(by_pillow(image, size).copy()).permute(2, 0, 1)
        mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
        expected = pixels if dtype == torch.uint8 else ((pixels.float() / 255 - mean) / std).to(dtype)
        assert torch.equal(result, expected)


@DTYPES
def test_the_extension_changes_nothing(dtype):
    images = [noise(61, 43, 1), noise(50, 37, 2), noise(7, 300, 3)]
    ours = preprocess_batch(images, 32, dtype=dtype)
    with not_built():
        assert torch.equal(preprocess_batch(images, 32, dtype=dtype), ours)


# --- batches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2, 7, 40])
def test_threads_do_not_change_the_result(path, threads):
    images = [noise(30 + 3 * i, 70 - 2 * i, i) for i in range(20)]
    expected = torch.stack([preprocess(image, 24) for image in images])
    assert torch.equal(preprocess_batch(images, 24, threads=threads), expected)


def test_other_threads_go_on_meanwhile():
    """The GIL is released: a Python thread counts while one call runs."""
    image, counted, stop = noise(2500, 1500), [0], threading.Event()

    def count():
        while not stop.is_set():
            counted[0] += 1

    counter = threading.Thread(target=count)
    counter.start()
    pixels = np.asarray(image)
    out = np.empty((40, 224, 224, 3), np.uint8)
    given = [(pixels, 2500, 1500, 426, 256, 101, 16, False)] * 40
    before = counted[0]
    extension.resample(given, out, True, None, 1, "portable")
    during = counted[0] - before
    stop.set()
    counter.join()
    assert during > 1000


def test_files_by_several_threads(tmp_path, path):
    for i in range(9):
        noise(40 + i, 50, i).save(tmp_path / f"{i}.png")
    paths = [tmp_path / f"{i}.png" for i in range(9)]
    one = load_batch(paths, 32, threads=1)
    assert torch.equal(load_batch(paths, 32, threads=4), one)
    assert torch.equal(one[5], preprocess(noise(45, 50, 5), 32))


def test_the_first_bad_file_is_named_whatever_the_threads(tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(8)]
    for i, file in enumerate(paths):
        noise(40, 50).save(file)
        if i in (3, 6):
            file.write_bytes(b"no picture")
    for threads in (1, 4):
        with pytest.raises(ImageError, match=r"3\.png"):
            load_batch(paths, 32, threads=threads)


# --- errors -----------------------------------------------------------------------------------------------------------


def test_errors_of_a_batch(path):
    image = noise(8, 8)
    with pytest.raises(ValueError, match="no pictures"):
        preprocess_batch([])
    with pytest.raises(ValueError, match="size must be a whole number, at least 1, got -3"):
        preprocess_batch([image], -3)
    with pytest.raises(ValueError, match="threads must be a whole number, at least 1, got 0"):
        preprocess_batch([image], 8, threads=0)
    with pytest.raises(ValueError, match=r"not torch\.float64"):
        preprocess_batch([image], 8, dtype=torch.float64)
    with pytest.raises(ImageError, match="picture 1 of 2: a 0x5 picture"):
        preprocess_batch([image, Image.new("RGB", (0, 5))], 8)
    with pytest.raises(ImageError, match="picture 1 of 2: mode F"):
        preprocess_batch([image, Image.new("F", (5, 5))], 8)
    with pytest.raises(ImageError, match=r"picture 0 of 1: a 9000x1 picture .* limit"):
        preprocess_batch([Image.new("RGB", (9000, 1))])


PIXELS = np.zeros((6, 8, 3), np.uint8)
OUT = np.zeros((1, 4, 4, 3), np.uint8)


@pytest.mark.parametrize(
    ("given", "out", "values", "error", "message"),
    [
        ((PIXELS.astype(np.float32), 8, 6, 8, 6, 0, 0, False), OUT, None, TypeError, "uint8, got float32"),
        ((PIXELS[0], 8, 6, 8, 6, 0, 0, False), OUT, None, ValueError, r"shape \(height, width, 3\), got \(8, 3\)"),
        ((PIXELS, 6, 8, 8, 6, 0, 0, False), OUT, None, ValueError, r"6x8 picture must .* got \(6, 8, 3\)"),
        ((PIXELS[:, ::2], 4, 6, 8, 6, 0, 0, False), OUT, None, ValueError, "contiguous"),
        ((PIXELS, 8, 0, 8, 6, 0, 0, False), OUT, None, ValueError, "8x0 picture has no pixels"),
        ((PIXELS, 8, 6, 8, 6, 5, 0, False), OUT, None, ValueError, r"4x4 pixels at \(5, 0\) .* 8x6"),
        ((PIXELS, 8, 6, 8, 6, 0, 3, False), OUT, None, ValueError, r"4x4 pixels at \(0, 3\) .* 8x6"),
        ((PIXELS, 8, 6, 8, 6, -1, 0, False), OUT, None, ValueError, r"at \(-1, 0\)"),
        ((PIXELS, 8, 6, 8, 2**31 - 1, 0, 2**31 - 1, False), OUT, None, ValueError, "does not lie in"),
        (("text", 8, 6, 8, 6, 0, 0, False), OUT, None, TypeError, "got <class 'str'>"),
        ((PIXELS, 8, 6, 8, 6, 0, 0, False), OUT[0], None, ValueError, r"B = 1 .* got \(4, 4, 3\)"),
        ((PIXELS, 8, 6, 8, 6, 0, 0, False), OUT[:, :0, :0], None, ValueError, "size at least 1"),
        ((PIXELS, 8, 6, 8, 6, 0, 0, False), OUT.astype(np.float32), None, TypeError, "uint8 where no values"),
        ((PIXELS, 8, 6, 8, 6, 0, 0, False), OUT, np.zeros((3, 256), np.float32), TypeError, "got 4 and 1"),
        ((PIXELS, 8, 6, 8, 6, 0, 0, False), OUT, np.zeros((3, 255), np.uint8), ValueError, r"got \(3, 255\)"),
    ],
)
def test_errors_of_the_extension(given, out, values, error, message):
    with pytest.raises(error, match=message):
        extension.resample([given], out, True, values, 1)


def test_errors_of_the_extensions_settings():
    given = [(PIXELS, 8, 6, 8, 6, 0, 0, False)]
    with pytest.raises(ValueError, match=r"no instruction set 'mmx' on this machine; it has .*portable"):
        extension.resample(given, OUT.copy(), True, None, 1, "mmx")
    with pytest.raises(ValueError, match="at least 1, got 0"):
        extension.resample(given, OUT.copy(), True, None, 0)
    read_only = OUT.copy()
    read_only.flags.writeable = False
    with pytest.raises(ValueError, match="writeable"):
        extension.resample(given, read_only, True, None, 1)


@pytest.mark.skipif(module.PILLOW < (11, 2), reason="this Pillow does not give its memory away")
def test_errors_of_pillows_memory():
    given = [(PIXELS, 8, 6, 8, 6, 0, 0, False)]
    gray = noise(8, 6).convert("L").__arrow_c_array__()
    with pytest.raises(ValueError, match="not four bytes a pixel"):
        extension.resample([(gray, *given[0][1:])], OUT.copy(), True, None, 1)
    other = noise(8, 7).__arrow_c_array__()
    with pytest.raises(ValueError, match="56 pixels in a row, 48 were expected"):
        extension.resample([(other, *given[0][1:])], OUT.copy(), True, None, 1)
    spare = extension.strip_spare_rows(8)
    assert spare * 8 * 4 >= 64
    three, two = (noise(8, rows + spare).__arrow_c_array__() for rows in (3, 2))
    for strips, message in [([three], "1 strips do not hold the 6 rows"), ([three, two], "not the rows of the others")]:
        with pytest.raises(ValueError, match=message):
            extension.resample([(strips, *given[0][1:])], OUT.copy(), True, None, 1)


def test_what_does_the_work_is_named():
    assert extension.instruction_sets()[-1] == "portable"
    assert image_path() == f"the extension, with {extension.instruction_sets()[0]} instructions"
    with not_built():
        assert image_path().startswith("Pillow and PyTorch, ")
