"""SIGTERM ends a run in order: every stage saves where it is and nothing is left behind. (That stages go on from
such states: test_supervised_stage, test_recipe; from a stopped job: test_ray_up.)"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from typing import Any

import psutil
import pytest

from actors.experience.queues import ExperienceBoard
from actors.runtime.checkpoints import Checkpoints, problem
from actors.runtime.stopping import EXIT_CODE, StopAsked, asked, stage_at_work, stoppable
from actors.stages.pasta import run_pasta
from actors.stages.sft import run_sft
from hatch_ray.config import make_config
from hatch_ray.run_folder import RunFolder, read_jsonl
from tests.support.runs import ALONE, ROOMS, SHORT, finish, metrics, rows_of, start, wait_for_step
from tests.support.taught import TASKS
from tests.support.wall_scene import wall_sample

PLACES = [(0.0, 0.0), (1.3, 0.2), (0.4, 1.2)]


@pytest.mark.rest
@pytest.mark.parametrize("stage", ["pasta", "qa_sft"])
def test_two_workers_save_at_one_step(ray_cluster, tiny_model, tmp_path, stage):
    run = RunFolder(tmp_path / "run")
    config = make_config({
        "run_dir": str(run.path), "model": {"template": "compact-v1", "max_length": 512},
        "learner": {"workers": 2}, "grpo": {"prompts_per_step": 4},
        "pasta": {"max_steps": 3, "batch_size": 4, "save_every": 100},
        "qa_sft": {"max_steps": 3, "batch_size": 4, "save_every": 100},
    })  # fmt: skip
    samples = [wall_sample(tmp_path, seed, PLACES, other_light=True) for seed in range(8)]
    run.path.mkdir()

    def stopped() -> None:
        with stoppable(run), stage_at_work():
            os.kill(os.getpid(), signal.SIGTERM)
            if stage == "pasta":
                run_pasta("pasta", config, run, tiny_model, samples[:6], samples[6:], lambda *_: None)
            else:
                run_sft(stage, config, run, tiny_model, samples, lambda *_: None)

    with pytest.raises(StopAsked):
        stopped()
    (state,) = Checkpoints(run.checkpoints(stage)).all()
    assert state.name == "step-000001" and problem(state) is None
    assert not run.stage_model(stage).exists() and not run.stop_path.exists() and not asked()
    assert [row["step"] for row in read_jsonl(run.metrics_path)] == [1]


def test_between_stages_and_at_the_second_time_the_end_comes_at_once(tmp_path):
    run = RunFolder(tmp_path)
    run.stop_path.touch()  # of a driver that was killed while it saved

    def term() -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with stoppable(run):
        assert not run.stop_path.exists()
        with pytest.raises(StopAsked):
            term()
        assert not asked()
        with stage_at_work():
            term()
            assert asked() and run.stop_path.exists()
            with pytest.raises(StopAsked):
                term()
    assert signal.getsignal(signal.SIGTERM) is before
    assert not run.stop_path.exists()


def test_the_board_tells_all_workers_that_get_no_shard_whether_to_save():
    async def ends(save: bool) -> list[Any]:
        board = ExperienceBoard()
        waiting = [asyncio.create_task(board.take(5, rank)) for rank in range(2)]
        await asyncio.sleep(0)
        await board.stop(save)
        await board.stop()  # as the stage's own end does, after it
        return [*(await asyncio.gather(*waiting)), await board.saving()]

    assert asyncio.run(ends(True)) == [None, None, True]
    assert asyncio.run(ends(False)) == [None, None, False]


def test_grpo_trains_what_it_has_sampled_saves_and_ends(taught_model, tmp_path):
    run = tmp_path / "run"
    process = start([
        "train", "configs/tiny.yaml", f"run_dir={run}", f"model.base={taught_model}", *SHORT, *ROOMS, "stages=[grpo]",
        f"data.tasks=[{','.join(TASKS)}]", "grpo.max_steps=500", "grpo.save_every=400", "grpo.max_staleness=1",
        *ALONE,
    ])  # fmt: skip
    wait_for_step(process, run, "grpo", 2, timeout=240)
    below = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    output = finish(process, 120)
    assert process.returncode == EXIT_CODE, output
    assert "stopped as asked" in output and "Traceback" not in output
    steps = [row["step"] for row in metrics(run, "grpo")]
    (state,) = Checkpoints(RunFolder(run).checkpoints("grpo")).all()
    for row in metrics(run, "grpo"):
        assert row["staleness"] <= 1 and (row["sampler_gap"] < 1e-3 or row["staleness"] > 0)
        assert {"reward_total", "reward_action", "reward_answer", "reward_format", "kl", "entropy"} <= set(row)
        assert {"clip_share", "correction_share", "zero_variance_groups", "tokens_per_s"} <= set(row)
    assert steps == list(range(1, len(steps) + 1)) and state.name == f"step-{len(steps):06d}"
    assert problem(state) is None
    assert json.loads((run / "status.json").read_text())["state"] == "was stopped"
    assert [row["place"] for row in rows_of(run / "ledger.jsonl")] == list(range(2 * len(steps)))
    assert {row["step"] for row in rows_of(run / "samples" / "grpo.jsonl")} == set(range(len(steps)))
    assert not json.loads((run / "progress.json").read_text() if (run / "progress.json").exists() else "{}")
    psutil.wait_procs(below, timeout=30)
    assert not [child for child in below if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
