"""A system of your own: which of two photos is brighter? (docs/your-own-system.md)"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hatch_ray.config import Config
from hatch_ray.config_sections import SftConfig
from hatch_ray.data.writer import DatasetWriter
from hatch_ray.rewards.score import Score
from hatch_ray.sample import Sample
from hatch_ray.systems.base import Messages, Progress, Split, Stage, System


class BrighterConfig(Config):
    teach: SftConfig = SftConfig(batch_size=8, lr=1e-3)
    easy_gap: float = 100.0
    """Two photos whose brightness (0 to 255) differs by as much are an easy pair."""


class EasyFirst:
    """Easy pairs until nine answers in ten are right; then all pairs."""

    def __init__(self, config: BrighterConfig, samples: Sequence[Sample]) -> None:
        self.known, self.config = list(samples), config
        self.pool = [sample for sample in samples if sample.meta["gap"] >= config.easy_gap]

    def samples(self, step: int) -> list[Sample]:
        rng = np.random.default_rng([self.config.seed, step])
        return [self.pool[i] for i in rng.integers(len(self.pool), size=self.config.grpo.prompts_per_step)]

    def observe(self, step: int, groups: Sequence[Mapping[str, Any]]) -> None:
        if np.mean([group["terms"]["choice"] for group in groups]) >= 0.9:
            self.pool = self.known


class Brighter(System):
    Config = BrighterConfig
    answer_forms = ("photo",)
    stages = (Stage("teach", "sft", "Teach: the form"), Stage("grpo", "grpo", "GRPO: the right photo"))

    def sampler(self, samples: Sequence[Sample]) -> EasyFirst:
        return EasyFirst(self.config, samples)

    def weights(self) -> dict[str, float]:
        return {"choice": 1.0, "form": 0.5}

    def build(self, section: str, split: Split, out: Path, report: Progress | None = None) -> None:
        rng, data = np.random.default_rng([self.config.seed, split == "heldout"]), self.config.data
        with DatasetWriter(out) as writer:
            for number in range(data.samples if split == "train" else data.heldout_samples):
                levels = rng.choice(256, size=2, replace=False)
                photos = [np.full((56, 56, 3), level, np.uint8) for level in levels]
                name, gap = f"pair{number}", float(np.ptp(levels.astype(float)))
                views = tuple(writer.add_photo(name, i, photo) for i, photo in enumerate(photos))
                answer = "first" if levels[0] > levels[1] else "second"
                writer.add(Sample(name, name, "tone", "photo", "Which is brighter?", answer, views, meta={"gap": gap}))
            writer.summary = {"samples": len(writer)}

    def prompt(self, sample: Sample, stage: str) -> Messages:
        text = f"{sample.question} Say first or second."
        return [{"role": "user", "content": [{"type": "image"}] * len(sample.views) + [{"type": "text", "text": text}]}]

    def gold(self, sample: Sample, stage: str) -> str:
        return f"It is the {sample.answer}."

    def target(self, sample: Sample, stage: str) -> str:
        return sample.answer

    def score(self, text: str, target: str) -> Score:
        found = [word for word in ("first", "second") if word in text]
        answer = found[0] if len(found) == 1 else None
        reasons = () if answer == target else ("choice:wrong" if answer else "choice:none_or_both",)
        terms = {"choice": float(answer == target), "form": float(text == f"It is the {answer}.")}
        return Score(terms, reasons=reasons, answer=answer)
