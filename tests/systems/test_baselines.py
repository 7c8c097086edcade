"""What HATCH's model could earn without looking: the best constant plan and answers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hatch_ray.config import make_config
from hatch_ray.config_sections import RewardConfig
from hatch_ray.evaluation.heldout import score_rows
from hatch_ray.geometry.actions import compose
from hatch_ray.geometry.se3 import pose_error
from hatch_ray.rewards.terms import score_answer
from hatch_ray.sample import ActionFrame, PairPlan
from hatch_ray.systems import system_of
from hatch_ray.systems.hatch.baselines import _atoms, _PairSet, best_constant_answer, best_constant_plan
from tests.support.walks import UP, make_samples

REWARD = RewardConfig()
SAMPLES = make_samples()
ANGLE = st.floats(-180, 180)


@settings(max_examples=60, deadline=None)
@given(
    parameters=st.tuples(ANGLE, st.floats(-60, 60), st.floats(0, 4), ANGLE, st.floats(-60, 60)),
    frames=st.lists(
        st.one_of(st.none(), st.builds(ActionFrame, st.floats(-60, 60), st.floats(-10, 10))), min_size=1, max_size=4
    ),
)
def test_batched_kinematics_equal_compose(parameters, frames):
    pairs = _PairSet([PairPlan(0, 1, (), frame) for frame in frames], REWARD)
    ends = pairs.ends(parameters)
    for index, frame in enumerate(frames):
        d_t, d_r = pose_error(ends[index], compose(_atoms(parameters), frame))
        assert d_t < 0.01
        assert d_r < 0.01


@pytest.mark.parametrize("up", [UP, None])
def test_best_constant_plan_beats_every_gold_plan_used_as_a_constant(up):
    samples = make_samples(40, up=up)
    (plan,) = best_constant_plan(samples, REWARD).values()
    pairs = _PairSet([sample.plans[0] for sample in samples], REWARD)
    best = pairs.judged(plan)
    assert best >= max(pairs.judged(sample.plans[0].atoms) for sample in samples) - 0.005
    assert best >= pairs.judged(())


def test_constant_plan_finds_the_common_motion():
    wanted = (("turn_right_deg", 40.0), ("move_forward_m", 1.2), ("turn_left_deg", 70.0))
    same = [replace(s, plans=(PairPlan(0, 1, wanted, ActionFrame(-10, 1)),)) for s in SAMPLES[:10]]
    (plan,) = best_constant_plan(same, REWARD).values()
    d_t, d_r = pose_error(compose(plan, ActionFrame(-10, 1)), compose(wanted, ActionFrame(-10, 1)))
    assert d_t < 0.06
    assert d_r < 2


@pytest.mark.parametrize(
    ("form", "golds"),
    [
        ("letter", ["A", "B", "B", "C"]),
        ("number", ["1.0", "1.1", "1.2", "3.0"]),
        ("box", ["[100,100,300,300]", "[120,90,310,320]", "[600,600,800,900]"]),
        ("camera_motion", ["(500,500),1.0", "(520,480),1.2", "(100,900),3.0"]),
        (
            "view_change",
            ["move_left:0.5,move_up:0.1,move_forward:1.0,rotate_up:3,rotate_right:20"] * 2
            + ["move_right:0.4,move_up:0.0,move_forward:0.9,rotate_down:2,rotate_right:25"],
        ),
        ("text", ["left, , behind", "left, , behind", "right, above, front"]),
    ],
)
def test_best_constant_answer_is_readable_and_no_worse_than_any_gold(form, golds):
    def mean(answer: str) -> float:
        return float(np.mean([score_answer(answer, gold, form)[0] for gold in golds]))

    best = best_constant_answer(golds, form)
    assert mean(best) >= max(mean(gold) for gold in golds)
    assert mean(best) > 0


def test_baseline_replies_are_well_formed():
    three = make_samples(9, views=3)
    system = system_of(make_config({}))
    replies = system.blind_replies(three)
    assert list(replies) == ["constant", "still"]
    for texts in replies.values():
        assert all(row["terms"]["format"] == 1.0 for row in score_rows(system, "grpo", three, texts))
