"""Questions of wide-baseline matching: numbered marks on two photos, and which of them show the same place.

Levels of arXiv 2606.03577, supplement 7.3. Its three descriptions of how marks spread contradict each other; SPREADS
is ours. So is the rule of distractors: the authors' code never checks that one has no partner.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hatch_ray.data.numbered import footprint
from hatch_ray.data.pairs import Refused
from hatch_ray.data.scene import Frame
from hatch_ray.systems.matching.ground import DepthGround, Ground
from hatch_ray.systems.matching.places import Places
from hatch_ray.systems.matching.pools import Pool, Thinned, ring_inside, thinned

Range = tuple[int, int]


@dataclass(frozen=True)
class Level:
    """How many marks: with a partner, and without one on the first and on the second photo. Both ends count."""

    matched: Range
    first: Range
    second: Range


LEVELS: dict[str, Level] = {
    "L1": Level((3, 5), (0, 0), (0, 0)),
    "L2": Level((1, 2), (0, 0), (3, 6)),
    "L3": Level((3, 6), (3, 6), (3, 6)),
}
"""Unambiguous, selective, partial."""
SPREADS: dict[str, float] = {"sparse": 0.09, "moderate": 0.06, "dense": 0.0}
"""Least distance of marks with a partner, in widths of the picture (the guard distance at least). sparse: always the
one farthest from those taken. moderate: any of a pool of `pools.spread`. dense: any match."""
HARD: tuple[float, float] = (0.04, 0.14)
"""Half of the distractors lie that near to a mark that has a partner, in widths of the picture."""
EXACT = 4.0
"""Pixels: a mark stands within this of its partner's true place, and every other one beyond the guard distance."""
LARGEST = max(level.matched[1] + max(level.first[1], level.second[1]) for level in LEVELS.values())
TRIES = 20


@dataclass(frozen=True)
class Asked:
    """first (n, 2), second (m, 2): pixels of the marks 1, 2, .. of either photo. gold (n,): the second photo's number
    for each of the first, 0 for none.
    """

    first: np.ndarray
    second: np.ndarray
    gold: tuple[int, ...]


class Marker:
    """Two views, from which questions are drawn. Raises Refused where they have too few matches."""

    def __init__(self, first: Frame, second: Frame, pool: Pool | Thinned, ground: Ground | None = None) -> None:
        """ground: what proves its questions; None: the views' depth."""
        self.first, self.second = first, second
        self.ground = ground or DepthGround(first, second)
        self.width = first.rgb.shape[1]
        self.guard = footprint(self.width, LARGEST)
        self.apart = self.guard + EXACT
        thin = thinned(pool, first, second) if isinstance(pool, Pool) else pool
        self.matches = np.rint(thin.matches)
        self.pool = self.matches[thin.spread]
        if not len(self.pool):
            raise Refused("too_few_matches")
        here, there = self.ground.free(self.guard)
        self.free = (_away_from_edges(here, first), _away_from_edges(there, second))

    def draw(self, level: str, how: str, rng: np.random.Generator) -> Asked:
        """One question whose every mark was proven by depth (`faults`). Raises Refused after TRIES draws."""
        reason = ""
        for _ in range(TRIES):
            try:
                asked = self._draw(LEVELS[level], how, rng)
            except Refused as refused:
                reason = refused.reason
                continue
            if not faults(asked, self.first, self.second, self.guard, self.ground):
                return asked
            reason = "not_proven"
        raise Refused(reason)

    def _draw(self, level: Level, how: str, rng: np.random.Generator) -> Asked:
        counts = [int(rng.integers(*span, endpoint=True)) for span in (level.matched, level.first, level.second)]
        matched = self._matched(counts[0], how, rng)
        near, far = matched[:, :2], matched[:, 2:]
        here = self._distractors(self.free[0], counts[1], near, far, np.zeros((0, 2)), np.zeros(0), rng)
        lone = self.free[0].pixels[here]
        there, reach = self.free[0].there[here], self._reach(self.free[0])[here]
        back = self._distractors(self.free[1], counts[2], far, np.vstack([near, lone]), there, reach, rng)
        first, second = np.vstack([near, lone]), np.vstack([far, self.free[1].pixels[back]])
        order, order_2 = rng.permutation(len(first)), rng.permutation(len(second))
        number = {int(place): label for label, place in enumerate(order_2, start=1)}
        gold = tuple(number[int(place)] if place < len(matched) else 0 for place in order)
        return Asked(first[order].astype(int), second[order_2].astype(int), gold)

    def _matched(self, count: int, how: str, rng: np.random.Generator) -> np.ndarray:
        known = self.matches if how == "dense" else self.pool
        least = max(self.apart, SPREADS[how] * self.width)
        left, taken = rng.permutation(len(known)), [int(rng.integers(len(known)))]
        away = np.full(len(known), np.inf)
        while len(taken) < count:
            step = known - known[taken[-1]]
            away = np.minimum(away, np.minimum(np.hypot(step[:, 0], step[:, 1]), np.hypot(step[:, 2], step[:, 3])))
            able = left[away[left] >= least]
            if not len(able):
                raise Refused("matches_too_near")
            taken.append(int(able[np.argmax(away[able])] if how == "sparse" else able[0]))
        return known[taken]

    def _distractors(
        self, free: Places, count: int, matched: np.ndarray, others: np.ndarray, shown: np.ndarray, reach: np.ndarray,
        rng: np.random.Generator,
    ) -> list[int]:  # fmt: skip
        """Indices of `free`, half of them near to a matched mark of their own photo.

        others: marks of the other photo, from which their true places keep the guard distance, and twice that where
        they can be seen. shown, reach: places of the other photo's distractors in this one, and what to keep from them.
        """
        able = _gap(free.pixels, matched) >= self.apart
        able &= _gap(free.there, others) >= self._reach(free)
        for place, least in zip(shown, reach, strict=True):
            able &= np.hypot(*(free.pixels - place).T) >= least
        near = _gap(free.pixels, matched)
        hard = (near >= HARD[0] * self.width) & (near <= max(HARD[1] * self.width, 2 * self.apart))
        taken: list[int] = []
        for number in range(count):
            left = np.flatnonzero(able & hard if 2 * number < count else able)
            if not len(left):
                raise Refused("no_place_for_a_distractor")
            taken.append(int(rng.choice(left)))
            able &= np.hypot(*(free.pixels - free.pixels[taken[-1]]).T) >= self.apart
        return taken

    def _reach(self, free: Places) -> np.ndarray:
        """What the true places of distractors keep from the other photo's marks."""
        return np.where(free.seen, 2.0, 1.0) * self.guard + EXACT


def _away_from_edges(free: Places, frame: Frame) -> Places:
    kept = ring_inside(free.pixels, frame)
    return Places(free.pixels[kept], free.there[kept], free.seen[kept])


def _gap(points: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(n,) distance of each point to the nearest of the others."""
    step = points[:, None] - others[None]
    return np.asarray(np.hypot(step[..., 0], step[..., 1]).min(axis=1, initial=np.inf))


def faults(asked: Asked, first: Frame, second: Frame, guard: float, ground: Ground | None = None) -> list[str]:
    """What geometry (None: depth) says against a question; [] where each mark lies within EXACT of its partner's true
    place and beyond the guard distance of that of every other mark, both ways, and no two marks of a photo are nearer
    than that.
    """
    found = []
    for name, marks in (("first", asked.first), ("second", asked.second)):
        apart = np.hypot(*(marks[:, None] - marks[None]).transpose(2, 0, 1)) + np.diag([np.inf] * len(marks))
        if (apart < guard).any():
            found.append(f"two marks of the {name} photo are {apart.min():.1f} pixels apart")
    partner = np.array(asked.gold)[:, None] == np.arange(1, len(asked.second) + 1)
    ground = ground or DepthGround(first, second)
    ways = ((asked.first, asked.second, partner), (asked.second, asked.first, partner.T))
    for way, (marks, others, same) in enumerate(ways):
        place = ground.place_of(marks.astype(float), way)
        away = np.hypot(*(place[:, None] - others[None]).transpose(2, 0, 1))
        wrong = ~np.where(same, away < EXACT, away > guard)  # NaN, no depth, is neither
        found += [
            f"mark {i + 1} lies {away[i, j]:.1f} pixels from mark {j + 1} of the other photo"
            for i, j in np.argwhere(wrong)
        ]
    return found
