"""R_act-acc (eqs. 9 and 10): does the written plan move the camera where the gold plan does?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from hatch_ray.geometry.actions import Motion, motion
from hatch_ray.geometry.se3 import rotation_angle
from hatch_ray.sample import ActionFrame, Atom, PairPlan

STILL_M, STILL_DEG = 0.05, 2.0
MOVED_M, MOVED_DEG = 0.2, 10.0
IDENTITY = np.eye(3)


@dataclass(frozen=True)
class PairScore:
    """One pair's reward in [0, 1] with its errors (metres, degrees); errors are None when no plan could be read."""

    source: int
    target: int
    reward: float
    d_t: float | None
    d_r: float | None
    reason: str = ""


def score_pair(
    atoms: tuple[Atom, ...] | None, gold: PairPlan, tau_t: float, tau_r: float, punish_stop: bool
) -> PairScore:
    """exp(-d_t / tau_t) exp(-d_r / tau_r) of one pair; 0 with a reason when the plan is missing or only stays."""
    if atoms is None:
        return PairScore(gold.source, gold.target, 0.0, None, None, "no_plan")
    rotation, place = motion(atoms, gold.frame)
    wanted_rotation, wanted_place = _gold_motion(gold.atoms, gold.frame)
    d_t, d_r = _length(place - wanted_place), rotation_angle(rotation, wanted_rotation)
    stays = not _moves(rotation, place, STILL_M, STILL_DEG)
    if punish_stop and stays and _moves(wanted_rotation, wanted_place, MOVED_M, MOVED_DEG):
        return PairScore(gold.source, gold.target, 0.0, d_t, d_r, "stop_like")
    reward = math.exp(-d_t / tau_t) * math.exp(-d_r / tau_r)
    return PairScore(gold.source, gold.target, reward, d_t, d_r)


@lru_cache(maxsize=4096)
def _gold_motion(atoms: tuple[Atom, ...], frame: ActionFrame | None) -> Motion:
    """All replies of a group are judged by the same gold plan."""
    return motion(atoms, frame)


def _length(vector: np.ndarray) -> float:
    return math.sqrt(vector @ vector)


def _moves(rotation: np.ndarray, place: np.ndarray, metres: float, degrees: float) -> bool:
    """Whether a motion reaches beyond both bounds of staying: by distance or by angle."""
    return _length(place) >= metres or rotation_angle(rotation, IDENTITY) >= degrees


def score_plans(
    plans: dict[tuple[int, int], tuple[Atom, ...]],
    gold: tuple[PairPlan, ...],
    tau_t: float,
    tau_r: float,
    punish_stop: bool,
) -> list[PairScore]:
    """The score of every required pair; their mean is R_act-acc."""
    return [score_pair(plans.get((g.source, g.target)), g, tau_t, tau_r, punish_stop) for g in gold]
