"""Numbered circles: marks of wide-baseline matching (arXiv 2606.03577), by the sizes of its authors' code.

A green ring of 8 pixels' radius, and above it the number, white on black; below it, where there is no room above. On
pictures narrower than 640 pixels all of it shrinks with the width, as far as a number stays readable.
"""

from __future__ import annotations

from functools import lru_cache
from math import ceil, hypot

from PIL import ImageDraw, ImageFont

RADIUS, LINE, PADDING, FONT = 8.0, 2, 2, 14.0
"""Pixels. The font's size gives digits as high as OpenCV's Hershey simplex at 0.5."""
FULL_WIDTH = 640
LEAST_RADIUS, LEAST_FONT = 4.0, 9.0
GREEN, WHITE, BLACK = (0, 255, 0), (255, 255, 255), (0, 0, 0)


def circle_radius(width: int) -> int:
    """Pixels of the ring's radius on a picture of this width."""
    return round(max(LEAST_RADIUS, RADIUS * _scale(width)))


def footprint(width: int, largest: int) -> int:
    """Diagonal in pixels of a ring with its label, of the number `largest`: marks that far apart cover none of another.

    It is the guard distance of a picture of this width.
    """
    wide, high = _label_size(width, "0" * len(str(largest)))
    across = 2 * circle_radius(width) + 1
    return ceil(hypot(max(across, wide), across + high))


def draw_circle(draw: ImageDraw.ImageDraw, label: str, at: tuple[int, int], size: tuple[int, int]) -> None:
    """Draw a ring about the pixel `at` of a picture of this size (width, height), and its label."""
    (x, y), width = at, size[0]
    radius, padding = circle_radius(width), _padding(width)
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=GREEN, width=_line(width))
    wide, high = _label_size(width, label)
    left, top = _label_corner(label, at, size)
    draw.rectangle((left, top, left + wide - 1, top + high - 1), fill=BLACK)
    edge = _font(width).getbbox(label)
    draw.text((left + padding - edge[0], top + padding - edge[1]), label, fill=WHITE, font=_font(width))


def label_middle(label: str, at: tuple[int, int], size: tuple[int, int]) -> tuple[float, float]:
    """Pixel in the middle of the label of a ring about the pixel `at`."""
    (left, top), (wide, high) = _label_corner(label, at, size), _label_size(size[0], label)
    return left + (wide - 1) / 2, top + (high - 1) / 2


def _label_corner(label: str, at: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """Left and top: above the ring where there is room, inside the picture."""
    (x, y), (width, height) = at, size
    radius, (wide, high) = circle_radius(width), _label_size(width, label)
    top = y - radius - high if y - radius - high >= 0 else y + radius + 1
    return min(max(0, x - wide // 2), max(0, width - wide)), min(max(0, top), max(0, height - high))


def thousandth(pixel: int, size: int) -> int:
    """The 0-1000 coordinate whose drawn place (`markers.mark_pixels`) is this pixel of a side of `size` pixels; exact
    up to 1,000 pixels, else within size / 1000.
    """
    return min(1000, -(-pixel * 1000 // size))


def _scale(width: int) -> float:
    return min(1.0, width / FULL_WIDTH)


def _line(width: int) -> int:
    return max(1, round(LINE * _scale(width)))


def _padding(width: int) -> int:
    return max(1, round(PADDING * _scale(width)))


@lru_cache(maxsize=64)
def _font(width: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(max(LEAST_FONT, FONT * _scale(width)))


@lru_cache(maxsize=512)
def _label_size(width: int, label: str) -> tuple[int, int]:
    """Pixels of the box that holds a label."""
    left, top, right, bottom = _font(width).getbbox(label)
    return ceil(right - left) + 2 * _padding(width), ceil(bottom - top) + 2 * _padding(width)
