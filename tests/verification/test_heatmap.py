"""The picture of a Diff: well-formed, complete, readable and harmless."""

import math
import re
import sys
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from contrast import contrast

from conformer_fast.errors import BackendError
from conformer_fast.verification.diff import Column, Diff
from conformer_fast.verification.heatmap import svg
from conformer_fast.verification.verify import Report, Row

matplotlib = pytest.importorskip("matplotlib")
SVG = "{http://www.w3.org/2000/svg}"
BLOCKS = ("1.tokens", "1.map", "2.fcu_down", "2.tokens", "2.fcu_up", "2.map")
RESULTS = ("conv_logits", "trans_logits")
PAPER, INK = "#ffffff", "#000000"


def ran(implementation: str, precision: str, error: float, **others: float) -> Column:
    def row(name: str) -> Row:
        return Row(name, others.get(name.replace(".", "_"), error), error, 2 * error)

    report = Report(implementation, precision, 1, tuple(map(row, RESULTS)), tuple(map(row, BLOCKS)), {})
    return Column(implementation, precision, "here", report=report)


def picture(*columns: Column, **options: str | bool) -> ElementTree.Element:
    return ElementTree.fromstring(svg(Diff(2, 64, 48, columns), **options))


def style(element: ElementTree.Element) -> dict[str, str]:
    return dict(part.split(": ", 1) for part in element.get("style", "").split("; ") if part)


def texts(root: ElementTree.Element) -> list[str]:
    return ["".join(element.itertext()) for element in root.iter(f"{SVG}text")]


def places(root: ElementTree.Element) -> dict[str, tuple[float, float]]:
    """(x, y) of each text's anchor, which is the left end, the middle or the right end of its baseline."""
    found = {}
    for element in root.iter(f"{SVG}text"):
        moved = re.search(r"translate\((\S+) (\S+)\)", element.get("transform", ""))
        x, y = moved.groups() if moved else (element.get("x", ""), element.get("y", ""))
        found["".join(element.itertext())] = float(x), float(y)
    return found


def points(path: ElementTree.Element) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML] (\S+) (\S+)", path.get("d", ""))]


def color_behind(root: ElementTree.Element, word: str) -> str:
    x, y = places(root)[word]
    for group in root.iter(f"{SVG}g"):
        for path in group.iter(f"{SVG}path") if group.get("id", "").startswith("QuadMesh") else ():
            (left, top), (right, bottom) = min(points(path)), max(points(path))
            if left < x < right and top < y < bottom:
                return style(path)["fill"]
    raise AssertionError(f"{word} is in no cell")


def frames(root: ElementTree.Element) -> list[tuple[str, float]]:
    """(color, thickness) of each empty box. The scale is in a thinner one."""
    boxes = [style(path) for path in root.iter(f"{SVG}path") if "z" in path.get("d", "")]
    found = [(look["stroke"], float(look["stroke-width"])) for look in boxes if look["fill"] == "none"]
    return [(color, thickness) for color, thickness in found if thickness > 1]


def error_of(sqnr_db: float) -> float:
    return 10 ** (-sqnr_db / 20)


FULL = (
    ran("reference", "fp16", 1e-3),
    ran("openvino", "fp16", 2e-3),
    ran("reference", "int8", 1e-2),
    ran("kernels", "int8", 1e-2, **{"2_map": 0.5}),
    Column("onnxruntime", "int8", unavailable="no such <thing> & none"),
)


@pytest.fixture(scope="module")
def scale() -> dict[float, tuple[str, str]]:
    """(color of the cell, color of the number in it) by SQNR, from below the scale to above it."""
    decibels = [one + 0.5 for one in range(-5, 91)]
    root = picture(*(ran("reference", "fp16", error_of(one)) for one in decibels))
    inks = {"".join(text.itertext()): style(text).get("fill", INK) for text in root.iter(f"{SVG}text")}
    return {one: (color_behind(root, f"{one:.1f}"), inks[f"{one:.1f}"]) for one in decibels}


def test_every_figure_is_there():
    words = texts(picture(*FULL))
    assert words.count("60.0") == 8
    assert words.count("54.0") == 8
    assert words.count("40.0") == 8 + 7  # int8 of both, but one
    assert words.count("6.0*") == 1  # over its bound
    assert words.count("-") == 8  # was not run
    for name in (*BLOCKS, *RESULTS, "fp16", "int8", "reference", "openvino", "kernels", "onnxruntime"):
        assert name in words
    assert any(line.startswith("2 image(s) of 64x48; dB, more is better; ") for line in words)
    assert any(line.startswith("onnxruntime int8: not run: no such <thing> & none") for line in words)


def test_a_number_stands_in_its_row_and_column_on_its_color(scale):
    root = picture(*FULL)
    where = places(root)
    x, y = where["6.0*"]
    assert x == pytest.approx(where["kernels"][0], abs=1)
    assert y == pytest.approx(where["2.map"][1], abs=1)
    assert where["reference"][1] < where["1.tokens"][1] < y < where["conv_logits"][1]
    assert color_behind(root, "6.0*") == scale[6.5][0]
    assert color_behind(root, "54.0") == scale[53.5][0]


def test_on_dark_pages_words_beside_the_cells_are_light_and_those_in_them_as_ever():
    light, dark = picture(*FULL), picture(*FULL, dark=True)
    assert places(light) == places(dark)
    ground = dark.find(f".//{SVG}g[@id='patch_1']/{SVG}path")
    paper = style(ground).get("fill", INK)
    assert contrast(paper, PAPER) == 21
    inks = [
        {"".join(text.itertext()): style(text).get("fill", INK) for text in root.iter(f"{SVG}text")}
        for root in (light, dark)
    ]
    assert color_behind(light, "60.0") == color_behind(dark, "60.0")
    assert inks[0]["60.0"] == inks[1]["60.0"]
    beside = [word for word in inks[1] if not re.fullmatch(r"[\d.]+\*?", word)]
    assert min(contrast(inks[1][word], paper) for word in beside) > 7


def test_a_screen_reader_has_a_title_and_words():
    root = picture(*FULL, title="what I compared")
    assert root.findtext(f"{SVG}title") == "what I compared"
    assert any("2 image(s) of 64x48" in (element.text or "") for element in root.iter() if "description" in element.tag)


def test_what_is_over_its_bound_is_framed():
    line = [(PAPER, 3.5), (INK, 1.5)]  # on any color
    assert frames(picture(FULL[0])) == []
    assert frames(picture(*FULL)) == line
    assert frames(picture(FULL[0], ran("kernels", "fp16", math.nan))) == line * 8


def test_values_that_are_not_finite_are_drawn():
    columns = ran("reference", "fp16", 1e-3), ran("kernels", "fp16", 1e-3, conv_logits=math.nan, **{"1_map": 0.0})
    words = texts(picture(*columns))
    assert words.count("not finite*") == 1
    assert words.count("inf") == 1


def test_words_stand_out_on_their_color(scale):
    assert {ink for _, ink in scale.values()} == {INK, PAPER}
    assert min(contrast(color, ink) for color, ink in scale.values()) >= 4.5  # WCAG 2.2, level AA


def test_colors_are_in_order_without_hue(scale):
    """Lighter is better in gray too, evenly, and so for any color vision."""
    light = [contrast(scale[one + 0.5][0], INK) for one in range(0, 80, 2)]
    assert all(before < after for before, after in pairwise(light))
    assert light[-1] / light[0] > 10


def test_the_scale_is_the_same_in_each_picture(scale):
    worst, best = "#440154", "#fde725"
    assert [scale[one][0] for one in (-4.5, 0.5, 79.5, 90.5)] == [worst, worst, best, best]
    beyond = picture(ran("reference", "fp16", 0.0), ran("kernels", "fp16", math.inf), ran("openvino", "fp16", 1e-3))
    assert color_behind(beyond, "inf") == best
    assert color_behind(beyond, "60.0") == scale[60.5][0]


@pytest.mark.parametrize(
    "title",
    ['</text><script>alert("&")</script>', "\x00 \x1b[31m \ud800 \uffff", "名前 🙂", "a\nb", "$\\frac{1}$ $x$"],
    ids=ascii,
)
@pytest.mark.filterwarnings("error")
def test_any_title_is_text_alone(title):
    text = svg(Diff(1, 32, 32, (FULL[0], Column("kernels", "fp16", unavailable=title))), title=title)
    root = ElementTree.fromstring(text.encode())
    drawn = {element.tag.removeprefix(SVG) for element in root.iter() if element.tag.startswith(SVG)}
    assert drawn <= {"svg", "title", "metadata", "defs", "style", "clipPath", "rect", "g", "path", "text"}
    shown = "".join(texts(root))
    assert ("alert" in shown) == ("alert" in title)
    assert ("名前 🙂" in shown) == ("名前" in title)
    assert ("$\\frac{1}$" in shown) == ("frac" in title)


def test_nothing_is_loaded_from_elsewhere():
    text = svg(Diff(1, 32, 32, FULL))
    for word in ("href", "<script", "@import", "onload", "<image", "<foreignObject", "<!ENTITY"):
        assert word not in text
    assert set(re.findall(r"url\((.)", text)) <= {"#"}


@pytest.mark.parametrize("columns", [FULL[:1], FULL, FULL * 5], ids=len)
def test_everything_is_inside_the_picture(columns):
    root = picture(*columns)
    left, top, width, height = map(float, root.get("viewBox", "").split())
    assert (left, top) == (0, 0)
    where = places(root)
    for element in root.iter(f"{SVG}text"):
        if "rotate(-90" in element.get("transform", ""):
            continue  # the scale's heading
        word, look = "".join(element.itertext()), style(element)
        x, y = where[word]
        size = re.search(r"([\d.]+)px", element.get("style", ""))
        long = 0.5 * float(size[1] if size else 0) * len(word)
        x -= {"start": 0, "middle": long / 2, "end": long}[look.get("text-anchor", "start")]
        assert 0 <= x <= x + long <= width
        assert 0 < y < height
    for element in root.iter(f"{SVG}path"):
        for x, y in points(element):
            assert -0.01 <= x <= width + 0.01
            assert -0.01 <= y <= height + 0.01


def test_same_diff_same_picture():
    """Whatever the user's settings of matplotlib are, which stay as they were."""
    diff = Diff(1, 32, 32, FULL)
    once = svg(diff)
    with matplotlib.rc_context({"svg.fonttype": "path", "font.size": 30, "text.color": "red"}):
        assert svg(diff) == once
        assert matplotlib.rcParams["font.size"] == 30


def test_no_window_is_made_ready(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it raises ImportError
    assert svg(Diff(1, 32, 32, FULL))


def test_without_matplotlib_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(BackendError, match=re.escape('pip install "conformer-fast[report]"')):
        svg(Diff(1, 32, 32, FULL))
