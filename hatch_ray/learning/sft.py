"""Supervised fine-tuning on gold replies: QA SFT (answers alone) and ActoR's cold start (teacher actions, then answer).

The loss is that of TRL's SFTTrainer (a test compares them): the token losses of a batch's replies, end tokens included,
summed and divided by the number of these tokens. Prompts are tokenised as for inference, so that a trained model meets
the very tokens it was trained on, and a batch is computed as GRPO computes one (`model.packing`): no padding, an image
once. `actors/stages/sft.py` runs it over several workers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from hatch_ray.data.images import image_size, shrunk_size
from hatch_ray.data.store import model_image
from hatch_ray.learning.pixels import PixelCache
from hatch_ray.model.logprobs import ReplyScorer
from hatch_ray.model.packing import PackedBatch, pack
from hatch_ray.model.prompt_tokens import Prompt, prompt_length, tokenize_prompt
from hatch_ray.sample import Sample
from hatch_ray.systems.base import System

SCORED_TOGETHER = 8
"""Gold replies whose log-probabilities are computed at the same time."""


def share_by_task(samples: Sequence[Sample], fraction: float, seed: int) -> list[Sample]:
    """A seeded share of the samples with every task represented: `fraction` of each task, rounded up."""
    by_task: dict[str, list[int]] = {}
    for index, sample in enumerate(samples):
        by_task.setdefault(sample.task, []).append(index)
    chosen: list[int] = []
    for number, task in enumerate(sorted(by_task)):
        # The small allowance keeps 10 % of 30 at 3: in floating point it is 3.0000000000000004.
        count = math.ceil(fraction * len(by_task[task]) - 1e-9)
        chosen += np.random.default_rng([seed, number]).permutation(by_task[task])[:count].tolist()
    return [samples[index] for index in sorted(chosen)]


class SampleEncoder:
    """Turns samples into prompts and replies of tokens, keeping both for the next epoch."""

    def __init__(self, processor: Any, system: System, stage: str, pixels: PixelCache | None = None) -> None:
        self.processor = processor
        self.system, self.stage = system, stage
        self.model = system.config.model
        self.pixels = pixels or PixelCache(processor)
        self._texts: dict[str, tuple[str, tuple[int, ...]]] = {}
        self._prompts: dict[str, tuple[int, ...]] = {}
        self._sizes: dict[Path, tuple[int, int]] = {}

    def _text(self, sample: Sample) -> tuple[str, tuple[int, ...]]:
        """The prompt's chat text and the reply's tokens."""
        if sample.id not in self._texts:
            messages = self.system.prompt(sample, self.stage)
            prompt = self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            gold = self.system.gold(sample, self.stage)
            reply = self.processor.tokenizer(gold, add_special_tokens=False)["input_ids"]
            self._texts[sample.id] = prompt, (*reply, self.processor.tokenizer.eos_token_id)
        return self._texts[sample.id]

    def load(self, sample: Sample, index: int) -> Image.Image:
        """The view as the model is shown it: marked, and shrunk to model.max_pixels."""
        return model_image(sample, index, self.model.max_pixels)

    def prompt(self, sample: Sample) -> Prompt:
        """The prompt up to the reply, with its images."""
        images = tuple(
            self.pixels.get(
                (view.image_path, tuple(mark for mark in sample.marks if mark.view == index)),
                partial(self.load, sample, index),
            )
            for index, view in enumerate(sample.views)
        )
        if sample.id not in self._prompts:
            self._prompts[sample.id] = tokenize_prompt(self.processor, self._text(sample)[0], images).token_ids
        return Prompt(self._prompts[sample.id], images)

    def reply(self, sample: Sample) -> tuple[int, ...]:
        """The gold reply's tokens, its end token last: what is learned."""
        return self._text(sample)[1]

    def length(self, sample: Sample) -> int:
        """Tokens of prompt and reply, from the sizes in the image files' headers (no image is decoded)."""
        prompt, reply_ids = self._text(sample)
        return len(reply_ids) + prompt_length(self.processor, prompt, [self._size(v.image_path) for v in sample.views])

    def _size(self, path: Path) -> tuple[int, int]:
        if path not in self._sizes:
            self._sizes[path] = shrunk_size(*image_size(path), self.model.max_pixels)
        return self._sizes[path]

    def check(self, samples: Sequence[Sample]) -> None:
        """Raise ValueError naming the first sample that does not fit the context or has the name of another one."""
        seen: set[str] = set()
        for sample in samples:
            if sample.id in seen:
                raise ValueError(f"two samples are called {sample.id!r}; give every sample of a dataset its own id")
            seen.add(sample.id)
            check_length(sample, self.length(sample), self.model.max_length)


def check_length(sample: Sample, length: int, max_length: int) -> None:
    """Raise ValueError when prompt and reply do not fit the context: cutting would lose image tokens or the answer."""
    if length > max_length:
        raise ValueError(
            f"sample {sample.id} has {length} tokens (images, prompt and reply), more than model.max_length="
            f"{max_length}; raise it, or lower model.max_pixels"
        )


def pack_samples(model: nn.Module, encoder: SampleEncoder, samples: Sequence[Sample]) -> PackedBatch:
    """Samples as one row: each prompt, then its gold reply, which is scored."""
    return pack(model, [encoder.prompt(sample) for sample in samples], [[encoder.reply(sample)] for sample in samples])


@torch.no_grad()
def gold_logprobs(scorer: ReplyScorer, encoder: SampleEncoder, samples: Sequence[Sample]) -> np.ndarray:
    """(samples,): the mean log-probability (nats) of a token of each sample's gold reply, its end token included.

    It tells how near a model is to the right answers also where it never wrote their form.
    """
    found = []
    for start in range(0, len(samples), SCORED_TOGETHER):
        batch = pack_samples(scorer.model, encoder, samples[start : start + SCORED_TOGETHER])
        logprobs, _ = scorer(batch.to(scorer.bias.device))
        reply = batch.reply.numpy()
        found.append(np.bincount(reply, logprobs.cpu().numpy()) / np.bincount(reply))
    return np.concatenate(found)


def reply_loss(logprobs: torch.Tensor, tokens: int, world: int = 1) -> torch.Tensor:
    """One worker's loss (scalar), whose mean over `world` workers is the batch's loss.

    logprobs (N,): of this worker's reply tokens; tokens: reply tokens of the whole batch, over all workers.
    """
    return -logprobs.sum() * (world / tokens)
