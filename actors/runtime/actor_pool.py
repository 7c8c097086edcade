"""A queue of jobs over a set of equal actors: free ones take jobs, a dead one is replaced and its jobs issued again.

What becomes of a job whose actor fails:

    actor dies, raises or hangs -> a new actor -> the same job again
                                -> the second time, if it holds several items: each item a job of its own
    an item's third failure     -> `Failed`, with the reason; the others go on

ValueError is a refusal of the input, not a failure of the actor: the actor stays, and the item is `Failed` at once.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from actors.runtime.actor_set import DEATHS, LOST_SECONDS, SOURCE_LOST, ActorSet, reason_of
from actors.runtime.deadlines import StageTimeoutError, limits, wait_for, who_is_where

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
    failures: int = 0
    actor: Any = None
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
        self._running: dict[ray.ObjectRef, _Job] = {}

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
                    results.append(wait_for(ref, stage, max(0.0, began + limits.call - time.monotonic())))
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
        progress: Callable[[int, int], None] | None = None,
        watch: Callable[[list[tuple[float, int]]], None] | None = None,
        done: Callable[[Work], None] | None = None,
    ) -> list[Any]:
        """`call(actor, part)` for parts of `chunk` items, which returns one result an item; all results in order.

        An actor that works longer than deadlines.call_seconds on a part has failed. An item that could not be worked on
        has `Failed` in its place. progress(done, total) counts items. watch is told, again and again, how many seconds
        each job that can be measured has run, and its items; done of each job that is done.
        """
        results: list[Any] = [None] * len(items)
        places = list(range(len(items)))
        self._queue = deque(_Job(places[first : first + chunk]) for first in range(0, len(items), chunk))
        self._running.clear()
        self.actors.busy.clear()
        self.waiting = len(items)
        issued = looked = time.monotonic()
        while self._queue or self._running:
            self.actors.tend()
            self.meanwhile()
            away, looked = time.monotonic() - looked > 2 * LOOK_SECONDS, time.monotonic()
            for job in self._running.values():
                job.measured = job.measured and not away  # when it ended is not known
            if watch is not None:
                watch([(looked - job.began, len(job.places)) for job in self._running.values() if job.measured])
            self._issue(lambda actor, job: call(actor, [items[place] for place in job.places]))
            if (ended := self._next_ended()) is not None:
                job, answer = ended
                if isinstance(answer, Exception):
                    for place in self._again(job, answer):
                        results[place] = Failed(reason_of(answer))
                else:
                    for place, result in zip(job.places, answer, strict=True):
                        results[place] = result
                    self._note(job, issued)
                    if done is not None:
                        done(self.work[-1])
                if progress is not None:
                    progress(len(items) - self.waiting, len(items))
        self.actors.tend()
        return results

    def _issue(self, call: Callable[[Any, _Job], ray.ObjectRef]) -> None:
        """Give jobs to those that have none."""
        for actor in [actor for actor in self.actors if actor not in self.actors.busy][: len(self._queue)]:
            job = self._queue.popleft()
            job.actor, job.began, job.measured = actor, time.monotonic(), actor in self.actors.places
            self._running[call(actor, job)] = job
            self.actors.busy.add(actor)

    def _next_ended(self) -> tuple[_Job, list[Any] | Exception] | None:
        """A job that has ended or takes too long, with its results or error; None after a while."""
        ref = min(self._running, key=lambda ref: self._running[ref].began)
        late = self._running[ref].began + limits.call - time.monotonic()
        ready, _ = ray.wait(list(self._running), num_returns=1, timeout=max(0.0, min(LOOK_SECONDS, late)))
        if ready:
            return self._taken(ready[0]), self._answer(ready[0])
        if late > LOOK_SECONDS:
            return None
        return self._taken(ref), StageTimeoutError(f"no answer in {limits.call:g} s{who_is_where()}")

    def _taken(self, ref: ray.ObjectRef) -> _Job:
        """A job that runs no longer."""
        job = self._running.pop(ref)
        self.actors.busy.discard(job.actor)
        return job

    def _answer(self, ref: ray.ObjectRef) -> list[Any] | Exception:
        try:
            return list(ray.get(ref, timeout=60))
        except ray.exceptions.RayTaskError as error:
            return error.cause if isinstance(error.cause, ValueError) else error
        except (*DEATHS, ray.exceptions.ObjectLostError) as error:
            return error

    def _note(self, job: _Job, issued: float) -> None:
        """A job is done."""
        self.waiting -= len(job.places)
        now, wall = time.monotonic(), time.time()
        times = (wall - now + issued, wall - now + job.began, wall)
        self.work.append(Work(self.actors.numbers[job.actor], *times, tuple(job.places), job.measured))

    def _again(self, job: _Job, error: Exception) -> list[int]:
        """Issue again what failed, with a new actor unless it was a refusal; the places of what failed."""
        refused, fallen = isinstance(error, ValueError), [job]
        if isinstance(error, DEATHS) and self._running:  # a node may be lost, with others that were at work
            refs = list(self._running)
            ready = ray.wait(refs, num_returns=len(refs), timeout=LOST_SECONDS)[0]
            fallen += [self._taken(ref) for ref in ready if isinstance(self._answer(ref), DEATHS)]
        again = [part for failed in fallen for part in _parts_again(failed, refused)]
        self._queue.extendleft(reversed(again))
        places, issued_again = ([place for one in jobs for place in one.places] for jobs in (fallen, again))
        self.waiting -= len(places) - len(issued_again)
        if not refused:
            self.actors.replace([one.actor for one in fallen], reason_of(error), job.began, len(issued_again))
        return places


def _parts_again(job: _Job, refused: bool) -> list[_Job]:
    """What to issue again after a failure: the job, its items one by one, or nothing."""
    failures = job.failures + 1
    if len(job.places) > 1 and (refused or failures > 1):
        return [_Job([place], failures) for place in job.places]
    if refused or failures >= TRIES:
        return []
    return [_Job(job.places, failures)]
