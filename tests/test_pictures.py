"""The pictures of README.md and docs/: as they would be drawn now, readable on light and dark pages, and described."""

import re
import xml.etree.ElementTree as ET

import pytest
from contrast import contrast

from benchmarks.render import load_points
from conformer_fast.model.config import get_config
from conformer_fast.model.names import PRECISIONS
from conformer_fast.verification import heatmap
from conformer_fast.verification.verify import inner_names
from docs.drawing import embed, heat_map, speed
from docs.drawing.album import MODULES, PICTURES
from docs.drawing.palette import LIGHT, PALETTES
from docs.drawing.picture import FOLDER, CannotDrawError
from docs.drawing.sheet import LETTER, WIDTH, WORDS

SVG = "{http://www.w3.org/2000/svg}"
BY_RUNNING = {"detections", "page", "heat-map"}  # made by running the product, which takes longer
STORED = [picture for name, picture in PICTURES.items() if name not in BY_RUNNING]
EACH_STORED = pytest.mark.parametrize("picture", STORED, ids=lambda picture: picture.name)
EACH_SVG = pytest.mark.parametrize(
    "picture", [each for each in PICTURES.values() if each.ending == "svg"], ids=lambda picture: picture.name
)
EACH_PALETTE = pytest.mark.parametrize("palette", PALETTES, ids=lambda palette: palette.name)
BOLD_LETTER = 0.63  # as LETTER, on average
WORDS_CONTRAST, SHAPES_CONTRAST = 4.5, 3.0  # least, by WCAG 2


@EACH_PALETTE
def test_words_and_shapes_have_enough_contrast(palette):
    for ground in palette.grounds:
        assert contrast(palette.ink, ground) >= WORDS_CONTRAST, ground
    assert contrast(palette.lines, palette.paper) >= WORDS_CONTRAST  # of notes
    for color, ink in palette.parts:
        assert contrast(ink, color) >= WORDS_CONTRAST, color
    for color in (palette.ours, palette.peers, *palette.precisions.values()):
        assert contrast(color, palette.paper) >= SHAPES_CONTRAST, color


@EACH_PALETTE
@EACH_STORED
def test_pictures_are_drawn_the_same_again(picture, palette):
    try:
        drawn = picture.content(palette)
    except CannotDrawError:
        assert not picture.file(palette).exists()
        return
    assert picture.file(palette).read_bytes() == drawn, f"{picture.file(palette).name} is old: make pictures"


def test_there_are_no_other_pictures():
    known = {picture.file(palette) for picture in PICTURES.values() for palette in picture.palettes}
    here = {*FOLDER.iterdir()}
    assert here <= known
    assert {path.name for path in known - here} <= {"time-parts-light.svg", "time-parts-dark.svg"}


def test_each_picture_is_a_module_and_shown():
    documents = "".join(document.read_text(encoding="utf-8") for document in embed.DOCUMENTS)
    assert {*re.findall(r"<!-- picture: ([\w-]+) -->\n", documents)} == PICTURES.keys()
    assert len(PICTURES) == len(MODULES)


@pytest.mark.parametrize("document", embed.DOCUMENTS, ids=lambda path: path.name)
def test_documents_show_pictures_as_they_are_described(document):
    text = document.read_text(encoding="utf-8")
    assert text == embed.embedded(document), "make pictures"
    images = re.findall(r"<img\s[^>]*>", text)
    assert len(images) == text.count("<img")
    for image in images:
        assert re.search(r'\salt="[^"]{40,}"', image), image
    assert not re.search(r"!\[[^\]]*\]\((?!http)", text), "pictures are shown by <!-- picture: NAME -->"


@EACH_SVG
def test_a_picture_says_what_it_shows(picture):
    for palette in picture.palettes:
        if picture.file(palette).exists():
            root = ET.parse(picture.file(palette)).getroot()
            assert root.get("role") == "img"
            title, text = (root.find(f"{SVG}{tag}") for tag in ("title", "desc"))
            assert root.get("aria-labelledby") == f"{title.get('id')} {text.get('id')}"
            assert title.text
            assert text.text == picture.text()


def test_the_fastest_other_has_a_bar():
    found = speed.rates()
    bars = speed.fastest(found)
    for (variant, batch), rows in load_points(speed.FILE).items():
        others = [row["seconds"] for name, row in rows.items() if row["seconds"] and not name.startswith(speed.OURS)]
        shown = [
            found[variant, batch, *bar][1] for bar in bars if (variant, batch, *bar) in found and bar[0] != speed.OURS
        ]
        assert max(shown) == batch / min(others), (variant, batch)


@EACH_PALETTE
def test_the_heat_map_has_the_words_of_today(palette):
    """Its numbers are of the machine that drew it."""
    texts = ET.parse(heat_map.PICTURE.file(palette)).getroot().iter(f"{SVG}text")
    words = [" ".join(text.text.split()) for text in texts]
    names = [word for word in words if re.fullmatch(r"\d+\.\w*[a-z]|\w+_logits", word)]
    assert names == [*inner_names(get_config("digits")), "conv_logits", "trans_logits"]
    assert tuple(word for word in words if word in PRECISIONS) == heat_map.PRECISIONS
    said = " ".join(words)
    for sentence in (heat_map.TITLE, f"{heat_map.IMAGES} image(s) of", heatmap.LEGEND, heatmap.MEANING):
        assert sentence in said


@EACH_STORED
def test_words_lie_on_the_sheet_and_are_no_smaller_than_usual(picture):
    if not picture.file(LIGHT).exists():
        return
    for element in ET.parse(picture.file(LIGHT)).getroot().iter(f"{SVG}text"):
        look = dict(part.split(": ", 1) for part in element.get("style").split("; "))
        size = float(look["font-size"].removesuffix("px"))
        width = len(element.text) * size * (BOLD_LETTER if "font-weight" in look else LETTER)
        left = float(element.get("x")) - width * {"start": 0, "middle": 0.5, "end": 1}[look["text-anchor"]]
        assert size >= WORDS, element.text
        assert left >= 0, element.text
        assert left + width <= WIDTH, element.text
