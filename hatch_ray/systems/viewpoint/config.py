"""The sections of a viewpoint config."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from hatch_ray.config import Config
from hatch_ray.config_sections import DataConfig, Positive, Rate, Section, SftConfig
from hatch_ray.systems.viewpoint.motion import Mode
from hatch_ray.systems.viewpoint.questions import known_types

PUBLISHED = ("sat", "viewpoint_100k")
"""Kinds of data that are questions already: nothing is known of their poses."""


class ViewpointData(DataConfig):
    """Pairs of photos. orbit: kind rooms renders objects (rooms.train_scenes of them), kind rgbd takes every posed
    sequence below `root` as one object. free: pairs of a room, or of posed RGB-D.
    """

    kind: Literal["rooms", "rgbd", "spar", "sat", "viewpoint_100k"] = "rooms"  # type: ignore[assignment]
    """rooms: rendered. rgbd: posed sequences below `root`. sat, viewpoint_100k: the published questions, whose files
    lie in `root` (docs/viewpoint.md)."""
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
        if self.kind not in PUBLISHED:
            known_types(self.tasks, self.mode)
        if self.kind in ("spar", "scenes"):
            raise ValueError(
                f"viewpoint has no kind: {self.kind}; use rooms, rgbd, sat or viewpoint_100k, all but rooms with a root"
            )
        return self


class ViewpointReward(Section):
    kind: Literal["letter", "actions"] = "letter"
    """letter, the paper's: a thought, then the option's letter, which is rewarded. actions: HATCH's camera actions in
    place of the thought; rewarded is the pose that they compose to, and `exact` is the side to which they go."""
    strict: bool = False
    """The published reward to the letter: one regular expression for the form, and the answer equal as a string. Else
    "(B)" and "B." are B, and a form with two answers or an empty thought is none."""
    tau_t: Rate = 1.0
    """actions: metres of error that leave 1/e (eq. 10 of HATCH)."""
    tau_r: Rate = 30.0
    """actions: degrees of error that leave 1/e."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.strict and self.kind == "actions":
            raise ValueError(
                "reward.strict is the published reward, of letters: set reward.kind=letter, or strict=false"
            )
        return self


class ViewpointConfig(Config):
    views: ViewpointData = ViewpointData()
    """What view_sft learns from."""
    data: ViewpointData = ViewpointData(mode="free")
    """What GRPO asks, and what is evaluated."""
    view_sft: SftConfig = SftConfig(
        epochs=2, batch_size=128, lr=5e-6, warmup_steps=50, schedule="cosine", trainable="language"
    )
    reward: ViewpointReward = ViewpointReward()

    @model_validator(mode="after")
    def _check_actions(self) -> Self:
        if self.reward.kind == "actions":
            for name in ("views", "data") if "view_sft" in self.stages else ("data",):
                data: ViewpointData = getattr(self, name)
                if data.kind in PUBLISHED or (data.kind == "rgbd" and data.mode == "orbit"):
                    raise ValueError(
                        f"reward.kind=actions needs poses in metres, which {name} (kind {data.kind}, mode {data.mode}) "
                        f"does not have; use {name}.kind=rooms, or rgbd with {name}.mode=free"
                    )
        return self
