"""Replies of wide-baseline matching: every form is read, any text is judged, and the measures are the defined ones."""

from __future__ import annotations

import json
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from hatch_ray.protocol.response import MAX_ANSWER_CHARS, MAX_REPLY_CHARS
from hatch_ray.rewards.score import check_scores
from hatch_ray.systems.matching.metrics import Counts, one_to_one
from hatch_ray.systems.matching.reply import read_reply, write_reply
from hatch_ray.systems.matching.reward import MatchReward, Target, score_reply
from tests.support.hostile import GIANTS, ODD, babble, mutate

OURS, PAPER = MatchReward(), MatchReward(paper=True)
CASES = 4_000
GOLD, SAID = {1: 2, 2: 0, 3: 1, 4: 0}, {1: 2, 2: 0, 3: 4, 4: 3}
TARGET = Target((2, 0, 1, 0), 4, False)
PROBLEMS = {
    "blocks:no_answer", "blocks:several_answer", "blocks:unclosed_answer", "blocks:no_thinking", "blocks:several_think",
    "blocks:unclosed_thinking", "blocks:empty_thinking", "blocks:unasked_thinking", "blocks:text_outside_or_order",
    "mapping:no_answer", "mapping:no_object", "mapping:bad_json", "mapping:unknown_key", "mapping:key_twice",
    "mapping:illegal_value", "mapping:missing_key",
}  # fmt: skip


def answer(text: str) -> str:
    return f"<answer>{text}</answer>"


def test_the_measures_of_a_worked_example() -> None:
    counts = Counts.of(SAID, GOLD)
    assert counts.precision == pytest.approx(1 / 3) and counts.recall == 0.5 and counts.f1 == pytest.approx(0.4)
    assert counts.accuracy == 0.5 and not counts.exact
    assert (counts.right_none, counts.said_none, counts.gold_none) == (1, 1, 2)
    assert not one_to_one({1: 2, 2: 2}) and one_to_one({1: 0, 2: 0, 3: None, 4: None})
    score = score_reply(answer(json.dumps({str(k): str(v) if v else "none" for k, v in SAID.items()})), TARGET, OURS)
    assert score.terms["match"] == 0.5 and score.terms["f1"] == pytest.approx(0.4)
    assert score.total(OURS.weights()) == 1.5 and score.total(PAPER.weights()) == 2.5


@pytest.mark.parametrize(
    "text",
    [
        '{"1":"2","2":"none","3":"1","4":"none"}',
        '```json\n{"1": 2, "2": null, "3": 1, "4": ""}\n```',
        'A draft: {"1":"4"}\n```json\n{"1":"1"}\n```\n```json\n{"A-1":"B-2","#2":" None ","3":"#1","4":"none"}\n```',
        'They are {" 1 ":"2","2":"NONE","3":"1","4":null} as I see it.',
    ],
)
def test_an_answer_is_read_in_every_form(text: str) -> None:
    score = score_reply(answer(text), TARGET, OURS)
    assert score.terms["match"] == score.terms["mapping"] == score.terms["exact"] == 1 and score.reasons == ()
    assert score.answer == '{"1":"2","2":"none","3":"1","4":"none"}'
    assert score.total(OURS.weights()) == 2.0 and score.total(PAPER.weights()) == 3.0


@pytest.mark.parametrize(
    ("text", "match", "problem"),
    [
        ('{"1":"2","2":"none","3":"1"}', 0.75, "missing_key"),
        ('{"1":"2","2":"none","3":"1","4":"none","5":"1"}', 0.875, "unknown_key"),
        ('{"0":1,"x":1,"5":1,"6":1,"1":"2"}', 0.0, "unknown_key"),
        ('{"1":"4","1":"2","2":"none","3":"1","4":"none"}', 1.0, "key_twice"),
        ('{"1":"2","A-1":"4","2":"none","3":"1","4":"none"}', 0.75, "key_twice"),
        ('{"1":"2","2":"none","3":"1","4":"5"}', 0.75, "illegal_value"),
        ('{"1":true,"2":false,"3":1.0,"4":[]}', 0.0, "illegal_value"),
        ('{"1":"02","2":"none","3":"\\u0661","4":{"4":null}}', 0.25, "illegal_value"),
        ('[{"1":"2"}]', 0.25, "missing_key"),
        ("[1, 2]", 0.0, "no_object"),
        ('{"1":NaN}', 0.0, "bad_json"),
        ('```json\n{"1":"2"\n```', 0.0, "bad_json"),
        ('```json\n[{"1":"2"}]\n```', 0.0, "no_object"),
        ("[" * 1990, 0.0, "no_object"),
        ("{" + "[" * 1980 + "}", 0.0, "bad_json"),
    ],
)
def test_faults_of_an_answer_have_names_and_cost_what_they_touch(text: str, match: float, problem: str) -> None:
    score = score_reply(answer(text), TARGET, OURS)
    assert score.terms["match"] == pytest.approx(match) and score.terms["mapping"] == 0 and score.terms["blocks"] == 1
    assert f"mapping:{problem}" in score.reasons


def test_blocks() -> None:
    gold = write_reply(GOLD)
    asked = Target(TARGET.gold, 4, True)
    for tag in ("thinking", "think"):
        for reply in (f"<{tag}>1 is the lamp</{tag}>{gold}", f" <{tag}>1</{tag}>\n\n{gold}\n"):
            assert score_reply(reply, asked, OURS).reasons == ()
            assert score_reply(reply, TARGET, OURS).reasons == ("blocks:unasked_thinking",)
    draft = f'<thinking>```json\n{{"1":"4"}}\n```</thinking>{gold}'
    assert score_reply(draft, asked, OURS).terms["match"] == 1, "a draft inside the reasoning counts for nothing"
    for reply, problem in (
        (gold, "no_thinking"), (f"<thinking> </thinking>{gold}", "empty_thinking"), (gold + gold, "several_answer"),
        (f"{gold}<thinking>late</thinking>", "text_outside_or_order"), (f"So: <thinking>a</thinking>{gold}",
        "text_outside_or_order"), (f"<thinking>a</thinking>and{gold}", "text_outside_or_order"),
        (f"<thinking>{gold}</thinking>", "text_outside_or_order"), (f"<thinking>a{gold}", "unclosed_thinking"),
    ):  # fmt: skip
        score = score_reply(reply, asked, OURS)
        assert score.terms["blocks"] == 0 and f"blocks:{problem}" in score.reasons
        assert score.terms["match"] == (0 if problem == "several_answer" else 1)
    assert score_reply("1 is 2", TARGET, OURS).total(OURS.weights()) == 0


def test_the_shortcut_of_one_answer_for_all_can_be_closed() -> None:
    everywhere = answer('{"1":"2","2":"2","3":"2","4":"2"}')
    assert score_reply(everywhere, TARGET, OURS).terms["match"] == 0.25
    assert score_reply(everywhere, TARGET, MatchReward(one_to_one=True)).terms["match"] == 0
    assert score_reply(write_reply(GOLD), TARGET, MatchReward(one_to_one=True)).terms["match"] == 1
    with pytest.raises(ValidationError, match="one_to_one is not the paper's"):
        MatchReward(one_to_one=True, paper=True)


def test_the_bounds_of_a_reply() -> None:
    full = answer(" " * (MAX_ANSWER_CHARS - 2) + "{}")
    assert read_reply(full, 1, 1, False).problems == ("mapping:missing_key",)
    assert "blocks:answer_too_long" in read_reply(full.replace("{", " {"), 1, 1, False).problems
    assert "blocks:reply_too_long" in read_reply("a" * (MAX_REPLY_CHARS + 1), 1, 1, False).problems


def check(text: str, target: Target) -> Counter[str]:
    """What is promised of every score; its reasons."""
    for reward in (OURS, PAPER, MatchReward(one_to_one=True)):
        score = score_reply(text, target, reward)
        row = score.row(reward.weights())
        assert check_scores("s", [row], reward.weights()) == []
        assert bool(score.reasons) == (score.total(PAPER.weights()) < 3)
        assert len(json.dumps(row, allow_nan=False)) < 2_000
    return Counter(score.reasons)


def hostile(cases: int, seed: int) -> Counter[str]:
    """Judge so many broken replies; the faults that were met."""
    rng, met = random.Random(seed), Counter[str]()
    golds = []
    for _ in range(60):
        second = rng.randint(1, 12)
        gold = tuple(rng.randint(0, second) for _ in range(rng.randint(1, 12)))
        body = write_reply(dict(enumerate(gold, start=1)))
        fenced = body.replace("{", "```json\n{").replace("}", "}\n```")
        tag = rng.choice(("thinking", "think"))
        golds += [
            (body, Target(gold, second, False)),
            (f"<{tag}>{rng.choice(('the lamp', ' '))}</{tag}>{fenced}", Target(gold, second, True)),
        ]
    others = [text for text, _ in golds]
    for case in range(cases):
        text, target = golds[case % len(golds)]
        for _ in range(rng.choice((1, 1, 2, 3))):
            text = mutate(text, others, rng)
        text = babble(rng) if rng.random() < 0.05 else text
        try:
            met += check(text, target)
        except Exception as error:
            raise AssertionError(f"case {case}, {target}: {text!r}") from error
    return met


def test_thousands_of_hostile_replies() -> None:
    met = hostile(CASES, 5)
    assert PROBLEMS - set(met) == set()


@pytest.mark.parametrize("name", list(GIANTS))
def test_giants_are_judged(name: str) -> None:
    for thinking in (False, True):
        check(GIANTS[name], Target(TARGET.gold, 4, thinking))


@given(st.lists(st.one_of(st.sampled_from([*ODD, "{", "}", '"1":', '"2"', "```json", "```"]), st.text(max_size=5))))
def test_any_text_is_judged(parts: list[str]) -> None:
    text = "".join(parts)
    for reply in (text, answer(text), answer("{" + text + "}"), f"<thinking>{text}</thinking>{answer(text)}"):
        check(reply, Target((1, 0), 2, True))
        check(reply, TARGET)
