"""Which questions GRPO asks: by the curriculum, which only the ledger moves, or a fixed part of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from statistics import mean
from typing import Any

import numpy as np

from hatch_ray.config import ConfigError
from hatch_ray.data.store import Sampler, Shuffled, share_of
from hatch_ray.sample import Sample
from hatch_ray.systems.matching.ladder import STAGE_NAMES, STAGES, Cell, State, advance
from hatch_ray.systems.matching.questions import LEVELS, SPREADS
from hatch_ray.systems.matching.settings import CurriculumConfig, MatchingConfig

QUARTER = 0.25


def make_sampler(config: MatchingConfig, samples: Sequence[Sample]) -> Sampler:
    """The sampler that `curriculum.order` names. Raises ConfigError where the samples do not fit it."""
    order = config.curriculum.order
    if order == "curriculum":
        return Curriculum(config, samples)
    if order == "uniform":
        return Shuffled(config, samples)
    rank = ranks(samples)
    chosen = [one for one in samples if (rank[one.id] < QUARTER if order == "easy" else rank[one.id] >= 1 - QUARTER)]
    if not chosen:
        raise ConfigError(f"curriculum.order={order}: there is no such quarter of the view pairs; raise data.samples")
    return Shuffled(config, chosen)


class Curriculum:
    """Questions of the kinds that the state asks (`ladder`), each at random from all of its kind.

    The state is a fold of `observe` over the ledger, and a step's questions follow from state, step and seed.
    """

    def __init__(self, config: MatchingConfig, samples: Sequence[Sample]) -> None:
        self.config, self.rules = config, config.curriculum
        self.known: Sequence[Sample] = share_of(samples, config.grpo.fraction, config.seed)
        self.state = State()
        rank = ranks(self.known)
        self.cell = {one.id: _cell(one, int(rank[one.id] * self.rules.bins)) for one in self.known}
        self._of: dict[Cell, list[Sample]] = defaultdict(list)
        for one in self.known:
            self._of[self.cell[one.id]].append(one)
        for place in range(self.rules.bins * len(LEVELS) * len(SPREADS)):
            rest, spread = divmod(place, len(SPREADS))
            cell = Cell(*divmod(rest, len(LEVELS)), spread)
            if not self._of[cell]:
                raise ConfigError(
                    f"no question of bin {cell.bin + 1} of {self.rules.bins}, level {list(LEVELS)[cell.level]}, "
                    f"{list(SPREADS)[cell.spread]}: raise data.samples or lower curriculum.bins"
                )

    def samples(self, step: int) -> list[Sample]:
        rng, taken = np.random.default_rng([self.config.seed, step]), list[Sample]()
        for _ in range(self.config.grpo.prompts_per_step):
            known = self._of[self._drawn(rng)]
            fresh = [one for one in known if one not in taken] or known
            taken.append(fresh[int(rng.integers(len(fresh)))])
        return taken

    def others(self, step: int, draw: int, asked: Collection[str], count: int) -> list[Sample]:
        """Of the kinds that the step asks; fewer where all of a kind were asked."""
        rng, taken = np.random.default_rng([self.config.seed, step, draw]), list[Sample]()
        for _ in range(count):
            fresh = [one for one in self._of[self._drawn(rng)] if one.id not in asked and one not in taken]
            if fresh:
                taken.append(fresh[int(rng.integers(len(fresh)))])
        return taken

    def _drawn(self, rng: np.random.Generator) -> Cell:
        """A kind of question, as the state asks them."""
        place = int(rng.integers(self.rules.bins)) if self.state.mastered else self.state.bin
        level = int(rng.choice(len(LEVELS), p=STAGES[self.state.stage.rung]))
        return Cell(place, level, self.state.spreads[level].rung)

    def observe(self, step: int, groups: Sequence[Mapping[str, Any]]) -> None:
        earned = [(self.cell[group["id"]], float(group["terms"]["match"])) for group in groups]
        self.state = advance(self.state, earned, self.rules)

    def standing(self) -> dict[str, float]:
        """What is asked now: bin, level and each level's spread as places on their ladders (`ladders_of`), the means
        that move them, and for how many steps in a row the level's was above or below its line.
        """
        state = self.state
        means = {"bin_mean": state.window, "level_mean": state.stage.recent}
        return (
            {"bin": float(self.rules.bins if state.mastered else state.bin), "level": float(state.stage.rung)}
            | {level: float(one.rung) for level, one in zip(LEVELS, state.spreads, strict=True)}
            | {name: mean(values) for name, values in means.items() if values}
            | {"level_steps_above": float(state.stage.above), "level_steps_below": float(state.stage.below)}
        )


def ladders_of(rules: CurriculumConfig) -> dict[str, tuple[str, ...]]:
    """The words for what `Curriculum.standing` holds; nothing in another order."""
    if rules.order != "curriculum":
        return {}
    bins = (*(f"{place + 1} of {rules.bins}" for place in range(rules.bins)), "all")
    spreads = dict.fromkeys(LEVELS, tuple(SPREADS))
    return {"bin": bins, "level": STAGE_NAMES} | spreads | {"bin_mean": (), "level_mean": ()}


def ranks(samples: Sequence[Sample]) -> dict[str, float]:
    """By sample: the place of its view pair among those of its source, widest overlap first, from 0 to below 1.

    Overlaps of different sources cannot be compared. Raises ConfigError where a sample does not tell its own.
    """
    pairs: dict[str, dict[tuple[float, str], None]] = defaultdict(dict)
    key: dict[str, tuple[str, tuple[float, str]]] = {}
    for one in samples:
        try:
            source, pair = str(one.meta["source"]), (-float(one.meta["omega"]), str(one.meta["pair"]))
        except KeyError as missing:
            raise ConfigError(
                f"sample {one.id} has no meta.{missing.args[0]}: a curriculum needs a dataset that the system matching "
                "made (`hatch data build`), or set curriculum.order=uniform"
            ) from None
        pairs[source][pair] = None
        key[one.id] = (source, pair)
    place = {source: {pair: n for n, pair in enumerate(sorted(known))} for source, known in pairs.items()}
    return {name: place[source][pair] / len(place[source]) for name, (source, pair) in key.items()}


def _cell(sample: Sample, place: int) -> Cell:
    return Cell(place, list(LEVELS).index(sample.meta["level"]), list(SPREADS).index(sample.meta["spread"]))
