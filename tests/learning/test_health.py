"""Warnings on a GRPO run's curves: none on a healthy one, one for each trouble, in words."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hatch_ray.config import make_config
from hatch_ray.config_sections import GrpoConfig
from hatch_ray.learning.health import Health
from hatch_ray.run_folder import RunFolder, read_jsonl
from hatch_ray.systems import system_of
from tests.support.healthy_curve import HEALTHY

CONFIG = GrpoConfig(prompts_per_step=8)
RATES = system_of(make_config({})).rates()
FINE = {
    "reward_total": 1.5, "reward_format": 0.95, "entropy": 0.6, "reward_std": 0.3, "clip_share": 0.0,
    "correction_share": 0.0, "ended_share": 1.0, "skipped": 0.0,
}  # fmt: skip


def healthy_rows():
    return [FINE | {name: values[step] for name, values in HEALTHY.items()} for step in range(100)]


def said_by(rows, health=None):
    """[(step, warning)]; steps count from 1."""
    health = health or Health(CONFIG, RATES)
    return [(step, text) for step, row in enumerate(rows, start=1) for text in health.add(step, row)]


def test_a_healthy_run_is_not_disturbed():
    rows = healthy_rows()
    assert len(rows) == 100
    assert said_by(rows) == []
    assert said_by([*rows, *rows[-20:] * 10]) == []


TROUBLES = {
    "reward collapse": ({"reward_total": 0.9}, "grpo.lr"),
    "format rate falling": ({"reward_format": 0.5}, "reward.format_weight"),
    "entropy collapse": ({"entropy": 0.02}, "grpo.temperature"),
    "all groups without variance": ({"reward_std": 0.0}, "easier tasks"),
    "clip share high": ({"clip_share": 0.5}, "grpo.updates_per_step"),
    "importance-correction share high": ({"correction_share": 0.3}, "grpo.max_staleness"),
    "replies cut at grpo.max_new_tokens": ({"ended_share": 0.5}, "model.max_length"),
}


@pytest.mark.parametrize("name", TROUBLES)
def test_a_trouble_is_named_once_an_episode_with_figure_step_and_help(name):
    change, help_ = TROUBLES[name]
    fine = [FINE] * 40
    bad = [FINE | change] * 60
    found = said_by([*fine, *bad, *fine, *bad])
    assert [text.split(" since ")[0] for _, text in found] == [name] * 2
    (first, text), (again, _) = found
    assert 40 < first <= 60 and 140 < again <= 160
    since = int(re.search(r" since step (\d+): ", text)[1])
    assert 40 < since <= first
    assert help_ in text.split("What usually helps: ")[1]
    figure = next(iter(change.values()))
    assert re.search(r"\d", text.split(": ")[1]), figure


@pytest.mark.parametrize("name", TROUBLES)
def test_a_resumed_run_says_nothing_twice(name):
    rows = [FINE] * 40 + [FINE | TROUBLES[name][0]] * 60
    whole = said_by(rows)
    for stop in (30, whole[0][0] - 1, whole[0][0], 90):
        resumed = Health(CONFIG, RATES)
        before = [text for step, row in enumerate(rows[:stop], 1) for text in resumed.add(step, row)]
        again = Health(CONFIG, RATES)
        for step, row in enumerate(rows[:stop], 1):
            again.add(step, row)
        after = [text for step, row in enumerate(rows[stop:], stop + 1) for text in again.add(step, row)]
        assert before + after == [text for _, text in whole]


def test_a_slow_collapse_is_seen_too_and_its_figures_are_right():
    falling = [FINE | {"reward_total": 1.5 * 0.985**step} for step in range(120)]
    ((step, text),) = said_by([FINE] * 30 + falling)
    assert "reward_total is 1.2 in the mean of 20 steps, 1.5 at its best" in text or "1.19 in the mean" in text
    assert step < 30 + 40


def test_a_rate_is_watched_where_the_system_says_so():
    rows = [FINE | {"reward_shape": 0.9}] * 40 + [FINE | {"reward_shape": 0.4, "reward_format": 0.4}] * 60
    ((_, text),) = said_by(rows, Health(CONFIG, {"shape": "show it more shapes"}))
    assert text.startswith("shape rate falling since step ") and text.endswith("show it more shapes")
    assert said_by(rows, Health(CONFIG, {})) == []


def test_few_groups_a_step_need_more_steps_without_variance():
    rows = [FINE | {"reward_std": 0.0}] * 40
    assert said_by(rows, Health(GrpoConfig(prompts_per_step=64), RATES))[0][0] == 5
    assert said_by(rows, Health(GrpoConfig(prompts_per_step=2), RATES))[0][0] == 16


def test_every_skipped_step_is_a_line():
    rows = [FINE, {"skipped": 1.0, "batch_kept": 1.0}, FINE, {"skipped": 1.0, "batch_kept": 0.0}]
    (one, first), (two, second) = said_by(rows)
    assert (one, two) == (2, 4)
    assert "python -m tools.replay RUN/bad_batches/step-000002-rank0" in first
    assert "step-000004-rank0 could not be written" in second


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10**6), mean=st.floats(0.05, 3.0), noise=st.floats(0, 1.0),
    climb=st.floats(0.0, 2.0), rate=st.floats(0.3, 1.0), replies=st.sampled_from([8, 64, 512]),
)  # fmt: skip
def test_noise_is_no_trouble(seed, mean, noise, climb, rate, replies):
    """200 steps of any level, noise and rise: nothing falls, so nothing is said."""
    random = np.random.default_rng(seed)
    share = np.linspace(0, 1, 200)
    rewards = mean * (1 + climb * share + noise * random.standard_normal(200))
    formats = random.binomial(replies, rate, 200) / replies
    rows = [FINE | {"reward_total": r, "reward_format": f} for r, f in zip(rewards, formats, strict=True)]
    assert said_by(rows) == []


@given(st.lists(st.dictionaries(
    st.sampled_from(sorted(FINE)), st.sampled_from([None, math.nan, math.inf, -math.inf, 0.0, 1.0, -5.0, 1e300])
), max_size=60))  # fmt: skip
def test_any_row_is_taken(rows):
    for _, text in said_by(rows):
        assert "What usually helps" in text or "step skipped" in text


def test_warnings_lie_in_the_row_of_their_step(tmp_path):
    run = RunFolder(tmp_path)
    run.log("grpo", 1, {"loss": 1.0})
    run.log("grpo", 2, {"loss": math.nan}, ["entropy collapse since step 2: ..."])
    first, second = read_jsonl(run.metrics_path)
    assert "warnings" not in first
    assert second["warnings"] == ["entropy collapse since step 2: ..."]
    assert second["non_finite"] == ["loss"]
