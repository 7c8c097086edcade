"""Rewards of appendix C, with each trap that a published scorer has (reference: sections 3.2 and 10)."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hatch_ray.config_sections import RewardConfig
from hatch_ray.geometry.boxes import box_iou
from hatch_ray.protocol.prompt import format_plans
from hatch_ray.rewards.terms import (
    SCORERS,
    RewardTarget,
    mean_relative_accuracy,
    score_answer,
    score_box,
    score_camera_motion,
    score_letter,
    score_number,
    score_reply,
    score_text,
    score_view_change,
)
from hatch_ray.sample import ActionFrame, PairPlan
from tests.support.hatch import total

REWARD = RewardConfig()
GOLD = PairPlan(0, 1, (("turn_right_deg", 30.0), ("move_forward_m", 1.4), ("turn_left_deg", 12.0)), ActionFrame(-5, 2))
TARGET = RewardTarget("s", 2, "2.4", "number", (GOLD,))


def reply(atoms, answer="2.4"):
    return f"<action>{format_plans({(0, 1): tuple(atoms)})}</action><answer>{answer}</answer>"


def test_the_gold_reply_earns_everything():
    score = score_reply(reply(GOLD.atoms), TARGET, REWARD)
    assert (total(score), score.terms["action"], score.terms["answer"], score.terms["format"]) == (
        pytest.approx(3),
        pytest.approx(1),
        1,
        1,
    )
    assert score.reasons == () and score.measures["d_t"] == pytest.approx(0, abs=1e-9)


def test_the_action_term_is_equation_10():
    atoms = (("turn_right_deg", 30.0), ("move_forward_m", 1.4), ("turn_left_deg", 2.0))
    score = score_reply(reply(atoms), TARGET, REWARD)
    assert score.measures["d_t"] == pytest.approx(0) and score.measures["d_r"] == pytest.approx(10, abs=1e-6)
    assert score.terms["action"] == pytest.approx(math.exp(-10 / 30))


@given(st.lists(st.tuples(st.sampled_from(["turn_right_deg", "move_forward_m", "turn_up_deg"]), st.floats(0, 20))))
def test_every_term_stays_in_its_range(atoms):
    score = score_reply(reply(atoms[:12]), TARGET, REWARD)
    assert 0 <= score.terms["action"] <= 1 and 0 <= score.terms["answer"] <= 1 and score.terms["format"] in (0, 1)
    assert total(score) == pytest.approx(score.terms["action"] + score.terms["answer"] + score.terms["format"])


def test_staying_is_punished_only_where_the_camera_moved():
    assert score_reply(reply([]), TARGET, REWARD).reasons == ("action:stop_like",)
    assert score_reply(reply([]), TARGET, RewardConfig(punish_stop=False)).terms["action"] > 0
    still = RewardTarget("s", 2, "2.4", "number", (PairPlan(0, 1, (), ActionFrame(0, 0)),))
    assert score_reply(reply([]), still, REWARD).terms["action"] == 1


def test_a_missing_pair_counts_as_zero():
    three = RewardTarget("s", 3, "2.4", "number", (GOLD, PairPlan(0, 2, GOLD.atoms), PairPlan(1, 2, GOLD.atoms)))
    score = score_reply(reply(GOLD.atoms), three, REWARD)
    assert score.terms["action"] == pytest.approx(1 / 3) and score.terms["format"] == 0
    assert "format:missing_pair" in score.reasons and "action:no_plan" in score.reasons


def test_direct_mode_has_no_action_term():
    target = RewardTarget("s", 2, "2.4", "number", (GOLD,), mode="direct")
    score = score_reply("<answer>2.4</answer>", target, REWARD)
    assert score.terms["action"] is None and total(score) == 2


def test_words_earn_no_action_reward():
    """What is said in words cannot be verified: answer and form count alone."""
    target = RewardTarget("s", 2, "2.4", "number", (GOLD,), mode="language")
    score = score_reply("<think>turn right</think><answer>2.4</answer>", target, REWARD)
    assert score.terms["action"] is None and total(score) == 2
    assert score_reply("<answer>2.4</answer>", target, REWARD).reasons == ("format:no_think_block",)


def test_weights_of_equation_8():
    weights = RewardConfig(action_weight=2, answer_weight=3, format_weight=5)
    assert total(score_reply(reply(GOLD.atoms), TARGET, weights), weights) == pytest.approx(10)


@pytest.mark.parametrize(
    ("prediction", "gold", "value"),
    [(1.0, 1.0, 1.0), (1.05, 1.0, 1.0), (1.2, 1.0, 0.7), (1.35, 1.0, 0.4), (1.45, 1.0, 0.2), (1.5, 1.0, 0.1),
     (1.51, 1.0, 0.0), (0.0, 0.0, 1.0), (0.3, 0.0, 0.5), (-1.0, 1.0, 0.0), (2.0, 1.0, 0.0), (0.5, 1.0, 0.1)],
)  # fmt: skip
def test_mean_relative_accuracy(prediction, gold, value):
    assert mean_relative_accuracy(prediction, gold) == pytest.approx(value)


@given(st.floats(0.1, 50), st.floats(0, 3), st.floats(0, 3))
def test_a_larger_error_never_earns_more(gold, near, far):
    near, far = sorted((near, far))
    assert mean_relative_accuracy(gold * (1 + far), gold) <= mean_relative_accuracy(gold * (1 + near), gold)


@pytest.mark.parametrize("text", ["C", "c", "C.", "(C)", "( C )", "C. about", "C: chair", " C\n"])
def test_letters_that_count(text):
    assert score_letter(text, "C")[0] == 1


@pytest.mark.parametrize("text", ["", " ", "about", "Chair", "D", "C3", "-", "A C", "C's"])
def test_letters_that_do_not(text):
    assert score_letter(text, "C")[0] == 0


@pytest.mark.parametrize("form", list(SCORERS))
def test_empty_and_missing_answers_earn_nothing(form):
    gold = {"letter": "B", "number": "1.2", "box": "[1,2,30,40]", "camera_motion": "(10,20),1.5",
            "view_change": "move_right:1.0,rotate_up:10", "text": "second image"}[form]  # fmt: skip
    assert score_answer(gold, gold, form)[0] == pytest.approx(1)
    for nothing in (None, "", " ", ",", "nothing"):
        reward, reason = score_answer(nothing, gold, form)
        assert reward == 0 and reason


@given(st.text(max_size=60), st.sampled_from(list(SCORERS)))
def test_any_answer_is_survived(text, form):
    reward, _ = score_answer(text, "1.5", form)
    assert 0 <= reward <= 1


def test_numbers():
    assert score_number("2.4 m", "2.4")[0] == 1
    assert score_number("between 2 and 3", "2.4") == (0, "several_numbers")
    assert score_number("-2.4", "2.4")[0] == 0
    assert score_number("x2.4y", "2.4") == (0, "no_number")


def test_boxes():
    assert score_box("[0,0,10,10]", "[0,0,10,10]")[0] == 1
    assert score_box("[10,10,0,0]", "[0,0,10,10]")[0] == 1
    assert score_box("[0,0,0,10]", "[0,0,10,10]") == (0, "bad_box")
    assert score_box("[20,20,30,30]", "[0,0,10,10]") == (0, "no_intersection")
    assert box_iou((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(1 / 3)


def test_camera_motion_grades_position_and_depth_apart():
    assert score_camera_motion("(500,500),2.0", "(500,500),2.0")[0] == 1
    assert score_camera_motion("(600,500),2.0", "(500,500),2.0")[0] == pytest.approx(0.5 + 0.5 * math.exp(-0.5))
    assert score_camera_motion("(500,500),2.5", "(500,500),2.0")[0] == pytest.approx(0.5 + 0.5 * math.exp(-0.5))
    assert score_camera_motion("(500,500)", "(500,500),2.0") == (0, "not_three_numbers")
    assert score_camera_motion(f"({'9' * 200},0),{'9' * 200}", "(500,500),2.0") == (0, "far_place")


def test_view_change_divides_by_the_gold_and_reads_keys_with_spaces():
    gold = "move_right:2.0,move_down:0.5,move_forward:1.0,rotate_up:10,rotate_left:20"
    assert score_view_change(gold, gold)[0] == 1
    assert score_view_change(gold.replace(",", ", "), gold)[0] == 1
    assert score_view_change(gold.replace("2.0", "4.0"), gold)[0] == pytest.approx(0.8)
    assert score_view_change(gold.replace("move_right", "move_left"), gold)[0] == pytest.approx(0.8)
    assert score_view_change("move_back:1.0", "move_backward:1.0")[0] == 1
    assert score_view_change("move_right:1,move_left:1", gold) == (0, "bad_view_change")
    assert score_view_change("move_right=1", gold) == (0, "bad_view_change")


def test_all_zero_view_change_earns_nothing_against_a_motion():
    zero = "move_right:0,move_down:0,move_forward:0,rotate_up:0,rotate_left:0"
    gold = "move_right:0.3,move_down:0.2,move_forward:0.4,rotate_up:10,rotate_left:20"
    assert score_view_change(zero, gold) == (0, "all_zero")
    assert score_view_change(zero, gold.replace("0.2", "0.0").replace("10", "0")) == (0, "all_zero")
    assert score_view_change("move_right:-0.0", "move_forward:0.1") == (0, "all_zero")
    assert score_view_change(zero, zero)[0] == 1


def test_soft_text_match():
    assert score_text("The Second image (red chair).", "the second image")[0] == 1
    assert score_text("third image", "the second image") == (0, "wrong_text")
    assert score_text("Green", "green (white chair)")[0] == 1
    assert score_text("blue (white chair)", "green (white chair)") == (0, "wrong_text")
    assert score_text("(white chair)", "green (white chair)") == (0, "empty_answer")


@pytest.mark.parametrize(
    ("prediction", "reward", "reason"),
    [("the second image, [100,200,300,400] (red chair)", 1, ""), ("Second image: [110, 200, 310, 400].", 1, ""),
     ("in the 2nd image at [100,200,300,400]", 1, ""), ("the second image, [100,200,200,400]", 1, ""),
     ("the second image, [100,200,190,400]", 0, "other_box"), ("the first image, [100,200,300,400]", 0, "wrong_image"),
     ("image 1, [100,200,300,400]", 0, "no_image"), ("the second image", 0, "bad_box"),
     ("the second image, [100,200,300]", 0, "bad_box"), ("the second image (red chair)", 0, "bad_box"),
     ("the first or second image, [100,200,300,400]", 0, "no_image"), ("red chair", 0, "bad_box"),
     ("the second image, [100,200,300,400] [0,0,9,9]", 0, "bad_box"), ("(red chair)", 0, "empty_answer")],
)  # fmt: skip
def test_an_image_and_a_box(prediction, reward, reason):
    assert score_text(prediction, "the second image, [100,200,300,400] (red chair)") == (reward, reason)


def test_a_box_alone_needs_no_image():
    assert score_text("[100,200,300,390]", "[100,200,300,400] (red chair)")[0] == 1
    assert score_text("the second image, [100,200,300,390]", "[100,200,300,400]")[0] == 1


@given(st.text(max_size=60), st.sampled_from(list(SCORERS)))
def test_every_zero_has_its_reason(text, form):
    gold = {"letter": "B", "number": "1.2", "box": "[1,2,30,40]", "camera_motion": "(10,20),1.5",
            "view_change": "move_right:1.0,rotate_up:10", "text": "the second image, [1,2,30,40]"}[form]  # fmt: skip
    reward, reason = score_answer(text, gold, form)
    assert 0 <= reward <= 1 and bool(reason) == (reward == 0)
