"""What small steps do to weights: float32 masters move, bfloat16 ones hardly do. And where float32 must be kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from actors.experience.queues import make_shards
from actors.learner.learner import Learner
from hatch_ray.config import Config, ConfigError, make_config
from tests.support.groups import make_batch

STEPS = 300
RATE = 1e-5
"""The paper's learning rate."""
SHARED = 10
"""Steps over which the share of elements that move is taken."""


def config_of(base: Path, compute: str, master: str = "float32", **more: Any) -> Config:
    tree: dict[str, Any] = {
        "model": {"base": str(base), "template": "compact-v1", "max_pixels": 112 * 112, "max_length": 512},
        "grpo": {"group_size": 4, "prompts_per_step": 2, "lr": RATE, "beta": 0.0},
        "learner": {"cpus": 0.5, "compute": compute, "master": master},
        "rollout": {"dtype": compute},
    }
    for name, values in more.items():
        tree[name] = tree.get(name, {}) | values
    return make_config(tree)


def train(learner: Learner, shard: Any, steps: int) -> tuple[float, torch.Tensor]:
    """The share of elements that move in one of the first steps, and how far all have come after the last."""
    start = [parameter.detach().float().clone() for parameter in learner.learning]
    moved = total = 0
    for step in range(steps):
        before = [p.detach().clone() for p in learner.learning] if step < SHARED else []
        learner.update(shard)
        for old, new in zip(before, learner.learning[: len(before)], strict=True):
            if new.grad is not None:
                touched = new.grad != 0
                moved += int(((new.detach() != old) & touched).sum())
                total += int(touched.sum())
    displacement = [new.detach().float() - old for old, new in zip(start, learner.learning, strict=True)]
    return moved / total, torch.cat([part.flatten() for part in displacement])


@pytest.mark.rest
@pytest.mark.timeout(900)
def test_float32_masters_move_with_every_step_and_bfloat16_ones_do_not(ray_cluster: Any, tiny_model: Path) -> None:
    (shard,) = make_shards(0, make_batch(ray_cluster, tiny_model), 1)
    found = {}
    for name, kinds in {
        "float32": ("float32", "float32"),
        "masters": ("bfloat16", "float32"),
        "bfloat16": ("bfloat16", "bfloat16"),
    }.items():
        learner = Learner(config_of(tiny_model, *kinds), tiny_model, STEPS)
        found[name] = train(learner, shard, STEPS)
    exact = found["float32"][1]

    def projected(name: str) -> float:
        return float(found[name][1] @ exact / (exact @ exact))

    print({name: (round(share, 4), round(projected(name), 4)) for name, (share, _) in found.items()})
    assert found["masters"][0] > 0.9 and projected("masters") > 0.95
    assert found["bfloat16"][0] < 0.5 and projected("bfloat16") < 0.5, "what bfloat16 masters lose"


def test_engines_get_their_own_dtype_and_what_is_saved_is_the_master(
    ray_cluster: Any, tiny_model: Path, tmp_path: Path
) -> None:
    from hatch_ray.model.base import load_model

    learner = Learner(config_of(tiny_model, "bfloat16"), tiny_model, 10)
    assert {tensor.dtype for _, tensor in learner.each_learned_weight()} == {torch.bfloat16}
    (shard,) = make_shards(0, make_batch(ray_cluster, tiny_model), 1)
    learner.update(shard)
    learner.save(tmp_path / "model", tiny_model)
    saved = load_model(tmp_path / "model").state_dict()
    assert all(torch.equal(saved[name], tensor) for name, tensor in learner.model.state_dict().items())


def test_adapters_are_float32_and_their_merged_weights_keep_small_steps(
    ray_cluster: Any, tiny_model: Path, tmp_path: Path
) -> None:
    from hatch_ray.model.base import load_model

    config = config_of(tiny_model, "bfloat16", model={"lora_rank": 4}, grpo={"beta": 0.01})
    learner = Learner(config, tiny_model, 10)
    assert {parameter.dtype for parameter in learner.learning} == {torch.float32}
    frozen = {p.dtype for p in learner.model.parameters() if not p.requires_grad}
    assert frozen == {torch.bfloat16} and learner.reference is None
    (shard,) = make_shards(0, make_batch(ray_cluster, tiny_model), 1)
    for _ in range(2):
        assert learner.update(shard)["skipped"] == 0
    learner.save(tmp_path / "model", tiny_model)
    saved, base = load_model(tmp_path / "model").state_dict(), load_model(tiny_model).state_dict()
    name = next(name for name in base if name.endswith("q_proj.weight") and "language_model" in name)
    assert (saved[name] != base[name].bfloat16().float()).float().mean() > 0.9


def test_the_old_key_is_refused_with_the_new_ones_named(tiny_model: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.dtype was replaced by learner\.master, learner\.compute"):
        make_config({"model": {"dtype": "bfloat16"}})


def test_a_run_is_not_resumed_in_another_precision(tmp_path: Path) -> None:
    from actors.stages.recipe import open_run
    from hatch_ray.config import save_config

    config = make_config({"run_dir": str(tmp_path / "run")})
    save_config(config, tmp_path / "run" / "config.yaml")
    with pytest.raises(ConfigError, match=r"learner\.compute: 'float32' then, 'bfloat16' now"):
        open_run(make_config({"run_dir": str(tmp_path / "run"), "learner": {"compute": "bfloat16"}}))
    open_run(make_config({"run_dir": str(tmp_path / "run"), "learner": {"cpus": 2}}))
    old = (tmp_path / "run" / "config.yaml").read_text().replace("model:\n", "model:\n  dtype: bfloat16\n")
    (tmp_path / "run" / "config.yaml").write_text(old)
    with pytest.raises(ConfigError, match=r"model\.dtype=bfloat16 was replaced by learner\.master"):
        open_run(config)


def test_activations_that_are_computed_again_change_neither_loss_nor_gradient(
    ray_cluster: Any, tiny_model: Path
) -> None:
    (shard,) = make_shards(0, make_batch(ray_cluster, tiny_model), 1)
    found = []
    for recompute in (False, True):
        config = config_of(tiny_model, "float32", learner={"recompute": recompute}, grpo={"beta": 0.01})
        learner = Learner(config, tiny_model, 10)
        layers = [m for m in learner.model.modules() if getattr(m, "gradient_checkpointing", False)]
        assert bool(layers) == recompute
        metrics = learner.update(shard)
        found.append((metrics["loss"], metrics["grad_norm"], learner.model.lm_head.weight.grad.clone()))
    assert found[0][:2] == pytest.approx(found[1][:2], rel=1e-6)
    assert torch.allclose(found[0][2], found[1][2], atol=1e-8)
