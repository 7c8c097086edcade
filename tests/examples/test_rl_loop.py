"""The short loop computes what the learner computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from actors.experience.queues import make_shards
from actors.learner.learner import Learner
from actors.reward.verifier import make_groups
from actors.runtime.messages import Request, Sampling, StoredImage, StoredPatches
from examples.rl_loop import Group, Policy, advantages, main, step_loss
from hatch_ray.config import make_config
from hatch_ray.data.images import image_hash
from hatch_ray.learning.grpo import group_advantages
from hatch_ray.model.prompt_tokens import process_image
from tests.support.pictures import photo
from tests.support.runs import REPOSITORY


def test_its_file_is_short() -> None:
    assert len((REPOSITORY / "examples" / "rl_loop.py").read_text().splitlines()) <= 150


def test_loss_and_gradient_are_those_of_a_real_step(ray_cluster: Any, engine_pool: Any, tiny_model: Path) -> None:
    """Replies that vLLM sampled, trained on by the learner and by the loop."""
    config = make_config(
        {
            "model": {"base": str(tiny_model), "template": "compact-v1", "max_length": 512, "max_pixels": 112 * 112},
            "rollout": {"cpus": 0.5, "kv_cache_mb": 64},
            "grpo": {"temperature": 0.8, "beta": 0.05, "max_new_tokens": 12},
        }
    )
    policy, reference = (Policy(tiny_model, 112 * 112, 0.8) for _ in range(2))
    torch.manual_seed(0)
    with torch.no_grad():  # a reference that differs, so that the KL term counts
        for parameter in reference.model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=1e-3)
    requests, shown = [], []
    for number, question in enumerate(("How far is it?", "Which is nearer?")):
        images = [photo(2 * number), photo(2 * number + 1)]
        content = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": question}]
        text = policy.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        stored = []
        for image in images:
            patches = process_image(policy.processor, image)
            there = StoredPatches(ray_cluster.put(patches.pixels.numpy()), patches.grid)
            stored.append(StoredImage(image_hash(image), ray_cluster.put(__import__("numpy").asarray(image)), there))
        requests.append(Request(str(number), text, tuple(stored), seed=number))
        shown.append(images)
    rollouts = engine_pool(tiny_model, config).generate(requests, Sampling(4, 0.8, 12))
    rewards = [[0.0, 1.0, 3.0, 2.0], [1.0, 0.0, 0.5, 2.0]]
    scores = [{"terms": {"total": value}} for values in rewards for value in values]

    (shard,) = make_shards(0, make_groups(requests, rollouts, scores), 1)
    learner = Learner(config, tiny_model, 10)
    learner.reference.model.load_state_dict(reference.model.state_dict())
    found = learner.update(shard)

    groups = [
        Group(
            request.prompt, images, [torch.tensor(reply.token_ids) for reply in rollout.replies],
            [torch.from_numpy(reply.logprobs) for reply in rollout.replies], values,
        )
        for request, images, rollout, values in zip(requests, shown, rollouts, rewards, strict=True)
    ]  # fmt: skip
    loss = step_loss(policy, reference, groups, config.grpo)
    loss.backward()
    assert loss.item() == pytest.approx(found["loss"], rel=1e-4, abs=1e-6)
    norm = torch.nn.utils.get_total_norm([p.grad for p in policy.model.parameters() if p.grad is not None])
    assert norm.item() == pytest.approx(found["grad_norm"], rel=1e-3)
    clip = min(1.0, config.grpo.grad_clip / (found["grad_norm"] + 1e-6))  # the learner's gradients are clipped in place
    ours = {name: p.grad * clip for name, p in policy.model.named_parameters() if p.grad is not None}
    for name, parameter in learner.model.named_parameters():
        if parameter.grad is not None:
            assert torch.allclose(parameter.grad, ours[name], atol=2e-6), name


def test_advantages_are_the_learners() -> None:
    for rewards in ([0.0, 1.0, 3.0], [2.0, 2.0, 2.0], [1e-9, 0.0, 0.0]):
        expected, _ = group_advantages(torch.tensor([rewards], dtype=torch.float64))
        assert torch.equal(advantages(rewards), expected[0].float())


def test_it_runs(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["data.samples=4", "data.rooms.train_scenes=2", "grpo.max_steps=2", "grpo.prompts_per_step=2"]
    main(str(REPOSITORY / "configs" / "tiny.yaml"), [*few, "grpo.group_size=2", "grpo.max_new_tokens=8"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["step 1", "step 2"]
