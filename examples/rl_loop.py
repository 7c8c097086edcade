"""GRPO as hatch-ray computes it, without Ray, vLLM or packing: slow, and short enough to read in one go.

    python examples/rl_loop.py configs/tiny.yaml grpo.max_steps=3 data.samples=50

The service does the same with rollout engines, reward actors and learner workers. tests/examples/test_rl_loop.py shows
that loss and gradient are those of its learner.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from hatch_ray.config import load_config
from hatch_ray.config_sections import GrpoConfig
from hatch_ray.data.store import model_images, read_dataset
from hatch_ray.model.base import BAN_BIAS, banned_token_ids, eos_token_ids, load_model, load_processor
from hatch_ray.systems import system_of


@dataclass(frozen=True)
class Group:
    """G replies to one prompt. replies: token ids, the end token last; sampled: their log-probabilities as sampled."""

    text: str
    images: Sequence[Image.Image]
    replies: Sequence[torch.Tensor]
    sampled: Sequence[torch.Tensor]
    rewards: Sequence[float]


class Policy:
    """A model, and the tokens that a reply may hold."""

    def __init__(self, folder: str | Path, max_pixels: int, temperature: float) -> None:
        self.model, self.processor = load_model(folder), load_processor(folder, max_pixels)
        self.temperature = temperature
        self.ends = eos_token_ids(self.model, self.processor)
        self.banned = banned_token_ids(self.processor, self.model.lm_head.out_features, self.ends)
        self.bias = torch.zeros(self.model.lm_head.out_features)
        self.bias[self.banned] = BAN_BIAS

    def sample(self, text: str, images: Sequence[Image.Image], count: int, longest: int) -> list[torch.Tensor]:
        """`count` replies to a prompt."""
        inputs = self.processor(text=[text], images=list(images), return_tensors="pt")
        with torch.no_grad():
            rows = self.model.generate(
                **inputs, do_sample=True, temperature=self.temperature, top_k=0, top_p=1.0, repetition_penalty=1.0,
                num_return_sequences=count, max_new_tokens=longest, suppress_tokens=self.banned,
            )[:, inputs["input_ids"].shape[1] :]  # fmt: skip
        replies = []
        for row in rows:
            end = next((place for place, token in enumerate(row.tolist()) if token in self.ends), len(row) - 1)
            replies.append(row[: end + 1])
        return replies

    def logprobs(self, text: str, images: Sequence[Image.Image], reply: torch.Tensor) -> torch.Tensor:
        """Log-probability of each token of a reply, (tokens,)."""
        inputs = self.processor(text=[text], images=list(images), return_tensors="pt")
        for name, value in inputs.items():
            if name in ("input_ids", "attention_mask", "mm_token_type_ids"):
                more = {"input_ids": reply, "attention_mask": torch.ones_like(reply)}.get(name, torch.zeros_like(reply))
                inputs[name] = torch.cat([value, more[None].to(value.dtype)], dim=1)
        logits = self.model(**inputs, use_cache=False).logits[0, -len(reply) - 1 : -1]
        scores = ((logits.float() + self.bias) / self.temperature).log_softmax(-1)
        return scores.gather(-1, reply[:, None])[:, 0]


def advantages(rewards: Sequence[float]) -> torch.Tensor:
    """How much better each reply is than its group, (G,)."""
    values = torch.tensor(rewards, dtype=torch.float64)
    if values.max() - values.min() <= 1e-6:
        return torch.zeros(len(values))
    return ((values - values.mean()) / (values.std() + 1e-4)).float()


def step_loss(policy: Policy, reference: Policy, groups: Sequence[Group], grpo: GrpoConfig) -> torch.Tensor:
    """The loss of one step: clipped surrogate with truncated importance weights, and beta times KL to the reference.

    A mean over all reply tokens of the step (docs/method.md has the equations).
    """
    total, tokens = torch.zeros(()), 0
    for group in groups:
        for reply, sampled, advantage in zip(group.replies, group.sampled, advantages(group.rewards), strict=True):
            now = policy.logprobs(group.text, group.images, reply)
            with torch.no_grad():
                first = reference.logprobs(group.text, group.images, reply)
            old = now.detach()  # the first update of a step: pi_old is the policy itself
            ratio = torch.exp(now - old)
            clipped = ratio.clamp(1 - grpo.clip, 1 + grpo.clip)
            weight = torch.exp(old - sampled).clamp(max=grpo.importance_cap)
            k3 = torch.exp(first - now) - (first - now) - 1
            loss = -torch.min(ratio * advantage, clipped * advantage) * weight + grpo.beta * ratio * k3
            total, tokens = total + loss.sum(), tokens + len(reply)
    return total / tokens


def main(path: str, overrides: list[str]) -> None:
    """A few steps of GRPO from the config's base model."""
    config = load_config(path, overrides)
    grpo, system = config.grpo, system_of(config)
    with tempfile.TemporaryDirectory() as folder:
        system.build("data", "train", Path(folder) / "train")
        sampler = system.sampler(read_dataset(Path(folder) / "train"))
        policy = Policy(config.model.base, config.model.max_pixels, grpo.temperature)
        reference = Policy(config.model.base, config.model.max_pixels, grpo.temperature)
        optimizer = torch.optim.AdamW(policy.model.parameters(), lr=grpo.lr, weight_decay=grpo.weight_decay)
        torch.manual_seed(config.seed)
        for step in range(grpo.max_steps):
            groups, earned = [], []
            for sample in sampler.samples(step):
                messages: Any = system.prompt(sample, "grpo")
                text = policy.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
                images, target = model_images(sample, config.model.max_pixels), system.target(sample, "grpo")
                replies = policy.sample(text, images, grpo.group_size, grpo.max_new_tokens)
                said = [policy.processor.tokenizer.decode(r, skip_special_tokens=True) for r in replies]
                rewards = [system.score(words, target).total(system.weights()) for words in said]
                with torch.no_grad():
                    sampled = [policy.logprobs(text, images, reply) for reply in replies]
                groups.append(Group(text, images, replies, sampled, rewards))
                earned.append(system.score(said[0], target).row(system.weights()) | {"id": sample.id})
            loss = step_loss(policy, reference, groups, grpo)
            optimizer.zero_grad()
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(policy.model.parameters(), grpo.grad_clip)
            optimizer.step()
            sampler.observe(step, earned)
            mean = sum(sum(group.rewards) for group in groups) / (len(groups) * grpo.group_size)
            print(f"step {step + 1}: reward {mean:.3f}, loss {loss.item():.4f}, gradient {norm.item():.3f}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
