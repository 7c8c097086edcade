"""A queue of jobs over a set of equal actors: free ones take jobs, a dead one is replaced and its jobs issued again.

What becomes of a job whose actor fails:

    actor dies, raises or hangs -> a new actor -> the same job again
                                -> the second time, if it holds several items: each item a job of its own
    an item's third failure     -> `Failed`, with the reason; the others go on

ValueError is a refusal of the input, not a failure of the actor: the actor stays, and the item is `Failed` at once.

How many actors there are may change at any time (`ActorSet.target`): new ones work once they are up and settled, those
too many finish what they have.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from actors.actor_set import DEATHS, LOST_SECONDS, SOURCE_LOST, ActorSet, reason_of
from actors.deadlines import StageTimeoutError, limits, wait_for_all, who_is_where

TRIES = 3
"""An item that was in work when this many actors failed is given up."""
LOOK_SECONDS = 0.2
"""How often a working pool looks after its size."""


@dataclass(frozen=True)
class Failed:
    """An item that no actor could work on: the last reason."""

    reason: str


@dataclass(frozen=True)
class Work:
    """One job that an actor has done: wall-clock seconds; the items by their places in the call.

    measured: its time is that of the work, because the actor was up and the driver looked when it ended.
    """

    actor: int
    issued: float
    began: float
    ended: float
    places: tuple[int, ...]
    measured: bool = True


class CallError(RuntimeError):
    """What an actor raised in a call on all of its pool, with its number."""


@dataclass
class _Job:
    places: list[int]
    items: list[Any]
    failures: int = 0
    began: float = 0.0
    measured: bool = False


class ActorPool:
    """Shares work among `actors`. One thread works with a pool; others read."""

    def __init__(self, actors: ActorSet) -> None:
        self.actors = actors
        self.work: deque[Work] = deque(maxlen=10_000)
        """What was done since somebody last took it away, the newest."""
        self.waiting = 0
        """Items of the present call that are not done."""
        self.meanwhile: Callable[[], None] = lambda: None
        """Called again and again while a call is at work."""
        self._queue: deque[_Job] = deque()
        self._running: dict[ray.ObjectRef, tuple[Any, _Job]] = {}

    def call_all(self, call: Callable[[Any], ray.ObjectRef], stage: str) -> list[Any]:
        """The results of one call on every actor. One that dies is replaced and settled, and gives no result.

        Raises CallError naming the actor that raised, StageTimeoutError after deadlines.call_seconds, and one of
        SOURCE_LOST where that is why an actor raised.
        """
        refs = {actor: call(actor) for actor in self.actors}
        results = []
        began = time.monotonic()
        self.actors.busy.update(refs)
        try:
            for number, (actor, ref) in enumerate(refs.items()):
                try:
                    results += wait_for_all([ref], stage, max(0.0, began + limits.call - time.monotonic()))
                except DEATHS as error:
                    self.actors.replace([actor], reason_of(error), began)
                except ray.exceptions.RayTaskError as error:  # its text is a traceback
                    if isinstance(error.cause, SOURCE_LOST):
                        raise error.cause from None
                    raise CallError(f"{stage}: {self.actors.role} {number}: {error.cause}") from error
        finally:
            self.actors.busy.clear()
        return results

    def map(
        self,
        items: Sequence[Any],
        call: Callable[[Any, list[Any]], ray.ObjectRef],
        chunk: int,
        seconds: float | None = None,
        progress: Callable[[int, int], None] | None = None,
        watch: Callable[[list[tuple[float, int]]], None] | None = None,
        done: Callable[[Work], None] | None = None,
    ) -> list[Any]:
        """`call(actor, part)` for parts of `chunk` items, which returns one result an item; all results in order.

        An actor that works longer than `seconds` (deadlines.call_seconds where None) on a part has failed. An item that
        could not be worked on has `Failed` in its place. progress(done, total) counts items. watch is told, again and
        again, how many seconds each job that can be measured has run, and its items; done of each job that is done.
        """
        seconds = limits.call if seconds is None else seconds
        results: list[Any] = [None] * len(items)
        places = range(len(items))
        self._queue = deque(
            _Job(list(places[first : first + chunk]), list(items[first : first + chunk]))
            for first in range(0, len(items), chunk)
        )
        self._running.clear()
        self.actors.busy.clear()
        self.waiting = len(items)
        issued = time.monotonic()
        while self._queue or self._running:
            looked = time.monotonic()
            if watch is not None:
                jobs = [job for _, job in self._running.values() if job.measured]
                watch([(looked - job.began, len(job.items)) for job in jobs])
            self.actors.tend()
            self.meanwhile()
            self._looked_away(looked)
            self._issue(call)
            if not self._running:
                self.actors.wait_for_one()
                continue
            if (ended := self._next_ended(seconds)) is None:
                continue
            actor, job, answer = ended
            if isinstance(answer, Exception):
                for failed in self._again(actor, job, answer):
                    for place in failed.places:
                        results[place] = Failed(reason_of(answer))
            else:
                for place, result in zip(job.places, answer, strict=True):
                    results[place] = result
                self.waiting -= len(job.items)
                now, wall = time.monotonic(), time.time()
                times = (wall - now + issued, wall - now + job.began, wall)
                self.work.append(Work(self.actors.numbers[actor], *times, tuple(job.places), job.measured))
                if done is not None:
                    done(self.work[-1])
            if progress is not None:
                progress(len(items) - self.waiting, len(items))
        self.actors.tend()
        return results

    def _issue(self, call: Callable[[Any, list[Any]], ray.ObjectRef]) -> None:
        """Give jobs to those that have none."""
        for actor in [actor for actor in self.actors if actor not in self.actors.busy][: len(self._queue)]:
            job = self._queue.popleft()
            job.began, job.measured = time.monotonic(), actor in self.actors.places
            self._running[call(actor, job.items)] = (actor, job)
            self.actors.busy.add(actor)

    def _next_ended(self, seconds: float) -> tuple[Any, _Job, list[Any] | Exception] | None:
        """A job that has ended or takes longer than `seconds`, its actor, its results or error; None after a while."""
        late = min(job.began for _, job in self._running.values()) + seconds - time.monotonic()
        ready, _ = ray.wait(list(self._running), num_returns=1, timeout=max(0.0, min(LOOK_SECONDS, late)))
        if not ready and late > LOOK_SECONDS:
            return None
        ref = ready[0] if ready else min(self._running, key=lambda ref: self._running[ref][1].began)
        actor, job = self._running.pop(ref)
        self.actors.busy.discard(actor)
        if not ready:
            return actor, job, StageTimeoutError(f"no answer in {seconds:g} s{who_is_where()}")
        return actor, job, self._answer(ref, job)

    def _answer(self, ref: ray.ObjectRef, job: _Job) -> list[Any] | Exception:
        try:
            answer = ray.get(ref, timeout=60)
        except ray.exceptions.RayTaskError as error:
            return error.cause if isinstance(error.cause, ValueError) else error
        except (*DEATHS, ray.exceptions.ObjectLostError) as error:
            return error
        assert len(answer) == len(job.items), f"{self.actors.role}: {len(answer)} results for {len(job.items)} items"
        return list(answer)

    def _again(self, actor: Any, job: _Job, error: Exception) -> list[_Job]:
        """Issue again what failed, with a new actor unless it was a refusal; the jobs that failed."""
        refused = isinstance(error, ValueError)
        fallen = {actor: job}
        if isinstance(error, DEATHS):
            fallen |= self._fallen_too()
        again = [part for failed in fallen.values() for part in _parts_again(failed, refused)]
        self._queue.extendleft(reversed(again))
        items = sum(len(part.items) for part in again)
        self.waiting -= sum(len(failed.items) for failed in fallen.values()) - items
        if not refused:
            looked = time.monotonic()
            self.actors.replace(list(fallen), reason_of(error), job.began, items)
            self._looked_away(looked)
        return list(fallen.values())

    def _fallen_too(self) -> dict[Any, _Job]:
        """Those at work that died with one that did (a node is lost): no longer running, with their jobs."""
        running = list(self._running)
        ready = ray.wait(running, num_returns=len(running), timeout=LOST_SECONDS)[0] if running else []
        fallen = {}
        for ref in ready:
            if isinstance(self._answer(ref, self._running[ref][1]), DEATHS):
                actor, job = self._running.pop(ref)
                self.actors.busy.discard(actor)
                fallen[actor] = job
        return fallen

    def _looked_away(self, since: float) -> None:
        """The driver did something else since then: if for a while, how long the jobs that run took is not known."""
        if time.monotonic() - since > LOOK_SECONDS:
            for _, job in self._running.values():
                job.measured = False


def _parts_again(job: _Job, refused: bool) -> list[_Job]:
    """What to issue again after a failure: the job, its items one by one, or nothing."""
    failures = job.failures + 1
    if len(job.items) > 1 and (refused or failures > 1):
        return [_Job([place], [item], failures) for place, item in zip(job.places, job.items, strict=True)]
    if refused or failures >= TRIES:
        return []
    return [_Job(job.places, job.items, failures)]
