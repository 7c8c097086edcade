"""Four Ray nodes on this machine, of different kinds: roles only where they belong, shortages told, late nodes used.

python -m tests.support.four_nodes
"""

import os
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from tests.support.own_ray import prepare_ray

SCRATCH = prepare_ray()

import ray  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402

from actors.experience.queues import ExperienceBoard  # noqa: E402
from actors.reward.verifier import RewardActors  # noqa: E402
from actors.rollout.engines import EnginePool  # noqa: E402
from actors.runtime.placement import stage_needs  # noqa: E402
from actors.runtime.resources import wait_for_nodes  # noqa: E402
from actors.stages.fit import fit_stage  # noqa: E402
from actors.stages.train_workers import TrainWorkers  # noqa: E402
from hatch_ray.config import ConfigError, make_config  # noqa: E402
from hatch_ray.run_folder import RunFolder  # noqa: E402

MEBIBYTE = 2**20
KINDS = {
    "learner": {"num_cpus": 2, "resources": {"learner": 2}},
    "rollout": {"num_cpus": 2, "resources": {"rollout": 2}},
    "reward": {"num_cpus": 1, "resources": {"reward": 4}},
}
TREE = {
    "learner": {"workers": 2, "resources": {"learner": 1}, "together": "STRICT_PACK"},
    "rollout": {"actors": 2, "resources": {"rollout": 1}},
    "reward_actors": {"actors": 3, "cpus": 0.2, "resources": {"reward": 1}},
}


class LightEngine:
    """Stands where a vLLM engine would."""

    def __init__(self, model, config):
        self.version = 0

    def ready(self):
        return self.version


def note_node(board):
    """What the learner's workers do here: tell the board where they are."""
    rank = ray.train.get_context().get_world_rank()
    ray.get(board.arrive.remote(rank, ray.get_runtime_context().get_node_id()), timeout=60)


def nodes_of(actors):
    """The nodes of a role's actors, once all are up."""
    end = time.monotonic() + 120
    while len(actors.places) < actors.target:
        actors.tend()
        assert time.monotonic() < end, f"{actors.role}: {len(actors.places)} of {actors.target} are up"
        time.sleep(0.1)
    return {place.node for place in actors.places.values()}


def refused(config):
    """What is said of a config that finds no place; said at once."""
    start = time.monotonic()
    try:
        wait_for_nodes(stage_needs(config, "grpo"), 0, print)
    except ConfigError as error:
        assert time.monotonic() - start < 5
        return str(error)
    raise AssertionError("no shortage was found")


def main():
    head = {"num_cpus": 0, "object_store_memory": 128 * MEBIBYTE, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head | {"temp_dir": str(SCRATCH / "ray")})
    kinds = {
        name: cluster.add_node(object_store_memory=80 * MEBIBYTE, **kind).node_id
        for name, kind in KINDS.items()
        if name != "reward"
    }
    ray.init(address=cluster.address, logging_level="warning", log_to_driver=False)
    config = make_config(TREE | {"grpo": {"prompts_per_step": 2}})
    print("three nodes are up", flush=True)

    # Without the reward node: told at once, who lacks what. It joins while the run waits for it.
    text = refused(config)
    assert "reward_actors: 3 x {CPU 0.2, reward 1} are needed, 0 find a place, because no node has reward" in text, text
    assert "1 x {CPU 2, rollout 2}" in text and "deadlines.nodes_seconds" in text, text
    said = []
    with ThreadPoolExecutor() as pool:  # Ray starts nodes in the main thread only
        waiting = pool.submit(wait_for_nodes, stage_needs(config, "grpo"), 60, said.append)
        time.sleep(2)
        assert not waiting.done()
        kinds["reward"] = cluster.add_node(object_store_memory=80 * MEBIBYTE, **KINDS["reward"]).node_id
        waiting.result(timeout=60)
    assert "waiting up to 60 s" in said[0] and "no node has reward" in said[0] and said[-1] == "all nodes are there"
    print("the late node has joined", flush=True)

    # Each role only on its kind.
    engines = EnginePool("no model", config, engine=LightEngine)
    engines.ready()
    rewards = RewardActors(config)
    board = ray.remote(ExperienceBoard).options(num_cpus=0).remote()
    run = RunFolder(SCRATCH / "run")
    run.path.mkdir()
    with TrainWorkers(config, run) as workers:
        fit_stage(workers, note_node, board, run, "grpo", 2, 1, lambda *_: None)
    assert set(ray.get(board.nodes.remote(2), timeout=60).values()) == {kinds["learner"]}
    assert nodes_of(engines.pool.actors) == {kinds["rollout"]}
    assert nodes_of(rewards.pool.actors) == {kinds["reward"]}
    print("roles are where they belong", flush=True)

    # More than the nodes of the kind hold is refused, and fits once another one has joined.
    more = make_config(TREE | {"rollout": TREE["rollout"] | {"actors": 4}, "grpo": {"prompts_per_step": 2}})
    assert "rollout: 4 x {CPU 1, rollout 1} are needed, 2 find a place" in refused(more)
    second = cluster.add_node(object_store_memory=80 * MEBIBYTE, **KINDS["rollout"]).node_id
    wait_for_nodes(stage_needs(more, "grpo"), 30, print)
    engines.pool.actors.target = 4
    assert nodes_of(engines.pool.actors) == {kinds["rollout"], second}
    assert Counter(place.node for place in engines.pool.actors.places.values()) == {kinds["rollout"]: 2, second: 2}
    print("a second rollout node is used", flush=True)

    # Reward actors are called for only where there is room.
    assert rewards._room(10) == 1
    assert len({place.pid for place in rewards.pool.actors.places.values()}) == 3
    engines.stop()
    print("room is counted", flush=True)

    # Colocated: an engine on each learner worker's node, without CPUs of its own.
    shared = {"colocated": True, "learner": TREE["learner"], "rollout": {"actors": 2, "cpus": 2}}
    config = make_config(shared | {"grpo": {"prompts_per_step": 2}})
    beside = EnginePool("no model", config, engine=LightEngine, beside=[kinds["learner"], kinds["rollout"]])
    beside.ready()
    actors = beside.pool.actors
    nodes_of(actors)
    assert Counter(place.node for place in actors.places.values()) == {kinds["learner"]: 1, kinds["rollout"]: 1}
    threads = ray.get([e.__ray_call__.remote(lambda _: os.environ["OMP_NUM_THREADS"]) for e in actors])
    assert threads == ["2", "2"]
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main()
