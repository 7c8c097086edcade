"""A step's batch, with its metrics and rows; and which step may be sampled when.

Life of step s:  Schedule.start(version) -> rollouts -> groups -> Schedule.admit(s, versions)
                 -> hand_over -> every worker's board.take(s, rank) -> rank 0's board.report(s)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from actors.experience.ledger import mean, means, trained_row
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
class Batch:
    """A step's prompt groups, rewarded. All tuples have one entry a group, in the order of `places`.

    places   the groups' places in the step, those set aside left out.
    scores   of each group's replies.
    seconds  of each part of the making, as metrics.
    """

    step: int
    places: tuple[int, ...]
    samples: tuple[Sample, ...]
    groups: tuple[Group, ...]
    scores: tuple[tuple[Scores, ...], ...]
    seconds: dict[str, float]

    @property
    def versions(self) -> list[int]:
        """Of the weights that sampled each group."""
        return [group.rollout.version for group in self.groups]

    def ledger_rows(self, per_step: int) -> list[dict[str, Any]]:
        """Rows of RUN/ledger.jsonl."""
        return [
            trained_row(self.step, self.step * per_step + place, sample.id, group.rollout.version, scores)
            for place, sample, group, scores in zip(self.places, self.samples, self.groups, self.scores, strict=True)
        ]

    def sample_rows(self) -> list[dict[str, Any]]:
        """Lines of RUN/samples/grpo.jsonl: one reply with its question, images, what was read, terms, advantage."""
        rows = []
        for number, (sample, group, scores) in enumerate(zip(self.samples, self.groups, self.scores, strict=True)):
            for reply, score, advantage in zip(group.rollout.replies, scores, group.advantages, strict=True):
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
        """Means over the replies of the step: total, every term and measure, lengths, what the groups are worth."""
        scores = [score for group in self.scores for score in group]
        replies = [reply for group in self.groups for reply in group.rollout.replies]
        metrics = {f"reward_{name}": value for name, value in means(scores, "terms").items()}
        metrics |= means(scores, "measures") | {
            "reply_tokens": mean([len(reply.token_ids) for reply in replies]),
            "ended_share": mean([reply.ended for reply in replies]),
            "reward_std": mean([np.std(group.rewards) for group in self.groups]),
            "groups": float(len(self.groups)),
            "zero_variance_groups": float(sum(group.zero_variance for group in self.groups)),
            "staleness": mean([self.step - version for version in self.versions]),
        }
        return {name: value for name, value in metrics.items() if value is not None} | self.seconds
