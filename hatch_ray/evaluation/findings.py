"""What a run's evaluations say together: paired differences, the blind control, and each claim with its figure.

A claim holds where its 95 % interval does (`intervals.verdict`): a mean on the right side of a line shows nothing.
RUN/eval/comparison.json holds them; the terminal table and the report only show what stands there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from hatch_ray.evaluation.heldout import SWAPPED, compare, read_rows, read_table
from hatch_ray.evaluation.intervals import Interval, Verdict, verdict
from hatch_ray.run_folder import RunFolder, write_atomic
from hatch_ray.systems.base import System

FINAL = "final"
GRPO = "grpo"


class Claim(TypedDict):
    """A sentence, the figures to it in words, the interval that judges it, and the verdict; None: not measured."""

    claim: str
    measured: str
    interval: Interval | None
    holds: Verdict | None


def claim(
    text: str, measured: str = "not measured", interval: Interval | None = None, holds: Verdict | None = None
) -> Claim:
    return Claim(claim=text, measured=measured, interval=interval, holds=holds)


def interval_text(interval: Mapping[str, Any] | None, digits: int = 3) -> str:
    """ "0.512 (0.480 to 0.541)"."""
    if interval is None:
        return "-"
    return f"{interval['value']:.{digits}f} ({interval['low']:.{digits}f} to {interval['high']:.{digits}f})"


def retrieval_text(found: Mapping[str, Any]) -> str:
    """Of patch_retrieval.json, before and after PaStA: "0.571 (0.550 to 0.594) -> 0.616 (0.596 to 0.640)"."""
    return " -> ".join(interval_text({"value": found[when]["mean"], **found[when]}) for when in ("before", "after"))


def models_among(system: System, names: Sequence[str]) -> list[str]:
    """Those names of evaluations that are of a model, in the order in which the recipe makes them."""
    return [name for name in ("base", *(stage.name for stage in system.stages), FINAL) if name in names]


def around_grpo(system: System, run: RunFolder, names: Sequence[str]) -> tuple[str, str] | None:
    """The evaluations of the model that GRPO started from and of the one that it made; None unless both are there."""
    models = models_among(system, names)
    after = GRPO if GRPO in models else FINAL
    if not run.progress().get(GRPO, {}).get("done") or after not in models[1:]:
        return None
    return models[models.index(after) - 1], after


def compared(system: System, run: RunFolder, names: Sequence[str]) -> tuple[str | None, str | None]:
    """The two models that tables and samples show: the one that GRPO started from, or else the first; and the last."""
    models = models_among(system, names)
    before, _ = around_grpo(system, run, names) or (models[0] if len(models) > 1 else None, None)
    return before, models[-1] if models else None


class Evaluations:
    """All evaluations of a run, and what its claims are made of.

    names    those present: of models in the recipe's order, then the controls.
    rows     judged replies (`heldout.Row`) by evaluation.
    grpo     what GRPO changed (`heldout.compare`); None unless it ran.
    overall  differences of "final" against "base".
    blind    differences of "final" against itself with another question's images.
    """

    def __init__(self, system: System, run: RunFolder, bootstrap: int, seed: int) -> None:
        self.run, self.bootstrap, self.seed = run, bootstrap, seed
        made = sorted(path.stem for path in run.evaluation("").parent.glob("*.jsonl"))
        first = [*models_among(system, made), FINAL + SWAPPED]
        self.names = [name for name in first if name in made] + [name for name in made if name not in first]
        self.rows = {name: read_rows(run, name) for name in self.names}
        self.grpo = self.change(*(around_grpo(system, run, self.names) or ("", "")))
        self.overall = self.change("base", FINAL)
        self.blind = self.change(FINAL + SWAPPED, FINAL)

    def change(self, before: str, after: str) -> dict[str, Any] | None:
        """`heldout.compare` of two evaluations; None where one was not made."""
        if before not in self.rows or after not in self.rows:
            return None
        return compare(self.rows[before], self.rows[after], self.bootstrap, self.seed)

    def raised(self, text: str, term: str, *, above: bool = True) -> Claim:
        """GRPO raises the mean of a term; with above=False: does not lower it.

        A gain may be one of guessing: what the final model earns blind stands beside it.
        """
        found = self.grpo["overall"].get(term) if self.grpo else None
        if found is None:
            return claim(text)
        swapped = read_table(self.run, FINAL + SWAPPED)
        blind = interval_text(swapped["overall"].get(term)) if swapped else "not measured"
        measured = f"{interval_text(found)}; final with another question's images: {blind}"
        return claim(text, measured, found, verdict(found, above=above))

    def looks(self, text: str, term: str) -> Claim:
        """The final model uses its images: with another question's images the mean of a term falls."""
        found = self.blind["overall"].get(term) if self.blind else None
        if found is None:
            return claim(text)
        return claim(text, f"they cost {interval_text(found)}", found, verdict(found))


def labels(system: System, names: Sequence[str]) -> dict[str, str]:
    """Evaluations in words."""
    known = {FINAL + SWAPPED: "final, swapped", "constant": "best constant"}
    known |= {stage.name: f"after {stage.short}" for stage in system.stages} | dict(system.words.labels)
    return {name: known.get(name, name.replace("_", " ")) for name in names}


def write_findings(system: System, run: RunFolder, bootstrap: int, seed: int) -> dict[str, Any]:
    """Compare the evaluations that the run has and write RUN/eval/comparison.json; what is missing is null there.

    models, labels        names of the evaluations (`Evaluations.names`), and the same in words.
    grpo, overall, blind  `Evaluations`.
    claims                [`Claim`] of the system.
    """
    found = Evaluations(system, run, bootstrap, seed)
    table = {
        "models": found.names,
        "labels": labels(system, found.names),
        "grpo": found.grpo,
        "overall": found.overall,
        "blind": found.blind,
        "claims": system.claims(found),
    }
    write_atomic(run.evaluation("comparison"), json.dumps(table, indent=2, allow_nan=False))
    return table
