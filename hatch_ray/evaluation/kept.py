"""What a stage keeps: figures of the same questions before and after it, paired, and a warning where one got worse.

RUN/eval/kept.json holds the table; the stage's output, the report and the claims show what stands there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hatch_ray.evaluation.intervals import Bootstrap, Interval, Verdict, all_hold, verdict

ERRORS = ("deg", "m")
"""Units in which less is better."""
ANSWERS = "log-probability of the right answer"


@dataclass(frozen=True)
class Measure:
    """A thing that a model can do. unit: "deg", "m", "right" (a share) or "nats". scenes: of each question."""

    name: str
    unit: str
    scenes: Sequence[str]
    before: np.ndarray
    after: np.ndarray


def kept_table(measures: Sequence[Measure], bootstrap: int, seed: int) -> list[dict[str, Any]]:
    """A row a measure: name, unit, before and after (`Interval`), and gain: by how much it got better, paired."""
    rows = []
    for measure in measures:
        draws = Bootstrap(measure.scenes, bootstrap, seed)
        sign = -1 if measure.unit in ERRORS else 1
        figures = {"before": measure.before, "after": measure.after, "gain": sign * (measure.after - measure.before)}
        rows.append(
            {"name": measure.name, "unit": measure.unit} | {name: draws.mean(part) for name, part in figures.items()}
        )
    return rows


def got_worse(row: Mapping[str, Any]) -> bool:
    """Whether a measure fell by more than its interval."""
    return verdict(row["gain"], above=False) == "no"


def kept_verdict(rows: Sequence[Mapping[str, Any]]) -> Verdict:
    """On "nothing got worse": "no" where one did, "yes" where each interval shows that it did not."""
    return all_hold(*(verdict(row["gain"], above=False) for row in rows))


def worst(rows: Sequence[Mapping[str, Any]]) -> Interval:
    """The gain that lies lowest, in widths of its interval."""

    def depth(gain: Interval) -> float:
        return gain["value"] / max(gain["high"] - gain["low"], 1e-9)

    return min((row["gain"] for row in rows), key=depth)


def figure(value: float, unit: str) -> str:
    """ "4.2 deg", "83 %", "-2.31 nats"."""
    return f"{100 * value:.0f} %" if unit == "right" else f"{value:.{1 if unit == 'deg' else 2}f} {unit}"


def row_text(row: Mapping[str, Any]) -> str:
    """ "heading 4.0 deg -> 5.2 deg"; one that got worse says so."""
    before, after = (figure(row[when]["value"], row["unit"]) for when in ("before", "after"))
    return f"{row['name']} {before} -> {after}{' (worse)' if got_worse(row) else ''}"


def warnings(rows: Sequence[Mapping[str, Any]], help: str) -> list[str]:
    """A line for each measure that got worse. help: what usually helps."""
    lines = []
    for row in filter(got_worse, rows):
        gain, unit = row["gain"], row["unit"]
        by, low, high = (figure(-gain[end], unit) for end in ("value", "high", "low"))
        lines.append(f"{row_text(row).removesuffix(' (worse)')} got worse by {by} ({low} to {high}); {help}")
    return lines
