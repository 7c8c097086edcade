"""The sections of the config that wide-baseline matching adds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from hatch_ray.config import Config
from hatch_ray.config_sections import Positive, Section, SftConfig
from hatch_ray.systems.matching.reward import MatchReward

Share = Annotated[float, Field(ge=0, le=1)]


class CurriculumConfig(Section):
    order: Literal["curriculum", "uniform", "easy", "hard"] = "curriculum"
    """Which questions GRPO asks: curriculum (by what it earns), uniform (all), easy or hard (the quarter of view pairs
    with the most or the least overlap)."""
    bins: Positive = 10
    """Parts of the view pairs, equal in number, by overlap."""
    window: Positive = 20
    """Steps over which the share of right marks is averaged."""
    master: Share = 0.8
    """A bin whose full window is above this is not asked again."""
    promote: Share = 0.7
    """A level (or how dense its marks stand) goes up when its window's mean is above this .."""
    promote_after: Positive = 10
    """.. for so many steps in a row."""
    demote: Share = 0.2
    """It goes down when the steps themselves are below this .."""
    demote_after: Positive = 10
    """.. for so many in a row."""

    @model_validator(mode="after")
    def _check(self) -> CurriculumConfig:
        if self.demote >= self.promote:
            raise ValueError(
                f"curriculum.demote={self.demote:g} must be below curriculum.promote={self.promote:g}, or levels go up "
                "and down without end"
            )
        return self


class MatchingConfig(Config):
    match_sft: SftConfig = SftConfig()
    reward: MatchReward = MatchReward()
    curriculum: CurriculumConfig = CurriculumConfig()
    pools: Path | None = None
    """View pairs with their matches that `hatch data pool` wrote, of the same data, seed and model.max_pixels. Left
    out: pairs are matched while the dataset is built."""
    thinking: bool = False
    """GRPO's model writes a <thinking> block before its answer. match_sft teaches answers alone: nobody knows the
    thoughts behind them."""
