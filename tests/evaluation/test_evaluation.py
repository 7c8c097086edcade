"""Evaluation: intervals, blind control, comparisons, tables."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from hatch_ray.config import make_config
from hatch_ray.evaluation.findings import write_findings
from hatch_ray.evaluation.heldout import (
    compare,
    read_rows,
    read_table,
    score_rows,
    summarise,
    swap_images,
    write_evaluation,
)
from hatch_ray.evaluation.intervals import Bootstrap
from hatch_ray.evaluation.tables import print_evaluation
from hatch_ray.protocol.prompt import gold_reply
from hatch_ray.run_folder import RunFolder
from hatch_ray.sample import Sample
from hatch_ray.systems import system_of
from tests.support.walks import make_samples

SYSTEM = system_of(make_config({}))
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


def evaluate(samples: list[Sample], texts: list[str], stage: str = "grpo", bootstrap: int = 50) -> dict[str, Any]:
    return summarise(score_rows(SYSTEM, stage, samples, texts), bootstrap, 0)


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
        evaluate([], [])


# --- rows and summaries


def test_gold_replies_earn_everything():
    summary = evaluate(SAMPLES, GOLD, bootstrap=200)
    for name in ("format", "action", "answer"):
        assert summary["overall"][name]["value"] == 1.0
    assert summary["overall"]["d_t"]["value"] == 0.0
    assert summary["resampled"] == "scene"
    assert summary["scenes"] == 20
    assert set(summary["tasks"]) == {"depth_prediction_oc_mv", "obj_spatial_relation_oc_mv"}
    assert summary["reasons"] == {}


def test_wrong_replies_are_counted_by_reason():
    summary = evaluate(SAMPLES, ["rubbish"] * len(SAMPLES))
    assert summary["overall"]["total"]["value"] == 0.0
    assert summary["overall"]["d_t"] is None
    assert summary["reasons"]["format:no_action_block"] == len(SAMPLES)


def test_direct_mode_has_no_action_term():
    summary = evaluate(SAMPLES, [gold_reply(s, "direct") for s in SAMPLES], "qa_sft")
    assert summary["overall"]["action"] is None
    assert summary["overall"]["answer"]["value"] == 1.0


def test_reply_count_must_match():
    with pytest.raises(ValueError, match="59 replies for 60 samples"):
        score_rows(SYSTEM, "grpo", SAMPLES, GOLD[:-1])


def test_paired_difference_is_tighter_than_its_parts():
    before, after = (score_rows(SYSTEM, "grpo", SAMPLES, noisy(SAMPLES, degrees)) for degrees in (20, 10))
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


def test_blind_control_tells_seeing_from_guessing(tmp_path):
    shuffled = [
        gold_reply(replace(s, plans=o.plans, answer=o.answer), "actions")
        for s, o in zip(SAMPLES, SAMPLES[6:] + SAMPLES[:6], strict=True)
    ]
    run = RunFolder(tmp_path)
    constant = SYSTEM.blind_replies(SAMPLES)["constant"]
    write_evaluation(run, "constant", score_rows(SYSTEM, "grpo", SAMPLES, constant), 300, 0)

    def looks(seen: list[str], swapped: list[str]) -> list[str]:
        for name, texts in (("final", seen), ("final_swapped", swapped)):
            write_evaluation(run, name, score_rows(SYSTEM, "grpo", SAMPLES, texts), 300, 0)
        return [claim["holds"] for claim in write_findings(SYSTEM, run, 300, 0)["claims"][-2:]]

    assert looks(GOLD, shuffled) == ["yes", "yes"]
    assert looks(GOLD, GOLD) == ["no", "no"]
    # A model below the constant plan has no margin to lose, and is not said to look.
    assert looks(shuffled, shuffled)[0] == "no"
    write_evaluation(run, "constant", score_rows(SYSTEM, "grpo", SAMPLES[1:], constant[1:]), 300, 0)
    with pytest.raises(ValueError, match="different samples"):
        looks(GOLD, shuffled)


# --- the run folder


def test_findings_and_tables_of_a_whole_run(tmp_path):
    run = RunFolder(tmp_path)
    with pytest.raises(ValueError, match="hatch eval"):
        print_evaluation(SYSTEM, run, Console())
    replies = {
        "base": ["nothing"] * len(SAMPLES),
        "cold_start": noisy(SAMPLES, 20),
        "final": noisy(SAMPLES, 5),
        "final_swapped": noisy(SAMPLES, 90),
        **SYSTEM.blind_replies(SAMPLES),
    }
    for name, texts in replies.items():
        write_evaluation(run, name, score_rows(SYSTEM, "grpo", SAMPLES, texts), 200, 0)
    run.set_progress("grpo", step=3, done=True)
    found = write_findings(SYSTEM, run, 200, 0)
    assert found["models"] == list(replies)
    assert [claim["holds"] for claim in found["claims"]] == [None, None, "yes", "yes", "yes", "yes", "no"]
    assert read_table(run, "final")["samples"] == len(SAMPLES)
    assert read_rows(run, "final")[0]["plans"][0]["from"] == 0
    console = Console(width=100, record=True)
    print_evaluation(SYSTEM, run, console)
    text = console.export_text()
    for wanted in ("after cold start", "best constant", "final, swapped", "By task", "not measured"):
        assert wanted in text
    assert max(len(line) for line in text.splitlines()) <= 100


def test_a_run_with_one_evaluation_shows_what_is_there(tmp_path):
    run = RunFolder(tmp_path)
    write_evaluation(run, "base", score_rows(SYSTEM, "grpo", SAMPLES, GOLD), 50, 0)
    found = write_findings(SYSTEM, run, 50, 0)
    assert found["grpo"] is None
    assert found["blind"] is None
    console = Console(width=100, record=True)
    print_evaluation(SYSTEM, run, console)
    assert "base" in console.export_text()
