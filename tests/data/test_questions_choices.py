"""The select format: letters, distinct options, and wrong ones that do not give the right one away."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import chisquare

from hatch_ray.data.pairs import Refused
from hatch_ray.data.questions import Question, as_choice
from hatch_ray.data.questions.choices import DISTRACTORS

GOLDS = {
    "number": Question("q", "2.4", {}),
    "box": Question("q", "[100,200,300,500]", {}, wrong=("[100,200,310,500]", "[600,600,700,800]")),
    "camera_motion": Question("q", "(480,510),1.3", {"x": 480.2, "y": 509.8, "depth": 1.31}),
    "text": Question("q", "green", {}, wrong=("blue", "green", "equal", "blue")),
}


@pytest.mark.parametrize("form", list(DISTRACTORS))
def test_letters_are_uniform(form: str) -> None:
    letters: Counter[str] = Counter()
    for seed in range(1200):
        made = as_choice(GOLDS[form], form, np.random.default_rng(seed))  # type: ignore[arg-type]
        letters[made.answer] += 1
        listed = re.split(r" [A-D]\. ", made.text)[1:]
        assert listed["ABCD".index(made.answer)] == GOLDS[form].answer
        assert len(set(listed)) == len(listed) == (3 if form == "text" else 4)
    assert chisquare(list(letters.values())).pvalue > 0.001
    assert len(letters) == (3 if form == "text" else 4)


def test_size_does_not_tell_the_right_number() -> None:
    ranks: Counter[int] = Counter()
    for seed in range(1200):
        made = as_choice(GOLDS["number"], "number", np.random.default_rng(seed))
        values = [float(option) for option in re.split(r" [A-D]\. ", made.text)[1:]]
        ranks[sorted(values).index(2.4)] += 1
        assert min(values) > 0.3 * 2.4 * 0.9
        assert max(values) < 3.5 * 2.4 * 1.1
    assert chisquare([ranks[rank] for rank in range(4)]).pvalue > 0.001


@given(st.floats(0.3, 12), st.integers(0, 2**32 - 1))
def test_any_length_has_options(value: float, seed: int) -> None:
    made = as_choice(Question("q", f"{value:.1f}", {}), "number", np.random.default_rng(seed))
    assert made.gold["answer"] == f"{value:.1f}"


@given(st.integers(0, 990), st.integers(0, 990), st.integers(10, 1000), st.integers(10, 1000), st.integers(0, 2**31))
def test_any_box_has_options_or_is_refused(x: int, y: int, wide: int, high: int, seed: int) -> None:
    box = [x, y, min(x + wide, 1000), min(y + high, 1000)]
    question = Question("q", "[" + ",".join(map(str, box)) + "]", {})
    try:
        made = as_choice(question, "box", np.random.default_rng(seed))
    except Refused:
        # A box over most of the image leaves no place for another of its size.
        assume((box[2] - box[0]) * (box[3] - box[1]) < 250_000)
        raise
    assert 2 <= len(re.split(r" [A-D]\. ", made.text)[1:]) <= 4


def test_what_says_how_to_write_an_answer_is_left_out() -> None:
    question = Question(
        "Which? Answer green or blue. At centers.", "green", {}, (), ("blue",), " Answer green or blue."
    )
    made = as_choice(question, "text", np.random.default_rng(0))
    assert made.text.startswith("Which? At centers. A. ")


def test_no_wrong_answer_is_no_choice() -> None:
    with pytest.raises(Refused, match="no_wrong_option"):
        as_choice(Question("Which?", "green", {}, (), ("green",)), "text", np.random.default_rng(0))
