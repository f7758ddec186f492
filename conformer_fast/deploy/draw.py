"""What was found in a picture, drawn on it."""

from __future__ import annotations

import colorsys

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..model.detector.detect import Detections

MASK_SHARE = 0.45  # of a mask's color in a pixel
TURN = 0.618  # of the color circle from one class to the next, so that near numbers have far colors
LETTERS = 40  # of a label


def drawn(picture: Image.Image, detections: Detections, labels: tuple[str, ...], min_score: float = 0.0) -> Image.Image:
    """A copy in mode RGB with the masks, boxes, names and scores of what has at least this score, the surest on top."""
    pixels = np.array(picture.convert("RGB"))
    boxes, scores, classes, masks = detections
    shown = [number for number, score in enumerate(scores.tolist()) if score >= min_score][::-1]
    for number in shown:
        if masks is None:
            break
        where = masks[number].numpy()
        mixed = pixels[where] * (1 - MASK_SHARE) + np.array(_color(int(classes[number]))) * MASK_SHARE
        pixels[where] = mixed.astype(np.uint8)
    out = Image.fromarray(pixels)
    draw = ImageDraw.Draw(out)
    for number in shown:
        x1, y1, x2, y2 = boxes[number].tolist()
        color = _color(int(classes[number]))
        draw.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=color, width=_line(out))
        _write(draw, out, (x1, y1), labels[int(classes[number])], float(scores[number]), color)
    return out


def captioned(picture: Image.Image, label: str, score: float) -> Image.Image:
    """A copy in mode RGB with a class's name and score in its corner."""
    out = picture.convert("RGB")
    out = out.copy() if out is picture else out
    _write(ImageDraw.Draw(out), out, (_line(out), _line(out)), label, score, _color(0))
    return out


def _write(
    draw: ImageDraw.ImageDraw,
    out: Image.Image,
    place: tuple[float, float],
    label: str,
    score: float,
    color: tuple[int, int, int],
) -> None:
    """A class's name and score, in black on its color."""
    x, y, line = place[0] + _line(out), place[1], _line(out)
    font = ImageFont.load_default(size=max(12, round(max(out.size) / 55)))
    text = f"{label[:LETTERS]} {score:.0%}"
    left, top, right, bottom = draw.textbbox((x, y), text, font=font)
    draw.rectangle((left - line, top - line, right + line, bottom + line), fill=color)
    draw.text((x, y), text, fill="black", font=font)


def _line(picture: Image.Image) -> int:
    """Pixels of a line's width."""
    return max(2, round(max(picture.size) / 400))


def _color(label: int) -> tuple[int, int, int]:
    """Bright, so that black letters stand out on it."""
    red, green, blue = colorsys.hsv_to_rgb(label * TURN % 1, 0.55, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)
