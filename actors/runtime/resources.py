"""What a run asks of the cluster against what the cluster has, said before anything starts."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Sequence

import ray
from ray._private.state import available_resources_per_node
from ray.autoscaler.sdk import request_resources

from actors.runtime.memory_check import check_memory, check_workers
from actors.runtime.placement import Need, placed, shortage, stage_needs
from hatch_ray.config import Config, ConfigError

LOOK_SECONDS = 1.0


def check_carrier(config: Config) -> None:
    """Raise ConfigError where weights cannot be carried as the config says."""
    if config.rollout.weights != "nixl":
        return
    if bool(config.learner.gpus) != bool(config.rollout.gpus):
        raise ConfigError(
            f"rollout.weights=nixl needs learner and engines on the same kind of device, and learner.gpus="
            f"{config.learner.gpus:g}, rollout.gpus={config.rollout.gpus:g}; set rollout.weights=object_store"
        )
    try:
        importlib.import_module("nixl._api")
    except ImportError as error:
        raise ConfigError(
            f"rollout.weights=nixl needs the package nixl, which cannot be imported ({error}): `make install "
            "BACKEND=gpu` brings it along; or set rollout.weights=object_store"
        ) from None


def check_resources(config: Config, say: Callable[[str], None] = print) -> None:
    """Raise ConfigError naming what is short, if a stage's actors can never all be placed or do not fit into memory.

    Needs a running Ray. With deadlines.nodes_seconds it waits so long for nodes, and says for which. Where nodes have
    what is needed and others use it now, it says so: the run will wait for them.
    """
    check_workers(config)
    for stage in config.stages:
        needs = stage_needs(config, stage)
        wait_for_nodes(needs, config.deadlines.nodes_seconds, say)
        if missing := shortage(needs, free()):
            say(f"{stage} will wait for what others use on this cluster now. {missing}")
    check_memory(config, nodes(), say)


def nodes() -> list[dict[str, float]]:
    """What every living node has in all."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def free() -> list[dict[str, float]]:
    """What every living node has beside all that runs now."""
    return list(available_resources_per_node().values())


def room_for(need: Need) -> int:
    """How many of these find a place now, beside all that runs."""
    return placed([need], free())[0]


def wait_for_nodes(needs: Sequence[Need], seconds: float, say: Callable[[str], None]) -> None:
    """Until all needs find a place on the living nodes; an autoscaler is asked for what is missing.

    Raises ConfigError with the shortage after `seconds`, at once when they are 0.
    """
    end = time.monotonic() + seconds
    told = missing = shortage(needs, nodes())
    if missing is None:
        return
    if seconds:
        say(f"waiting up to {seconds:.0f} s for nodes (deadlines.nodes_seconds). {missing}")
        request_resources(bundles=[dict(need.each) for need in needs for _ in range(need.count)])
    try:
        while missing is not None:
            if time.monotonic() >= end:
                hint = "" if seconds else "; if they are still to come, set deadlines.nodes_seconds"
                raise ConfigError(f"the run does not find a place. {missing}{hint}")
            time.sleep(LOOK_SECONDS)
            missing = shortage(needs, nodes())
            if missing not in (None, told):
                told = missing
                say(f"still waiting. {missing}")
    finally:
        if seconds:
            request_resources(bundles=[])
    say("all nodes are there")
