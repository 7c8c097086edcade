"""Small charts, and PaStA's patch matches, as inline SVG.

A chart's colours are the page's CSS variables (--c0 .. --c4), so they follow light and dark.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from PIL import Image

from hatch_ray.report.pages import render

WIDTH, NARROW, HEIGHT = 460, 310, 220
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 12, 30
NAMES, ROW_HEIGHT = 150, 26
LANE, LANE_GAP, RUNG = 30, 16, 13
MAX_POINTS = 300
"""A longer curve is thinned: a pixel shows no more."""
SMOOTH_SHARE = 0.06
"""Window of the moving average, as a share of the curve."""
SIDE = 180
"""Pixels of the longer side of one view."""
GAP = 70


@dataclass(frozen=True)
class Series:
    """One curve: (n,) steps in order and (n,) values."""

    name: str
    steps: Sequence[float]
    values: Sequence[float]


def ticks(low: float, high: float) -> list[float]:
    """Round numbers that span [low, high]."""
    span = high - low
    if span <= 0:
        return [low]
    raw = span / 4
    power = 10 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if raw <= power * factor)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 10) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def smooth(values: np.ndarray) -> np.ndarray:
    """Centred moving average; at the ends the window holds only what there is."""
    half = max(1, round(len(values) * SMOOTH_SHARE / 2))
    if len(values) < 8:
        return values
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    first, last = np.maximum(index - half, 0), np.minimum(index + half, len(values) - 1)
    return (total[last + 1] - total[first]) / (last + 1 - first)


def line_chart(
    series: Sequence[Series], label: str, span: tuple[float, float] | None = None, width: int = WIDTH
) -> str:
    """Curves by step: every value faint, their moving average bold. `span` fixes the vertical range.

    label: what is drawn, for readers who do not see the picture.
    """
    assert series and all(len(one.steps) for one in series)
    everything = np.concatenate([np.asarray(one.values, dtype=float) for one in series])
    low, high = span or (float(everything.min()), float(everything.max()))
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    first, last = min(one.steps[0] for one in series), max(one.steps[-1] for one in series)

    def x(step: float) -> float:
        return round(LEFT + (width - LEFT - RIGHT) * (step - first) / max(last - first, 1e-9), 1)

    def y(value: float) -> float:
        return round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (float(value) - low) / (high - low), 1)

    curves = []
    for one in series:
        values = np.clip(np.asarray(one.values, dtype=float), low, high)
        keep = np.unique(np.linspace(0, len(values) - 1, min(len(values), MAX_POINTS)).astype(int))
        curves.append([[(x(one.steps[k]), y(data[k])) for k in keep] for data in (values, smooth(values))])
    across = [(y(tick), f"{tick:g}") for tick in ticks(low, high)]
    steps = [(x(tick), f"{tick:g}") for tick in ticks(first, last)]
    place = {"width": width, "height": HEIGHT, "left": LEFT, "right": width - RIGHT}
    return render("line_chart.svg", label=label, across=across, steps=steps, curves=curves, **place)


def ladder_chart(lanes: Sequence[tuple[Series, Sequence[str]]], label: str, width: int = WIDTH) -> str:
    """Lanes one below the other, by step: stairs over named rungs 0, 1, ..; without names, a curve from 0 to 1."""
    first = min(one.steps[0] for one, _ in lanes)
    last = max(one.steps[-1] for one, _ in lanes)
    drawn, top = [], float(TOP)

    def x(step: float) -> float:
        return round(NAMES + (width - NAMES - RIGHT) * (step - first) / max(last - first, 1e-9), 1)

    for number, (one, rungs) in enumerate(lanes):
        high = LANE if not rungs else max(LANE, RUNG * (len(rungs) - 1))
        names = rungs or ("0", "1")

        def y(value: float, top: float = top, high: float = high, most: int = len(names) - 1) -> float:
            return round(top + high * (1 - value / most), 1)

        places = list(zip(map(x, one.steps), map(y, one.values), strict=True))
        line = places[:1]
        for (_, before), (here, now) in pairwise(places):
            line += [(here, before), (here, now)] if rungs else [(here, now)]
        told = range(len(names)) if high / (len(names) - 1) >= RUNG else (0, len(names) - 1)
        drawn.append((one.name, top + high / 2, [(y(rung), names[rung]) for rung in told], line, number))
        top += high + LANE_GAP
    steps = [(x(tick), f"{tick:g}") for tick in ticks(first, last)]
    place = {"width": width, "height": round(top + BOTTOM - LANE_GAP), "left": NAMES, "right": width - RIGHT}
    return render("ladder_chart.svg", label=label, lanes=drawn, steps=steps, **place)


def interval_chart(rows: Sequence[tuple[str, dict[str, Any] | None]], label: str, controls: int = 0) -> str:
    """A dot with a 95 % whisker a row; the last `controls` rows are drawn hollow. Rows without a value are left out."""
    known = [(name, found, index >= len(rows) - controls) for index, (name, found) in enumerate(rows) if found]
    if not known:
        return ""
    height = TOP + ROW_HEIGHT * len(known) + 22
    most = max(found["high"] for _, found, _ in known) * 1.05 or 1.0

    def x(value: float) -> float:
        return round(NAMES + (WIDTH - NAMES - RIGHT) * value / most, 1)

    drawn = [
        (name, TOP + ROW_HEIGHT * (index + 0.5), *(x(found[end]) for end in ("low", "value", "high")), control)
        for index, (name, found, control) in enumerate(known)
    ]
    place = {"width": WIDTH, "height": height, "top": TOP, "left": NAMES}
    marks = [(x(tick), f"{tick:g}") for tick in ticks(0, most)]
    return render("interval_chart.svg", label=label, ticks=marks, rows=drawn, **place)


def match_svg(
    views: Sequence[Image.Image],
    urls: Sequence[str],
    grid: int,
    target: Sequence[int],
    found: Sequence[int],
    kept: Sequence[bool],
) -> tuple[str, int, int]:
    """Two views, and a line from each patch to the one its feature is nearest to: (SVG, right, judged).

    Green lines end in the patch with the largest overlap, red ones elsewhere.

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
