"""One group of Ray Train workers for all stages of a run: who serves what, and what follows when one fails."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import cloudpickle
from ray.train import get_context

from actors.runtime.recovery import WorkerDiedError
from actors.stages.train_workers import TrainWorkers
from hatch_ray.config import Config, make_config
from hatch_ray.run_folder import RunFolder

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers do not find the tests' modules


def config_of(workers: int = 2) -> Config:
    return make_config({"learner": {"workers": workers, "cpus": 0.5}, "grpo": {"prompts_per_step": 4}})


def note_process(folder: Path) -> None:
    """What a stage does here: each rank writes down who it is."""
    rank = get_context().get_world_rank()
    (folder / f"{rank}.json").write_text(json.dumps({"pid": os.getpid(), "world": get_context().get_world_size()}))


def fail(folder: Path) -> None:
    if get_context().get_world_rank() == 1:
        raise ValueError("rank 1 does not like its batch")
    note_process(folder)


def die(folder: Path) -> None:
    note_process(folder)
    if get_context().get_world_rank() == 0:
        os.kill(os.getpid(), signal.SIGKILL)


def seen(folder: Path) -> dict[int, dict[str, int]]:
    return {int(path.stem): json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


@pytest.mark.rest
def test_a_group_serves_stage_after_stage_and_a_failed_one_is_followed_by_another(
    ray_cluster: Any, tmp_path: Path
) -> None:
    run = RunFolder(tmp_path / "run")
    folders = [tmp_path / name for name in ("first", "second", "failed", "died", "after", "alone")]
    for folder in folders:
        folder.mkdir()
    free = ray.available_resources()["CPU"]
    with TrainWorkers(config_of(), run) as workers:
        workers.start(2)
        for folder in folders[:2]:
            workers.do(note_process, folder, 2, run)
        first, second = seen(folders[0]), seen(folders[1])
        assert first == second and len({row["pid"] for row in first.values()}) == 2
        assert all(row["world"] == 2 for row in first.values())

        with pytest.raises(ValueError, match="rank 1 does not like its batch"):
            workers.do(fail, folders[2], 2, run)
        with pytest.raises(WorkerDiedError, match="rank 0"):
            workers.do(die, folders[3], 2, run)
        workers.do(note_process, folders[4], 2, run)
        after = seen(folders[4])
        assert not {row["pid"] for row in after.values()} & {row["pid"] for row in first.values()}

        workers.do(note_process, folders[5], 1, run)  # another number of workers: a group of its own
        (alone,) = seen(folders[5]).values()
        assert alone["world"] == 1 and alone["pid"] not in {row["pid"] for row in after.values()}
    assert not (run.path / ".ray_train").exists()
    assert ray.available_resources()["CPU"] > free - 0.1, "what the workers had is free again"
