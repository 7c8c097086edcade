"""A Ray whose memory monitor ends every process at once: engines that start and actors at work are lost, and told so.

python -m tests.support.out_of_memory
"""

import os
import time
from contextlib import suppress

from tests.support.own_ray import prepare_ray

SCRATCH = prepare_ray()
os.environ.update(RAY_memory_usage_threshold="0.001", RAY_memory_monitor_refresh_ms="500")

import ray  # noqa: E402

from actors.rollout.engines import EnginePool  # noqa: E402
from actors.runtime.actor_pool import ActorPool, Failed  # noqa: E402
from actors.runtime.actor_set import ActorSet, StartError  # noqa: E402
from hatch_ray.config import make_config  # noqa: E402


class Slow:
    """Starts for ever, where a vLLM engine would."""

    def __init__(self, model, config):
        time.sleep(600)

    def ready(self):
        return 0


class Worker:
    """Works for ever."""

    def work(self, items):
        time.sleep(600)


class Enough(Exception):
    """As a run that has lost too many."""


def heard(loss, losses):
    """Successors mostly die before they get the work, which is no failure of it."""
    losses.append(loss)
    if len(losses) >= 4:
        raise Enough


def main():
    ray.init(
        address="local", num_cpus=2, include_dashboard=False, object_store_memory=128 * 2**20,
        logging_level="warning", log_to_driver=False, _temp_dir=str(SCRATCH / "ray"),
    )  # fmt: skip
    engines = EnginePool("no model", make_config({"rollout": {"cpus": 0.1}}), engine=Slow)
    said = "nothing"
    try:
        engines.ready()
    except StartError as error:
        said = str(error)
    assert "the last: its node ran out of memory" in said, said
    print("engines that start are lost", flush=True)

    losses = []
    actor = ray.remote(num_cpus=0.1)(Worker)
    actors = ActorSet("worker", actor.remote, on_loss=lambda loss: heard(loss, losses))
    actors.begin(1)
    with suppress(Enough):
        found = ActorPool(actors).map([1], lambda worker, part: worker.work.remote(part), 1)
        assert found == [Failed("its node ran out of memory")], found
    assert {loss.reason for loss in losses} == {"its node ran out of memory"}, losses
    print("actors at work are lost", flush=True)
    ray.shutdown()


if __name__ == "__main__":
    main()
