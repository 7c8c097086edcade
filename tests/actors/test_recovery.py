"""Ledger and budget: pure bookkeeping."""

import json
from types import SimpleNamespace

import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st

from actors.experience.batch import Schedule
from actors.experience.ledger import Ledger, group_row
from actors.runtime.actor_set import Loss
from actors.runtime.recovery import Recovery, WorkerDiedError, lost_part
from actors.stages.grpo import GrpoRun
from hatch_ray.config_sections import RecoveryConfig
from hatch_ray.data.store import SampleOrder
from hatch_ray.run_folder import RunFolder, read_jsonl

LOST = Loss("rollout engine", "its process died", 1.5, 4)

SCORES = [
    {"terms": {"answer": 0.0, "action": 0.25, "never_due": None, "total": 1.0}},
    {"terms": {"answer": 1.0, "action": None, "never_due": None, "total": 2.0}},
]
"""Of a group of two replies."""


def test_each_loss_is_one_line_and_one_row_and_the_next_step_counts_them(tmp_path):
    lines = []
    recovery = Recovery(RunFolder(tmp_path), "grpo", RecoveryConfig(), lines.append)
    recovery.actor_lost(LOST)
    recovery.stage_lost("learner worker", "rank 1", 3.0, 8)
    assert len(lines) == 2 and "rollout engine lost (its process died)" in lines[0] and "4 issued again" in lines[0]
    assert [row["what"] for row in read_jsonl(tmp_path / "recoveries.jsonl")] == ["rollout engine", "learner worker"]
    assert recovery.step_done(0) == {"recoveries": 2.0, "seconds_lost": 4.5, "issued_again": 12.0}
    assert recovery.step_done(1) == {}


NODE_GONE = """The actor died unexpectedly before finishing this task.
\tclass_name: Verifier
\tip: 10.0.0.2
The actor died because its node has died. Node Id: 11c4d0"""


@pytest.mark.parametrize(
    ("error", "part"),
    [
        (WorkerDiedError("rank 1"), ("learner worker", "rank 1")),
        (ray.exceptions.RayActorError(error_msg=NODE_GONE), ("Verifier", "its node died")),
        (ray.exceptions.RayActorError(error_msg="gone"), ("actor", "its process died")),
        (ray.exceptions.OutOfMemoryError("Memory on the node was low"), ("actor", "its node ran out of memory")),
        (ray.exceptions.ObjectLostError("a" * 56, None, ""), ("object", "its node died")),
        (ray.exceptions.RayDirectTransportError("no peer"), ("object", "its process died")),
    ],
)
def test_what_was_lost_is_said_in_a_few_words(error, part):
    assert lost_part(error) == part


def test_losses_without_a_new_step_stop_the_run_and_say_what_to_change(tmp_path):
    recovery = Recovery(RunFolder(tmp_path), "grpo", RecoveryConfig(in_a_row=2), lambda line: None)
    for step in range(5):
        recovery.actor_lost(LOST)
        recovery.step_done(step)
    recovery.actor_lost(LOST)
    recovery.step_done(3)  # taken again after a restart: no new ground
    recovery.actor_lost(LOST)
    with pytest.raises(RuntimeError, match=r"3 processes were lost without a finished step.*recovery\.in_a_row"):
        recovery.actor_lost(LOST)


def test_too_many_samples_set_aside_stop_the_run(tmp_path):
    recovery = Recovery(RunFolder(tmp_path), "grpo", RecoveryConfig(aside_share=0.1), lambda line: None)
    recovery.set_aside("a", "killed its engines", 1, 10)
    with pytest.raises(RuntimeError, match=r"2 of 10 samples are set aside.*recovery\.aside_share=0\.1.*b"):
        recovery.set_aside("b", "killed its engines", 2, 10)


def test_a_ledger_goes_back_to_its_checkpoint_and_keeps_what_was_set_aside(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append([group_row(0, place, f"s{place}", 0, SCORES) for place in range(2)])
    ledger.append([group_row(1, 2, "s2", 1, SCORES)])
    assert ledger.set_aside(1, 3, "bad", "killed three engines")
    assert not ledger.set_aside(1, 3, "bad", "again")
    assert ledger.problems(2, 2) == []

    later = Ledger(tmp_path / "ledger.jsonl")
    later.restore(1)
    assert [row["id"] for row in later.rows] == ["s0", "s1", "bad"] and later.aside == {"bad"}
    assert read_jsonl(later.path) == later.rows
    assert later.problems(2, 2) == ["place 2: missing"]
    later.restore(0)
    assert [row["id"] for row in read_jsonl(later.path)] == ["bad"]


def test_a_sample_set_aside_in_a_later_draw_leaves_its_place_to_another_group(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    assert ledger.set_aside(0, 0, "bad", "killed three engines", draw=1)
    assert not ledger.set_aside(0, 1, "bad", "set aside at an earlier step", draw=2)
    ledger.append([group_row(0, 0, "a", 0, SCORES), group_row(0, 1, "flat", 0, SCORES, trained=False)])
    assert ledger.problems(1, 2) == ["place 1: missing"]
    ledger.append([group_row(0, 1, "b", 0, SCORES, draw=1)])
    assert ledger.problems(1, 2) == [] and len(ledger.rows) == 4
    ledger.restore(0)
    assert ledger.set_aside(0, 0, "worse", "killed three engines") and len(ledger.rows) == 2


def test_a_row_has_what_its_group_earned_and_steps_are_told_in_order(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append([group_row(1, 2, "b", 0, SCORES)])
    ledger.set_aside(1, 3, "bad", "killed three engines")
    ledger.append([group_row(0, 0, "a", 0, SCORES)])
    ledger.append([group_row(2, 4, "flat", 2, SCORES, trained=False), group_row(2, 4, "c", 2, SCORES, draw=1)])
    told = Ledger(ledger.path).told()
    assert [[row["id"] for row in rows] for rows in told.values()] == [["a"], ["b"], ["flat", "c"]]
    assert [(row["status"], row.get("draw")) for row in told[2]] == [("redrawn", None), ("trained", 1)]
    assert told[0][0]["terms"] == {"answer": 0.5, "action": 0.25, "never_due": None, "total": 1.5}


def test_problems_name_what_was_trained_twice_or_never(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append([group_row(0, place, "s", 0, SCORES) for place in (0, 1, 1, 9)])
    assert ledger.problems(2, 2) == [
        "place 1: 2 times", "place 2: missing", "place 3: missing", "place 9: beyond the last step"
    ]  # fmt: skip


def test_an_error_of_our_own_is_said_as_it_is_and_not_as_want_of_memory(tmp_path):
    recovery = Recovery(RunFolder(tmp_path), "grpo", RecoveryConfig(in_a_row=1), lambda line: None)
    loss = Loss("reward actor", "KeyError: 'move_sideways_m'", 1.0, 1)
    recovery.actor_lost(loss)
    with pytest.raises(RuntimeError, match=r"failed 2 times .*KeyError: 'move_sideways_m'.*not of the machine") as told:
        recovery.actor_lost(loss)
    assert "memory" not in str(told.value)


@given(
    steps=st.integers(1, 12),
    staleness=st.integers(0, 3),
    save_every=st.integers(1, 5),
    seed=st.integers(0, 2**32 - 1),
    death_share=st.floats(0, 0.5),
)
def test_any_deaths_and_delays_leave_each_group_trained_once_and_none_too_old(
    tmp_path_factory, steps, staleness, save_every, seed, death_share
):
    """The scheduling code alone, against a learner that works at its own pace and dies when it likes.

    Deaths go back to the last checkpoint, as `run_grpo` does; rows are written when a step is handed over.
    """
    import random

    chance = random.Random(seed)
    folder = tmp_path_factory.mktemp("run")
    order, per_step, saved, deaths = SampleOrder(5, 2, seed % 100), 2, 0, 0
    while True:
        ledger = Ledger(folder / "ledger.jsonl")
        ledger.restore(saved)
        schedule, learned = Schedule(saved, steps, staleness), saved
        waiting: list[tuple[int, int]] = []  # (step, version) handed over, not yet learned
        died = False
        while not died and learned < steps:
            if deaths < 20 and chance.random() < death_share:
                died, deaths = True, deaths + 1
                break
            may_sample = not schedule.done and learned >= schedule.needed_version
            if may_sample and (not waiting or chance.random() < 0.6):
                version = learned
                step = schedule.start(version)
                if chance.random() < 0.5 and waiting:  # the learner gets on while this step is sampled
                    learned = learn(waiting, learned, staleness)
                assert schedule.admit(step, [version])
                ledger.append([
                    group_row(step, step * per_step + number, index, version, SCORES)
                    for number, index in enumerate(order.indices(step))
                ])  # fmt: skip
                waiting.append((step, version))
            elif waiting:
                learned = learn(waiting, learned, staleness)
        if not died:
            break
        saved = (learned // save_every) * save_every
    assert ledger.problems(steps, per_step) == []
    trained = [row["id"] for row in ledger.rows]
    assert trained == [index for step in range(steps) for index in order.indices(step)]
    assert all(0 <= row["step"] - row["version"] <= staleness for row in ledger.rows)
    assert [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()] == ledger.rows


def learn(waiting, learned, staleness):
    """The learner takes the oldest step that was handed over; what it has learned then."""
    step, version = waiting.pop(0)
    assert step == learned and step - version <= staleness
    return learned + 1


def test_weights_that_are_gone_went_with_the_worker_that_held_them():
    """An engine may notice first that a learner's worker was killed; what is told and counted is the worker."""
    gone = ray.exceptions.ObjectLostError("00" * 28, "", "")
    died, other = WorkerDiedError("rank 0"), ray.exceptions.RayActorError()
    for error, told in ((died, died), (None, gone), (ValueError("elsewhere"), gone)):
        stage = SimpleNamespace(learner=SimpleNamespace(join=lambda timeout: None, error=error))
        assert GrpoRun.cause(stage, gone) is told
        assert GrpoRun.cause(stage, other) is other
