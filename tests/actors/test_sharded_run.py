"""A run whose learner is in shards on two workers: one worker dies three times, and no bit of the run changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from actors.runtime.checkpoints import Checkpoints
from hatch_ray.run_folder import RunFolder
from tests.actors.test_recipe import finished, lose
from tests.support.runs import ALONE, ROOMS, SHORT, differences, hatch_here, metrics, rows_of, start
from tests.support.taught import TASKS

pytestmark = [pytest.mark.rest, pytest.mark.timeout(900)]
STEPS = 6


def words(run: Path, model: Path) -> list[str]:
    return [
        "train", "configs/tiny.yaml", f"run_dir={run}", f"model.base={model}", *SHORT, *ROOMS, *ALONE,
        f"data.tasks=[{','.join(TASKS)}]", "stages=[pasta,cold_start,grpo]",
        "learner.workers=2", "learner.cpus=0.5", "learner.sharding=full",
        "pasta.batch_size=2", "pasta.max_steps=4", "pasta.save_every=2",
        "cold_start.batch_size=4", f"grpo.max_steps={STEPS}", "grpo.save_every=2", "grpo.lr=5e-4",
        "reward_actors.actors=1",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(ray_cluster: Any, taught_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that loses nothing."""
    run = tmp_path_factory.mktemp("runs") / "undisturbed"
    hatch_here(*words(run, taught_model))
    return run


def test_a_sharded_learner_loses_a_worker_in_three_places(
    undisturbed: Path, taught_model: Path, tmp_path: Path
) -> None:
    """In a supervised stage, in GRPO before its first state, and after it."""
    run = tmp_path / "disturbed"
    process = start(words(run, taught_model))
    for stage, step in (("cold_start", 1), ("grpo", 1), ("grpo", 3)):
        lose(process, run, "RayTrainWorker", step, stage)
    output = finished(process)
    assert [row["what"] for row in rows_of(run / "recoveries.jsonl")] == ["learner worker"] * 3, output
    assert differences(undisturbed, run) == []
    assert sum(row["grad_norm"] > 0 for row in metrics(run, "grpo")) >= STEPS // 2


def test_each_worker_has_written_its_part(undisturbed: Path) -> None:
    state = Checkpoints(RunFolder(undisturbed).checkpoints("grpo")).latest()
    assert state is not None
    assert sorted(path.name[:11] for path in (state / "shards").iterdir()) == ["shard-00001", "shard-00002"]
    assert (state / "model" / "model.safetensors").is_file() and (state / "reports.jsonl").is_file()
