"""Where roles go: arithmetic over nodes, and four real Ray nodes on this machine."""

import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.runtime.placement import Need, placed, shortage, stage_needs
from hatch_ray.config import ConfigError, make_config

LEARNER = {"CPU": 16.0, "GPU": 1.0, "learner": 1.0, "memory": 1e9, "node:10.0.0.1": 1.0}
ROLLOUT = {"CPU": 16.0, "GPU": 1.0, "rollout": 1.0}
REWARD = {"CPU": 8.0, "reward": 1000.0}
CLUSTER = {
    "learner": {"workers": 2, "cpus": 4, "gpus": 1, "resources": {"learner": 1}},
    "rollout": {"actors": 2, "cpus": 4, "gpus": 1, "resources": {"rollout": 1}},
    "reward_actors": {"actors": 4, "cpus": 1, "resources": {"reward": 1}},
}


def needs(**sections):
    tree = {name: CLUSTER[name] | sections.get(name, {}) for name in CLUSTER}
    return stage_needs(make_config(tree | {"grpo": {"prompts_per_step": 4}}), "grpo")


def test_what_fits_is_not_refused():
    assert shortage(needs(), [LEARNER, LEARNER, ROLLOUT, ROLLOUT, REWARD]) is None
    assert shortage(stage_needs(make_config({}), "pasta"), [{"CPU": 1.0}]) is None


@pytest.mark.parametrize(
    ("nodes", "sections", "words"),
    [
        ([LEARNER, LEARNER, ROLLOUT, REWARD], {}, [
            "rollout: 2 x {CPU 4, GPU 1, rollout 1} are needed, 1 find a place",
            "needs 4 GPU (learner 2 + rollout 2) and the cluster has 3", "lower rollout.actors or rollout.gpus",
            "The cluster has 2 x {CPU 16, GPU 1, learner 1}, 1 x {CPU 16, GPU 1, rollout 1}",
        ]),
        ([LEARNER, LEARNER, ROLLOUT, ROLLOUT], {}, [
            "reward_actors: 4 x {CPU 1, reward 1} are needed, 0 find a place, because no node has reward",
        ]),
        ([LEARNER, LEARNER, ROLLOUT, ROLLOUT, REWARD], {"rollout": {"cpus": 20}}, [
            "rollout", "no node has more than 16 CPU: lower rollout.cpus",
        ]),
        ([LEARNER, LEARNER, ROLLOUT, ROLLOUT, REWARD], {"learner": {"together": "STRICT_PACK"}}, [
            "learner: 2 x", "no node has 8 CPU" if LEARNER["CPU"] < 8 else "no node has 2 GPU for all of them",
            "learner.together=PACK",
        ]),
        ([], {}, ["The cluster has no nodes"]),
    ],
)  # fmt: skip
def test_a_shortage_says_who_lacks_what_and_what_to_change(nodes, sections, words):
    found = shortage(needs(**sections), nodes)
    for word in words:
        assert word in found


def test_shares_must_fit_on_one_node():
    """0.6 of a CPU twice is 1.2 of 1.4 in sum, and does not fit into two nodes of 0.7 beside 0.2."""
    roles = [Need("learner", 2, {"CPU": 0.6}), Need("rollout", 1, {"CPU": 0.2})]
    assert "enough in sum" in shortage(roles, [{"CPU": 0.7}, {"CPU": 0.7}])
    assert shortage(roles, [{"CPU": 0.8}, {"CPU": 0.7}]) is None


def test_reward_actors_leave_the_gpu_nodes_to_those_who_need_them():
    """Whatever the order of nodes: reward actors that may go anywhere do not take the CPU of the only GPU."""
    gpu, plain = {"CPU": 1.0, "GPU": 1.0}, {"CPU": 1.0}
    roles = [Need("reward_actors", 10, {"CPU": 0.1}), Need("rollout", 1, {"CPU": 1.0, "GPU": 1.0})]
    for nodes in ([gpu, plain], [plain, gpu]):
        assert placed(roles, nodes) == [10, 1]


@given(st.lists(st.lists(st.sampled_from([0.1, 0.25, 0.5, 1.0]), max_size=6), min_size=1, max_size=4), st.randoms())
def test_one_role_that_fills_the_nodes_to_the_brim_finds_its_place(loads, chance):
    """Nodes are made of what runs on them, so there is a way; the largest go first, as roles do one after another."""
    each = chance.choice([0.1, 0.25, 0.5, 1.0])
    nodes = [{"CPU": sum(load) + each} for load in loads]
    count = sum(int(node["CPU"] / each + 1e-9) for node in nodes)
    assert placed([Need("rollout", count, {"CPU": each})], nodes) == [count]
    assert placed([Need("rollout", count + 1, {"CPU": each})], nodes) == [count]


COLOCATED = {"colocated": True, "learner": {"gpus": 0.6}, "rollout": {"gpus": 0.4, "gpu_memory_utilization": 0.4}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rollout": {"actors": 2}}, "one engine beside each learner worker"),
        ({"grpo": {"max_staleness": 1}}, "max_staleness=0"),
        ({"rollout": {"gpus": 0}}, "a share of a GPU"),
        ({"rollout": {"gpus": 0.5}}, "at most 1"),
        ({"learner": {"gpus": 0.5}}, "above 0.5"),
        ({"rollout": {"gpus": 0.4}}, "gpu_memory_utilization=0.85 is more than"),
        ({"rollout": {"gpus": 0.4, "gpu_memory_utilization": 0.4, "resources": {"x": 1}}}, "learner.resources"),
    ],
)
def test_colocated_nonsense_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        make_config(COLOCATED | change)


def test_workers_that_divide_a_nodes_model_are_asked_for_at_once():
    learner = CLUSTER["learner"] | {"workers": 4, "sharding": "hybrid", "workers_per_node": 2}
    (need, *_) = needs(learner=learner)
    assert (need.count, need.each) == (2, {"CPU": 8.0, "GPU": 2.0, "learner": 2.0})
    whole = {"CPU": 16.0, "GPU": 2.0, "learner": 2.0}
    halves = [{name: amount / 2 for name, amount in whole.items()}] * 4
    assert shortage([need], [whole] * 2) is None
    assert "2 x {CPU 8, GPU 2, learner 2} are needed, 0 find a place" in shortage([need], halves)


def test_colocated_roles_share_what_the_learner_has():
    (both, _) = stage_needs(make_config(COLOCATED), "grpo")
    assert both.each == {"CPU": 1.0, "GPU": 1.0}
    cpus = make_config({"colocated": True, "learner": {"cpus": 2}, "rollout": {"cpus": 4}})
    assert stage_needs(cpus, "grpo")[0].each == {"CPU": 4.0}
    alone = make_config({"learner": {"cpus": 1}, "rollout": {"cpus": 1}, "reward_actors": {"cpus": 0.5}})
    assert shortage(stage_needs(alone, "grpo"), [{"CPU": 1.5}])
    shared = make_config(alone.model_dump() | {"colocated": True})
    assert shortage(stage_needs(shared, "grpo"), [{"CPU": 1.5}]) is None


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"rollout": {"resources": {"GPU": 1}}}, "set cpus or gpus"),
        ({"rollout": {"resources": {"x": 0}}}, "greater than 0"),
        ({"learner": {"gpus": 2}}, r"learner\.gpus.*one GPU at most.*raise rollout\.actors"),
        ({"rollout": {"gpus": 1.5}}, r"rollout\.gpus.*one GPU at most"),
        ({"serve": {"gpus": 2}}, r"serve\.gpus.*one GPU at most.*serve\.replicas"),
        ({"reward_actors": {"actors": 4, "max": 2}}, "must lie between"),
        ({"reward_actors": {"actors": 1, "min": 2}}, "must lie between"),
    ],
)
def test_impossible_roles_are_refused(tree, message):
    with pytest.raises(ConfigError, match=message):
        make_config(tree)


@pytest.mark.rest
def test_four_ray_nodes(repository):
    """A script of its own, because one process knows one cluster: see tests/support/four_nodes.py."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.four_nodes"], cwd=repository, capture_output=True, text=True, timeout=240,
        env=os.environ | {"PYTHONPATH": str(repository)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
