"""The sections of a viewpoint config."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from hatch_ray.config import Config
from hatch_ray.config_sections import DataConfig, Positive, Section, SftConfig
from hatch_ray.systems.viewpoint.motion import Mode
from hatch_ray.systems.viewpoint.questions import known_types


class ViewpointData(DataConfig):
    """Pairs of photos. orbit: kind rooms renders objects (rooms.train_scenes of them), kind rgbd takes every posed
    sequence below `root` as one object. free: pairs of a room, or of posed RGB-D.
    """

    mode: Mode = "orbit"
    """orbit: the camera goes around an object and keeps it in view, as in the paper; the answers are one bit. free: any
    two overlapping views of a place; going and turning are independent."""
    every_question: bool = False
    """A pair gives one sample of every type; else one sample, the types in turn."""
    think_share: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the training samples that teach a written-out thought; the others teach the bare answer."""
    think_pool: Positive = 1000
    """So many different samples get a thought; they come again and again until the share is met."""
    min_overlap: Annotated[float, Field(ge=0, le=1)] = 0.2
    """free: least overlap of a pair."""

    @model_validator(mode="after")
    def _check_types(self) -> Self:
        known_types(self.tasks, self.mode)
        if self.kind in ("spar", "scenes"):
            raise ValueError(f"viewpoint has no kind: {self.kind}; use rooms, or rgbd with a root")
        return self


class ViewpointReward(Section):
    strict: bool = False
    """The published reward to the letter: one regular expression for the form, and the answer equal as a string. Else
    "(B)" and "B." are B, and a form with two answers or an empty thought is none."""


class ViewpointConfig(Config):
    views: ViewpointData = ViewpointData()
    """What view_sft learns from."""
    data: ViewpointData = ViewpointData(mode="free")
    """What GRPO asks, and what is evaluated."""
    view_sft: SftConfig = SftConfig(
        epochs=2, batch_size=128, lr=5e-6, warmup_steps=50, schedule="cosine", trainable="language"
    )
    reward: ViewpointReward = ViewpointReward()
