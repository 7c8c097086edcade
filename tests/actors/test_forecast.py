"""The demo's forecast: work, pace and remaining time by hand, and where the seconds went."""

from __future__ import annotations

import json
import time

import pytest
from rich.console import Console

from actors.commands import forecast
from actors.commands.forecast import (
    ANSWER_S,
    OVERHEAD_S,
    PASSES_PER_S,
    STEP_S,
    Forecast,
    Timekeeper,
    breakdown,
    minutes,
    step_seconds,
    work,
)
from actors.runtime.progress import ANSWERED
from hatch_ray.config import Config, load_config
from hatch_ray.run_folder import RunFolder

SIZE = ["pasta.max_steps=100", "grpo.max_steps=250", "data.heldout_samples=300", "eval.samples=300"]


def demo_config(*changes: str) -> Config:
    return load_config("configs/tiny.yaml", [*SIZE, *changes])


def test_the_work_of_the_demo_is_its_steps_and_questions():
    found = work(demo_config())
    assert list(found) == ["start", "pasta", "qa_sft", "cold_start", "grpo", "evaluation", "service"]
    assert found["pasta"] == pytest.approx(OVERHEAD_S["pasta"] + 100 * STEP_S["pasta"])
    assert found["grpo"] == pytest.approx(OVERHEAD_S["grpo"] + 250 * STEP_S["grpo"])
    # base, QA SFT, cold start, final, and final with swapped images
    assert found["evaluation"] == pytest.approx(OVERHEAD_S["evaluation"] + 5 * 300 * ANSWER_S)


def test_steps_count_by_their_batch_and_without_a_bound_by_the_data():
    found = work(demo_config("pasta.batch_size=32", "grpo.group_size=4"))
    assert found["pasta"] == pytest.approx(OVERHEAD_S["pasta"] + 100 * 2 * STEP_S["pasta"])
    assert found["grpo"] == pytest.approx(OVERHEAD_S["grpo"] + 250 / 2 * STEP_S["grpo"])
    unbound = work(demo_config("pasta.max_steps=0", "pasta.epochs=2", "eval.samples=1000"))
    assert unbound["pasta"] == pytest.approx(OVERHEAD_S["pasta"] + 2 * 6000 / 16 * STEP_S["pasta"])
    assert unbound["evaluation"] == work(demo_config())["evaluation"], "there are 300 held-out samples"


def test_stages_that_are_done_or_not_asked_for_cost_nothing():
    assert list(work(demo_config(), ["pasta", "qa_sft"])) == ["start", "cold_start", "grpo", "evaluation", "service"]
    assert list(work(demo_config("stages=[grpo]"))) == ["start", "grpo", "evaluation", "service"]


def test_what_is_left_follows_what_the_ended_parts_took():
    left = Forecast({"start": 10.0, "pasta": 50.0, "grpo": 400.0, "service": 40.0})
    assert (left.total, left.remaining) == (500, 500)
    left.ended("start", 99.0)
    assert (left.pace, left.remaining) == (1.0, 490), "rooms and processes say nothing of training"
    left.ended("pasta", 75.0)
    assert (left.pace, left.remaining) == (1.5, 660)
    left.ended("grpo", 375.0)
    assert (left.pace, left.remaining) == (1.0, 40)
    left.ended("service", 40.0)
    assert left.remaining == 0
    with pytest.raises(AssertionError, match="grpo"):
        left.ended("grpo", 1.0)


def test_parts_that_never_ended_are_dropped_with_the_next_one():
    left = Forecast({"start": 10.0, "pasta": 50.0, "evaluation": 100.0, "service": 40.0})
    left.ended("evaluation", 200.0)
    assert (left.left, left.remaining) == ({"service": 40.0}, 80)


def test_the_first_step_is_given_the_median():
    assert step_seconds([]) == step_seconds([7.0]) == 0
    assert step_seconds([100.0, 101.0, 102.0, 110.0]) == 10 + 1


def test_where_the_seconds_went():
    rows = [{"stage": "pasta", "time": when} for when in (10.0, 102.0, 104.0)]
    rows += [{"stage": "grpo", "time": 120.0 + 3 * step} for step in range(5)]
    found = breakdown(rows, since=100.0, answering=20.0, total=60.0)
    assert found["training"] == {"pasta": 4.0, "grpo": 15.0} and found["steps"] == {"pasta": 2, "grpo": 5}
    assert found["everything_else"] == 60 - 19 - 20


def test_minutes_are_no_finer_than_a_forecast_is():
    assert [minutes(seconds) for seconds in (3, 41, 94, 100, 1417)] == ["10 s", "50 s", "100 s", "2 min", "24 min"]


def test_the_probe_is_short_and_leaves_torch_as_it_was():
    import torch

    threads, began = torch.get_num_threads(), time.monotonic()
    assert forecast.probe(0.2) > 0
    assert time.monotonic() - began < 20
    assert torch.get_num_threads() == threads


def test_the_demo_says_what_is_to_come_what_is_left_and_where_it_went(tmp_path):
    run, console = RunFolder(tmp_path / "run"), Console(width=200, record=True)
    began = time.time() - 30
    clock = Timekeeper(demo_config(f"run_dir={run.path}", "stages=[pasta]"), console, began, passes=PASSES_PER_S / 2)
    clock.foretell()
    for end in (10.0, 12.0, 14.0):
        run.log("pasta", 1, {"loss": 1.0})
        text = run.metrics_path.read_text().splitlines()
        text[-1] = json.dumps(json.loads(text[-1]) | {"time": began + end})
        run.metrics_path.write_text("\n".join(text) + "\n")
    clock.told("pasta", 20.0)
    clock.told(ANSWERED, 5.0)
    clock.told(ANSWERED, 6.0)
    clock.end("evaluation")
    clock.end("service")
    clock.finish(memory_gib=3.25)
    text = console.export_text()
    # Half as fast: twice the seconds of PaStA's 100 steps, of base and swapped on 300 questions, and of the overheads.
    overhead = sum(OVERHEAD_S[part] for part in ("start", "pasta", "evaluation", "service"))
    total = 2 * (overhead + 100 * STEP_S["pasta"] + 2 * 300 * ANSWER_S)
    assert f"About {minutes(total)} on this machine: start {minutes(2 * OVERHEAD_S['start'])}, pasta " in text
    assert "0.50 times as fast as AMD EPYC" in text and "of memory" in text and "of disk" in text
    assert text.count(" left (") == 2 and "3.2 GiB of memory at most" in text
    kept = json.loads(run.timing_path.read_text())
    assert kept["training"] == {"pasta": 6.0} and kept["answering"] == 11.0
    assert kept["parts"]["start"] == pytest.approx(10, abs=1) and kept["parts"]["pasta"] == pytest.approx(20, abs=1)
    assert kept["everything_else"] == pytest.approx(kept["seconds"] - 17, abs=0.11)
    assert kept["foretold"] == pytest.approx(total, abs=0.1) and kept["memory_gib"] == 3.25
    assert 0 <= kept["disk_gib"] < 0.01
