"""What a model that looks at nothing could earn: the best constant plan and answers, and the plan that stays.

The best constants are chosen on the very samples they are judged on, which favours them: a model that beats them has
used its images. They are turned into replies and judged by the same code as a model's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product

import numpy as np
from scipy.spatial.transform import RigidTransform, Rotation

from hatch_ray.config_sections import RewardConfig
from hatch_ray.geometry.actions import compose
from hatch_ray.protocol.prompt import gold_reply
from hatch_ray.protocol.values import VIEW_DIMENSIONS, numbers_in, parse_view_change
from hatch_ray.rewards.terms import score_answer, score_pair
from hatch_ray.sample import Atom, PairPlan, Sample

Slot = tuple[int, int, int]
"""(number of views, source, target): a constant plan may differ between the pairs of one prompt."""

GRID_ANGLE = range(-180, 180, 30)
GRID_DISTANCE = (0.0, 0.4, 0.8, 1.2, 1.8, 2.6)
STARTS = 6
"""Best grid points that are refined."""
STEPS = ((12.0, 0.4), (4.0, 0.2), (1.0, 0.1))
"""(degrees, metres) of the refinement's rounds."""

Parameters = tuple[float, float, float, float, float]
"""Of the end camera: bearing and elevation of its place (degrees), its distance (metres), its heading and pitch
(degrees); all against the start camera. Place and direction are apart, so that each can be improved by itself."""


def _wrap(degrees: float) -> float:
    return (degrees + 180.0) % 360.0 - 180.0


def _atoms(parameters: Parameters) -> tuple[Atom, ...]:
    """The teacher's form: aim, move forward, aim."""
    bearing, elevation, distance, heading, pitch = parameters
    aims = ((bearing, elevation), (_wrap(heading - bearing), pitch - elevation))
    steps: list[Atom] = []
    for turn, tilt in aims:
        steps.append(("turn_right_deg", turn) if turn >= 0 else ("turn_left_deg", -turn))
        steps.append(("turn_up_deg", tilt) if tilt >= 0 else ("turn_down_deg", -tilt))
    steps.insert(2, ("move_forward_m", distance))
    return tuple((name, round(value, 3)) for name, value in steps if value > 0)


class _PairSet:
    """All gold plans of one slot, for judging one constant plan against all of them at once."""

    def __init__(self, plans: Sequence[PairPlan], reward: RewardConfig) -> None:
        self.reward = reward
        self.plans = plans
        gold = [compose(plan.atoms, plan.frame) for plan in plans]
        self.position = np.array([motion.translation for motion in gold])
        self.rotation = Rotation.concatenate([motion.rotation for motion in gold])
        self.framed = np.array([plan.frame is not None for plan in plans])
        angles = [(p.frame.pitch_deg, p.frame.roll_deg) if p.frame else (0.0, 0.0) for p in plans]
        self.pitch, self.roll = np.array(angles).T
        self.start = self._facing(0.0, self.pitch)

    def _facing(self, heading: float, pitch: np.ndarray) -> Rotation:
        angles = np.stack([np.full(len(self.plans), heading), pitch, self.roll], axis=1)
        return Rotation.from_euler("YXZ", angles, degrees=True)

    def ends(self, parameters: Parameters) -> RigidTransform:
        """`geometry.actions.compose` of one plan from every pair's own frame (the tests hold the two equal)."""
        bearing, elevation, distance, heading, pitch = parameters
        position = self.start.inv().apply(self._facing(bearing, self.pitch + elevation).apply([0.0, 0.0, distance]))
        rotation = self.start.inv() * self._facing(heading, self.pitch + pitch)
        if not self.framed.all():
            level = compose(_atoms(parameters), None)
            position = np.where(self.framed[:, None], position, level.translation)
            rotation = Rotation.from_quat(np.where(self.framed[:, None], rotation.as_quat(), level.rotation.as_quat()))
        return RigidTransform.from_components(position, rotation)

    def factors(self, parameters: Parameters) -> tuple[np.ndarray, np.ndarray]:
        """The two factors of eq. 10, (pairs,) each: by distance and by angle."""
        ends = self.ends(parameters)
        d_t = np.linalg.norm(ends.translation - self.position, axis=1)
        d_r = np.degrees((ends.rotation * self.rotation.inv()).magnitude())
        return np.exp(-d_t / self.reward.tau_t), np.exp(-d_r / self.reward.tau_r)

    def mean_reward(self, parameters: Parameters) -> float:
        """Mean of eq. 10 over the pairs (without the rule against staying, which only lowers it)."""
        by_distance, by_angle = self.factors(parameters)
        return float(np.mean(by_distance * by_angle))

    def best_starts(self) -> list[Parameters]:
        """The best points of a coarse grid. Place and direction are judged apart, then joined."""
        places = [(float(bearing), distance) for bearing, distance in product(GRID_ANGLE, GRID_DISTANCE)]
        by_distance = np.array([self.factors((bearing, 0.0, distance, 0.0, 0.0))[0] for bearing, distance in places])
        by_angle = np.array([self.factors((0.0, 0.0, 0.0, float(heading), 0.0))[1] for heading in GRID_ANGLE])
        order = np.argsort((by_distance @ by_angle.T).ravel())[::-1][:STARTS]
        joined = [(places[index // len(GRID_ANGLE)], GRID_ANGLE[index % len(GRID_ANGLE)]) for index in order]
        return [(bearing, 0.0, distance, float(heading), 0.0) for (bearing, distance), heading in joined]

    def judged(self, atoms: tuple[Atom, ...]) -> float:
        """The mean reward as every reply is judged."""
        r = self.reward
        scores = [score_pair(atoms, plan, r.tau_t, r.tau_r, r.punish_stop) for plan in self.plans]
        return sum(score.reward for score in scores) / len(scores)


def _refine(pairs: _PairSet, start: Parameters) -> Parameters:
    """Coordinate ascent with shrinking steps."""
    best, value = start, pairs.mean_reward(start)
    for degrees, metres in STEPS:
        improved = True
        while improved:
            improved = False
            for index, sign in product(range(5), (1, -1)):
                moved = list(best)
                moved[index] += sign * (metres if index == 2 else degrees)
                if moved[2] < 0 or abs(moved[index]) > 180:
                    continue
                trial = pairs.mean_reward(tuple(moved))  # type: ignore[arg-type]
                if trial > value + 1e-9:
                    best, value, improved = tuple(moved), trial, True  # type: ignore[assignment]
    return best


def best_constant_plan(samples: Sequence[Sample], reward: RewardConfig) -> dict[Slot, tuple[Atom, ...]]:
    """For every slot the one plan with the highest mean action reward on these samples: grid, then coordinate ascent.

    The plan has the teacher's form (aim, move forward, aim), which reaches every place and direction.
    """
    slots: dict[Slot, list[PairPlan]] = defaultdict(list)
    for sample in samples:
        for plan in sample.plans:
            slots[len(sample.views), plan.source, plan.target].append(plan)
    found = {}
    for slot, plans in sorted(slots.items()):
        pairs = _PairSet(plans, reward)
        refined = [_atoms(_refine(pairs, start)) for start in pairs.best_starts()]
        found[slot] = max([*refined, ()], key=pairs.judged)
    return found


def _vector(text: str, form: str) -> list[float]:
    if form == "view_change":
        return list((parse_view_change(text) or {}).values())
    return numbers_in(text)


def _write_view_change(values: Sequence[float]) -> str:
    names = {(dimension, sign): key for key, (dimension, sign) in reversed(VIEW_DIMENSIONS.items())}
    signed = dict(zip(("x", "y", "z", "yaw", "pitch"), values, strict=True))
    return ",".join(
        f"{names[dimension, 1.0 if signed[dimension] >= 0 else -1.0]}:{abs(signed[dimension]):g}"
        for dimension in ("x", "y", "z", "pitch", "yaw")
    )


WRITERS: dict[str, Callable[[Sequence[float]], str]] = {
    "number": lambda v: f"{v[0]:g}",
    "box": lambda v: "[" + ",".join(f"{value:g}" for value in v) + "]",
    "camera_motion": lambda v: f"({v[0]:g},{v[1]:g}),{v[2]:g}",
    "view_change": _write_view_change,
}
"""Answer forms that are vectors of numbers; the others are chosen among the gold answers as they stand."""

MAX_CANDIDATES = 60
"""Values tried for one number of a constant answer: quantiles of the gold values."""


def best_constant_answer(golds: Sequence[str], form: str) -> str:
    """The one answer with the highest mean answer reward on these gold answers.

    Among the gold answers first; an answer made of numbers is then improved one number at a time.
    """

    def value(answer: str) -> float:
        return sum(score_answer(answer, gold, form)[0] for gold in golds) / len(golds)

    unique = sorted(set(golds))
    candidates = unique[:: -(-len(unique) // MAX_CANDIDATES)]
    best = max(candidates, key=value)
    if form not in WRITERS:
        return max(unique, key=value)
    table = np.array([_vector(gold, form) for gold in golds])
    current = _vector(best, form)
    improved = True
    while improved:
        improved = False
        for index in range(table.shape[1]):
            for number in np.unique(np.quantile(table[:, index], np.linspace(0, 1, MAX_CANDIDATES))):
                trial = [*current[:index], round(float(number), 2), *current[index + 1 :]]
                if value(WRITERS[form](trial)) > value(WRITERS[form](current)) + 1e-9:
                    current, improved = trial, True
    return max(best, WRITERS[form](current), key=value)


def _constant_answers(samples: Sequence[Sample]) -> dict[tuple[str, str], str]:
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for sample in samples:
        groups[sample.task, sample.answer_form].append(sample.answer)
    return {group: best_constant_answer(golds, group[1]) for group, golds in groups.items()}


def _replies(samples: Sequence[Sample], plans: dict[Slot, tuple[Atom, ...]]) -> list[str]:
    """The same plan for every pair of a slot and the best constant answer of every task and form."""
    answers = _constant_answers(samples)
    fixed = [
        replace(
            sample,
            answer=answers[sample.task, sample.answer_form],
            plans=tuple(
                replace(plan, atoms=plans[len(sample.views), plan.source, plan.target]) for plan in sample.plans
            ),
        )
        for sample in samples
    ]
    return [gold_reply(sample, "actions") for sample in fixed]


def constant_replies(samples: Sequence[Sample], reward: RewardConfig) -> list[str]:
    """One reply a sample: the best constant plan and the best constant answer."""
    return _replies(samples, best_constant_plan(samples, reward))


def still_replies(samples: Sequence[Sample]) -> list[str]:
    """One reply a sample: the plan that does not move and the best constant answer."""
    return _replies(samples, defaultdict(tuple))
