"""PaStA's patch matches as a picture: two views, and a line from each patch to the one its feature is nearest to."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from hatch_ray.report.pages import render

SIDE = 180
"""Pixels of the longer side of one view."""
GAP = 70


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
    lefts = (0.0, sizes[0][0] + GAP)
    width, height = lefts[1] + sizes[1][0], max(size[1] for size in sizes)

    def centre(view: int, patch: int) -> tuple[str, str]:
        row, column = divmod(patch, grid)
        wide, high = sizes[view]
        return f"{lefts[view] + wide * (column + 0.5) / grid:.1f}", f"{high * (row + 0.5) / grid:.1f}"

    lines = [
        (found[patch] == target[patch], *centre(0, patch), *centre(1, found[patch]))
        for patch, keep in enumerate(kept)
        if keep
    ]
    drawn = [(url, left, *size) for url, left, size in zip(urls, lefts, sizes, strict=True)]
    svg = render("match.svg", views=drawn, lines=lines, grid=grid, width=f"{width:.0f}", height=f"{height:.0f}")
    return svg, sum(line[0] for line in lines), len(lines)
