"""What `actors.learner.bad_batches` keeps, read again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from actors.learner.bad_batches import FACTS, FORMAT, TENSORS, BadBatch
from actors.runtime.messages import Group, Reply, Request, Rollout
from hatch_ray.config import Config, make_config
from hatch_ray.model.prompt_tokens import ImagePatches, Prompt


def read_bad_batch(path: Path) -> tuple[BadBatch, dict[str, torch.Tensor]]:
    """A batch and the weights before its update, from its folder or a file in it.

    Raises ValueError when something is missing or unreadable, with what.
    """
    folder = path if path.is_dir() else path.parent
    facts_path = folder / FACTS
    if not facts_path.is_file():
        raise ValueError(f"{path} is not a kept batch (no {FACTS}); they lie in RUN/bad_batches/step-.../")
    try:
        facts = json.loads(facts_path.read_text(encoding="utf-8"))
        if facts["format"] != FORMAT:
            raise ValueError(f"{facts_path} has format {facts['format']}; this version reads format {FORMAT}")
        config = make_config(facts["config"], where=str(facts_path))
        batch = _rebuild(facts, config, _load(folder / TENSORS))
    except (json.JSONDecodeError, KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"{facts_path} or {TENSORS} beside it is damaged: {error!r}") from None
    return batch, _load(folder / facts["weights"])


def _load(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise ValueError(f"{path} is missing; a batch of rank 1 or higher needs the folder of rank 0 beside it")
    try:
        return dict(load_file(path))
    except SafetensorError as error:
        raise ValueError(f"{path} is not readable: {error}") from None


def _rebuild(facts: dict[str, Any], config: Config, tensors: dict[str, torch.Tensor]) -> BadBatch:
    rows = facts["groups"]
    replies = [reply for row in rows for reply in row["replies"]]
    lengths = [reply["tokens"] for reply in replies]
    ids = tensors["reply_tokens"].split(lengths)
    sampled = tensors["sampled_logprobs"].split(lengths)
    made = [
        Reply(tuple(ids[n].tolist()), reply["text"], sampled[n].numpy(), reply["ended"])
        for n, reply in enumerate(replies)
    ]
    sizes = [len(row["replies"]) for row in rows]
    advantages = tensors["advantages"].split(sizes)
    rewards = tensors["rewards"].split(sizes)
    prompt_ids = tensors["prompt_tokens"].split([row["prompt_tokens"] for row in rows])
    prompts, groups = [], []
    start = 0
    for number, (row, size) in enumerate(zip(rows, sizes, strict=True)):
        images = tuple(
            ImagePatches(tensors[f"image/{one['name']}"], (one["grid"][0], one["grid"][1], one["grid"][2]), one["key"])
            for one in row["images"]
        )
        prompts.append(Prompt(tuple(prompt_ids[number].tolist()), images))
        rollout = Rollout(tuple(made[start : start + size]), row["version"], row["prompt_tokens"])
        earned = rewards[number].numpy(), advantages[number].numpy()
        request = Request(row["id"], row["prompt"], ())
        groups.append(Group(request, rollout, *earned, row["zero_variance"]))
        start += size
    plain = {name: facts[name] for name in ("step", "rank", "world", "update", "tokens", "own_sums", "model")}
    return BadBatch(
        **plain,
        bad_gradients=tuple(facts["bad_gradients"]),
        config=config,
        prompts=tuple(prompts),
        groups=tuple(groups),
        old=tensors["old_logprobs"],
    )
