"""The curriculum of wide-baseline matching as a pure function: (state, what a step's questions earned) -> state.

arXiv 2606.03577, section 3.4 and supplement 7.3. Outer: bins of view pairs, widest overlap first; a bin whose window is
full and whose mean is high enough is mastered and not asked again. Inner: L1 alone, L2 alone, then a mix of all, and in
each level marks that stand denser and denser; those ladders go down again. How the two meet is not given: here they are
independent, and a change of one leaves the others as they are. After the last bin all bins are asked alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import mean  # exact: equal values have this very mean

from hatch_ray.systems.matching.questions import LEVELS, SPREADS
from hatch_ray.systems.matching.settings import CurriculumConfig

STAGES: tuple[tuple[float, ...], ...] = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.3, 0.3, 0.4))
"""Shares of L1, L2 and L3 in each inner stage."""
STAGE_NAMES = ("L1", "L2", "mix")


@dataclass(frozen=True)
class Cell:
    """What kind of question: its bin (0 has the widest overlap), level (0 is L1) and spread (0 is sparse)."""

    bin: int
    level: int
    spread: int


@dataclass(frozen=True)
class Ladder:
    """One controller: its rung; what it saw on this rung, newest last; steps in a row above or below its lines."""

    rung: int = 0
    recent: tuple[float, ...] = ()
    above: int = 0
    below: int = 0


@dataclass(frozen=True)
class State:
    """mastered: all bins are, so that all are asked."""

    bin: int = 0
    window: tuple[float, ...] = ()
    mastered: bool = False
    stage: Ladder = Ladder()
    spreads: tuple[Ladder, ...] = (Ladder(),) * len(LEVELS)

    def asks(self, cell: Cell) -> bool:
        """Whether questions of this kind are drawn now. What others earned counts for nothing: with weights and
        questions that are several steps old, a result is used only where it still says something.
        """
        return (
            (self.mastered or cell.bin == self.bin)
            and STAGES[self.stage.rung][cell.level] > 0
            and cell.spread == self.spreads[cell.level].rung
        )


def advance(state: State, earned: Sequence[tuple[Cell, float]], rules: CurriculumConfig) -> State:
    """The state after a step whose questions earned this share of right marks. A step without any that counts changes
    nothing.
    """
    counted = [(cell, match) for cell, match in earned if state.asks(cell)]
    if not counted:
        return state
    earned_now = mean([match for _, match in counted])
    spreads = list(state.spreads)
    for level, ladder in enumerate(spreads):
        if of_level := [match for cell, match in counted if cell.level == level]:
            spreads[level] = climb(ladder, mean(of_level), len(SPREADS) - 1, rules)
    stage = climb(state.stage, earned_now, len(STAGES) - 1, rules)
    return replace(_outer(state, earned_now, rules), stage=stage, spreads=tuple(spreads))


def climb(ladder: Ladder, value: float, top: int, rules: CurriculumConfig) -> Ladder:
    """One observation. At most one rung up or down: a step that is below its line ends the row of those above."""
    recent = (*ladder.recent, value)[-rules.window :]
    below = ladder.below + 1 if value < rules.demote else 0
    above = ladder.above + 1 if not below and mean(recent) > rules.promote else 0
    if above >= rules.promote_after and ladder.rung < top:
        return Ladder(ladder.rung + 1)
    if below >= rules.demote_after and ladder.rung > 0:
        return Ladder(ladder.rung - 1)
    return Ladder(ladder.rung, recent, above, below)


def _outer(state: State, value: float, rules: CurriculumConfig) -> State:
    window = (*state.window, value)[-rules.window :]
    if state.mastered or len(window) < rules.window or mean(window) <= rules.master:
        return replace(state, window=window)
    last = state.bin == rules.bins - 1
    return replace(state, bin=state.bin + (not last), mastered=last, window=())
