"""The picture of a Diff: well-formed, complete, readable and harmless."""

import math
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from conformer_fast.verification.diff import Column, Diff
from conformer_fast.verification.heatmap import COLORS, HIGHEST, LETTER, WIDTH, color_of, contrast, ink_on, svg
from conformer_fast.verification.verify import Report, Row

SVG = "{http://www.w3.org/2000/svg}"
BLOCKS = ("1.tokens", "1.map", "2.fcu_down", "2.tokens", "2.fcu_up", "2.map")
GRAYS = {"#000000": (0.0, 0.0, 0.0), "#ffffff": (1.0, 1.0, 1.0)}


def ran(implementation: str, precision: str, error: float, **others: float) -> Column:
    def row(name: str) -> Row:
        return Row(name, others.get(name.replace(".", "_"), error), error, 2 * error)

    results = (row("conv_logits"), row("trans_logits"))
    report = Report(implementation, precision, 1, results, tuple(map(row, BLOCKS)), {})
    return Column(implementation, precision, "here", report=report)


def picture(*columns: Column, **options: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg(Diff(2, 64, 48, columns), **options))


def texts(root: ElementTree.Element) -> list[str]:
    return ["".join(element.itertext()) for element in root.iter(f"{SVG}text")]


FULL = (
    ran("reference", "fp16", 1e-3),
    ran("openvino", "fp16", 2e-3),
    ran("reference", "int8", 1e-2),
    ran("kernels", "int8", 1e-2, **{"2_map": 0.5}),
    Column("onnxruntime", "int8", unavailable="no such <thing> & none"),
)


def test_every_figure_is_there():
    root = picture(*FULL)
    words = texts(root)
    assert root.tag == f"{SVG}svg"
    assert words.count("60.0") == 8
    assert words.count("54.0") == 8
    assert words.count("40.0") == 8 + 7  # int8 of both, but one
    assert words.count("6.0") == 1
    for name in (*BLOCKS, "conv_logits", "trans_logits", "fp16", "int8", "reference", "openvino", "kernels"):
        assert name in words
    assert "2 image(s) of 64x48; dB, more is better" in words
    assert any(line.startswith("onnxruntime int8: not run: no such <thing> & none") for line in words)
    tips = [element.text for element in root.iter(f"{SVG}title")]
    assert "2.map, kernels int8: error 0.5, bound 0.02" in tips


def test_cells_have_the_color_of_their_number():
    root = picture(ran("reference", "fp16", 1e-3))
    expected = "#" + "".join(f"{round(255 * part):02x}" for part in color_of(60.0))
    filled = [rectangle.get("fill") for rectangle in root.iter(f"{SVG}rect")]
    assert filled.count(expected) == 8


def test_what_did_not_run_is_hatched_and_what_is_over_is_framed():
    def counted(root):
        rectangles = list(root.iter(f"{SVG}rect"))
        hatched = sum(rectangle.get("fill") == "url(#hatching)" for rectangle in rectangles)
        return hatched, sum(rectangle.get("stroke") is not None for rectangle in rectangles) // 2

    assert counted(picture(FULL[0])) == (1, 1)  # the legend's
    assert counted(picture(*FULL)) == (1 + 8, 1 + 1)
    assert counted(picture(FULL[0], ran("kernels", "fp16", math.nan))) == (1, 1 + 8)


def test_values_that_are_not_finite_are_drawn():
    root = picture(ran("reference", "fp16", 1e-3), ran("kernels", "fp16", 1e-3, conv_logits=math.nan, **{"1_map": 0.0}))
    assert texts(root).count("not finite") == 1
    assert texts(root).count("inf") == 1


def test_words_stand_out_on_their_color():
    for tenth in range(-50, 10 * int(HIGHEST) + 50):
        color = color_of(tenth / 10)
        assert contrast(GRAYS[ink_on(color)], color) >= 4.5  # WCAG 2.2, level AA
    assert contrast((0, 0, 0), (1, 1, 1)) == pytest.approx(21)
    assert contrast((1, 0, 0), (1, 0, 0)) == 1


def test_colors_are_in_order_without_hue():
    """Lighter is better in gray too, evenly, and so for any color vision."""
    light = [contrast(color_of(sqnr), (0, 0, 0)) for sqnr in range(int(HIGHEST) + 1)]
    assert all(before < after for before, after in pairwise(light))
    assert light[-1] / light[0] > 10


@pytest.mark.parametrize(("sqnr", "index"), [(0.0, 0), (-20.0, 0), (-math.inf, 0), (HIGHEST, -1), (math.inf, -1)])
def test_scale_ends(sqnr, index):
    color = "#" + "".join(f"{round(255 * part):02x}" for part in color_of(sqnr))
    assert color == COLORS[index]


@pytest.mark.parametrize(
    "title", ['</text><script>alert("&")</script>', "\x00 \x1b[31m \ud800 \uffff", "名前 🙂", "a\nb"], ids=ascii
)
def test_any_title_is_text_alone(title):
    text = svg(Diff(1, 32, 32, (FULL[0], Column("kernels", "fp16", unavailable=title))), title=title)
    root = ElementTree.fromstring(text)
    assert {element.tag.removeprefix(SVG) for element in root.iter()} <= {
        *("svg", "title", "defs", "pattern", "path", "linearGradient", "stop", "rect", "text")
    }
    text.encode()
    shown = "".join(texts(root))
    assert ("alert" in shown) == ("alert" in title)
    assert ("名前 🙂" in shown) == ("名前" in title)


def test_nothing_is_loaded_from_elsewhere():
    text = svg(Diff(1, 32, 32, FULL))
    for word in ("href", "script", "@import", "style", "onload", "<image", "<!", "http"):
        assert word not in text.replace('xmlns="http://www.w3.org/2000/svg"', "")


@pytest.mark.parametrize("columns", [FULL[:1], FULL, FULL * 5], ids=len)
def test_everything_is_inside_the_picture(columns):
    root = picture(*columns)
    width, height = float(root.get("width")), float(root.get("height"))
    assert root.get("viewBox") == f"0 0 {root.get('width')} {root.get('height')}"
    for element in root.iter(f"{SVG}rect"):
        assert float(element.get("x")) + float(element.get("width")) <= width
        assert float(element.get("y")) + float(element.get("height")) <= height
    for element in root.iter(f"{SVG}text"):
        long = LETTER * len(element.text)
        left = {"start": 0, "middle": long / 2, "end": long}[element.get("text-anchor")]
        x = float(element.get("x")) - left
        assert x >= 0
        assert x + long <= width
        assert 0 < float(element.get("y")) < height


def test_names_fit_their_columns():
    for name in ("reference", "kernels", "onnxruntime", "openvino", "tensorrt", "not finite"):
        assert len(name) * LETTER * 1.2 < WIDTH


def test_same_diff_same_picture():
    diff = Diff(1, 32, 32, FULL)
    assert svg(diff) == svg(diff)
