"""What a reply earns: HATCH's reward (eq. 8), a weighted sum of three terms in [0, 1].

format   R_format (eq. 11): `protocol.response` found nothing wrong
answer   R_ans-acc (appendix C.3): one function an answer form, which takes (prediction, gold) and returns (reward,
         reason); the reason is empty unless the reward is 0. A new form is one function and one line in SCORERS.
action   R_act-acc (eqs. 9 and 10): does the written plan move the camera where the gold plan does?

These are training rewards: unlike some published scorers they give nothing for an empty or an unreadable answer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from hatch_ray.config_sections import RewardConfig
from hatch_ray.geometry.actions import Motion, motion
from hatch_ray.geometry.boxes import box_iou
from hatch_ray.geometry.se3 import rotation_angle
from hatch_ray.protocol.prompt import Mode, reply_mode
from hatch_ray.protocol.response import parse_response
from hatch_ray.protocol.values import LETTER, numbers_in, parse_box, parse_view_change, plain_text
from hatch_ray.rewards.score import Score
from hatch_ray.sample import ActionFrame, Atom, PairPlan, Sample

MRA_THRESHOLDS = [0.5 + 0.05 * k for k in range(10)]
ANGLE_SCALE_DEG = 30.0
SIGMA_XY, SIGMA_DEPTH = 0.1, 0.25
IMAGE = re.compile(r"\b(first|second|third|fourth|fifth|[1-5](?:st|nd|rd|th))\b")
"""An image by its ordinal. "image 1" would be the first or the second, as one counts, and names none."""
ORDINALS = {"1st": "first", "2nd": "second", "3rd": "third", "4th": "fourth", "5th": "fifth"}
BOX = re.compile(r"\[[^\[\]]*\]")
SAME_BOX_IOU = 0.5
Scored = tuple[float, str]
STILL_M, STILL_DEG = 0.05, 2.0
MOVED_M, MOVED_DEG = 0.2, 10.0
IDENTITY = np.eye(3)

# --- one reply --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RewardTarget:
    """What a verifier needs of a sample: small, picklable, no pixels."""

    sample_id: str
    n_views: int
    answer: str
    answer_form: str
    plans: tuple[PairPlan, ...]
    mode: Mode = "actions"

    @classmethod
    def from_sample(cls, sample: Sample, mode: Mode = "actions") -> RewardTarget:
        return cls(sample.id, len(sample.views), sample.answer, sample.answer_form, sample.plans, mode)


def reward_weights(reward: RewardConfig) -> dict[str, float]:
    """lambda_2, lambda_3 and lambda_1 of eq. 8."""
    return {"answer": reward.answer_weight, "format": reward.format_weight, "action": reward.action_weight}


def score_reply(text: str, target: RewardTarget, reward: RewardConfig) -> Score:
    """Parse and judge one reply.

    terms: "answer" and "format", and "action", None when no actions are due (language or direct mode, one view).
    measures: "d_t" and "d_r", mean errors over the pairs that had a readable plan, metres and degrees; None when none
    had. detail: "plans", as read, [{"from", "to", "action"}].
    """
    response = parse_response(text, target.n_views, target.mode)
    answer, answer_reason = score_answer(response.answer, target.answer, target.answer_form)
    reasons = [f"format:{name}" for name in response.problems]
    if answer_reason:
        reasons.append(f"answer:{answer_reason}")
    pairs: list[PairScore] = []
    action: float | None = None
    if reply_mode(target.mode, target.n_views) == "actions":
        pairs = score_plans(response.plans, target.plans, reward.tau_t, reward.tau_r, reward.punish_stop)
        action = sum(pair.reward for pair in pairs) / len(pairs)
        reasons += dict.fromkeys(f"action:{pair.reason}" for pair in pairs if pair.reason)
    return Score(
        terms={"answer": answer, "format": float(response.format_ok), "action": action},
        measures={"d_t": _mean([pair.d_t for pair in pairs]), "d_r": _mean([pair.d_r for pair in pairs])},
        reasons=tuple(reasons),
        answer=response.answer,
        detail={"plans": [plan_row(i, j, atoms) for (i, j), atoms in sorted(response.plans.items())]},
    )


def plan_row(source: int, target: int, atoms: Any) -> dict[str, Any]:
    """One pair's action list as plain JSON values."""
    return {"from": source, "to": target, "action": [{name: value} for name, value in atoms]}


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


# --- its answer -------------------------------------------------------------------------------------------------


def mean_relative_accuracy(prediction: float, gold: float, zero_scale: float = 1.0) -> float:
    """MRA of SPAR and VSI-Bench: share of the thresholds 0.50, 0.55 .. 0.95 with relative error <= 1 - threshold.

    The denominator is the gold value; for gold 0 the error is |prediction| / zero_scale.
    """
    error = abs(prediction - gold) / (abs(gold) if gold else zero_scale)
    return sum(error <= 1 - threshold + 1e-9 for threshold in MRA_THRESHOLDS) / len(MRA_THRESHOLDS)


def score_letter(prediction: str, gold: str) -> Scored:
    """Exact choice; accepts "C", "C.", "(C)" and "C. text", but not a word that begins with the letter."""
    found = LETTER.match(prediction)
    if not found:
        return 0.0, "no_letter"
    return (1.0, "") if found.group(1).upper() == gold.strip().strip("().").strip().upper() else (0.0, "wrong_letter")


def score_number(prediction: str, gold: str) -> Scored:
    """MRA; both sides must hold exactly one number."""
    values, wanted = numbers_in(prediction), numbers_in(gold)
    if len(values) != 1 or len(wanted) != 1:
        return 0.0, "no_number" if not values else "several_numbers"
    reward = mean_relative_accuracy(values[0], wanted[0])
    return reward, "" if reward else "far_number"


def score_box(prediction: str, gold: str) -> Scored:
    """IoU of position matching."""
    box, wanted = parse_box(prediction), parse_box(gold)
    if box is None or wanted is None:
        return 0.0, "bad_box"
    reward = box_iou(box, wanted)
    return reward, "" if reward > 0 else "no_intersection"


def score_camera_motion(prediction: str, gold: str) -> Scored:
    """0.5 exp(-e_xy^2 / 2 0.1^2) + 0.5 exp(-e_d^2 / 2 0.25^2): e_xy in image widths, e_d relative depth error."""
    values, wanted = numbers_in(prediction), numbers_in(gold)
    if len(values) != 3 or len(wanted) != 3:
        return 0.0, "not_three_numbers"
    e_xy = math.hypot(values[0] - wanted[0], values[1] - wanted[1]) / 1000
    e_d = abs(values[2] - wanted[2]) / (abs(wanted[2]) or 1.0)
    # Products in place of powers: a power of a huge number raises, a product is infinite.
    reward = 0.5 * math.exp(-(e_xy * e_xy) / (2 * SIGMA_XY**2)) + 0.5 * math.exp(-(e_d * e_d) / (2 * SIGMA_DEPTH**2))
    return reward, "" if reward else "far_place"


def score_view_change(prediction: str, gold: str) -> Scored:
    """Mean MRA of the five signed dimensions; a gold 0 takes the error in metres, or degrees / 30.

    An answer of zeros alone earns nothing where the camera moved, though single dimensions of the gold may be 0.
    """
    values, wanted = parse_view_change(prediction), parse_view_change(gold)
    if values is None or wanted is None:
        return 0.0, "bad_view_change"
    if not any(values.values()) and any(wanted.values()):
        return 0.0, "all_zero"
    scales = {"yaw": ANGLE_SCALE_DEG, "pitch": ANGLE_SCALE_DEG}
    parts = [mean_relative_accuracy(values[name], wanted[name], scales.get(name, 1.0)) for name in wanted]
    reward = sum(parts) / len(parts)
    return reward, "" if reward else "all_dimensions_wrong"


def _place(text: str) -> tuple[str | None, tuple[float, float, float, float] | None]:
    """(ordinal of the image, box) that a plain text names; None for what it does not name once and well."""
    images = {ORDINALS.get(word, word) for word in IMAGE.findall(text)}
    found = BOX.findall(text)
    return images.pop() if len(images) == 1 else None, parse_box(found[0]) if len(found) == 1 else None


def score_text(prediction: str, gold: str) -> Scored:
    """Object-based distance inference: soft exact match after removing parentheses.

    A gold that holds a box, "the second image, [x1,y1,x2,y2] (red chair)", asks for the same image (where it names
    one) and a box with an IoU of 0.5 at least: the text of a box is never met exactly.
    """
    text, wanted = plain_text(prediction), plain_text(gold)
    if not text:
        return 0.0, "empty_answer"
    if text == wanted:
        return 1.0, ""
    gold_image, gold_box = _place(wanted)
    if gold_box is None:
        return 0.0, "wrong_text"
    image, box = _place(text)
    if box is None:
        return 0.0, "bad_box"
    if gold_image is not None and image != gold_image:
        return 0.0, "wrong_image" if image else "no_image"
    return (1.0, "") if box_iou(box, gold_box) >= SAME_BOX_IOU else (0.0, "other_box")


SCORERS: dict[str, Callable[[str, str], Scored]] = {
    "letter": score_letter,
    "number": score_number,
    "box": score_box,
    "camera_motion": score_camera_motion,
    "view_change": score_view_change,
    "text": score_text,
}


def score_answer(prediction: str | None, gold: str, form: str) -> Scored:
    """R_ans-acc of one reply; no answer earns 0."""
    if prediction is None:
        return 0.0, "no_answer"
    return SCORERS[form](prediction, gold)


# --- its actions ------------------------------------------------------------------------------------------------


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
