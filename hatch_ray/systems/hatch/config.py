"""HATCH's sections of the config."""

from __future__ import annotations

from hatch_ray.config import Config
from hatch_ray.config_sections import PastaConfig, RewardConfig, SftConfig


class HatchConfig(Config):
    pasta: PastaConfig = PastaConfig()
    qa_sft: SftConfig = SftConfig()
    cold_start: SftConfig = SftConfig(fraction=0.1)
    reward: RewardConfig = RewardConfig()
