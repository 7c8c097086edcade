"""Batches whose loss or gradient was not finite, kept so that `tools.replay` can find the cause. Safetensors and JSON.

RUN/bad_batches/step-000124-rank0/batch.json             what was asked, sampled and set; which model and weights
                                  batch.safetensors      tokens, log-probabilities, advantages, rewards, patches
                                  weights.safetensors    all that learns, as it was before the update (rank 0 alone)

Steps count as in metrics.jsonl, from 1. Every rank keeps its own groups, because the gradient is a sum over all ranks.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from actors.runtime.messages import Group
from hatch_ray.config import Config
from hatch_ray.model.base import replace_folder
from hatch_ray.model.prompt_tokens import ImagePatches, Prompt

FORMAT = 1
FACTS, TENSORS, WEIGHTS = "batch.json", "batch.safetensors", "weights.safetensors"


@dataclass(frozen=True)
class BadBatch:
    """One worker's share of a step that was not applied.

    update     which of grpo.updates_per_step went wrong, from 0; old (N,): pi_old of every reply token, in order.
    tokens     reply tokens of the step over all workers, which the loss is divided by.
    own_sums   the sums over this worker's tokens that the learner found, as text ("nan" and "inf" are no JSON).
    bad_gradients  parameters whose gradient was not finite after the sum over all workers.
    model      what the learner and its reference started from.
    """

    step: int
    rank: int
    world: int
    update: int
    tokens: int
    own_sums: dict[str, str]
    bad_gradients: tuple[str, ...]
    config: Config
    model: str
    prompts: tuple[Prompt, ...]
    groups: tuple[Group, ...]
    old: torch.Tensor

    @property
    def name(self) -> str:
        """Its folder's name."""
        return _name(self.step, self.rank)


def _name(step: int, rank: int) -> str:
    return f"step-{step:06d}-rank{rank}"


def write_bad_batch(folder: Path, batch: BadBatch, weights: Mapping[str, torch.Tensor] | None, keep: int) -> Path:
    """Write one below `folder`, whole or not at all, and drop this rank's older ones beyond the newest `keep`.

    weights: the parameters that learn; None on all ranks but 0, whose folders name those of rank 0.
    """
    target = folder / batch.name
    temporary = folder / f".{batch.name}.{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        save_file(_tensors(batch), temporary / TENSORS)
        if weights is not None:
            save_file({name: p.detach().cpu().contiguous() for name, p in weights.items()}, temporary / WEIGHTS)
        (temporary / FACTS).write_text(json.dumps(_facts(batch), indent=1, allow_nan=False), encoding="utf-8")
        replace_folder(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for older in sorted(folder.glob(f"step-*-rank{batch.rank}"))[:-keep]:
        shutil.rmtree(older)
    return target


def _tensors(batch: BadBatch) -> dict[str, torch.Tensor]:
    """Everything of all replies in a row, and each image once."""
    replies = [reply for group in batch.groups for reply in group.rollout.replies]
    tensors = {
        "prompt_tokens": torch.tensor([token for prompt in batch.prompts for token in prompt.token_ids]),
        "reply_tokens": torch.tensor([token for reply in replies for token in reply.token_ids]),
        "sampled_logprobs": torch.from_numpy(np.concatenate([reply.logprobs for reply in replies]).astype(np.float32)),
        "old_logprobs": batch.old.detach().float().contiguous(),
        "advantages": torch.from_numpy(np.concatenate([group.advantages for group in batch.groups])),
        "rewards": torch.from_numpy(np.concatenate([group.rewards for group in batch.groups])),
    }
    for name, image in _images(batch).items():
        tensors[f"image/{name}"] = image.pixels.cpu().clone()
    return tensors


def _images(batch: BadBatch) -> dict[str, ImagePatches]:
    return {_image_name(batch, g, i): image for g, p in enumerate(batch.prompts) for i, image in enumerate(p.images)}


def _image_name(batch: BadBatch, group: int, number: int) -> str:
    return batch.prompts[group].images[number].key or f"{group}-{number}"


def _facts(batch: BadBatch) -> dict[str, Any]:
    groups = []
    for number, (prompt, group) in enumerate(zip(batch.prompts, batch.groups, strict=True)):
        groups.append(
            {
                "id": group.request.id,
                "prompt": group.request.prompt,
                "prompt_tokens": len(prompt.token_ids),
                "images": [
                    {"name": _image_name(batch, number, place), "key": image.key, "grid": list(image.grid)}
                    for place, image in enumerate(prompt.images)
                ],
                "version": group.rollout.version,
                "zero_variance": group.zero_variance,
                "replies": [
                    {"text": reply.text, "tokens": len(reply.token_ids), "ended": reply.ended}
                    for reply in group.rollout.replies
                ],
            }
        )
    plain = ("step", "rank", "world", "update", "tokens", "own_sums", "model")
    return {
        "format": FORMAT,
        **{name: getattr(batch, name) for name in plain},
        "bad_gradients": list(batch.bad_gradients),
        "weights": WEIGHTS if batch.rank == 0 else f"../{_name(batch.step, 0)}/{WEIGHTS}",
        "groups": groups,
        "config": batch.config.model_dump(mode="json"),
    }
