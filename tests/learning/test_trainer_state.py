"""A training loop that goes on from its state on disk does exactly what it would have done."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import get_scheduler

from hatch_ray.config import make_config
from hatch_ray.learning.trainer_state import copied, read_state, restore_state, take_state, write_state


class Loop:
    """A small training with everything that has a state: AdamW, a schedule, dropout and random data."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.model = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Dropout(0.3), torch.nn.Linear(7, 1))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1, weight_decay=0.01)
        self.scheduler = get_scheduler("cosine", self.optimizer, 2, 12)

    def steps(self, count: int) -> list[float]:
        losses = []
        for _ in range(count):
            loss = self.model(torch.randn(4, 5)).square().mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.scheduler.step()
            losses.append(loss.item())
        return losses


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("stop", [0, 1, 5])
def test_a_resumed_loop_is_bit_identical(tmp_path: Path, stop: int) -> None:
    whole = Loop(seed=1)
    whole.steps(stop)
    state = take_state(whole.model.state_dict(), whole.optimizer, whole.scheduler)
    expected = whole.steps(7)  # after the copy was taken: a copy does not change with the training
    write_state(state, tmp_path)
    resumed = Loop(seed=2)
    resumed.steps(2)
    restore_state(read_state(tmp_path), resumed.model.state_dict(), resumed.optimizer, resumed.scheduler)
    assert resumed.steps(7) == expected
    assert equal(resumed.model.state_dict(), whole.model.state_dict())
    assert resumed.scheduler.get_last_lr() == whole.scheduler.get_last_lr()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state.json", "state.safetensors"]


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    loop = Loop(seed=1)
    state = take_state(loop.model.state_dict(), loop.optimizer, loop.scheduler)
    with pytest.raises(ValueError, match="do not have the same weights"):
        restore_state(state, {"other": torch.zeros(1)}, loop.optimizer, loop.scheduler)


def test_copies_share_what_their_originals_share() -> None:
    head = torch.randn(3, 2)
    copies = copied({"embed": head, "head": head, "row": head[0]})
    assert copies["embed"].data_ptr() == copies["head"].data_ptr() != head.data_ptr()
    head.zero_()
    assert copies["row"].abs().sum() > 0


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_the_learners_snapshot_is_written_as_it_was_taken(tiny_model: Path, tmp_path: Path, lora_rank: int) -> None:
    """The folder holds the policy of the moment of the copy, and another learner that restores it is the same one."""
    from actors.learner.learner import Learner
    from hatch_ray.model.base import load_model

    config = make_config({"model": {"lora_rank": lora_rank}, "grpo": {"beta": 0, "lr": 1e-3}})
    learner = Learner(config, tiny_model, 10)

    def train(one: Learner) -> None:
        for parameter in one.learning:
            parameter.grad = torch.full_like(parameter, 0.01)
        one.optimizer.step()
        one.scheduler.step()

    train(learner)
    policy = copied(learner.weights())
    write = learner.snapshot(tiny_model)
    learner.save(tmp_path / "direct", tiny_model)
    train(learner)
    write(tmp_path)
    saved, direct = (load_file(tmp_path / name / "model.safetensors") for name in ("model", "direct"))
    assert equal(saved, direct)
    assert equal(load_model(tmp_path / "model").state_dict(), policy)
    other = Learner(config, tiny_model, 10)
    other.load(tmp_path)
    assert equal(dict(other.weights()), policy)
    train(other)
    assert equal(dict(other.weights()), dict(learner.weights()))
    assert "param_groups" in json.loads((tmp_path / "state.json").read_text())
