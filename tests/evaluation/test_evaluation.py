"""Evaluation: intervals, blind control, baselines, comparisons, tables."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from scipy.spatial.transform import RigidTransform, Rotation

from hatch_ray.config_sections import RewardConfig
from hatch_ray.evaluation import baselines
from hatch_ray.evaluation.control import blind_control, swap_images
from hatch_ray.evaluation.findings import write_findings
from hatch_ray.evaluation.heldout import compare, evaluate, read_rows, read_summary, score_rows, write_evaluation
from hatch_ray.evaluation.intervals import Bootstrap
from hatch_ray.evaluation.tables import print_evaluation
from hatch_ray.geometry.actions import compose, plan_between
from hatch_ray.geometry.se3 import pose_error
from hatch_ray.protocol.prompt import gold_reply
from hatch_ray.rewards.answer import score_answer
from hatch_ray.run_folder import RunFolder
from hatch_ray.sample import ActionFrame, PairPlan, Sample, View

UP = np.array([0.0, -1.0, 0.0])
REWARD = RewardConfig()


def random_pose(random: np.random.Generator) -> RigidTransform:
    angles = [random.normal(0, 25), random.normal(-10, 5), random.normal(0, 2)]
    place = random.normal(0, 0.7, 3) * [1, 0.1, 1]
    return RigidTransform.from_components(place, Rotation.from_euler("YXZ", angles, degrees=True))


def make_samples(count: int = 60, per_scene: int = 3, views: int = 2, up: np.ndarray | None = UP) -> list[Sample]:
    random = np.random.default_rng(7)
    samples = []
    for index in range(count):
        poses = [random_pose(random) for _ in range(views)]
        plans = tuple(
            PairPlan(i, j, *plan_between(poses[i], poses[j], up)) for i in range(views) for j in range(i + 1, views)
        )
        samples.append(
            Sample(
                id=f"q{index}",
                scene=f"room{index // per_scene}",
                task=("depth_prediction_oc_mv", "obj_spatial_relation_oc_mv")[index % 2],
                answer_form=("number", "text")[index % 2],  # type: ignore[arg-type]
                question="?",
                answer=(f"{random.uniform(1, 4):.1f}", str(random.choice(["left", "right"])))[index % 2],
                views=tuple(View(Path(f"q{index}_{view}.png")) for view in range(views)),
                plans=plans,
            )
        )
    return samples


SAMPLES = make_samples()
GOLD = [gold_reply(sample, "actions") for sample in SAMPLES]


def noisy(samples: list[Sample], degrees: float) -> list[str]:
    """Gold replies with one more turn."""
    return [
        gold_reply(
            replace(s, plans=tuple(replace(p, atoms=(*p.atoms, ("turn_right_deg", degrees))) for p in s.plans)),
            "actions",
        )
        for s in samples
    ]


# --- intervals


def test_cluster_bootstrap_is_wider_when_scenes_agree_within_themselves():
    scenes = [f"s{i // 20}" for i in range(400)]
    values = np.repeat(np.random.default_rng(0).normal(0, 1, 20), 20)
    clustered = Bootstrap(scenes, 2000, 0).mean(values)
    independent = Bootstrap([str(i) for i in range(400)], 2000, 0).mean(values)
    assert clustered["value"] == independent["value"]
    width = [interval["high"] - interval["low"] for interval in (clustered, independent)]
    assert width[0] > 3 * width[1]


def test_interval_covers_the_true_mean_about_19_times_in_20():
    random = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        values = random.normal(0.4, 1.0, 80)
        found = Bootstrap([str(i) for i in range(80)], 400, 0).mean(values)
        covered += found["low"] <= 0.4 <= found["high"]
    assert 178 <= covered <= 199


def test_few_scenes_are_resampled_by_sample_and_missing_values_are_left_out():
    draws = Bootstrap(["kitchen"] * 5, 100, 0)
    assert draws.unit == "sample"
    assert draws.mean(np.array([1.0, np.nan, 3.0, np.nan, 2.0]))["n"] == 3
    assert draws.median(np.array([1.0, np.nan, 9.0, np.nan, 2.0]))["value"] == 2.0
    assert draws.mean(np.full(5, np.nan)) is None
    assert draws.median(np.full(5, np.nan)) is None


def test_no_samples_is_a_plain_error():
    with pytest.raises(ValueError, match="no samples"):
        evaluate([], [], REWARD)


# --- rows and summaries


def test_gold_replies_earn_everything():
    summary = evaluate(SAMPLES, GOLD, REWARD, bootstrap=200)
    for name in ("format", "action", "answer"):
        assert summary["overall"][name]["value"] == 1.0
    assert summary["overall"]["d_t"]["value"] == 0.0
    assert summary["resampled"] == "scene"
    assert summary["scenes"] == 20
    assert set(summary["tasks"]) == {"depth_prediction_oc_mv", "obj_spatial_relation_oc_mv"}
    assert summary["reasons"] == {}


def test_wrong_replies_are_counted_by_reason():
    summary = evaluate(SAMPLES, ["rubbish"] * len(SAMPLES), REWARD, bootstrap=50)
    assert summary["overall"]["total"]["value"] == 0.0
    assert summary["overall"]["d_t"] is None
    assert summary["reasons"]["format:no_action_block"] == len(SAMPLES)


def test_direct_mode_has_no_action_term():
    summary = evaluate(SAMPLES, [gold_reply(s, "direct") for s in SAMPLES], REWARD, bootstrap=50, mode="direct")
    assert summary["overall"]["action"] is None
    assert summary["overall"]["answer"]["value"] == 1.0


def test_reply_count_must_match():
    with pytest.raises(ValueError, match="59 replies for 60 samples"):
        score_rows(SAMPLES, GOLD[:-1], REWARD)


def test_paired_difference_is_tighter_than_its_parts():
    before, after = score_rows(SAMPLES, noisy(SAMPLES, 20), REWARD), score_rows(SAMPLES, noisy(SAMPLES, 10), REWARD)
    change = compare(before, after[::-1], 500)["overall"]["action"]
    assert change["value"] == pytest.approx(np.exp(-10 / 30) - np.exp(-20 / 30), abs=0.02)
    assert change["low"] > 0
    with pytest.raises(ValueError, match="different samples"):
        compare(before, after[:-1])


# --- blind control


def test_swap_takes_images_of_another_scene_and_nothing_else():
    mixed = make_samples(30) + [replace(s, id=s.id + "x") for s in make_samples(30, views=3)]
    swapped = swap_images(mixed, seed=3)
    scene_of = {sample.id: sample.scene for sample in mixed}
    for sample, other in zip(mixed, swapped, strict=True):
        assert len(other.views) == len(sample.views)
        assert other.views != sample.views
        assert scene_of[other.meta["swapped_from"]] != sample.scene
        assert (other.question, other.answer, other.plans, other.id) == (
            sample.question,
            sample.answer,
            sample.plans,
            sample.id,
        )
    assert [s.views for s in swap_images(mixed, 3)] == [s.views for s in swapped]
    assert [s.views for s in swap_images(mixed, 4)] != [s.views for s in swapped]


def test_swap_within_one_scene_shares_no_image():
    one_room = [replace(s, scene="kitchen") for s in make_samples(12)]
    one_room.append(replace(one_room[0], id="same views"))
    for sample, other in zip(one_room, swap_images(one_room, 0), strict=True):
        assert not set(sample.views) & set(other.views)
    with pytest.raises(ValueError, match="lend its images"):
        swap_images(one_room[:1], 0)


def test_blind_control_tells_seeing_from_guessing():
    constant = score_rows(SAMPLES, baselines.constant_replies(SAMPLES, REWARD), REWARD)
    good = score_rows(SAMPLES, GOLD, REWARD)
    shuffled = [
        gold_reply(replace(s, plans=o.plans, answer=o.answer), "actions")
        for s, o in zip(SAMPLES, SAMPLES[6:] + SAMPLES[:6], strict=True)
    ]
    fallen = score_rows(SAMPLES, shuffled, REWARD)
    seen = blind_control(good, fallen, constant, 300)
    assert (seen["actions_look"], seen["answers_look"]) == ("yes", "yes")
    assert seen["fall_share"] > 0.5
    blind = blind_control(good, good, constant, 300)
    assert (blind["actions_look"], blind["answers_look"]) == ("no", "no")
    # A model below the constant plan has no margin to lose, and is not said to look.
    assert blind_control(fallen, fallen, constant, 300)["actions_look"] == "no"


# --- baselines

ANGLE = st.floats(-180, 180)


@settings(max_examples=60, deadline=None)
@given(
    parameters=st.tuples(ANGLE, st.floats(-60, 60), st.floats(0, 4), ANGLE, st.floats(-60, 60)),
    frames=st.lists(
        st.one_of(st.none(), st.builds(ActionFrame, st.floats(-60, 60), st.floats(-10, 10))), min_size=1, max_size=4
    ),
)
def test_batched_kinematics_equal_compose(parameters, frames):
    pairs = baselines._PairSet([PairPlan(0, 1, (), frame) for frame in frames], REWARD)
    ends = pairs.ends(parameters)
    for index, frame in enumerate(frames):
        d_t, d_r = pose_error(ends[index], compose(baselines._atoms(parameters), frame))
        assert d_t < 0.01
        assert d_r < 0.01


@pytest.mark.parametrize("up", [UP, None])
def test_best_constant_plan_beats_every_gold_plan_used_as_a_constant(up):
    samples = make_samples(40, up=up)
    (plan,) = baselines.best_constant_plan(samples, REWARD).values()
    pairs = baselines._PairSet([sample.plans[0] for sample in samples], REWARD)
    best = pairs.judged(plan)
    assert best >= max(pairs.judged(sample.plans[0].atoms) for sample in samples) - 0.005
    assert best >= pairs.judged(())


def test_constant_plan_finds_the_common_motion():
    wanted = (("turn_right_deg", 40.0), ("move_forward_m", 1.2), ("turn_left_deg", 70.0))
    same = [replace(s, plans=(PairPlan(0, 1, wanted, ActionFrame(-10, 1)),)) for s in SAMPLES[:10]]
    (plan,) = baselines.best_constant_plan(same, REWARD).values()
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

    best = baselines.best_constant_answer(golds, form)
    assert mean(best) >= max(mean(gold) for gold in golds)
    assert mean(best) > 0


def test_baseline_replies_are_well_formed():
    three = make_samples(9, views=3)
    for replies in (baselines.constant_replies(three, REWARD), baselines.still_replies(three)):
        assert evaluate(three, replies, REWARD, 50)["overall"]["format"]["value"] == 1.0


# --- the run folder


def test_findings_and_tables_of_a_whole_run(tmp_path):
    run = RunFolder(tmp_path)
    with pytest.raises(ValueError, match="hatch eval"):
        print_evaluation(run, Console())
    replies = {
        "base": ["nothing"] * len(SAMPLES),
        "cold_start": noisy(SAMPLES, 20),
        "final": noisy(SAMPLES, 5),
        "final_swapped": noisy(SAMPLES, 90),
        "constant": baselines.constant_replies(SAMPLES, REWARD),
        "still": baselines.still_replies(SAMPLES),
    }
    for name, texts in replies.items():
        write_evaluation(run, name, score_rows(SAMPLES, texts, REWARD), 200, 0)
    run.set_progress("grpo", step=3, done=True)
    found = write_findings(run, 200, 0)
    assert found["models"] == list(replies)
    assert [claim["holds"] for claim in found["claims"]] == [None, "yes", "yes", "yes", "yes", "no"]
    assert read_summary(run, "final")["samples"] == len(SAMPLES)
    assert read_rows(run, "final")[0]["plans"][0]["from"] == 0
    console = Console(width=100, record=True)
    print_evaluation(run, console)
    text = console.export_text()
    for wanted in ("after cold start", "best constant", "final, swapped", "By task", "not measured"):
        assert wanted in text
    assert max(len(line) for line in text.splitlines()) <= 100


def test_a_run_with_one_evaluation_shows_what_is_there(tmp_path):
    run = RunFolder(tmp_path)
    write_evaluation(run, "base", score_rows(SAMPLES, GOLD, REWARD), 50, 0)
    found = write_findings(run, 50, 0)
    assert found["grpo"] is None
    assert found["blind"] is None
    console = Console(width=100, record=True)
    print_evaluation(run, console)
    assert "base" in console.export_text()
