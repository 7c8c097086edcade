"""Engines that do not start: what is their own complaint, what is a loss, and when enough is enough."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from ray import cloudpickle

from actors.rollout.engines import EnginePool
from actors.runtime.actor_set import STARTS, StartError
from hatch_ray.config import ConfigError, make_config

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the actors' processes cannot import a test module

CONFIG = make_config({"rollout": {"cpus": 0.1}})


class Starter:
    """Only starts, where a vLLM engine would. "model" is a folder: its file `deaths` says how often it dies first."""

    def __init__(self, model, config):
        left = Path(model, "deaths")
        if Path(model, "complaint").exists():
            raise ValueError("no room for the keys and values")
        if count := int(left.read_text()):
            left.write_text(str(count - 1))
            os.kill(os.getpid(), signal.SIGKILL)

    def ready(self):
        return 0


@pytest.fixture
def starters(ray_cluster, tmp_path):
    """starters(deaths): one engine, the first so many of whose processes die."""
    begun = []

    def start(deaths):
        (tmp_path / "deaths").write_text(str(deaths))
        begun.append(EnginePool(tmp_path, CONFIG, engine=Starter))
        return begun[-1]

    yield start
    for engines in begun:
        engines.stop()


def test_a_process_that_dies_as_it_starts_is_replaced(starters):
    losses = []
    engines = starters(deaths=2)
    engines.pool.actors.on_loss = losses.append
    engines.ready()
    assert [loss.reason for loss in losses] == ["its process died", "its process died"]
    assert engines.pool.actors.replaced == 2 and len(engines.pool.actors) == 1


def test_processes_that_always_die_end_the_command_and_are_told_as_deaths(starters):
    engines = starters(deaths=99)
    with pytest.raises(StartError, match=f"rollout engine: {STARTS} in a row died as they started.*its process died"):
        engines.ready()


def test_what_listens_to_losses_may_end_the_start(starters):
    def enough(loss):
        raise RuntimeError(f"enough: {loss.reason}")

    engines = starters(deaths=99)
    engines.pool.actors.on_loss = enough
    with pytest.raises(RuntimeError, match="enough: its process died"):
        engines.ready()


def test_an_engines_own_complaint_is_a_mistake_in_the_configuration(starters, tmp_path):
    (tmp_path / "complaint").touch()
    with pytest.raises(ConfigError, match="a vLLM engine did not start: ValueError: no room for the keys and values"):
        starters(deaths=0).ready()


@pytest.mark.rest
def test_what_ray_ends_for_want_of_memory_is_a_loss(repository):
    """In a process of its own, whose Ray finds any use of memory too much."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.out_of_memory"], cwd=repository, capture_output=True, text=True,
        timeout=240, env=os.environ | {"PYTHONPATH": str(repository)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
