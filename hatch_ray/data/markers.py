"""Points and boxes drawn on the model's copy of an image, by SPAR's rules; points with a label are numbered circles.

Discs of radius 20 and strokes of 20 pixels at native resolution; on smaller images the same share of 1296, ScanNet's
width. Coordinates are truncated to pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from hatch_ray.data.numbered import draw_circle
from hatch_ray.sample import Mark

COLORS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "yellow": (255, 255, 0)}
SPAR_WIDTH = 1296
SMALLEST_SPAR_WIDTH = 1024
"""Images at least this wide are taken as SPAR's own (1280 to 1920 pixels), whose marks are never scaled."""
SPAR_RADIUS = 20.0
SPAR_STROKE = 20.0
BOX_GROWTH = 7 / 8
"""A box grows by this share of the stroke, so that the ink lies around the object."""
LABEL_HEIGHT = 60.0
"""Pixels of a box's label, at SPAR's width; `MIN_LABEL` keeps it readable on small images."""
MIN_LABEL = 10
LABEL_COLOR = "green"
MIN_RADIUS = 3.0
MIN_STROKE = 2
"""Pixels: on a 112 x 112 image SPAR's scaled sizes would be below two pixels and lost in one patch."""


def _scale(width: int) -> float:
    return 1.0 if width >= SMALLEST_SPAR_WIDTH else width / SPAR_WIDTH


def point_radius(width: int) -> float:
    """Radius in pixels of a point's disc on an image of this width."""
    return max(MIN_RADIUS, SPAR_RADIUS * _scale(width))


def box_stroke(width: int) -> int:
    """Stroke in pixels of a box's outline on an image of this width."""
    return max(MIN_STROKE, round(SPAR_STROKE * _scale(width)))


def mark_pixels(mark: Mark, width: int, height: int) -> list[int]:
    """The mark's 0-1000 coordinates in pixels, truncated as SPAR does."""
    return [int(value * size / 1000) for value, size in zip(mark.xy, (width, height) * 2, strict=False)]


def draw_marks(image: Image.Image, marks: Sequence[Mark]) -> Image.Image:
    """A copy with the marks on it; the image itself when there are none. Marks of other views must not be passed."""
    if not marks:
        return image
    marked = image.copy()
    draw = ImageDraw.Draw(marked)
    radius, stroke = point_radius(image.width), box_stroke(image.width)
    for mark in marks:
        color = COLORS[mark.color]
        pixels = mark_pixels(mark, image.width, image.height)
        if len(pixels) == 2:
            x, y = pixels
            if mark.label:
                draw_circle(draw, mark.label, (x, y), image.size)
                continue
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)
        else:
            # SPAR grows labelled boxes by the whole stroke, others by 17.5 pixels; small images have whole pixels.
            grow = (
                stroke if mark.label else BOX_GROWTH * stroke if stroke == SPAR_STROKE else round(BOX_GROWTH * stroke)
            )
            x1, y1, x2, y2 = pixels
            draw.rectangle((x1 - grow, y1 - grow, x2 + grow, y2 + grow), outline=color, width=stroke)
            if mark.label:
                _draw_label(draw, mark.label, (x1 - grow, y1 - grow), image.size)
    return marked


def _draw_label(draw: ImageDraw.ImageDraw, label: str, corner: tuple[float, float], size: tuple[int, int]) -> None:
    """Write a label above its box's corner, moved where needed so that the whole of it lies inside the image."""
    font = ImageFont.load_default(max(MIN_LABEL, LABEL_HEIGHT * _scale(size[0])))
    _, _, wide, high = (round(edge) for edge in draw.textbbox((0, 0), label, font=font))
    x, y = max(0.0, min(corner[0], size[0] - wide)), max(0.0, min(corner[1] - high - 2, size[1] - high))
    draw.text((x, y), label, fill=COLORS[LABEL_COLOR], font=font)
