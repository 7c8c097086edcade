"""Small charts as inline SVG. Colours are the page's CSS variables (--c0 .. --c4), so they follow light and dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

WIDTH, NARROW, HEIGHT = 460, 310, 220
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 12, 30
MAX_POINTS = 300
"""A longer curve is thinned: a pixel shows no more."""
SMOOTH_SHARE = 0.06
"""Window of the moving average, as a share of the curve."""


@dataclass(frozen=True)
class Series:
    """One curve: (n,) steps in order and (n,) values."""

    name: str
    steps: Sequence[float]
    values: Sequence[float]


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers that span [low, high]."""
    span = high - low
    if span <= 0:
        return [low]
    raw = span / count
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


def _opened(width: int, height: int, label: str) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}" '
        'xmlns="http://www.w3.org/2000/svg">'
    )


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
        return round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - low) / (high - low), 1)

    parts = [_opened(width, HEIGHT, label)]
    for tick in ticks(low, high):
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{width - RIGHT}" y1="{y(tick)}" y2="{y(tick)}"/>'
            f'<text x="{LEFT - 6}" y="{y(tick) + 3.5}" text-anchor="end">{tick:g}</text>'
        )
    for tick in ticks(first, last):
        parts.append(f'<text x="{x(tick)}" y="{HEIGHT - 14}" text-anchor="middle">{tick:g}</text>')
    parts.append(f'<text x="{(LEFT + width - RIGHT) / 2}" y="{HEIGHT - 2}" text-anchor="middle">step</text>')
    for index, one in enumerate(series):
        values = np.clip(np.asarray(one.values, dtype=float), low, high)
        keep = np.unique(np.linspace(0, len(values) - 1, min(len(values), MAX_POINTS)).astype(int))
        for data, kind in ((values, "raw"), (smooth(values), "mean")):
            path = " ".join(f"{x(one.steps[k])},{y(data[k])}" for k in keep)
            parts.append(f'<polyline class="{kind}" style="stroke:var(--c{index % 5})" points="{path}"/>')
        if len(values) == 1:
            parts.append(f'<circle cx="{x(one.steps[0])}" cy="{y(values[0])}" r="3" style="fill:var(--c{index % 5})"/>')
    return "".join([*parts, "</svg>"])


def interval_chart(rows: Sequence[tuple[str, dict[str, Any] | None]], label: str, controls: int = 0) -> str:
    """A dot with a 95 % whisker a row; the last `controls` rows are drawn hollow. Rows without a value are left out."""
    known = [
        (name, found, index >= len(rows) - controls) for index, (name, found) in enumerate(rows) if found is not None
    ]
    if not known:
        return ""
    row_height, left, width = 26, 150, WIDTH
    height = TOP + row_height * len(known) + 22
    top = max(found["high"] for _, found, _ in known) * 1.05 or 1.0

    def x(value: float) -> float:
        return round(left + (width - left - RIGHT) * value / top, 1)

    parts = [_opened(width, height, label)]
    for tick in ticks(0, top):
        parts.append(
            f'<line class="grid" x1="{x(tick)}" x2="{x(tick)}" y1="{TOP}" y2="{height - 20}"/>'
            f'<text x="{x(tick)}" y="{height - 6}" text-anchor="middle">{tick:g}</text>'
        )
    for index, (name, found, control) in enumerate(known):
        y = TOP + row_height * (index + 0.5)
        color = "var(--soft)" if control else "var(--c0)"
        fill = "var(--paper)" if control else color
        parts.append(
            f'<text class="name" x="{left - 10}" y="{y + 4}" text-anchor="end">{escape(name)}</text>'
            f'<line style="stroke:{color};stroke-width:2" x1="{x(found["low"])}" x2="{x(found["high"])}" y1="{y}" '
            f'y2="{y}"/><circle cx="{x(found["value"])}" cy="{y}" r="4.5" '
            f'style="fill:{fill};stroke:{color};stroke-width:2"/>'
        )
    return "".join([*parts, "</svg>"])
