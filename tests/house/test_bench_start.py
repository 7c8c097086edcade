"""What `bench.start` makes of what it saw: processes that come and go, the first reply, the spans."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

import pytest

from bench import page, start
from bench.start import Family, Seen, first_reply, medians, spans, step_times


def test_a_family_keeps_what_its_ended_members_spent():
    family = Family(10)
    assert family.look({1: (0, 0, 99.0), 10: (1, 5, 1.0), 11: (10, 6, 2.0), 12: (11, 7, 4.0)}) == 7
    # 11 has ended: its child belongs to process 1 now, and stays in the family.
    assert family.look({1: (0, 0, 99.0), 10: (1, 5, 1.5), 12: (1, 7, 5.0)}) == 1.5 + 2 + 5
    assert family.living == {10, 12}
    # Another process of the number of an ended one is a stranger.
    assert family.look({1: (0, 0, 99.0), 10: (1, 5, 1.5), 11: (1, 50, 70.0)}) == 1.5 + 2 + 5


def test_real_processes_are_seen_with_what_they_spend():
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'sum(range(30_000_000))'])"
    process = subprocess.Popen([sys.executable, "-c", code])
    family, spent = Family(process.pid), 0.0
    while process.poll() is None:
        spent = family.look(start.processes())
    assert len(family.spent) == 2 and spent > 0.2


def test_the_first_step_began_a_median_before_it_was_logged():
    rows = [{"stage": "grpo", "time": when} for when in (50.0, 53.0, 56.0, 60.0)]
    rows += [{"stage": "pasta", "time": 7.0}]
    assert step_times(rows) == {"pasta": (7.0, 7.0), "grpo": (47.0, 60.0)}


def test_the_first_reply_is_when_the_first_asked_engine_is_free_again():
    look = start.LOOK_SECONDS
    asked = [(9.0, 1), (10.2, 2), (10.3, 2), (10.3, 1), (10.4, 1), (10.5, 2)]
    assert first_reply(asked, after=10.0, answered=20.0) == pytest.approx(10.3 + look)
    assert first_reply(asked, after=11.0, answered=20.0) == 20
    assert first_reply([(19.99, 1)], after=11.0, answered=20.0) == 20


def test_spans_leave_the_steps_out():
    seen = Seen(100.0, [(100.0, 0.0), (110.0, 20.0), (200.0, 200.0)], [(150.0, 7), (150.1, 7)], ended=200.0)
    rows = [{"stage": "pasta", "time": 120.0 + step} for step in range(3)]
    rows += [{"stage": "grpo", "time": 132.0 + 2 * step} for step in range(3)]
    found = spans(seen, rows, answered=160.0)
    assert {name: one["wall_s"] for name, one in found.items()} == {
        "command to the first step of pasta": 19.0,
        "command to the first step of grpo": 30.0,
        "last step of pasta to the first of grpo": 8.0,
        "last step to the first reply of the evaluation": pytest.approx(14.1 + start.LOOK_SECONDS, abs=0.01),
        "the whole command": 100.0,
    }
    assert found["command to the first step of pasta"]["cpu_s"] == 20 + 9 * 2
    assert found["last step of pasta to the first of grpo"]["cpu_s"] == 16
    assert found["the whole command"]["cpu_s"] == 200
    other = {name: {part: value + 2 for part, value in one.items()} for name, one in found.items()}
    assert medians([found, other])["the whole command"] == {"wall_s": 101, "cpu_s": 201}
    text = page.start({
        "command": {"steps": 4, "questions": 24, "before": "abc1234", "rounds": 2},
        "spans": {"before": other, "after": found},
    })  # fmt: skip
    assert "| the whole command | 102.0 | 100.0 | 202.0 | 200.0 |" in text and "abc1234" in text


def test_the_short_demo_is_the_demo_with_fewer_steps():
    options = argparse.Namespace(steps=4, questions=24, samples=0)
    found = start.settings(start.REPOSITORY, options)
    assert {found[stage]["max_steps"] for stage in ("pasta", "qa_sft", "cold_start", "grpo")} == {4}
    assert found["eval"]["samples"] == 24 and found["data"]["samples"] == 6000
    json.dumps(found)


def test_an_unknown_commit_is_said_plainly(tmp_path):
    with pytest.raises(ValueError, match="--before nothing"), start.checked_out("nothing", tmp_path / "tree"):
        raise AssertionError("not reached")
