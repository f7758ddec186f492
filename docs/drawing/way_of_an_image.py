"""From a picture through preprocessing and an engine's network, with both its branches, to the scores.

Sizes are those of small-p16.
"""

from __future__ import annotations

from conformer_fast.engines.registry import BACKENDS
from conformer_fast.model.config import VARIANTS
from conformer_fast.model.shapes import SIDE

from .palette import Palette
from .picture import Picture
from .sheet import NAME, WIDTH, Sheet

CONFIG = VARIANTS["small-p16"]


def draw(palette: Palette) -> bytes:
    grid = SIDE // CONFIG.patch_size
    tokens = f"(B, {1 + grid**2}, {CONFIG.embed_dim})"
    first_map, last_map = (
        f"(B, {CONFIG.map_channels(block)}, {side}, {side})"
        for block, side in ((1, SIDE // 4), (CONFIG.depth, grid // 2))
    )
    *others, last = BACKENDS
    middle, left, right = WIDTH / 2, 81, WIDTH - 81  # where arrows go down
    sheet = Sheet(996, palette, "The way of an image through conformer_fast", _text())
    sheet.labeled(110, 6, 370, 62, palette.plain, "picture", "JPEG, PNG, ..., of any size")
    sheet.arrow((middle, 62), (middle, 88))
    sheet.labeled(70, 88, 410, 144, palette.plain, "preprocessing/", "resize, crop, normalize; CPU or GPU")
    sheet.arrow((middle, 144), (middle, 190))
    sheet.words(middle + 12, 164, f"(B, {CONFIG.in_channels}, {SIDE}, {SIDE})", at="left")

    sheet.box(3, 190, WIDTH - 3, 876, palette.frame)
    sheet.words(middle, 212, "engines/", NAME, bold=True)
    sheet.words(middle, 234, f"{', '.join(others)} or {last}:")
    sheet.labeled(110, 254, 370, 310, palette.plain, "stem", "7x7 convolution, max-pool")
    for x in (left, right):
        sheet.arrow((middle, 310), (middle, 326), (x, 326), (x, 350))
    sheet.labeled(12, 350, 230, 406, palette.maps, "CNN branch", "block 1: bottleneck")
    sheet.labeled(250, 350, 468, 406, palette.tokens, "transformer branch", "block 1: patches, tokens")

    sheet.box(8, 448, WIDTH - 8, 704, palette.plain)
    sheet.words(middle, 469, f"blocks 2 to {CONFIG.depth}", NAME, bold=True)
    sheet.words(middle, 491, "feature coupling units (FCU)")
    for x in (left, right):
        sheet.arrow((x, 406), (x, 514))
    sheet.words(left + 12, 426, first_map, at="left")
    sheet.words(right - 12, 426, tokens, at="right")
    sheet.labeled(14, 514, 148, 590, palette.maps, "bottleneck", "1x1, 3x3, 1x1", "convolutions")
    sheet.labeled(14, 620, 148, 696, palette.maps, "bottleneck", "1x1, 3x3, 1x1", "convolutions")
    sheet.labeled(332, 514, 466, 696, palette.tokens, "transformer", "attention,", "MLP")
    sheet.labeled(174, 514, 306, 590, palette.coupling, "FCU down", "map to tokens:", "pool, project")
    sheet.labeled(174, 620, 306, 696, palette.coupling, "FCU up", "tokens to map:", "project, repeat")
    sheet.arrow((left, 590), (left, 620))
    sheet.arrow((148, 552), (174, 552))
    sheet.arrow((306, 552), (332, 552))
    sheet.arrow((332, 658), (306, 658))
    sheet.arrow((174, 658), (148, 658))

    for x in (left, right):
        sheet.arrow((x, 696), (x, 746))
    sheet.words(left + 12, 724, last_map, at="left")
    sheet.words(right - 12, 724, tokens, at="right")
    sheet.labeled(12, 746, 230, 802, palette.maps, "CNN head", "mean, linear")
    sheet.labeled(250, 746, 468, 802, palette.tokens, "transformer head", "class token, linear")
    for x in (left, right):
        sheet.arrow((x, 802), (x, 854), (middle, 854), (middle, 910))
    sheet.words(left + 12, 826, "conv_logits", at="left")
    sheet.words(right - 12, 826, "trans_logits", at="right")
    sheet.labeled(110, 910, 370, 986, palette.plain, "logits", "the sum of both heads:", f"(B, {CONFIG.num_classes})")
    return sheet.svg()


def _text() -> str:
    *others, last = BACKENDS
    return (
        f"A picture is resized, cropped and normalized, (B, {CONFIG.in_channels}, {SIDE}, {SIDE}). An engine of one "
        f"backend, {', '.join(others)} or {last}, computes the network: a stem, then a CNN branch of maps beside a "
        f"transformer branch of tokens. In blocks 2 to {CONFIG.depth} one coupling unit gives the map to the tokens, "
        "FCU down, and another the tokens to the map, FCU up. Each branch has a head; the logits, (B, "
        f"{CONFIG.num_classes}), are the sum of both."
    )


PICTURE = Picture("way-of-an-image", draw, _text, width=400)
