"""One coupled block of the network, and what each of our kernels computes of it: docs/kernels.md has the same in
words."""

from __future__ import annotations

from .palette import Palette
from .picture import Picture
from .sheet import LINE, NAME, WIDTH, Sheet

TITLE = "A Conformer block, kernel by kernel"
TEXT = (
    "One coupled block, each box one of our Triton kernels with what is fused into it. The CNN branch: conv1x1 with "
    "ReLU; conv3x3_pool, a 3x3 convolution with ReLU and the averages for FCU-down; conv1x1 with residual and ReLU; "
    "conv1x1 that adds what fcu_up made, with ReLU; conv3x3 with ReLU; conv1x1 with residual and ReLU. Of large maps "
    "in 16 bits, neighboring 1x1 convolutions are one kernel, conv1x1_pair. From the averages fcu_down makes the "
    "transformer's input: projection, layer norm, GELU, addition of the tokens, the class token doubled, and the next "
    "layer norm. The transformer branch: linear for queries, keys and values; attention; linear_norm, product, "
    "residual and layer norm; linear with GELU; linear with residual. fcu_up gives its tokens to the map: projection, "
    "folded norm, ReLU."
)
LEFT, MIDDLE, RIGHT = (7, 153), (173, 313), (333, 475)  # points: from and to, of the columns
GAP = 24  # points between a kernel and the next


def draw(palette: Palette) -> bytes:
    sheet = Sheet(1012, palette, TITLE, TEXT)
    maps, tokens, units = palette.maps, palette.tokens, palette.coupling
    left, right = (sum(side) / 2 for side in (LEFT, RIGHT))

    def kernel(column: tuple[float, float], top: float, color: str, name: str, *lines: str) -> float:
        """Returns where it ends."""
        bottom = top + 14 + LINE * (1 + len(lines))
        sheet.labeled(column[0], top, column[1], bottom, color, name, *lines)
        return bottom

    def then(column: tuple[float, float], end: float, color: str, name: str, *lines: str) -> float:
        """`kernel`, with an arrow from the end of the one before."""
        middle = sum(column) / 2
        sheet.arrow((middle, end), (middle, end + GAP))
        return kernel(column, end + GAP, color, name, *lines)

    sheet.words(WIDTH / 2, 20, TITLE, 20, bold=True)
    sheet.words(WIDTH / 2, 46, "Each box is one kernel, with all that it computes.")
    sheet.words(left, 82, "map", NAME, bold=True)
    sheet.words(right, 82, "tokens", NAME, bold=True)
    reduced = then(LEFT, 96, maps, "conv1x1", "1x1 convolution,", "ReLU")
    pooled = then(LEFT, reduced, maps, "conv3x3_pool", "3x3 convolution,", "ReLU, averages")

    unit = reduced + GAP
    kernel(
        MIDDLE,
        unit,
        units,
        "fcu_down",
        "projection,",
        "layer norm,",
        "GELU, addition,",
        "class token x 2,",
        "layer norm",
    )
    sheet.arrow((LEFT[1], unit + 36), (MIDDLE[0], unit + 36))
    sheet.arrow((right, 96), (right, unit + 20), (MIDDLE[1], unit + 20))
    end = kernel(RIGHT, unit + 48, tokens, "linear", "queries, keys,", "values")
    sheet.arrow((MIDDLE[1], unit + 84), (RIGHT[0], unit + 84))
    end = then(RIGHT, end, tokens, "attention", "scores, softmax,", "weighted values")
    end = then(RIGHT, end, tokens, "linear_norm", "product, bias,", "residual,", "layer norm")
    end = then(RIGHT, end, tokens, "linear", "product, GELU")
    end = then(RIGHT, end, tokens, "linear", "product, bias,", "residual")
    up = end - 16
    kernel(MIDDLE, up, units, "fcu_up", "projection,", "folded norm,", "ReLU")
    sheet.line((right, end), (right, up + 45))
    sheet.arrow((right, up + 45), (MIDDLE[1], up + 45))

    pair = up - GAP - 71
    sheet.box(LEFT[0] - 5, pair - 10, LEFT[1] + 5, up + 100, palette.frame, dashed=True)
    sheet.arrow((left, pooled), (left, pair))
    kernel(LEFT, pair, maps, "conv1x1", "1x1 convolution,", "residual, ReLU")
    added = then(LEFT, pair + 71, maps, "conv1x1", "1x1 convolution,", "adds fcu_up's,", "ReLU")
    sheet.arrow((MIDDLE[0], up + 45), (LEFT[1], up + 45))
    end = then(LEFT, added, maps, "conv3x3", "3x3 convolution,", "ReLU")
    end = then(LEFT, end, maps, "conv1x1", "1x1 convolution,", "residual, ReLU")
    for x, start in ((left, end), (right, up + 45)):
        sheet.arrow((x, start), (x, end + GAP))
    sheet.box(MIDDLE[0] - 4, added + GAP, RIGHT[0] + 58, added + GAP + 102, palette.frame, dashed=True)
    for row, line in enumerate(
        ("conv1x1_pair: one kernel,", "where maps are large,", "in 16 bits; so are the", "last and the next first")
    ):
        sheet.words((MIDDLE[0] + RIGHT[0] + 54) / 2, added + GAP + 22 + LINE * row, line)
    return sheet.svg()


PICTURE = Picture("conformer-block", draw, lambda: TEXT, width=400)
