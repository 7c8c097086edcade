"""What a reply earns: 0.5 for its form and 0.5 for the right answer, or for the pose that its camera actions compose
to (`kind: actions`, HATCH's eq. 9 and 10); all are terms in [0, 1].

Lenient, the form is that of `protocol.response` and "(B)" is B. Strict, both are the published reward: the whole reply
matches  \\s*<think>.*?</think>\\s*<answer>.*?</answer>\\s*  (any case, dots match newlines), and the first answer,
stripped, equals the gold as a string. Each search here is linear in the text, which the regular expression is not.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from hatch_ray.protocol.prompt import Mode as ReplyMode
from hatch_ray.protocol.response import Response, parse_response
from hatch_ray.protocol.values import numbers_in
from hatch_ray.rewards.score import Score
from hatch_ray.rewards.terms import plan_row, score_answer, score_plans
from hatch_ray.sample import PairPlan
from hatch_ray.systems.viewpoint.plans import signed_by_actions
from hatch_ray.systems.viewpoint.questions import SIDES, TYPES

WEIGHTS = {"format": 0.5, "exact": 0.5}
ACTION_WEIGHTS = {"format": 0.5, "action": 0.5, "exact": 0.0, "letter": 0.0}
"""kind: actions. exact and letter are measured, and not rewarded."""
ANGLE_SCALE_DEG = 30.0
"""Degrees of error that leave 1/e of the reward of an angle."""
OPENED = re.compile(r"\s*<think>", re.IGNORECASE)
TURNS = re.compile(r"</think>\s*<answer>", re.IGNORECASE)
CLOSED = re.compile(r"</answer>\s*\Z", re.IGNORECASE)
ANSWER = re.compile(r"<answer>", re.IGNORECASE)
ANSWER_END = re.compile(r"</answer>", re.IGNORECASE)


@dataclass(frozen=True)
class Target:
    """What the score needs of a sample. mode: language, or direct where no thought is due, or actions; degrees: an
    angle is due; angle_deg: by how much the two photos differ, for tables.

    For actions also: task, side ("left" or "right"), the gold plans, and eq. 10's tau_t (metres) and tau_r (degrees).
    """

    answer: str
    form: str
    n_views: int
    mode: ReplyMode
    degrees: bool
    strict: bool
    angle_deg: float
    task: str = ""
    side: str = ""
    plans: tuple[PairPlan, ...] = ()
    taus: tuple[float, float] = (1.0, 30.0)


def score_reply(text: str, target: Target) -> Score:
    """terms: "format", "exact" (graded where degrees are asked); measures: "off_deg", None where none were asked or
    read. Actions: as `score_actions`.
    """
    response = parse_response(text, target.n_views, target.mode)
    if target.mode == "actions":
        return score_actions(response, target)
    reasons = [f"format:{name}" for name in response.problems]
    answer, form_ok = response.answer, response.format_ok
    if target.strict:
        answer = first_answer(text)
        if target.mode == "language":
            form_ok = strict_format(text)
            reasons = [] if form_ok else ["format:no_match"]
    off: float | None = None
    if target.degrees:
        exact, reason, off = angle_reward(answer, target.answer)
    elif target.strict and target.form == "letter":
        exact, reason = (1.0, "") if answer == target.answer else (0.0, "not_equal")
    else:
        exact, reason = score_answer(answer, target.answer, target.form)
    if reason:
        reasons.append(f"exact:{reason}")
    detail = {"angle_deg": target.angle_deg}
    return Score({"format": float(form_ok), "exact": exact}, {"off_deg": off}, tuple(reasons), answer, detail)


def score_actions(response: Response, target: Target) -> Score:
    """terms: "format"; "action", R_act-acc of HATCH; "exact", whether the actions go or turn to the right side (graded
    where degrees are asked; the written answer, where the question is none of viewpoint's types); "letter", the written
    answer. measures: "d_t" and "d_r", metres and degrees off; "off_deg", where degrees are asked. detail: "plans", as
    they were read.
    """
    letter, reason = score_answer(response.answer, target.answer, target.form)
    reasons = [f"format:{name}" for name in response.problems] + ([f"letter:{reason}"] if reason else [])
    pairs = score_plans(response.plans, target.plans, *target.taus, punish_stop=True)
    reasons += dict.fromkeys(f"action:{pair.reason}" for pair in pairs if pair.reason)
    exact, off, reason = letter, None, ""
    if target.task in TYPES and pairs:
        atoms, frame = response.plans.get((0, 1)), target.plans[0].frame
        signed = None if atoms is None else signed_by_actions(target.task, atoms, frame)
        if signed is None:
            exact, reason = 0.0, "no_plan" if atoms is None else "no_side"
        elif target.degrees:
            exact, reason, off = angle_reward(f"{signed:.3f}", target.answer)
        else:
            exact, reason = (1.0, "") if SIDES[signed > 0] == target.side else (0.0, "wrong_side")
    first = pairs[0] if pairs else None
    return Score(
        {
            "format": float(response.format_ok),
            "action": sum(pair.reward for pair in pairs) / len(pairs) if pairs else None,
            "exact": exact,
            "letter": letter,
        },
        ({"off_deg": off} if target.degrees else {})
        | {"d_t": first.d_t if first else None, "d_r": first.d_r if first else None},
        (*reasons, *([f"exact:{reason}"] if reason else [])),
        response.answer,
        {
            "angle_deg": target.angle_deg,
            "plans": [plan_row(i, j, atoms) for (i, j), atoms in sorted(response.plans.items())],
        },
    )


def strict_format(text: str) -> bool:
    """Whether the published expression matches the whole text."""
    opened, closed = OPENED.match(text), CLOSED.search(text)
    if not opened or not closed:
        return False
    between = TURNS.search(text, opened.end())
    return between is not None and between.end() <= closed.start()


def first_answer(text: str) -> str | None:
    """The text of the first answer block, stripped; None where there is none."""
    opened = ANSWER.search(text)
    closed = ANSWER_END.search(text, opened.end()) if opened else None
    return text[opened.end() : closed.start()].strip() if opened and closed else None


def angle_reward(answer: str | None, gold: str) -> tuple[float, str, float | None]:
    """(reward, reason, degrees off): exp(-|error| / 30 degrees), nothing for the other direction."""
    values = numbers_in(answer) if answer else []
    if len(values) != 1:
        return 0.0, "several_numbers" if values else "no_number", None
    wanted = float(gold)
    off = abs(values[0] - wanted)
    if values[0] * wanted <= 0:
        return 0.0, "wrong_direction", off
    return math.exp(-off / ANGLE_SCALE_DEG), "", off
