"""Any string is parsed and judged: in bounded time, without an exception, with finite terms inside [0, 1]."""

from __future__ import annotations

import json
import math
import random
import re
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hatch_ray.config_sections import DataConfig, RewardConfig, RoomsConfig
from hatch_ray.data.build import build_dataset
from hatch_ray.data.store import read_dataset
from hatch_ray.geometry.actions import check_atoms
from hatch_ray.geometry.boxes import box_iou
from hatch_ray.protocol.prompt import Mode, gold_reply
from hatch_ray.protocol.response import MAX_ANSWER_CHARS, MAX_REPLY_CHARS, _cut, parse_response
from hatch_ray.protocol.values import LETTER, numbers_in, parse_box
from hatch_ray.rewards.score import Score, check_scores
from hatch_ray.rewards.terms import SCORERS, RewardTarget, reward_weights, score_answer, score_reply
from hatch_ray.sample import AnswerForm
from tests.support.hostile import ANSWERS, GIANTS, GOLD, MILLION, ODD, TAGS, action, answer, hostile_reply, target_of

REWARD = RewardConfig()
WEIGHTS = reward_weights(REWARD)
MODES: tuple[Mode, ...] = ("actions", "language", "direct")
CASES = 100_000
SAMPLES = DataConfig(
    tasks=["view_change_infer", "camera_motion_infer", "position_matching", "depth_prediction_oc",
           "distance_infer_center_oo_mv", "obj_spatial_relation_oc_mv"],
    samples=12, rooms=RoomsConfig(train_scenes=4),
)  # fmt: skip
PROBLEMS = {
    "no_action_block", "unclosed_action_block", "several_action_blocks", "unasked_action_block", "no_think_block",
    "unclosed_think_block", "several_think_blocks", "unasked_think_block", "empty_think_block", "answer_inside_think",
    "no_answer_block", "unclosed_answer_block", "several_answer_blocks", "empty_answer", "answer_before_action",
    "answer_before_think", "text_outside_blocks", "bad_json", "not_a_list", "bad_entry", "bad_action", "unknown_pair",
    "duplicate_pair", "missing_pair",
}  # fmt: skip
"""Every fault of a reply that is not too long."""

odd_text = st.lists(st.one_of(st.sampled_from(ODD), st.text(max_size=6)), max_size=12).map("".join)


def check(score: Score) -> None:
    """What is promised of every score."""
    assert check_scores("s", [score.row(WEIGHTS)], WEIGHTS) == []
    assert set(score.terms) == {"answer", "format", "action"} and score.terms["answer"] is not None
    assert score.answer is None or len(score.answer) <= MAX_ANSWER_CHARS
    assert bool(score.reasons) or score.terms["format"] == 1


@pytest.fixture(scope="module")
def gold(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, RewardTarget]]:
    """Gold replies to rooms' questions of every answer form, in every mode, with what they are judged by."""
    path = tmp_path_factory.mktemp("fuzz") / "rooms"
    build_dataset(SAMPLES, 11, "train", path)
    samples = read_dataset(path)
    assert {sample.answer_form for sample in samples} == set(SCORERS)
    assert {len(sample.views) for sample in samples} == {1, 2, 3}
    modes = (*MODES, "actions")  # the form with most to break, twice
    return [(gold_reply(sample, mode), RewardTarget.from_sample(sample, mode)) for sample in samples for mode in modes]


def test_a_hundred_thousand_hostile_replies(gold: list[tuple[str, RewardTarget]]) -> None:
    rng = random.Random(5)
    replies = [text for text, _ in gold]
    reasons: Counter[str] = Counter()
    good: Counter[str] = Counter()
    for case in range(CASES):
        text, target = gold[case % len(gold)]
        text = hostile_reply(text, replies, rng)
        try:
            score = score_reply(text, target, REWARD)
            check(score)
            if case % 20 == 0:
                json.dumps(score.row(WEIGHTS), allow_nan=False)
        except Exception as error:
            raise AssertionError(f"case {case}, {target.answer_form}, {target.mode}: {text!r}") from error
        reasons.update(score.reasons)
        good.update([target.answer_form] if score.terms["answer"] else [])
    # The cases reach every branch: all faults are met, and all forms are answered both rightly and wrongly.
    assert {name for name in PROBLEMS if not reasons[f"format:{name}"]} == set()
    assert set(good) == set(SCORERS) and sum(good.values()) < CASES


@pytest.mark.parametrize("name", list(GIANTS))
def test_giants_are_judged(name: str) -> None:
    for form in GOLD if name in ANSWERS else ("number",):
        for mode in MODES if name in TAGS else MODES[:1]:
            score = score_reply(GIANTS[name], target_of(form, mode), REWARD)
            check(score)
            assert len(json.dumps(score.row(WEIGHTS), allow_nan=False)) < 60_000


@pytest.mark.parametrize("name", list(MILLION))
def test_what_is_beyond_the_bound_is_not_read(name: str) -> None:
    assert parse_response(MILLION[name], 4).problems == ("reply_too_long",)


def test_bounds_are_exact() -> None:
    assert parse_response(answer("9" * MAX_ANSWER_CHARS), 2).answer == "9" * MAX_ANSWER_CHARS
    longer = parse_response(answer("9" * (MAX_ANSWER_CHARS + 1)), 2)
    assert longer.answer is None and "answer_too_long" in longer.problems
    thought = "<think>{}</think><answer>B</answer>"
    full = thought.format("a" * (MAX_REPLY_CHARS - len(thought) + 2))
    assert len(full) == MAX_REPLY_CHARS and parse_response(full, 2, "language").format_ok
    assert parse_response(full + " ", 2, "language").problems == ("reply_too_long",)


@given(odd_text, odd_text, st.sampled_from(list(SCORERS)), st.sampled_from(MODES))
def test_any_text_is_judged(block: str, text: str, form: AnswerForm, mode: Mode) -> None:
    for reply in (block + text, f"<think>{block}</think><answer>{text}</answer>", action(block), answer(text)):
        check(score_reply(reply, target_of(form, mode), REWARD))


@given(odd_text, odd_text, st.sampled_from(list(SCORERS)))
def test_a_reward_stays_in_its_range_whatever_the_gold(text: str, gold_text: str, form: AnswerForm) -> None:
    reward, reason = score_answer(text, gold_text, form)
    assert 0 <= reward <= 1 and bool(reason) == (reward == 0)


@given(
    st.lists(st.sampled_from(["<answer>", "</answer>", "<action>", "</action>", "a", "\n"]), max_size=16).map("".join)
)
def test_blocks_are_cut_as_a_pattern_would(text: str) -> None:
    pattern = re.compile("<answer>(.*?)</answer>", re.DOTALL)
    assert _cut("answer", text) == (pattern.findall(text), pattern.sub("", text))


@given(st.lists(st.one_of(st.floats(-2e6, 2e6), st.floats(-1e-150, 1e-150)), min_size=4, max_size=4))
def test_a_box_that_is_read_can_be_compared(values: list[float]) -> None:
    box = parse_box(",".join(f"{value:.400f}" for value in values))
    if box is not None:
        assert box_iou(box, box) == 1 and 0 <= box_iou(box, (0, 0, 1000, 1000)) <= 1


def test_numbers_are_finite() -> None:
    found = numbers_in(f"{'9' * 400} -{'9' * 400} 1e99 ٣ ２.5 1e999")
    assert all(map(math.isfinite, found)) and found[2:] == [1e99, 3, 2.5]


@pytest.mark.parametrize(
    ("pattern", "text"), [(numbers_in, "9" * 100_000 + "x"), (LETTER.match, " " * 100_000 + "1"),
                          (LETTER.match, "(" + " " * 100_000 + "1")],
    ids=["digits", "spaces", "spaces after a parenthesis"],
)  # fmt: skip
def test_patterns_read_a_text_once(pattern: Callable[[str], object], text: str) -> None:
    """A pattern that tries every split of a run of characters takes minutes for these."""
    assert not pattern(text)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1, 10**4000, 1e300])
def test_no_step_beyond_the_limits_is_composed(value: float) -> None:
    with pytest.raises(ValueError, match="must lie in"):
        check_atoms([("turn_up_deg", value)])
