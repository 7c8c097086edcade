"""docs/images/phases.svg: a GRPO step's phases as bars to one scale, the driver above, the learner below."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from hatch_ray.run_folder import write_atomic

PICTURE = Path(__file__).parent.parent / "docs" / "images" / "phases.svg"
COLOURS = {"prepare": "#8c6bb1", "generate": "#3b7dd8", "reward": "#d95f0e", "wait": "#d0d4da", "sync": "#c51b7d",
           "learn": "#2a9d6f"}  # fmt: skip
DRIVER = ("sync", "prepare", "generate", "reward", "wait")
"""In the order in which the driver goes through them."""
WIDTH, LEFT, RIGHT, BAR, ROW, TOP = 760, 130, 60, 18, 62, 34


def svg(rows: list[dict[str, Any]]) -> str:
    """rows: as in bench/results/step.json."""
    longest = max(sum(row["ours"]["phases"][name] for name in DRIVER) for row in rows)
    scale = (WIDTH - LEFT - RIGHT) / longest
    height = TOP + ROW * len(rows) + 6
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" '
        'font-size="12" role="img" aria-label="Seconds of each phase of a GRPO step">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
    ]
    place = float(LEFT)
    for name, colour in COLOURS.items():
        parts.append(f'<rect x="{place}" y="8" width="12" height="12" fill="{colour}"/>')
        parts.append(f'<text x="{place + 17}" y="18" fill="#222222">{name}</text>')
        place += 34 + 7 * len(name)
    for number, row in enumerate(rows):
        phases, top = row["ours"]["phases"], TOP + ROW * number + 4
        label = escape(f"{row['images']} x {row['pixels']} px")
        parts.append(f'<text x="{LEFT - 8}" y="{top + 13}" text-anchor="end" fill="#222222">{label}</text>')
        parts.append(f'<text x="{LEFT - 8}" y="{top + BAR + 15}" text-anchor="end" fill="#666666">learner</text>')
        at = 0.0
        for name in DRIVER:
            parts.append(_bar(LEFT + at * scale, top, phases[name] * scale, name))
            at += phases[name]
        parts.append(f'<text x="{LEFT + at * scale + 6:.1f}" y="{top + 13}" fill="#222222">{at:.2f} s</text>')
        began = max(0.0, at - phases["learn"])
        parts.append(_bar(LEFT + began * scale, top + BAR + 3, phases["learn"] * scale, "learn"))
    return "".join([*parts, "</svg>\n"])


def _bar(x: float, y: float, width: float, name: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{BAR}" fill="{COLOURS[name]}"/>'


def draw(found: dict[str, Any]) -> None:
    """Write the picture from what bench/step.py found."""
    write_atomic(PICTURE, svg([row for row in found["rows"] if "ours" in row]))
