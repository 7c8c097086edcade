"""Status and commands as files; spans as a trace."""

import json
import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from actors.runtime.actor_pool import Work
from actors.runtime.spans import KEPT_STEPS, MANY, Span, Spans
from actors.stages.recipe import open_run
from hatch_ray.config import ConfigError, make_config, save_config
from hatch_ray.control import (
    NotLiveError,
    answer,
    ask,
    clear,
    not_live,
    parse_scale,
    read_status,
    take,
    whoami,
    words_of,
)
from hatch_ray.report.status import status_text
from hatch_ray.report.trace import trace_events, write_trace
from hatch_ray.run_folder import RunFolder, read_jsonl, write_atomic
from tests.support.runs import hatch_here


def beat(run, **changes):
    status = {"state": "running", "time": time.time(), "beat": 1, "stage": "grpo", "step": 2, "steps": 8}
    write_atomic(run.status_path, json.dumps(status | whoami() | {"eta_seconds": 75.0} | changes))
    return read_status(run)


def test_a_run_has_one_driver(tmp_path):
    """A second `hatch train` of the folder is refused while the first one lives, and goes on when it does not."""
    run, config = RunFolder(tmp_path / "run"), make_config({"run_dir": str(tmp_path / "run")})
    run.path.mkdir()
    save_config(config, run.config_path)
    beat(run)
    with pytest.raises(ConfigError, match=f"is being trained by process {os.getpid()} on "):
        open_run(config)
    beat(run, pid=dead_process())
    assert open_run(config).path == run.path
    beat(run, state="was stopped")
    assert open_run(config).path == run.path


def dead_process():
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    return process.pid


def test_who_drives_a_run_is_found_out(tmp_path, monkeypatch):
    run = RunFolder(tmp_path)
    assert "no run was ever started" in not_live(run, read_status(run))
    assert not_live(run, beat(run)) is None
    assert "it ended" in not_live(run, beat(run, state="ended"))
    assert "it failed: no memory" in not_live(run, beat(run, state="failed: no memory"))
    assert "its driver is gone" in not_live(run, beat(run, pid=dead_process()))
    assert "its driver is gone" in not_live(run, beat(run, created=1.0)), "another process has its pid"
    monkeypatch.setattr("hatch_ray.control.WATCH_SECONDS", 0.5)
    found = not_live(run, beat(run, time=time.time() - 60, host="elsewhere"))
    assert "does not write" in found and "elsewhere, last heard of 1 min" in found


def test_a_driver_whose_clock_is_behind_is_alive(tmp_path):
    """What counts is whether its file changes."""
    run = RunFolder(tmp_path)
    old = beat(run, time=time.time() - 3600, host="elsewhere")
    later = threading.Timer(0.5, lambda: beat(run, time=time.time() - 3599, host="elsewhere", beat=2))
    later.start()
    assert not_live(run, old) is None
    later.join()


def test_requests_are_taken_in_order_and_answered(tmp_path):
    run = RunFolder(tmp_path)
    beat(run)
    found = []
    callers = [
        threading.Thread(target=lambda n=n: found.append((n, ask(run, {"scale": {"reward": n}}, 30)))) for n in (1, 2)
    ]
    for caller in callers:
        caller.start()
        time.sleep(0.1)
    taken = []
    while len(taken) < 2:
        taken += take(run)
    for path, request in taken:
        answer(path, True, [f"{request['scale']['reward']} it is"])
    for caller in callers:
        caller.join()
    assert [request["scale"]["reward"] for _, request in taken] == [1, 2]
    assert sorted(found) == [(n, {"ok": True, "lines": [f"{n} it is"]}) for n in (1, 2)]
    assert not list(run.control.iterdir())


def test_a_request_that_nobody_takes_is_withdrawn(tmp_path, monkeypatch):
    run = RunFolder(tmp_path)
    beat(run)
    monkeypatch.setattr("hatch_ray.control.TAKE_SECONDS", 0.5)
    with pytest.raises(NotLiveError, match="does not take up"):
        ask(run, {"scale": {"reward": 1}}, 10)
    assert not list(run.control.iterdir()) and take(run) == []
    write_atomic(run.control / "1.json", "{}")
    clear(run)
    assert take(run) == []


@pytest.mark.parametrize("words", ["reward", "verifier=1", "reward=0", "reward=-1", "rollout=auto", "reward=1.5"])
def test_what_is_no_number_of_a_role_is_refused(words):
    with pytest.raises(ValueError, match=f"'{words}'.*(role reward or rollout|whole number from 1)"):
        parse_scale([words])


def test_roles_and_numbers_are_read():
    assert parse_scale(["reward=16", "rollout=4"]) == {"reward": 16, "rollout": 4}
    assert parse_scale(["reward=auto"]) == {"reward": None}
    assert [words_of(s) for s in (3, 75, 3600, 3725)] == ["3 s", "1 min 15 s", "1 h 0 s", "1 h 2 min"]


ROLES = [
    {"role": "rollout", "alive": 2, "wanted": 4, "starting": 2, "replaced": 0, "nodes": {"a": 1, "b": 1},
     "trouble": "no memory"},
    {"role": "learner", "alive": 1, "wanted": 1, "nodes": {"c": 1}},
]  # fmt: skip


def test_the_status_names_roles_nodes_and_waits(tmp_path):
    run = RunFolder(tmp_path)
    status = beat(
        run, roles=ROLES, queue={"rollout": 5}, reward_wait_seconds={"p50": 0.1, "p95": 0.9}, phase="generate",
        engines_version=7, staleness=0.5, tokens_per_s=123.4, set_aside=1,
    )  # fmt: skip
    text = status_text(status, None)
    expected = [
        "live: process", "step 2 of 8, about 1 min 15 s left", "now: generate", "a (1), b (1)", "no memory",
        "version 7",
        "staleness 0.50", "123 tokens/s", "0.1 s (p50), 0.9 s (p95)", "1 samples set aside",
    ]  # fmt: skip
    assert [words for words in expected if words not in text] == [], text
    gone = status_text(status, "the run is not live")
    assert gone.startswith("the run is not live") and "left" not in gone


def test_the_commands_say_when_a_run_is_not_live(tmp_path):
    run = RunFolder(tmp_path / "run")
    save_config(make_config({}), run.config_path)
    beat(run, pid=dead_process(), host=socket.gethostname())
    assert "its driver is gone" in hatch_here("status", str(run.path))
    found = json.loads(hatch_here("status", str(run.path), "--json"))
    assert found["live"] is False and found["step"] == 2
    with pytest.raises(NotLiveError, match="the run is not live: its driver is gone"):
        hatch_here("scale", str(run.path), "reward=4")


# --- spans ------------------------------------------------------------------------------------------------------


class Done:
    """A pool after a call."""

    def __init__(self, work):
        self.work = list(work)


def spans_of(path, steps=2):
    spans = Spans(path, 0)
    for step in range(steps):
        at = 100.0 + 10 * step
        spans.add(step, Span("driver", 0, "prepare", at, at + 1))
        spans.work(
            step,
            "rollout",
            Done([Work(0, at + 1, at + 1, at + 3, (0,)), Work(1, at + 1, at + 2, at + 4, (1,))]),
            [0, 2],
        )
        spans.work(step, "reward", Done([Work(5, at + 4, at + 4.5, at + 5, (0, 1, 2, 3))]), [0, 0, 2, 2])
        spans.add(step, Span("learner", 0, "learn", at + 5, at + 9))
        spans.close(step)
    return spans


def test_a_trace_shows_each_groups_way(tmp_path):
    run = RunFolder(tmp_path)
    spans_of(run.spans)
    assert "2 steps" in write_trace(run, None, 50)
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    slices = [e for e in events if e["ph"] == "X" and e["args"]["step"] == 0]
    assert [(e["name"], e["pid"], e["tid"], e["ts"], e["dur"]) for e in slices if e["cat"] != "queue"] == [
        ("prepare", 1, 0, 0, 1_000_000), ("generate", 2, 0, 1_000_000, 2_000_000),
        ("generate", 2, 1, 2_000_000, 2_000_000), ("reward", 3, 5, 4_500_000, 500_000),
        ("learn", 4, 0, 5_000_000, 4_000_000),
    ]  # fmt: skip
    assert [(e["pid"], e["dur"]) for e in slices if e["cat"] == "queue"] == [(2, 1_000_000), (3, 500_000)]
    way = [(e["ph"], e["pid"], e["tid"]) for e in events if e.get("id") == "0.2"]
    assert way == [("s", 2, 1), ("t", 3, 5), ("f", 4, 0)], "group 2: engine 1, reward actor 5, learner"
    named = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert named[2, 1] == "rollout 1" and named[3, 1000] == "waits for reward"
    assert [row["step"] for row in read_jsonl(run.spans)] == [0, 1]
    assert len({e["args"]["step"] for e in trace_events(read_jsonl(run.spans)[-1:]) if e["ph"] == "X"}) == 1


def test_spans_of_steps_that_are_taken_again_are_dropped_and_the_file_is_bounded(tmp_path):
    path = tmp_path / "spans.jsonl"
    spans_of(path, 4)
    again = Spans(path, 2)
    assert [row["step"] for row in read_jsonl(path)] == [0, 1]
    for step in range(2, 2 * KEPT_STEPS + 1):
        again.close(step)
    rows = read_jsonl(path)
    assert len(rows) == KEPT_STEPS and rows[-1]["step"] == 2 * KEPT_STEPS


def test_very_many_jobs_are_one_span_an_actor(tmp_path):
    spans = Spans(tmp_path / "spans.jsonl", 0)
    jobs = [Work(n % 2, 0.0, float(n), n + 1.0, (n,)) for n in range(MANY + 2)]
    spans.work(0, "reward", Done(jobs), [n // 2 for n in range(MANY + 2)])
    spans.close(0)
    (row,) = read_jsonl(tmp_path / "spans.jsonl")
    assert [(span[1], span[3], span[4]) for span in row["spans"]] == [(0, 0, MANY + 1), (1, 1, MANY + 2)]
    assert row["spans"][0][6] == list(range(MANY // 2 + 1))


def test_a_run_without_spans_says_so(tmp_path):
    with pytest.raises(ValueError, match="only the GRPO stage records them"):
        write_trace(RunFolder(tmp_path), None, 5)
