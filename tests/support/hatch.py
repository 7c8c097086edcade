"""HATCH's pieces as tests want them: by mode, for some settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hatch_ray.config import make_config
from hatch_ray.config_sections import ModelConfig, RewardConfig
from hatch_ray.evaluation.heldout import Row, score_rows
from hatch_ray.learning.sft import SampleEncoder
from hatch_ray.protocol.prompt import Mode
from hatch_ray.rewards.score import TOTAL, Score
from hatch_ray.rewards.terms import reward_weights
from hatch_ray.sample import Sample
from hatch_ray.systems.hatch.system import Hatch


def hatch(mode: Mode, **sections: Any) -> tuple[Hatch, str]:
    """The system whose replies have this mode, and the stage whose model replies so. sections: of its config."""
    model = dict(sections.pop("model", {}))
    if mode != "direct":
        model["reasoning"] = mode
    return Hatch(make_config({"model": model, **sections})), "qa_sft" if mode == "direct" else "cold_start"


def encoder_of(processor: Any, mode: Mode, model: ModelConfig) -> SampleEncoder:
    """Encodes samples as the stage with this mode does."""
    return SampleEncoder(processor, *hatch(mode, model=model.model_dump()))


def judged(
    samples: Sequence[Sample], texts: Sequence[str], reward: RewardConfig | None = None, mode: Mode = "actions"
) -> list[Row]:
    """Rows of an evaluation."""
    return score_rows(*hatch(mode, reward=(reward or RewardConfig()).model_dump()), samples, texts)


def total(score: Score, reward: RewardConfig | None = None) -> float:
    """The total reward of eq. 8."""
    return float(score.row(reward_weights(reward or RewardConfig()))["terms"][TOTAL])
