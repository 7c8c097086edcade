"""Experience: from rollouts and scores to whole batches for the learner's workers, never older than allowed.

Here is what decides and computes; batches wait for the workers on `boards.ExperienceBoard`.

Life of step s:  Schedule.start(version) -> rollouts, scores -> make_groups -> Schedule.admit(s, version)
                 -> make_shards -> board.put -> every worker's board.take(s, rank) -> rank 0's board.report(s)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from actors.messages import Group, Request, Rollout, Shard
from hatch_ray.learning.grpo import group_advantages
from hatch_ray.sample import Sample


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
        """Whether groups sampled with these versions may be trained on; if not, the step is to be sampled again."""
        if step != self.next_step - 1:
            raise ValueError(f"step {step} was not the last one started ({self.next_step - 1})")
        if all(0 <= step - version <= self.max_staleness for version in versions):
            return True
        self.refused += len(versions)
        self.next_step -= 1
        return False


def make_groups(
    requests: Sequence[Request], rollouts: Sequence[Rollout], scores: Sequence[dict[str, Any]]
) -> list[Group]:
    """Join each request with its replies, their scores (flat, reply by reply) and advantages of the total reward."""
    if not rollouts:
        return []
    size = len(rollouts[0].replies)
    rewards = torch.tensor([score["total"] for score in scores], dtype=torch.float64).view(len(rollouts), size)
    advantages, zero = group_advantages(rewards)
    return [
        Group(
            request,
            rollout,
            tuple(scores[index * size : (index + 1) * size]),
            advantages[index].float().numpy(),
            bool(zero[index]),
        )
        for index, (request, rollout) in enumerate(zip(requests, rollouts, strict=True))
    ]


def make_shards(
    step: int,
    groups: Sequence[Group],
    workers: int,
    ledger: Sequence[dict[str, Any]] = (),
    metrics: dict[str, float] | None = None,
) -> list[Shard]:
    """A shard for every worker, dealt by length so that the workers finish together; numbers differ by one at most.

    Raises RuntimeError when so many groups were set aside that a worker would have none.
    """
    if len(groups) < workers:
        raise RuntimeError(
            f"grpo: step {step} has {len(groups)} groups left for {workers} learner workers; the others are set aside "
            "(RUN/ledger.jsonl says why): mend those samples, or raise grpo.prompts_per_step"
        )
    tokens = sum(group.tokens for group in groups)
    ordered = sorted(groups, key=lambda group: group.tokens, reverse=True)
    return [Shard(step, tuple(ordered[rank::workers]), tokens, tuple(ledger), metrics or {}) for rank in range(workers)]


def group_metrics(step: int, groups: Sequence[Group]) -> dict[str, float]:
    """Means over the replies of a step: every reward term, lengths, ends, and what the groups are worth."""
    scores = [score for group in groups for score in group.scores]
    replies = [reply for group in groups for reply in group.rollout.replies]
    metrics = {"reward_total": _mean([score["total"] for score in scores])}
    for name in ("action", "answer", "format"):
        metrics[f"reward_{name}"] = _mean([score[name] for score in scores])
    metrics |= {
        "d_t": _mean([score["d_t"] for score in scores]),
        "d_r": _mean([score["d_r"] for score in scores]),
        "reply_tokens": _mean([len(reply.token_ids) for reply in replies]),
        "ended_share": _mean([reply.ended for reply in replies]),
        "reward_std": _mean([np.std([score["total"] for score in group.scores]) for group in groups]),
        "zero_variance_groups": float(sum(group.zero_variance for group in groups)),
        "staleness": _mean([step - group.rollout.version for group in groups]),
    }
    return {name: value for name, value in metrics.items() if value is not None}


def _mean(values: Sequence[Any]) -> float | None:
    known = [float(value) for value in values if value is not None]
    return sum(known) / len(known) if known else None


def sample_rows(step: int, groups: Sequence[Group], samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """Lines of RUN/samples/grpo.jsonl: one reply with its prompt, images, parsed plans, terms, reasons, advantage."""
    rows = []
    for number, (group, sample) in enumerate(zip(groups, samples, strict=True)):
        for reply, score, advantage in zip(group.rollout.replies, group.scores, group.advantages, strict=True):
            rows.append(
                {
                    "step": step,
                    "group": number,
                    "version": group.rollout.version,
                    "id": sample.id,
                    "scene": sample.scene,
                    "task": sample.task,
                    "question": sample.question,
                    "prompt": group.request.prompt,
                    "images": [str(view.image_path) for view in sample.views],
                    "marks": [mark.to_row() for mark in sample.marks],
                    "gold_answer": sample.answer,
                    "completion": reply.text,
                    "tokens": len(reply.token_ids),
                    "ended": reply.ended,
                    "parsed_answer": score["parsed_answer"],
                    "plans": score["plans"],
                    "terms": {name: score[name] for name in ("format", "action", "answer", "total", "d_t", "d_r")},
                    "reasons": list(score["reasons"]),
                    "advantage": round(float(advantage), 6),
                }
            )
    return rows
