"""PaStA's patch matches as a picture: two views, and a line from each patch to the one its feature is nearest to."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

SIDE = 180
"""Pixels of the longer side of one view."""
GAP = 70
RIGHT, WRONG = "#1f9d55", "#d9382f"


def match_svg(
    views: Sequence[Image.Image],
    urls: Sequence[str],
    grid: int,
    target: Sequence[int],
    found: Sequence[int],
    kept: Sequence[bool],
) -> tuple[str, int, int]:
    """(SVG, right, judged): green lines end in the patch with the largest overlap, red ones elsewhere.

    urls          data URLs of the two views.
    target, found (grid * grid,) patch of the second view for each patch of the first, row-major.
    kept          (grid * grid,) whether the patch overlaps the second view enough to be judged.
    """
    sizes = [(view.width * SIDE / max(view.size), view.height * SIDE / max(view.size)) for view in views]
    (first_width, first_height), (second_width, second_height) = sizes
    lefts = (0.0, first_width + GAP)
    width, height = lefts[1] + second_width, max(first_height, second_height)
    parts = [
        f'<svg class="match" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" role="img" '
        'xmlns="http://www.w3.org/2000/svg">'
    ]
    for url, left, (view_width, view_height) in zip(urls, lefts, sizes, strict=True):
        parts.append(
            f'<image href="{url}" x="{left:.1f}" width="{view_width:.1f}" height="{view_height:.1f}" '
            'preserveAspectRatio="none"/><g stroke="#ffffff" stroke-opacity="0.35" stroke-width="0.8">'
        )
        for k in range(1, grid):
            across, down = left + view_width * k / grid, view_height * k / grid
            parts.append(f'<path d="M{across:.1f} 0V{view_height:.1f}M{left:.1f} {down:.1f}H{left + view_width:.1f}"/>')
        parts.append("</g>")

    def centre(view: int, patch: int) -> tuple[float, float]:
        row, column = divmod(patch, grid)
        view_width, view_height = sizes[view]
        return lefts[view] + view_width * (column + 0.5) / grid, view_height * (row + 0.5) / grid

    judged = [patch for patch, keep in enumerate(kept) if keep]
    right = [patch for patch in judged if found[patch] == target[patch]]
    for patch in judged:
        color = RIGHT if found[patch] == target[patch] else WRONG
        (x1, y1), (x2, y2) = centre(0, patch), centre(1, found[patch])
        parts.append(
            f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" stroke="#ffffff" stroke-width="3.4" stroke-opacity="0.6"/>'
            f'<g fill="{color}"><path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" stroke="{color}" stroke-width="1.7"/>'
            f'<g stroke="#ffffff"><circle cx="{x1:.1f}" cy="{y1:.1f}" r="3.2"/>'
            f'<circle cx="{x2:.1f}" cy="{y2:.1f}" r="3.2"/></g></g>'
        )
    return "".join([*parts, "</svg>"]), len(right), len(judged)
