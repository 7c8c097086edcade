"""Small actors where the parts of a run meet. They hold references and numbers and import no torch (Ray itself does
where a reference to weights was made with rollout.weights=nixl).

driver --work of a stage--> Desk --> every learner worker
driver --shards--> ExperienceBoard --a shard each--> learner workers --metrics--> ExperienceBoard --> driver
learner's rank 0 --reference of the weights--> WeightsBoard --newest--> driver --> engines
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import ray

from actors.runtime.messages import Group, ProbeScores, Shard, WeightsHandle

if TYPE_CHECKING:
    from actors.experience.batch import Batch


def hand_over(board: ray.actor.ActorHandle, batch: Batch, workers: int) -> ray.ObjectRef:
    """Leave a step's groups on the experience board, a shard for every learner worker."""
    return board.put.remote(make_shards(batch.step, batch.groups, workers, [one.group for one in batch.asked]))


def make_shards(step: int, groups: Sequence[Group], workers: int, asked: Sequence[Group] = ()) -> list[Shard]:
    """A shard for every worker, dealt by length so that the workers finish together; numbers differ by one at most.

    asked: all groups of the step, where these are not all; the mean reward is theirs. Raises RuntimeError when so many
    groups were set aside that a worker would have none.
    """
    if len(groups) < workers:
        raise RuntimeError(
            f"grpo: step {step} has {len(groups)} groups left for {workers} learner workers; the others are set aside "
            "(RUN/ledger.jsonl says why): fix those samples, or raise grpo.prompts_per_step"
        )
    tokens = sum(group.tokens for group in groups)
    reward = float(np.concatenate([group.rewards for group in asked or groups]).mean())
    ordered = sorted(groups, key=lambda group: group.tokens, reverse=True)
    replies = sum(len(group.rollout.replies) for group in groups)
    return [Shard(step, tuple(ordered[rank::workers]), tokens, replies, reward) for rank in range(workers)]


class ExperienceBoard:
    """Where batches wait for the learner's workers, and results for the driver. An actor with async methods."""

    def __init__(self) -> None:
        self._shards: dict[tuple[int, int], Shard] = {}
        self._reports: dict[int, dict[str, float]] = {}
        self._probes: tuple[ProbeScores, ...] | None = None
        self._waiting: dict[int, int] = {}
        self._nodes: dict[int, str] = {}
        self._stopped = self._saving = False
        self._changed = asyncio.Condition()

    async def put(self, shards: Sequence[Shard]) -> None:
        """A step's shards, one a rank."""
        async with self._changed:
            self._shards |= {(shard.step, rank): shard for rank, shard in enumerate(shards)}
            self._changed.notify_all()

    async def take(self, step: int, rank: int) -> Shard | None:
        """A worker's shard of a step, once it is there; None when the driver gave up."""
        async with self._changed:
            self._waiting[rank] = step
            try:
                await self._changed.wait_for(lambda: self._stopped or (step, rank) in self._shards)
            finally:
                self._waiting.pop(rank, None)
            return self._shards.pop((step, rank), None)

    async def arrive(self, rank: int, node: str) -> None:
        """A worker is up, on this node."""
        async with self._changed:
            self._nodes[rank] = node
            self._changed.notify_all()

    async def nodes(self, workers: int = 0) -> dict[int, str]:
        """The node of each rank that is up, once so many are."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._stopped or len(self._nodes) >= workers)
            return dict(self._nodes)

    async def put_probes(self, scores: Sequence[ProbeScores]) -> None:
        """What rank 0 answers to the probes with the weights that it starts with."""
        async with self._changed:
            self._probes = tuple(scores)
            self._changed.notify_all()

    async def probes(self) -> tuple[ProbeScores, ...]:
        """The learner's answers, once they are there; none when the driver gave up."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._stopped or self._probes is not None)
            return self._probes or ()

    async def waiting(self) -> list[str]:
        """Which ranks wait for which step's shard."""
        return [f"learner rank {rank} waits for its shard of step {step}" for rank, step in self._waiting.items()]

    async def report(self, step: int, metrics: dict[str, float]) -> None:
        """Rank 0's numbers of a finished step."""
        self._reports[step] = metrics

    async def reports(self) -> dict[int, dict[str, float]]:
        """The reports not yet fetched, by step."""
        reports, self._reports = self._reports, {}
        return reports

    async def stop(self, save: bool = False) -> None:
        """Let waiting workers end; `save`: with a checkpoint of the last step that they trained."""
        async with self._changed:
            self._stopped = True
            self._saving = self._saving or save
            self._changed.notify_all()

    async def saving(self) -> bool:
        """Whether workers that get no further shard are to save."""
        return self._saving


class WeightsBoard:
    """Holds the newest version. It may be published by one learner worker and awaited by many.

    Life of a version: publish(v) -> the version before is let go -> wait_for(<= v) returns it.
    """

    def __init__(self, version: int) -> None:
        """`version` is what the engines start with: nothing has to be sent for it."""
        self._version = version
        self._newest: WeightsHandle | None = None
        self._waiting: list[int] = []
        self._changed = asyncio.Condition()

    async def publish(self, handle: WeightsHandle) -> int:
        async with self._changed:
            if handle.version != self._version + 1:
                raise ValueError(f"version {handle.version} published after {self._version}")
            self._version, self._newest = handle.version, handle
            self._changed.notify_all()
        return handle.version

    async def wait_for(self, version: int) -> tuple[int, WeightsHandle | None]:
        """The newest version once it is at least `version`; no handle while it is the engines' own first weights."""
        async with self._changed:
            self._waiting.append(version)
            try:
                await self._changed.wait_for(lambda: self._version >= version)
            finally:
                self._waiting.remove(version)
            return self._version, self._newest

    async def waiting(self) -> list[str]:
        """Which versions are waited for."""
        return [f"the driver waits for version {wanted}, the newest is {self._version}" for wanted in self._waiting]


class Desk:
    """Where the learner's workers ask for their next piece of work.

    Work is numbered from 0 and done by all `workers` of the group, in order. A piece is a reference in a list, so that
    Ray does not fetch it on the way.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._work: list[list[ray.ObjectRef]] = []
        self._done: dict[int, set[int]] = {}
        self._closed = False
        self._changed = asyncio.Condition()

    async def give(self, work: list[ray.ObjectRef]) -> int:
        """The next piece of work; its number."""
        async with self._changed:
            self._work.append(work)
            self._changed.notify_all()
        return len(self._work) - 1

    async def next(self, number: int) -> list[ray.ObjectRef] | None:
        """Piece `number` once it is there; None when there is no more to come."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._closed or len(self._work) > number)
            return self._work[number] if len(self._work) > number else None

    async def done(self, number: int, rank: int) -> None:
        """A worker has done its part."""
        async with self._changed:
            self._done.setdefault(number, set()).add(rank)
            if len(self._done[number]) == self._workers:
                self._work[number] = []
            self._changed.notify_all()

    async def finished(self, number: int) -> None:
        """Returns once all workers have done their part."""
        async with self._changed:
            await self._changed.wait_for(lambda: len(self._done.get(number, ())) == self._workers)

    async def close(self) -> None:
        """No more work comes: workers that ask are sent home."""
        async with self._changed:
            self._closed = True
            self._changed.notify_all()
