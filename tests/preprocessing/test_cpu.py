"""The published evaluation protocol, and every kind of file that is not a plain RGB picture."""

import os
import struct
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from conformer_fast.errors import ImageError
from conformer_fast.model.config import LARGEST_SIDE
from conformer_fast.preprocessing import cpu
from conformer_fast.preprocessing.cpu import MAX_RESIZED_PIXELS, load_batch, load_image, preprocess

RED, BLUE = (255, 0, 0), (0, 0, 255)


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def normalize(pixels: np.ndarray) -> torch.Tensor:
    """(H, W, 3) in 0 ... 255 -> (3, H, W), in float64."""
    scaled = (pixels / 255.0 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    return torch.from_numpy(scaled.transpose(2, 0, 1))


def bicubic_matrix(length: int, new_length: int) -> np.ndarray:
    """(new_length, length): Keys' cubic with a = -0.5, widened when shrinking, as a matrix."""
    scale = length / new_length
    stretch = max(scale, 1.0)
    center = (np.arange(new_length)[:, None] + 0.5) * scale
    x = np.abs((np.arange(length)[None, :] + 0.5 - center) / stretch)
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    weights = np.where(x < 1, near, np.where(x < 2, far, 0.0))
    return weights / weights.sum(1, keepdims=True)


# --- the protocol -----------------------------------------------------------------------------------------------------


def test_values_by_hand():
    image = preprocess(Image.new("RGB", (300, 300), (0, 255, 51)))
    assert image.shape == (3, 224, 224)
    assert image.dtype == torch.float32
    assert image.is_contiguous()
    # (0 - 0.485) / 0.229, (1 - 0.456) / 0.224, (0.2 - 0.406) / 0.225
    expected = torch.tensor([-2.1179039, 2.4285714, -0.9155556]).view(3, 1, 1).expand(3, 224, 224)
    torch.testing.assert_close(image, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("picture", "size", "resized", "left_top"),
    [
        ((500, 375), 224, (341, 256), (58, 16)),  # landscape; 341.3 is cut, 58.5 goes to the even 58
        ((375, 500), 224, (256, 341), (16, 58)),  # portrait
        ((256, 256), 224, (256, 256), (16, 16)),  # nothing to resize
        ((300, 256), 224, (300, 256), (38, 16)),  # short edge exactly right
        ((256, 300), 224, (256, 300), (16, 38)),
        ((50, 37), 32, (48, 36), (8, 2)),  # 36.57 and 48.65 are cut, not rounded
        ((37, 50), 32, (36, 48), (2, 8)),
        ((101, 101), 64, (73, 73), (4, 4)),  # 4.5 goes down to the even 4
        ((60, 60), 21, (24, 24), (2, 2)),  # 1.5 goes up to the even 2
        ((8, 8), 64, (73, 73), (4, 4)),  # enlarged
        ((13, 5), 32, (93, 36), (30, 2)),  # 93.6 is cut; 30.5 goes to the even 30
    ],
)
def test_sizes_and_offsets_by_hand(picture, size, resized, left_top):
    image = noise(*picture)
    left, top = left_top
    cropped = np.asarray(image.resize(resized, Image.Resampling.BICUBIC))[top : top + size, left : left + size]
    torch.testing.assert_close(preprocess(image, size), normalize(cropped).float(), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("width", "height"), [(97, 61), (61, 97), (19, 23)])
def test_resize_is_antialiased_bicubic(width, height):
    """Against the filter written as matrices; Pillow rounds to 8 bits after each of the two passes."""
    image = noise(width, height)
    short = min(width, height)
    columns = bicubic_matrix(width, int(36 * width / short))
    rows = bicubic_matrix(height, int(36 * height / short))
    horizontal = np.clip(np.einsum("xw,hwc->hxc", columns, np.asarray(image).astype(float)), 0, 255)
    resized = np.clip(np.einsum("yh,hxc->yxc", rows, horizontal), 0, 255)
    left, top = round((len(columns) - 32) / 2), round((len(rows) - 32) / 2)
    expected = normalize(resized[top : top + 32, left : left + 32])
    two_levels = 2 / 255 / 0.224
    assert (preprocess(image, 32).double() - expected).abs().max() < two_levels


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 5), (5, 1), (1, 300), (300, 1), (2, 3)])
def test_tiny_pictures_are_enlarged(width, height):
    image = preprocess(Image.new("RGB", (width, height), (51, 51, 51)), 32)
    torch.testing.assert_close(image, normalize(np.full((32, 32, 3), 51)).float(), rtol=0, atol=1e-6)


def test_picture_too_long_to_resize():
    with pytest.raises(ImageError, match=f"80000x1 .* 2880000x36, .* {MAX_RESIZED_PIXELS} pixels; crop it"):
        preprocess(Image.new("RGB", (80_000, 1)), 32)


def test_picture_without_pixels():
    with pytest.raises(ImageError, match="0x5 picture has no pixels"):
        preprocess(Image.new("RGB", (0, 5)))


@pytest.mark.parametrize("size", [0, -224])
def test_size_must_be_positive(size):
    with pytest.raises(ValueError, match=f"size must be a whole number, at least 1, got {size}"):
        preprocess(noise(8, 8), size)


def test_given_picture_is_left_alone():
    image = noise(40, 30)
    before = image.tobytes()
    preprocess(image, 32)
    assert (image.size, image.mode, image.tobytes()) == ((40, 30), "RGB", before)


# --- files ------------------------------------------------------------------------------------------------------------


def saved(tmp_path, image, name="x.png", **options):
    image.save(tmp_path / name, **options)
    return tmp_path / name


def pixels_of(path) -> list[list[int]]:
    """The first row's pixels."""
    image = load_image(path)
    assert image.mode == "RGB"
    return np.asarray(image)[0].tolist()


def test_batch_keeps_the_order(tmp_path):
    paths = [saved(tmp_path, noise(40 + i, 50), f"{i}.png") for i in range(3)]
    batch = load_batch(paths, 32)
    assert batch.shape == (3, 3, 32, 32)
    assert torch.equal(batch, torch.stack([preprocess(load_image(str(path)), 32) for path in paths]))
    assert not torch.equal(batch[0], batch[1])


def test_batch_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no paths"):
        load_batch([])


def test_batch_names_the_file_that_is_too_long(tmp_path):
    path = saved(tmp_path, Image.new("L", (9000, 1)), "long.png")
    with pytest.raises(ImageError, match=r"long\.png: a 9000x1 picture"):
        load_batch([saved(tmp_path, noise(40, 40)), path])


def test_content_decides_the_format(tmp_path):
    image = noise(9, 7)
    path = saved(tmp_path, image, "x.JPEG", format="PNG")
    assert load_image(path).tobytes() == image.tobytes()


@pytest.mark.parametrize("format", ["PNG", "BMP", "PPM", "TIFF"])
def test_lossless_formats(tmp_path, format):
    image = noise(9, 7)
    assert load_image(saved(tmp_path, image, "x", format=format)).tobytes() == image.tobytes()


@pytest.mark.parametrize("format", ["JPEG", "WEBP"])
def test_lossy_formats(tmp_path, format):
    path = saved(tmp_path, Image.new("RGB", (8, 8), (200, 100, 50)), "x", format=format, quality=95)
    assert np.abs(np.subtract(pixels_of(path), (200, 100, 50))).max() <= 4


def test_exif_orientation_is_ignored(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    path = saved(tmp_path, noise(9, 7), "x.jpg", exif=exif)
    assert load_image(path).size == (9, 7)


def test_cmyk_jpeg(tmp_path):
    path = saved(tmp_path, Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "x.jpg", quality=95)
    assert np.abs(np.subtract(pixels_of(path), RED)).max() <= 3


@pytest.mark.parametrize(("name", "mode"), [("x.png", "I;16"), ("x.tif", "I;16"), ("x.tif", "I;16B")])
def test_16_bit_gray_keeps_the_high_byte(tmp_path, name, mode):
    values = np.array([[0, 0x00FF, 0x0100, 0x80FF, 0xFFFF]], dtype=">u2" if mode == "I;16B" else "<u2")
    path = saved(tmp_path, Image.frombytes(mode, (5, 1), values.tobytes()), name)
    assert pixels_of(path) == [[v] * 3 for v in (0, 0, 1, 0x80, 0xFF)]


def test_16_bit_gray_is_the_same_given_as_a_picture():
    gray = Image.fromarray(np.full((40, 40), 0x3300, dtype=np.uint16))
    torch.testing.assert_close(preprocess(gray, 32), normalize(np.full((32, 32, 3), 51)).float(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("transparency", [None, 1, b"\x00\x80"], ids=["none", "index", "bytes"])
def test_palette_keeps_its_colors_without_a_warning(tmp_path, transparency):
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *BLUE])
    image.putpixel((1, 0), 1)
    options = {} if transparency is None else {"transparency": transparency}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pixels_of(saved(tmp_path, image, **options)) == [list(RED), list(BLUE)]


@pytest.mark.parametrize(
    ("mode", "pixel", "expected"),
    [
        ("RGBA", (255, 0, 0, 0), RED),
        ("LA", (77, 0), (77, 77, 77)),
        ("L", 77, (77, 77, 77)),
        ("1", 1, (255, 255, 255)),
    ],
)
def test_alpha_is_dropped_and_gray_repeated(tmp_path, mode, pixel, expected):
    assert pixels_of(saved(tmp_path, Image.new(mode, (1, 1), pixel))) == [list(expected)]


@pytest.mark.parametrize("name", ["x.gif", "x.png", "x.webp"])
def test_first_frame_of_an_animation(tmp_path, name):
    frames = [Image.new("RGB", (8, 8), color) for color in (RED, BLUE)]
    path = saved(tmp_path, frames[0], name, save_all=True, append_images=frames[1:])
    assert np.abs(np.subtract(pixels_of(path), RED)).max() <= 3


def test_mode_without_rgb_form_is_refused():
    with pytest.raises(ImageError, match=r"mode La has no RGB form .*save it as RGB"):
        preprocess(Image.new("La", (4, 4)))


@pytest.mark.parametrize(("mode", "value"), [("F", float("nan")), ("F", 0.5), ("I", 70000)])
def test_gray_of_unknown_range_is_refused(tmp_path, mode, value):
    path = saved(tmp_path, Image.new(mode, (4, 4), value), "x.tif")
    with pytest.raises(ImageError, match=rf"x\.tif: mode {mode} .*8 or 16 bits"):
        load_image(path)


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.bmp", "x.gif", "x.webp"])
def test_truncated(tmp_path, name):
    path = saved(tmp_path, noise(40, 40), name)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ImageError, match=rf"{name}: damaged or truncated \(.*\); get the file again"):
        load_image(path)


def test_damaged_in_the_middle(tmp_path):
    path = saved(tmp_path, noise(40, 40))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(ImageError, match=r"x\.png: damaged or truncated"):
        load_image(path)


def huge_bitmap(path, width: int, height: int):
    """A BMP whose header promises width x height pixels."""
    Image.new("RGB", (1, 1)).save(path, format="BMP")
    data = bytearray(path.read_bytes())
    struct.pack_into("<ii", data, 18, width, height)
    path.write_bytes(data)
    return path


def test_decompression_bomb(tmp_path):
    limit = 2 * Image.MAX_IMAGE_PIXELS  # where Pillow refuses
    with pytest.raises(
        ImageError, match=rf"x\.bmp: too many pixels .*2500000000 .*{limit} .*; make the picture smaller"
    ):
        load_image(huge_bitmap(tmp_path / "x.bmp", 50_000, 50_000))


def test_half_a_decompression_bomb_warns(tmp_path, monkeypatch):
    path = saved(tmp_path, noise(15, 10))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.warns(Image.DecompressionBombWarning):
        assert load_image(path).size == (15, 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ImageError, match="too many pixels"):
            load_image(path)


@pytest.mark.parametrize("content", [b"", b"Not a picture.\n", b"\x89PNG\r\n\x1a\n"], ids=["empty", "text", "header"])
def test_not_an_image(tmp_path, content):
    path = tmp_path / "x.jpg"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=r"x\.jpg: "):
        load_image(path)


def test_postscript_is_not_run(tmp_path):
    path = saved(tmp_path, noise(4, 4), "x.eps")
    with pytest.raises(ImageError, match=r"x\.eps: empty, damaged or not an image; the formats are JPEG, PNG"):
        load_image(path)


def test_missing_path(tmp_path):
    with pytest.raises(ImageError, match=r"missing\.jpg: cannot be read \(No such file.*\); give the path"):
        load_image(tmp_path / "missing.jpg")


def test_directory(tmp_path):
    with pytest.raises(ImageError, match=rf"{tmp_path.name}: cannot be read \(.+\); give the path of an image file"):
        load_image(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")
def test_what_is_no_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "fifo.png")
    for path in (tmp_path / "fifo.png", "/dev/zero"):
        with pytest.raises(ImageError, match=r"cannot be read \(a pipe or a device, no regular file\)"):
            load_image(path)
    with pytest.raises(ImageError, match=r"cannot be read \(.*embedded null"):
        load_image("a\0.png")


def test_the_largest_size_is_that_of_the_limit():
    square = Image.new("RGB", (2, 2))
    assert cpu.cut_of(square, LARGEST_SIDE).width ** 2 <= cpu.MAX_RESIZED_PIXELS
    with pytest.raises(ImageError, match="over the limit"):
        cpu.cut_of(square, LARGEST_SIDE + 1)
    for make in (lambda size: preprocess(square, size), lambda size: load_batch(["absent.png"], size)):
        with pytest.raises(ValueError, match="size must be at most 8750 pixels, got 1000000"):
            make(1_000_000)


@pytest.mark.parametrize("content", ["good", "truncated", "text"])
def test_file_is_closed(tmp_path, monkeypatch, content):
    path = saved(tmp_path, noise(40, 40))
    data = path.read_bytes()
    path.write_bytes({"good": data, "truncated": data[:2000], "text": b"text"}[content])
    opened, image_open = [], Image.open

    def recording_open(file, formats):
        opened.append(file)
        return image_open(file, formats=formats)

    monkeypatch.setattr(Image, "open", recording_open)
    if content == "good":
        load_image(path)
    else:
        with pytest.raises(ImageError):
            load_image(path)
    assert [file.closed for file in opened] == [True]
