"""Processes that outlive a stage: when engines may start with the run, and what becomes of one that dies idle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from actors.runtime.actor_set import Loss
from actors.runtime.messages import Request, Sampling
from actors.stages.run_processes import RunProcesses, why_not_early
from hatch_ray.config import Config, ConfigError, make_config
from hatch_ray.model.base import load_processor
from hatch_ray.protocol.prompt import build_prompt
from hatch_ray.report.status import status_text
from hatch_ray.run_folder import RunFolder
from tests.support.deaths import kill_and_wait, wait_for_death


def config_of(base: Any = "hatch-tiny", **changes: Any) -> Config:
    tree: dict[str, Any] = {
        "model": {"base": str(base), "max_length": 512, "template": "compact-v1"},
        "rollout": {"actors": 2, "cpus": 0.5, "kv_cache_mb": 64},
    }
    return make_config(tree | changes)


def test_engines_start_with_the_run_unless_something_would_lie_idle() -> None:
    assert why_not_early(config_of()) is None
    gpus = {"rollout": {"gpus": 1, "actors": 1}, "learner": {"gpus": 1}}
    assert "GPUs idle" in str(why_not_early(config_of(**gpus)))
    assert "nodes idle" in str(why_not_early(config_of(deadlines={"nodes_seconds": 60})))
    shared = {
        "rollout": {"gpus": 0.4, "actors": 1, "gpu_memory_utilization": 0.4},
        "learner": {"gpus": 0.6},
        "colocated": True,
    }
    assert "share the learner's GPUs" in str(why_not_early(config_of(**shared)))


def test_the_status_says_why_a_run_starts_its_processes_stage_by_stage(tmp_path: Path) -> None:
    config = config_of(
        deadlines={"nodes_seconds": 60}, learner={"workers": 2}, grpo={"prompts_per_step": 4}, pasta={"batch_size": 1}
    )
    processes = RunProcesses(config, RunFolder(tmp_path))
    processes.workers.start = lambda count: None  # type: ignore[method-assign]
    processes.start(["pasta", "grpo"])
    status = {"stage": "pasta", "step": 3, "steps": 9, "time": 0, "pid": 1, "host": "here", "notes": processes.notes}
    text = status_text(status, None)
    assert "the engines start with GRPO: they would keep nodes idle" in text
    assert "different numbers of learner workers (pasta 1, grpo 2)" in text


@pytest.mark.rest
def test_engines_that_started_early_serve_two_stages_and_one_that_died_idle_is_replaced(
    ray_cluster: Any, tiny_model: Path, tmp_path: Path
) -> None:
    messages = build_prompt("How far is the red chair?", 1, "number", "actions", "compact-v1")
    text = load_processor(tiny_model).apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    text = text.replace("<|vision_start|><|image_pad|><|vision_end|>", "")
    requests = [Request(str(seed), text, (), seed) for seed in range(4)]
    losses: list[Loss] = []
    with RunProcesses(config_of(tiny_model), RunFolder(tmp_path)) as processes:
        processes.start([], evaluated=True)
        assert processes._kept is not None
        first = list(processes._kept.pool.actors)
        kill_and_wait(first[0], first[0].ready.remote)
        with processes.engines(tiny_model, losses.append) as engines:
            actors = engines.pool.actors
            assert first[0] not in actors and first[1] in actors and len(actors) == 2
            assert [(loss.role, loss.reason) for loss in losses] == [("rollout engine", "its process died")]
            replies = [rollout.replies[0].token_ids for rollout in engines.generate(requests, Sampling(1, 1.0, 8))]
            members = list(actors)
        with processes.engines("not used: they hold weights already") as again:
            assert list(again.pool.actors) == members
            assert [r.replies[0].token_ids for r in again.generate(requests, Sampling(1, 1.0, 8))] == replies
    for member in members:
        wait_for_death(member.ready.remote)


@pytest.mark.rest
def test_an_engine_that_cannot_be_built_says_why(ray_cluster: Any, tiny_model: Path, tmp_path: Path) -> None:
    config = config_of(tiny_model, rollout={"actors": 1, "cpus": 0.5, "kv_cache_mb": 1})
    with (
        RunProcesses(config, RunFolder(tmp_path)) as processes,
        pytest.raises(ConfigError, match="a vLLM engine did not start: "),
        processes.engines(tiny_model),
    ):
        pass
