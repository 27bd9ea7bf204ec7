"""Planes as 8-bit pictures with a caption under them."""

from __future__ import annotations

import textwrap

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

# Smaller planes are enlarged by a whole factor, so that a caption has room.
SMALLEST_SIDE = 480
_FONT_SIZE = 14
_LINE = 18
_MARGIN = 6


def picture(plane: NDArray[np.float32], limits: tuple[float, float], caption: str) -> Image.Image:
    """The plane in grey levels, black at `limits[0]`, white at `limits[1]` and where it is NaN, above its caption."""
    low, high = limits
    grey = np.nan_to_num((plane - low) * (255 / (high - low)), nan=255.0, posinf=255.0, neginf=0.0)
    factor = -(-SMALLEST_SIDE // max(plane.shape)) if max(plane.shape) < SMALLEST_SIDE else 1
    enlarged = np.kron(np.clip(grey, 0, 255).round().astype(np.uint8), np.ones((factor, factor), np.uint8))
    return _captioned(Image.fromarray(enlarged), caption)


def _captioned(image: Image.Image, caption: str) -> Image.Image:
    font = ImageFont.load_default(_FONT_SIZE)
    width = max(image.width, SMALLEST_SIDE)
    characters = int((width - 2 * _MARGIN) / font.getlength("n"))
    lines = [part for line in caption.splitlines() for part in textwrap.wrap(line, characters)]
    # H.264 has even sizes
    height = image.height + _LINE * len(lines) + 2 * _MARGIN
    sheet = Image.new("L", (width + width % 2, height + height % 2), 0)
    sheet.paste(image, ((sheet.width - image.width) // 2, 0))
    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate(lines):
        draw.text((_MARGIN, image.height + _MARGIN + _LINE * number), line, fill=255, font=font)
    return sheet
