"""How people read what a system measures: on the terminal, in the report, of one reply."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hatch_ray.rewards.score import TOTAL
from hatch_ray.run_folder import ASKS


@dataclass(frozen=True)
class Shown:
    """A term or a measure. Where a text is empty, its name stands.

    heading  above its column on the terminal: "d_t (m)".
    column   above its column in the report: "error, m".
    curve    above its curve: "error of place, metres".
    said     of one reply: "off by {:.2f} m".
    digits   after the point, in tables.
    """

    heading: str = ""
    column: str = ""
    curve: str = ""
    said: str = ""
    digits: int = 3


def standing_in_words(ladders: Mapping[str, tuple[str, ...]], metrics: Mapping[str, float]) -> dict[str, str]:
    """What a sampler has come to (`System.ladders`), by a step's metrics: {"bin": "3 of 10", "bin mean": "0.64"}."""
    standing = {name: metrics[f"{ASKS}{name}"] for name in ladders if f"{ASKS}{name}" in metrics}
    return {
        name.replace("_", " "): ladders[name][round(value)] if ladders[name] else f"{value:.2f}"
        for name, value in standing.items()
    }


@dataclass(frozen=True)
class Words:
    """All of it is optional.

    shown    terms and measures by name; curves of these measures are always open in the report.
    tabled   terms that are shown by task and as charts; empty: all.
    medians  what the measures are, and of which replies they are medians.
    labels   evaluations by name, where "after STAGE" (a stage's model) or the name (a blind reply) says too little.
    """

    shown: Mapping[str, Shown] = field(default_factory=dict)
    tabled: tuple[str, ...] = ()
    medians: tuple[str, str] = ("measures", "replies that have them")
    labels: Mapping[str, str] = field(default_factory=dict)

    def of(self, name: str) -> Shown:
        """How a term or a measure is shown, without gaps."""
        own = self.shown.get(name) or Shown(digits=2 if name == TOTAL else 3)
        said, curve = own.said or f"{name} {{:.3g}}", own.curve or name.replace("_", " ")
        return Shown(own.heading or name, own.column or name, curve, said, own.digits)
