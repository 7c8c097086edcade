"""Pools that grow and shrink while they work: the rule, random sizes and deaths, commands from outside."""

import json
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from contextlib import suppress

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ray import cloudpickle
from safetensors.torch import load_file

from actors.reward.scaling import CALM, LARGEST_PART, QueueRule
from actors.reward.verifier import RewardActors, Verifier
from actors.runtime.actor_pool import ActorPool
from actors.runtime.actor_set import ActorSet
from actors.runtime.placement import Need
from actors.runtime.status import LOOK_SECONDS, Live, Role, Shown
from actors.runtime.stopping import StopAsked
from actors.stages.grpo import run_grpo
from hatch_ray.config import make_config
from hatch_ray.config_sections import DeadlinesConfig
from hatch_ray.control import answer, ask, not_live, read_status
from hatch_ray.protocol.prompt import gold_reply
from hatch_ray.report.trace import write_trace
from hatch_ray.rewards.terms import RewardTarget
from hatch_ray.run_folder import RunFolder, read_jsonl, write_atomic
from hatch_ray.sample import PairPlan, Sample, View
from hatch_ray.systems.hatch.system import Hatch
from tests.support.pictures import photo
from tests.support.runs import TIMES

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the actors' processes cannot import a test module


# --- the rule ---------------------------------------------------------------------------------------------------


def test_the_queue_calls_for_as_many_as_its_work_needs():
    rule = QueueRule(1, 16, 2.0)
    assert rule.wanted(64, 1) == 1, "nothing is known yet"
    rule.measured(4, 1.0)  # 0.25 s an item: 64 of them are 16 s of work, 2 s for each of 8
    assert rule.wanted(64, 1) == 8
    assert rule.wanted(8, 8) == 8, "the end of a batch ends nobody"
    assert rule.wanted(640, 8) == 16


def test_a_call_that_already_takes_longer_counts_before_it_ends():
    rule = QueueRule(1, 16, 2.0)
    rule.measured(10, 0.01)
    assert rule.wanted(32, 1, [(0.005, 16)]) == 1
    assert rule.wanted(32, 1, [(4.0, 16)]) == 4


def test_fewer_only_after_calm_batches_in_a_row():
    rule = QueueRule(1, 16, 1.0)
    rule.measured(1, 1.0)
    actors = rule.wanted(8, 1)
    assert rule.batch_done(actors) == 8
    for _ in range(CALM - 1):
        rule.wanted(2, actors)
        assert rule.batch_done(actors) == 8
    rule.wanted(2, actors)
    assert rule.batch_done(actors) == 2


@given(
    least=st.integers(1, 8), more=st.integers(0, 40), queue=st.floats(0.1, 100),
    batches=st.lists(st.tuples(st.integers(0, 500), st.floats(1e-5, 50)), max_size=30),
)  # fmt: skip
def test_the_number_keeps_to_its_bounds_and_parts_are_sane(least, more, queue, batches):
    rule = QueueRule(least, least + more, queue)
    actors = least
    for waiting, seconds in batches:
        assert 1 <= rule.part(waiting) <= LARGEST_PART
        wanted = rule.wanted(waiting, actors)
        assert actors <= wanted <= least + more
        rule.measured(max(1, waiting), seconds)
        actors = rule.batch_done(wanted)
        assert least <= actors <= wanted


# --- pools at work ----------------------------------------------------------------------------------------------


class Scorer:
    """Slow enough that sizes change under it. Notes what it was asked, one file a process."""

    def __init__(self, folder):
        self.folder = folder
        if os.path.exists(f"{folder}/no more"):
            raise ValueError("no more of us can start")

    def score(self, items):
        with open(f"{self.folder}/{os.getpid()}.asked", "a") as file:
            file.writelines(f"{item}\n" for item in items)
        time.sleep(0.01 * len(items))
        return [item * item for item in items]


def score(actor, part):
    return actor.score.remote(part)


def asked(folder):
    """How often each item was asked."""
    return Counter(int(line) for path in folder.glob("*.asked") for line in path.read_text().splitlines())


@pytest.fixture
def scorers(ray_cluster, tmp_path):
    losses = []
    actor = ray_cluster.remote(num_cpus=0.01)(Scorer)
    actors = ActorSet("scorer", lambda: actor.remote(str(tmp_path)), on_loss=losses.append)
    actors.begin(2)
    yield ActorPool(actors), losses
    actors.stop()


def settled(actors, seconds=120):
    end = time.monotonic() + seconds
    while len(actors) != actors.target or actors.starting:
        assert time.monotonic() < end, f"{len(actors)} of {actors.target}"
        actors.tend()
        time.sleep(0.05)


@pytest.mark.rest
def test_random_sizes_lose_and_repeat_nothing(scorers, tmp_path):
    """Another number of actors as soon as the last one is reached, from another thread, as `hatch scale` sets it."""
    pool, losses = scorers
    chance, stop = random.Random(5), threading.Event()

    def disturb():
        while not stop.wait(chance.uniform(0.02, 0.2)):
            if len(pool.actors) == pool.actors.target or chance.random() < 0.02:
                pool.actors.target = chance.randint(1, 5)

    thread = threading.Thread(target=disturb)
    thread.start()
    sizes, first, end = set(), 0, time.monotonic() + 120
    while len(sizes) < 4 and time.monotonic() < end:
        items = list(range(first, first + chance.randint(20, 80)))
        first = items[-1] + 1
        found = pool.map(items, score, chance.randint(1, 4), progress=lambda *_: sizes.add(len(pool.actors)))
        assert found == [item * item for item in items]
    stop.set()
    thread.join()
    assert losses == [] and len(sizes) >= 4
    assert asked(tmp_path) == Counter(range(first)), "an item was asked twice, or never"
    done = [place for work in pool.work for place in work.places]
    assert len(done) == first


@pytest.mark.rest
def test_random_sizes_and_deaths_give_the_same_results(scorers, tmp_path):
    pool, losses = scorers
    chance = random.Random(7)
    for _ in range(3):
        items = list(range(60))
        deaths = [2]

        def disturb(done, total, deaths=deaths):
            pool.actors.target = chance.randint(1, 4)
            if deaths[0] and chance.random() < 0.2 and pool.actors.places:
                deaths[0] -= 1
                with suppress(ProcessLookupError):  # dead already, and not yet noticed
                    os.kill(chance.choice(list(pool.actors.places.values())).pid, signal.SIGKILL)

        found = pool.map(items, score, chance.randint(1, 4), progress=disturb)
        assert found == [item * item for item in items]
    assert losses and pool.actors.replaced == len(losses)
    settled(pool.actors)


def test_more_that_do_not_start_leave_the_pool_as_it_was(scorers, tmp_path):
    pool, losses = scorers
    assert pool.map([1, 2], score, 1) == [1, 4]
    settled(pool.actors)
    (tmp_path / "no more").touch()
    pool.actors.target = 4
    settled(pool.actors)
    assert pool.actors.target == 2 and "no more of us can start" in pool.actors.trouble
    assert pool.map([3, 4], score, 1) == [9, 16] and losses == []


class SlowVerifier(Verifier):
    """Every reply costs 50 ms more."""

    def score_many(self, jobs):
        time.sleep(0.05 * len(jobs))
        return super().score_many(jobs)


def jobs_of(count):
    plan = PairPlan(0, 1, (("turn_right_deg", 30.0), ("move_forward_m", 1.0)))
    views = (View("a.png"), View("b.png"))
    sample = Sample("s", "room", "depth", "number", "How deep is it?", "2.5", views, (), (plan,))
    target = RewardTarget.from_sample(sample)
    return [(gold_reply(sample, "actions") if place % 3 else f"no {place}", target) for place in range(count)]


def test_reward_actors_come_by_queue_and_score_as_one_alone(ray_cluster):
    reward = {"reward_actors": {"actors": 1, "cpus": 0.1, "max": 4, "queue_seconds": 0.5}}
    config = make_config(reward)
    jobs = jobs_of(48)
    expected = Verifier(config).score_many(jobs)
    rewards = RewardActors(
        config, verifier=SlowVerifier, room=lambda more: max(0, 3 - len(actors) - len(actors.starting))
    )
    actors = rewards.pool.actors
    assert rewards.score(jobs) == expected
    assert rewards.score(jobs) == expected
    assert actors.target == 3, "48 x 50 ms call for 4, and the cluster has room for two more"
    assert len(rewards.waits) == 96
    settled(rewards.pool.actors)
    actors.fix(1)
    for _ in range(2):
        assert rewards.score(jobs[:8]) == expected[:8]
    settled(rewards.pool.actors)
    assert actors.target == len(actors) == 1, "a number given by hand stays"
    actors.fix(None)
    rewards.score(jobs)
    assert actors.target > 1
    rewards.stop()


# --- from outside -----------------------------------------------------------------------------------------------


@pytest.fixture
def live(ray_cluster, tmp_path):
    """A driver that waits, as between steps: (run, the reward actors, its window)."""
    run = RunFolder(tmp_path)
    config = make_config({"reward_actors": {"actors": 1, "cpus": 0.1}})
    rewards = RewardActors(config)
    stop = threading.Event()

    def tend():
        while not stop.wait(0.1):
            rewards.pool.actors.tend()

    driver = threading.Thread(target=tend)
    with Live(run, [stage.name for stage in Hatch.stages], DeadlinesConfig(start_seconds=60)) as window:
        window.at("grpo", 3, 10)
        role = Role(rewards.pool.actors, Need("reward_actors", 1, {"CPU": 0.1}))
        window.show(Shown(lambda: {"phase": "reward", "queue": {"reward": rewards.pool.waiting}}, {"reward": role}))
        driver.start()
        yield run, rewards.pool.actors, window
        stop.set()
        driver.join()
        window.show(None)
    rewards.stop()


def test_a_live_run_is_scaled_from_outside(live):
    run, actors, window = live
    found = ask(run, {"scale": {"reward": 3}}, 60)
    assert found["ok"] and found["lines"] == ["reward: 1 -> 3, on 1 node"]
    assert len(actors) == 3 and window.by_hand == {"reward": 3}
    found = ask(run, {"scale": {"reward": 1}}, 60)
    assert found["ok"] and found["lines"] == ["reward: 3 -> 1, on 1 node"]
    found = ask(run, {"scale": {"reward": 500}}, 60)
    assert not found["ok"] and "499 more with {CPU 0.1} each are needed" in found["lines"][0], found
    assert "Nothing was changed" in found["lines"][0] and actors.target == 1
    assert not list(run.control.iterdir())
    status = read_status(run)
    assert status["step"] == 3 and status["phase"] == "reward" and not_live(run, status) is None


def test_before_the_stage_a_number_is_kept_for_it(ray_cluster, tmp_path):
    run = RunFolder(tmp_path)
    with Live(run, [stage.name for stage in Hatch.stages], DeadlinesConfig()) as window:
        window.at("pasta", 1, 2)
        found = ask(run, {"scale": {"reward": 3, "rollout": 2}}, 30)
        assert found["ok"] and "the run is at pasta: GRPO will start with reward=3, rollout=2" in found["lines"][0]
        assert window.by_hand == {"reward": 3, "rollout": 2}
    assert read_status(run)["state"] == "ended"


def test_what_was_asked_before_the_stage_can_be_taken_back(ray_cluster, tmp_path):
    run = RunFolder(tmp_path)
    with Live(run, [stage.name for stage in Hatch.stages], DeadlinesConfig()) as window:
        ask(run, {"scale": {"reward": 3}}, 30)
        assert ask(run, {"scale": {"reward": None}}, 30)["ok"] and window.by_hand == {}


def test_nothing_is_promised_where_no_grpo_is_to_come(ray_cluster, tmp_path):
    run = RunFolder(tmp_path)
    with Live(run, ["pasta", "cold_start"], DeadlinesConfig()) as window:
        found = ask(run, {"scale": {"reward": 3}}, 30)
        assert not found["ok"] and "no GRPO is to come" in found["lines"][0] and window.by_hand == {}
    run.set_progress("grpo", step=2, done=True)
    with Live(run, [stage.name for stage in Hatch.stages], DeadlinesConfig()):
        assert not ask(run, {"scale": {"reward": 3}}, 30)["ok"]


def test_a_command_that_cannot_be_followed_is_answered(live, monkeypatch):
    run = live[0]
    monkeypatch.setattr("actors.runtime.status.free", lambda: 1 / 0)
    found = ask(run, {"scale": {"reward": 2}}, 30)
    assert not found["ok"] and "ZeroDivisionError" in found["lines"][0]
    assert ask(run, {"scale": {"reward": 1}}, 30)["ok"]


def watched(monkeypatch, before=lambda number: None):
    """Paths of all answers that are given; before(number) happens first, and may raise."""
    answered = []

    def told(path, ok, lines):
        before(len(answered))
        answered.append(path)
        answer(path, ok, lines)

    monkeypatch.setattr("actors.runtime.status.answer", told)
    return answered


def test_an_order_that_comes_true_as_its_stage_ends_is_answered_once(live, monkeypatch):
    run, _, window = live
    comes_true, stage_ended = threading.Event(), threading.Event()

    def hold(number):
        if threading.current_thread().name == "hatch-live":
            comes_true.set()
            stage_ended.wait(1)

    answered = watched(monkeypatch, hold)
    caller = threading.Thread(target=ask, args=(run, {"scale": {"reward": 2}}, 60))
    caller.start()
    assert comes_true.wait(60)
    window.show(None)
    stage_ended.set()
    caller.join()
    assert len(answered) == 1


def test_an_answer_that_cannot_be_written_repeats_no_other(live, monkeypatch):
    """Two orders in one round; the disk is full when the second one is answered."""
    run, full = live[0], [1]

    def write(number):
        if number == 1 and full:
            full.pop()
            raise OSError("no space left on device")

    answered = watched(monkeypatch, write)
    for name in ("1", "2"):
        write_atomic(run.control / f"{name}.json", json.dumps({"scale": {"reward": 1}}))
    end = time.monotonic() + 30
    while len(answered) < 2:
        assert time.monotonic() < end, answered
        time.sleep(0.1)
    time.sleep(2 * LOOK_SECONDS)
    assert [path.name for path in answered] == ["1.answer", "2.answer"]


def test_the_pace_counts_from_the_first_step_of_this_start(tmp_path):
    """A stage that goes on at step 50 has not done 50 steps in a second."""
    window = Live(RunFolder(tmp_path), [stage.name for stage in Hatch.stages], DeadlinesConfig())
    window.at("grpo", 0, 0)
    window.at("grpo", 51, 100)
    assert window._eta() is None
    time.sleep(0.05)
    window.at("grpo", 52, 100)
    assert window._eta() >= 48 * 0.05 - 0.1
    window.at("grpo", 40, 100)  # back to a checkpoint
    assert window._eta() is None


def test_a_run_that_was_stopped_has_not_failed(ray_cluster, tmp_path):
    run = RunFolder(tmp_path)
    with pytest.raises(StopAsked), Live(run, [stage.name for stage in Hatch.stages], DeadlinesConfig()):
        raise StopAsked
    assert read_status(run)["state"] == "was stopped"


def test_how_a_run_ended_is_written(ray_cluster, tmp_path):
    run = RunFolder(tmp_path)
    with pytest.raises(RuntimeError), Live(run, [stage.name for stage in Hatch.stages], DeadlinesConfig()):
        raise RuntimeError("no more\nmemory")
    assert json.loads(run.status_path.read_text())["state"] == "failed: no more memory"


# --- a whole stage ----------------------------------------------------------------------------------------------


def rooms(folder):
    made = []
    for index in range(4):
        views = []
        for view in range(2):
            path = folder / f"{index}-{view}.png"
            photo(2 * index + view).save(path)
            views.append(View(path))
        plan = PairPlan(0, 1, (("turn_right_deg", 30.0), ("move_forward_m", 1.0 + index)))
        made.append(Sample(f"s{index}", "room", "depth", "number", "How deep is it?", "2.5", tuple(views), (), (plan,)))
    return made


@pytest.mark.rest
def test_a_stage_that_is_scaled_is_the_same_to_the_last_bit(ray_cluster, taught_model, tmp_path):
    """More engines and reward actors, then fewer, by commands from outside, between the steps of a real GRPO stage."""
    tree = {
        "model": {"base": str(taught_model), "template": "compact-v1", "max_pixels": 112 * 112, "max_length": 512},
        "grpo": {"group_size": 4, "prompts_per_step": 2, "max_new_tokens": 16, "lr": 1e-3, "max_steps": 5, "epochs": 9},
        "rollout": {"cpus": 0.5, "kv_cache_mb": 64, "prompts_per_call": 1},
        "learner": {"cpus": 0.5},
    }
    config, samples = make_config(tree), rooms(tmp_path)
    plain, scaled = RunFolder(tmp_path / "plain"), RunFolder(tmp_path / "scaled")
    orders = {1: {"reward": 3, "rollout": 2}, 3: {"reward": 1, "rollout": 1}}
    answers, statuses = [], []
    run_grpo(config, plain, taught_model, samples, lambda *_: None)

    with Live(scaled, [stage.name for stage in Hatch.stages], DeadlinesConfig(start_seconds=120)) as window:

        def report(done, total):
            if done in orders:
                caller = threading.Thread(target=lambda: answers.append(ask(scaled, {"scale": orders[done]}, 120)))
                caller.start()
                while caller.is_alive():  # the driver waits, as it does for its learner
                    for role in window._shown.roles.values():
                        role.actors.tend()
                    time.sleep(0.1)
                window.write()
                statuses.append(read_status(scaled))

        run_grpo(config, scaled, taught_model, samples, report, window)

    assert [answer["ok"] for answer in answers] == [True, True], answers
    assert answers[0]["lines"] == ["reward: 1 -> 3, on 1 node", "rollout: 1 -> 2, on 1 node"]
    alive = [{role["role"]: role["alive"] for role in status["roles"]} for status in statuses]
    assert alive == [{"rollout": 2, "reward": 3, "learner": 1}, {"rollout": 1, "reward": 1, "learner": 1}]
    spans = {row["step"]: row["spans"] for row in read_jsonl(scaled.spans)}
    engines = [{span[1] for span in spans[step] if span[:1] == ["rollout"]} for step in range(5)]
    assert engines[0] == {0} and {0, 1} in engines[1:4] and len(engines[4]) == 1
    assert not (scaled.path / "recoveries.jsonl").exists()

    for name in ("ledger.jsonl", "samples/grpo.jsonl"):
        assert read_jsonl(plain.path / name) == read_jsonl(scaled.path / name), name
    metrics = [
        [{k: v for k, v in row.items() if not k.startswith(TIMES)} for row in read_jsonl(run.metrics_path)]
        for run in (plain, scaled)
    ]
    assert metrics[0] == metrics[1] and any(row["grad_norm"] > 0 for row in metrics[0])
    models = [load_file(run.stage_model("grpo") / "model.safetensors") for run in (plain, scaled)]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
    assert "5 steps" in write_trace(scaled, None, 50)
