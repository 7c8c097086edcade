"""A run that does not fit into memory is refused before it starts, with what takes most and what lowers it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from actors.runtime.memory_check import (
    check_memory,
    check_workers,
    engine_room,
    gpu_size,
    learner_room,
    machine_memory,
)
from hatch_ray.config import Config, ConfigError, load_config, make_config
from hatch_ray.model.memory import engine_memory, gb_text, learner_memory

HUGE = {"CPU": 16.0, "memory": 2e12}


def gpu(kind: str, **more: float) -> dict[str, float]:
    return HUGE | {"GPU": 1.0, f"accelerator_type:{kind}": 1.0} | more


def config_3b(*overrides: str) -> Config:
    return load_config("configs/hatch_3b.yaml", list(overrides))


def said(config: Config, nodes: list[dict[str, float]]) -> list[str]:
    told: list[str] = []
    check_memory(config, nodes, told.append)
    return told


@pytest.mark.parametrize(
    ("overrides", "kind", "message"),
    [
        ([], "L40S", r"qa_sft: a learner worker needs about 6\d\.\d GB by count and its GPU \(L40S\) leaves it 48\.0"),
        ([], "L40S", r"Most is AdamW's moments 30\.0 GB \(set model\.lora_rank"),
        (["learner.recompute=false"], "H100", r"activations \d\d\.\d GB \(lower .*batch_size.*learner\.recompute=true"),
        (["learner.gpu_gb=24"], "H200", r"\(learner\.gpu_gb\) leaves it 24\.0"),
        (["stages=[grpo]", "learner.sharding=none", "learner.recompute=false"], "H100",
         r"grpo: a learner worker needs about 1\d\d GB"),
        (["stages=[grpo]", "model.lora_rank=32", "model.base=Qwen/Qwen2.5-VL-72B-Instruct", "rollout.gpus=1"], "H100",
         r"grpo: .* leaves it"),
    ],
)  # fmt: skip
def test_a_worker_that_does_not_fit_is_refused(
    repository: Any, monkeypatch: pytest.MonkeyPatch, overrides: list[str], kind: str, message: str
) -> None:
    monkeypatch.chdir(repository)
    with pytest.raises(ConfigError, match=message) as refused:
        said(config_3b(*overrides), [HUGE, gpu(kind)])
    assert "\n" not in str(refused.value)


def test_what_fits_passes_and_unknown_sizes_are_said(repository: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repository)
    assert said(config_3b(), [gpu("H100")] * 4) == [], "two workers divide GRPO's model"
    assert "A100 has 40 or 80 GB; set learner.gpu_gb" in said(config_3b(), [gpu("A100")])[0]
    assert "no accelerator type" in said(config_3b(), [HUGE | {"GPU": 1.0}])[0]
    assert gpu_size(config_3b(), [gpu("A100", **{"accelerator_type:A100-80G": 1.0})]) == (80.0, "A100-80G")
    assert gpu_size(config_3b(), [gpu("H200"), gpu("L4"), HUGE]) == (24.0, "L4")


ROW = re.compile(r"\| (\d) x (\d+) \| `(\S+)`(?: `(.+?)`)? \| (.+) \|")


def test_the_memory_page_says_what_the_count_says_and_what_it_says_fits_passes(
    repository: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repository)
    rows = [found for line in Path("docs/memory.md").read_text().splitlines() if (found := ROW.fullmatch(line))]
    assert {(row[1], row[2], row[3]) for row in rows} >= {
        ("4", "80", "hatch_3b.yaml"), ("2", "80", "hatch_3b.yaml"), ("1", "80", "hatch_3b.yaml"),
        ("2", "24", "hatch_3b_lora.yaml"), ("1", "24", "hatch_3b_lora.yaml"), ("8", "80", "hatch_7b.yaml"),
    }  # fmt: skip
    for count, size, name, settings, cells in (row.groups() for row in rows):
        config = load_config(f"configs/{name}", [f"learner.gpu_gb={size}", *(settings or "").split()])
        taken = config.learner.workers * config.learner.gpus + config.rollout.actors * config.rollout.gpus
        assert taken == pytest.approx(int(count)), settings
        needs = [(learner_memory(config, stage).gb, stage) for stage in ("pasta", "qa_sft", "grpo")]
        fits = [need <= learner_room(config, stage, int(size)) for need, stage in needs]
        words = [gb_text(need) if fit else f"**{gb_text(need)}**" for (need, _), fit in zip(needs, fits, strict=True)]
        engine = f"{gb_text(engine_memory(config).gb)} of {gb_text(engine_room(config, int(size)))}"
        assert cells.split(" | ") == [*words, gb_text(learner_room(config, "grpo", int(size))), engine], settings
        if all(fits):
            assert said(config, [HUGE]) == []
        else:
            with pytest.raises(ConfigError, match="needs about"):
                said(config, [HUGE])


def test_a_nodes_workers_divide_what_hybrid_sharding_divides() -> None:
    learner = {"workers": 16, "gpus": 1, "sharding": "hybrid", "workers_per_node": 4, "compute": "bfloat16"}
    tree = {"model": {"base": "Qwen/Qwen2.5-VL-7B-Instruct"}, "grpo": {"prompts_per_step": 16}}
    supervised = {name: {"batch_size": 16} for name in ("pasta", "qa_sft", "cold_start")}
    hybrid = make_config(tree | supervised | {"learner": learner})
    full = {"workers": 4, "sharding": "full", "workers_per_node": 0}
    by_four = make_config(tree | supervised | {"learner": learner | full})
    for one, other in zip(*(learner_memory(c, "grpo").always for c in (hybrid, by_four)), strict=True):
        assert one == other
    check_workers(hybrid)
    with pytest.raises(ConfigError, match=r"qa_sft uses 6 .*workers_per_node=4 .*batch_size to a multiple of 12"):
        check_workers(make_config(tree | supervised | {
            "learner": learner | {"workers": 12}, "qa_sft": {"batch_size": 6}, "grpo": {"prompts_per_step": 12},
            "pasta": {"batch_size": 12},
        }))  # fmt: skip
    for change, message in (
        ({"workers_per_node": 0}, r"set learner\.workers_per_node \(it is 0\) to a number that divides"),
        ({"workers_per_node": 3}, r"it is 3\) to a number that divides learner\.workers=16"),
        ({"sharding": "full"}, r"learner\.workers_per_node=4 is for learner\.sharding=hybrid, not full"),
    ):
        with pytest.raises(ConfigError, match=message):
            make_config(tree | supervised | {"learner": learner | change})


def test_a_colocated_engine_leaves_the_learner_the_rest() -> None:
    rollout = {"gpus": 0.4, "gpu_memory_utilization": 0.3}
    config = make_config({"colocated": True, "learner": {"gpus": 0.6}, "rollout": rollout})
    assert learner_room(config, "grpo", 100) == pytest.approx(70)
    assert learner_room(config, "qa_sft", 100) == 100


def test_cpus_are_refused_what_is_always_held_and_told_what_a_pass_may_take() -> None:
    config = make_config({"model": {"base": "Qwen/Qwen2.5-VL-3B-Instruct"}, "stages": ["qa_sft"]})
    shares, most = machine_memory(config, "qa_sft")
    sure = sum(share.gb for share in shares)
    assert 100 < sure < most  # weights, gradients, moments and the checkpoint's copy of them
    with pytest.raises(
        ConfigError, match=r"the cluster has 50\.0: a checkpoint's copy 45\.1 GB .*; AdamW's moments 30\.0 GB"
    ):
        said(config, [{"memory": 50e9}])
    (told,) = said(config, [{"memory": (sure + most) / 2 * 1e9}])
    assert "up to" in told
    assert said(config, [{"memory": most * 1e9 / 2 + 1}] * 2) == []


def test_gpus_that_no_stage_uses_are_refused() -> None:
    learner = {"workers": 4, "gpus": 1}
    with pytest.raises(
        ConfigError, match=r"qa_sft uses 2 of 4 .*batch_size=2 .*multiple of 4, or set learner.workers=2"
    ):
        check_workers(make_config({"learner": learner, "stages": ["qa_sft"], "qa_sft": {"batch_size": 2}}))
    check_workers(make_config({"learner": learner, "stages": ["qa_sft", "grpo"]}))
    check_workers(make_config({"learner": {"workers": 4}, "stages": ["qa_sft"], "qa_sft": {"batch_size": 2}}))
