"""What a reply earns: the published reward to the letter, a lenient one, and a graded one of angles."""

from __future__ import annotations

import itertools
import math
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hatch_ray.rewards.score import check_scores
from hatch_ray.systems.viewpoint.reward import WEIGHTS, Target, angle_reward, first_answer, score_reply, strict_format
from tests.support.hostile import ODD

FORMAT = re.compile(r"\s*<think>.*?</think>\s*<answer>.*?</answer>\s*", re.IGNORECASE | re.DOTALL)
ANSWER = re.compile(r"<answer>(.*?)</answer>", re.IGNORECASE | re.DOTALL)


def published(text: str, gold: str) -> tuple[float, float]:
    """The three lines of the paper's reward: (format, result)."""
    found = ANSWER.search(text)
    return float(FORMAT.fullmatch(text) is not None), float(found is not None and found.group(1).strip() == gold)


THOUGHTS = ("<think>It went left.</think>", "<THINK>x</Think>", "<think></think>", "<think>two\nlines</think>", "")
BETWEEN = ("", " ", "\n\n", "so ")
ANSWERS = (
    "<answer>B</answer>", "<ANSWER> B </ANSWER>", "<answer>B.</answer>", "<answer>b</answer>", "<answer>(B)</answer>",
    "<answer></answer>", "<answer>A</answer><answer>B</answer>", "<answer>B</answer> done", "<answer>B", "B",
    "<answer>\nB\n</answer>\n", "</think><answer>B</answer>",
)  # fmt: skip
REPLIES = [" ".join(["", *parts])[1:].replace("> <", "><") for parts in itertools.product(THOUGHTS, BETWEEN, ANSWERS)]


def target(strict: bool, answer: str = "B", degrees: bool = False) -> Target:
    return Target(answer, "number" if degrees else "letter", 2, "language", degrees, strict, 40.0)


def test_strict_is_the_published_reward() -> None:
    assert len(set(REPLIES)) >= 50
    seen = set()
    for text in REPLIES:
        score = score_reply(text, target(strict=True))
        expected = published(text, "B")
        assert (score.terms["format"], score.terms["exact"]) == expected, text
        assert score.total(WEIGHTS) == 0.5 * sum(expected)
        seen.add(expected)
    assert seen == {(0, 0), (0, 1), (1, 0), (1, 1)}


PIECE = st.sampled_from([*ODD, "<think>", "</think>", "<answer>", "</answer>", "</Answer>", "B", " ", "\n", "x"])


@given(st.lists(PIECE, max_size=14).map("".join), st.booleans())
def test_any_text(text: str, strict: bool) -> None:
    assert strict_format(text) == (FORMAT.fullmatch(text) is not None)
    found = ANSWER.search(text)
    assert first_answer(text) == (found.group(1).strip() if found else None)
    for degrees in (False, True):
        score = score_reply(text, target(strict, "-40" if degrees else "B", degrees)).row(WEIGHTS)
        assert check_scores("x", [score], WEIGHTS) == []


@pytest.mark.parametrize(
    "piece", ["<think>", "</think>", "</think> <answer>", "<answer>", "</answer> ", " ", "</think> "]
)
def test_giants_cost_milliseconds(piece: str) -> None:
    text = "<think>" + piece * (200_000 // len(piece))
    start = time.perf_counter()
    score_reply(text, target(strict=True))
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize(
    ("text", "form", "exact", "reason"),
    [
        ("<think>Left.</think><answer>B</answer>", 1, 1, ()),
        ("<think>Left.</think>\n<answer>(B)</answer>", 1, 1, ()),
        ("<think>Left.</think><answer>A</answer>", 1, 0, ("exact:wrong_letter",)),
        ("<answer>B</answer>", 0, 1, ("format:no_think_block",)),
        ("<think> </think><answer>B</answer>", 0, 1, ("format:empty_think_block",)),
        ("<think>x</think><answer>B</answer><answer>B</answer>", 0, 0, ("format:several_answer_blocks",)),
    ],
)
def test_lenient(text: str, form: float, exact: float, reason: tuple[str, ...]) -> None:
    score = score_reply(text, target(strict=False))
    assert (score.terms["format"], score.terms["exact"]) == (form, exact)
    assert set(reason) <= set(score.reasons)


def test_an_angle_is_graded_and_its_direction_must_be_right() -> None:
    assert angle_reward("-40", "-40") == (1, "", 0)
    near, _, off = angle_reward("-55 degrees", "-40")
    assert near == pytest.approx(math.exp(-0.5)) and off == 15
    for wrong in ("40", "0", "+3"):
        assert angle_reward(wrong, "-40")[:2] == (0, "wrong_direction")
    assert angle_reward("left", "-40") == (0, "no_number", None)
    assert angle_reward("-30 or -40", "-40")[:2] == (0, "several_numbers")
    assert angle_reward(None, "-40")[1] == "no_number"
    score = score_reply("<think>x</think><answer>-70</answer>", target(strict=False, answer="-40", degrees=True))
    assert score.measures["off_deg"] == 30 and score.terms["exact"] == pytest.approx(math.exp(-1))
