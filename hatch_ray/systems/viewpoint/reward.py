"""What a reply earns: 0.5 for its form and 0.5 for the right answer; both are terms in [0, 1].

Lenient, the form is that of `protocol.response` and "(B)" is B. Strict, both are the published reward: the whole reply
matches  \\s*<think>.*?</think>\\s*<answer>.*?</answer>\\s*  (any case, dots match newlines), and the first answer,
stripped, equals the gold as a string. Each search here is linear in the text, which the regular expression is not.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from hatch_ray.protocol.prompt import Mode as ReplyMode
from hatch_ray.protocol.response import parse_response
from hatch_ray.protocol.values import numbers_in
from hatch_ray.rewards.score import Score
from hatch_ray.rewards.terms import score_answer

WEIGHTS = {"format": 0.5, "exact": 0.5}
ANGLE_SCALE_DEG = 30.0
"""Degrees of error that leave 1/e of the reward of an angle."""
OPENED = re.compile(r"\s*<think>", re.IGNORECASE)
TURNS = re.compile(r"</think>\s*<answer>", re.IGNORECASE)
CLOSED = re.compile(r"</answer>\s*\Z", re.IGNORECASE)
ANSWER = re.compile(r"<answer>", re.IGNORECASE)
ANSWER_END = re.compile(r"</answer>", re.IGNORECASE)


@dataclass(frozen=True)
class Target:
    """What the score needs of a sample. mode: language, or direct where no thought is due; degrees: an angle is due;
    angle_deg: by how much the two photos differ, for tables.
    """

    answer: str
    form: str
    n_views: int
    mode: ReplyMode
    degrees: bool
    strict: bool
    angle_deg: float


def score_reply(text: str, target: Target) -> Score:
    """terms: "format", "exact" (graded where degrees are asked); measures: "off_deg", None where none were asked or
    read.
    """
    response = parse_response(text, target.n_views, target.mode)
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
    elif target.strict:
        exact, reason = (1.0, "") if answer == target.answer else (0.0, "not_equal")
    else:
        exact, reason = score_answer(answer, target.answer, target.form)
    if reason:
        reasons.append(f"exact:{reason}")
    detail = {"angle_deg": target.angle_deg}
    return Score({"format": float(form_ok), "exact": exact}, {"off_deg": off}, tuple(reasons), answer, detail)


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
