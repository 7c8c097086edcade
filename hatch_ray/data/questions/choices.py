"""The select format: one piece of code for all tasks. Wrong options come from the task, else from the answer's form."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from string import ascii_uppercase

import numpy as np

from hatch_ray.data.pairs import Refused
from hatch_ray.data.questions.registry import Question
from hatch_ray.data.questions.targets import box_text
from hatch_ray.geometry.boxes import box_iou
from hatch_ray.sample import AnswerForm

LETTERS = "ABCD"
N_WRONG = len(LETTERS) - 1
TRIES = 50

LADDER_STEP = (1.3, 1.5)
"""Ratio of neighbouring numeric options: wrong ones lie within 0.3 to 3.5 times the right one."""
LADDER_JITTER = 0.05
MAX_IOU = 0.3
"""Two box options overlap by less."""
MIN_PLACE_GAP = 150
"""Two places of the camera in the image lie further apart, in 0-1000."""

Distractors = Callable[[Question, np.random.Generator], list[str]]


def lettered(options: list[str], rng: np.random.Generator) -> tuple[str, str]:
    """("A. left B. right", letter of options[0]): the options in random order, so that every letter is as likely."""
    order = rng.permutation(len(options))
    return listed([options[index] for index in order]), LETTERS[int(np.flatnonzero(order == 0)[0])]


def listed(options: Sequence[str]) -> str:
    """["left", "right"] -> "A. left B. right", which stands after the question and a space; at most 26 options."""
    return " ".join(f"{letter}. {option}" for letter, option in zip(ascii_uppercase, options, strict=False))


def as_choice(question: Question, form: AnswerForm, rng: np.random.Generator) -> Question:
    """A fill question as a select question: its answer among up to three wrong ones, all different, under letters.

    The gold keeps the fill answer ("answer"). Raises Refused when there is no wrong option that differs.
    """
    wrong = DISTRACTORS[form](question, rng)
    if not wrong:
        raise Refused("no_wrong_option")
    options, letter = lettered([question.answer, *wrong], rng)
    return replace(
        question,
        text=f"{question.text.replace(question.hint, '')} {options}",
        answer=letter,
        gold=question.gold | {"answer": question.answer},
        wrong=tuple(wrong),
    )


def known(question: Question, rng: np.random.Generator) -> list[str]:
    """Of the wrong answers that the task knows of, up to three that differ from the right one and each other."""
    different = [text for text in dict.fromkeys(question.wrong) if text != question.answer]
    return [different[index] for index in rng.permutation(len(different))[:N_WRONG]]


def numbers_beside(answer: str, rng: np.random.Generator) -> list[str]:
    """Three other numbers with as many decimals, each about 1.4 times its neighbour.

    The right number's place among the four in order of size is drawn first, so that size alone does not tell it.
    """
    decimals = len(answer.partition(".")[2])
    value = float(answer)
    for _ in range(TRIES):
        rank, step = int(rng.integers(len(LETTERS))), rng.uniform(*LADDER_STEP)
        jitter = rng.uniform(1 - LADDER_JITTER, 1 + LADDER_JITTER, len(LETTERS))
        rungs = [f"{value * step ** (k - rank) * jitter[k]:.{decimals}f}" for k in range(len(LETTERS)) if k != rank]
        if len({answer, *rungs}) == len(LETTERS) and min(map(float, rungs)) > 0:
            return rungs
    raise Refused("no_wrong_option")


def boxes(question: Question, rng: np.random.Generator) -> list[str]:
    """Boxes of other objects, then the right box moved elsewhere, all apart from the right one and each other."""
    right = json.loads(question.answer)
    chosen = [right]

    def take(box: list[int]) -> None:
        if len(chosen) <= N_WRONG and all(box_iou(box, other) < MAX_IOU for other in chosen):
            chosen.append(box)

    for text in rng.permutation(np.array(question.wrong, dtype=object)):
        take(json.loads(text))
    wide, high = right[2] - right[0], right[3] - right[1]
    for _ in range(TRIES):
        x, y = int(rng.integers(0, 1001 - wide)), int(rng.integers(0, 1001 - high))
        take([x, y, x + wide, y + high])
    return [box_text(box) for box in chosen[1:]]


def camera_places(question: Question, rng: np.random.Generator) -> list[str]:
    """Other places in the image, each with another depth."""
    places = [np.array([question.gold["x"], question.gold["y"]])]
    depths = numbers_beside(f"{question.gold['depth']:.1f}", rng)
    for _ in range(TRIES):
        place = rng.uniform(0, 1000, 2)
        if len(places) <= N_WRONG and min(float(np.linalg.norm(place - other)) for other in places) > MIN_PLACE_GAP:
            places.append(place)
    shuffled = rng.permutation(len(depths))
    pairs = zip(places[1:], shuffled, strict=False)
    return [f"({round(place[0])},{round(place[1])}),{depths[index]}" for place, index in pairs]


DISTRACTORS: dict[AnswerForm, Distractors] = {
    "number": lambda question, rng: numbers_beside(question.answer, rng),
    "box": boxes,
    "camera_motion": camera_places,
    "text": known,
}
"""Wrong options by the form of the right answer. SPAR has no select format of view changes."""
