"""A step's batch, with its metrics and rows; and which step may be sampled when.

Life of step s:  Schedule.start(version) -> rollouts -> groups -> Schedule.admit(s, versions)
                 -> hand_over -> every worker's board.take(s, rank) -> rank 0's board.report(s)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from actors.experience.ledger import group_row, mean, means
from actors.reward.verifier import Scores
from actors.runtime.messages import Group
from hatch_ray.sample import Sample

MAX_REFUSED = 3
"""Batches in a row that come back too old before the run stops."""


class Schedule:
    """Which step may be sampled with which weights. Version v is what the learner has after v steps.

    The batch of step s is trained by a learner at version s. It may be sampled with version v when s - v is at most
    `max_staleness`; with 0, sampling and learning take turns.
    """

    def __init__(self, first: int, steps: int, max_staleness: int) -> None:
        if not 0 <= first <= steps or max_staleness < 0:
            raise ValueError(f"impossible schedule: first={first}, steps={steps}, max_staleness={max_staleness}")
        self.next_step = first
        self.steps = steps
        self.max_staleness = max_staleness
        self.refused = 0
        """Batches refused since the last one that was not."""

    @property
    def done(self) -> bool:
        """Whether every step has been sampled."""
        return self.next_step >= self.steps

    @property
    def needed_version(self) -> int:
        """The oldest weights with which the next step may be sampled."""
        return max(0, self.next_step - self.max_staleness)

    def start(self, version: int) -> int:
        """Take up the next step with weights of this version. Raises ValueError when they are too old."""
        if self.done:
            raise ValueError("every step has been sampled")
        if version < self.needed_version:
            raise ValueError(f"step {self.next_step} needs version {self.needed_version} or newer, got {version}")
        self.next_step += 1
        return self.next_step - 1

    def admit(self, step: int, versions: Sequence[int]) -> bool:
        """Whether groups sampled with these versions may be trained on; if not, the step is to be sampled again.

        Raises RuntimeError when MAX_REFUSED batches in a row may not.
        """
        if step != self.next_step - 1:
            raise ValueError(f"step {step} was not the last one started ({self.next_step - 1})")
        if all(0 <= step - version <= self.max_staleness for version in versions):
            self.refused = 0
            return True
        self.refused += 1
        if self.refused >= MAX_REFUSED:
            raise RuntimeError(f"grpo: {self.refused} batches in a row were older than grpo.max_staleness allows")
        self.next_step -= 1
        return False


@dataclass(frozen=True)
class Asked:
    """A prompt group of a step, rewarded.

    place   the group's in the step.
    draw    0, or for the how manieth time other prompts were drawn (grpo.redraw).
    scores  of its replies.
    """

    place: int
    draw: int
    sample: Sample
    group: Group
    scores: tuple[Scores, ...]


def newest(asked: Sequence[Asked]) -> dict[int, Asked]:
    """By place the group that was drawn last: it is the one that is trained. asked: in the order of draws."""
    return {one.place: one for one in asked}


def without_variance(asked: Sequence[Asked]) -> list[int]:
    """The places that other prompts are drawn for: the replies of their newest group all earned the same.

        DAPO's dynamic sampling, arXiv 2503.14476, section 3.2, eq. 11:   0 < |{o_i : o_i is right}| < G

    There a reply is right or wrong, and whole batches are sampled until one is full. Rewards here are sums of terms:
    max r > min r (`learning.grpo.group_advantages`); and prompts are drawn for these places alone.
    """
    return [place for place, one in newest(asked).items() if one.group.zero_variance]


@dataclass(frozen=True)
class Batch:
    """A step's prompt groups, rewarded. asked: by draw and place, those set aside left out; made: how, as metrics."""

    step: int
    asked: tuple[Asked, ...]
    made: dict[str, float]

    @property
    def groups(self) -> list[Group]:
        """Those that are trained, by place."""
        return [one.group for one in newest(self.asked).values()]

    @property
    def versions(self) -> list[int]:
        """Of the weights that sampled each of these groups."""
        return [group.rollout.version for group in self.groups]

    def ledger_rows(self, per_step: int) -> list[dict[str, Any]]:
        """Rows of RUN/ledger.jsonl."""
        trained, first = newest(self.asked), self.step * per_step
        return [
            group_row(
                self.step, first + one.place, one.sample.id, one.group.rollout.version, one.scores, one.draw,
                trained[one.place] is one,
            )
            for one in self.asked
        ]  # fmt: skip

    def sample_rows(self) -> list[dict[str, Any]]:
        """Lines of RUN/samples/grpo.jsonl: one reply with its question, images, what was read, terms, advantage."""
        rows = []
        for number, one in enumerate(self.asked):
            sample, group = one.sample, one.group
            for reply, score, advantage in zip(group.rollout.replies, one.scores, group.advantages, strict=True):
                rows.append(
                    {
                        "step": self.step,
                        "group": number,
                        "version": group.rollout.version,
                        "id": sample.id,
                        "scene": sample.scene,
                        "task": sample.task,
                        "question": sample.question,
                        "images": [str(view.image_path) for view in sample.views],
                        "marks": [mark.to_row() for mark in sample.marks],
                        "gold_answer": sample.answer,
                        "completion": reply.text,
                        "tokens": len(reply.token_ids),
                        "ended": reply.ended,
                        **score,
                        "advantage": round(float(advantage), 6),
                    }
                )
        return rows

    def metrics(self) -> dict[str, float]:
        """Means over all replies of the step: total, every term and measure, lengths; of the groups that are trained,
        what they are worth.
        """
        scores = [score for one in self.asked for score in one.scores]
        replies = [reply for one in self.asked for reply in one.group.rollout.replies]
        metrics = {f"reward_{name}": value for name, value in means(scores, "terms").items()}
        metrics |= means(scores, "measures") | {
            "reply_tokens": mean([len(reply.token_ids) for reply in replies]),
            "ended_share": mean([reply.ended for reply in replies]),
            "reward_std": mean([np.std(one.group.rewards) for one in self.asked]),
            "groups": float(len(self.groups)),
            "zero_variance_groups": float(sum(group.zero_variance for group in self.groups)),
            "staleness": mean([self.step - version for version in self.versions]),
        }
        return {name: value for name, value in metrics.items() if value is not None} | self.made
