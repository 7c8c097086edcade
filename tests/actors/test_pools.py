"""Pools of real Ray actors whose workers are killed, raise, refuse and hang."""

import os
import signal
import sys
import time
from collections import Counter

import pytest
from ray import cloudpickle

from actors.runtime.actor_pool import TRIES, ActorPool, Failed
from actors.runtime.actor_set import ActorSet
from actors.runtime.deadlines import limits
from tests.support.deaths import kill_and_wait

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the actors' processes cannot import a test module


class Doubler:
    """Doubles numbers. Some kill the process: for ever, or until a file says that they have done so often enough."""

    def __init__(self, folder):
        self.folder = folder
        self.base = 0

    def ready(self):
        return True

    def settle(self, base):
        self.base = base

    def double(self, items):
        results = []
        for item in items:
            if item == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if item == "kill once" and not os.path.exists(f"{self.folder}/once"):
                open(f"{self.folder}/once", "w").close()
                os.kill(os.getpid(), signal.SIGKILL)
            if item == "hang once" and not os.path.exists(f"{self.folder}/hung"):
                open(f"{self.folder}/hung", "w").close()
                time.sleep(60)
            if item == "raise":
                raise KeyError("a bug in the actor")
            if item == "refuse":
                raise ValueError("this input is not for me")
            results.append(self.base + 2 * item if isinstance(item, int) else item)
        return results


@pytest.fixture
def pool(ray_cluster, tmp_path):
    losses = []
    actor = ray_cluster.remote(num_cpus=0.1)(Doubler)
    actors = ActorSet(
        "doubler", lambda: actor.remote(str(tmp_path)),
        lambda fresh: ray_cluster.get(fresh.settle.remote(0), timeout=60), losses.append,
    )  # fmt: skip
    actors.begin(2)
    actors.losses = losses
    yield ActorPool(actors)
    actors.stop()


def double(actor, part):
    return actor.double.remote(part)


def test_results_keep_their_order_and_progress_counts_items(pool):
    seen = []
    found = pool.map(list(range(7)), double, 2, progress=lambda done, total: seen.append((done, total)))
    assert found == [0, 2, 4, 6, 8, 10, 12]
    assert seen[-1] == (7, 7) and [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert pool.map([], double, 2) == [] and pool.actors.losses == []


def test_a_killed_actor_is_replaced_and_settled_and_its_part_issued_again(pool, ray_cluster):
    """The part goes out again whole: a batch is sampled alike whoever samples it."""
    before = set(pool.actors)
    assert pool.map([1, "kill once", 3, 4], double, 2) == [2, "kill once", 6, 8]
    (loss,) = pool.actors.losses
    assert loss.role == "doubler" and loss.items == 2 and loss.seconds > 0
    assert len(set(pool.actors) - before) == 1 and len(pool.actors) == 2


def test_poison_is_given_up_after_three_deaths_and_the_others_come_through(pool):
    found = pool.map([1, 2, "kill", 4, 5, 6], double, 3)
    assert found[:2] + found[3:] == [2, 4, 8, 10, 12]
    assert isinstance(found[2], Failed) and found[2].reason
    assert len(pool.actors.losses) == TRIES
    assert Counter(loss.items for loss in pool.actors.losses) == Counter({3: 2, 0: 1})
    assert pool.map([7], double, 1) == [14]


def test_an_exception_is_tried_again_and_a_refusal_is_not(pool):
    found = pool.map([1, "raise", "refuse", 4], double, 1)
    assert [found[0], found[3]] == [2, 8]
    assert "a bug in the actor" in found[1].reason and "not for me" in found[2].reason
    assert len(pool.actors.losses) == TRIES


def test_refusal_of_one_does_not_fail_its_neighbours(pool):
    found = pool.map([1, "refuse", 3], double, 3)
    assert (found[0], found[2]) == (2, 6) and isinstance(found[1], Failed)
    assert pool.actors.losses == []


def test_a_hanging_actor_is_replaced(pool, monkeypatch):
    monkeypatch.setattr(limits, "call", 4.0)
    assert pool.map(["hang once", 2], double, 1) == ["hang once", 4]
    assert "no answer in 4 s" in pool.actors.losses[0].reason


def test_all_actors_dead_at_once(pool, ray_cluster):
    pids = [ray_cluster.get(actor.__ray_call__.remote(lambda _: os.getpid())) for actor in pool.actors]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    assert pool.map([1, 2, 3, 4], double, 1) == [2, 4, 6, 8]
    assert pool.actors.replaced == 2 and 1 <= len(pool.actors.losses) <= 2


def test_a_node_full_of_idle_actors_costs_no_item_and_is_one_loss(pool, ray_cluster):
    """A machine is taken back between two batches: its dead must not be handed one job after the other."""
    pool.actors.target = 9
    end = time.monotonic() + 60
    while len(pool.actors.places) < 9:
        pool.actors.tend()
        assert time.monotonic() < end
        time.sleep(0.1)
    for place in list(pool.actors.places.values())[:8]:
        os.kill(place.pid, signal.SIGKILL)
    items = list(range(32))
    assert pool.map(items, double, 16) == [2 * item for item in items]
    assert pool.actors.replaced == 8 and len(pool.actors.losses) == 1
    assert "7 more with it" in pool.actors.losses[0].reason


def test_a_call_on_all_replaces_the_dead(pool):
    kill_and_wait(pool.actors[0], pool.actors[0].ready.remote)
    assert pool.call_all(lambda actor: actor.ready.remote(), "a call") == [True]
    assert pool.call_all(lambda actor: actor.ready.remote(), "a call") == [True, True]


def test_the_run_can_stop_at_a_loss(pool):
    def stop(loss):
        raise RuntimeError("enough")

    pool.actors.on_loss = stop
    with pytest.raises(RuntimeError, match="enough"):
        pool.map(["kill", 1], double, 1)
