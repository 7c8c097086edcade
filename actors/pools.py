"""A pool of equal actors: free ones take jobs, a dead one is replaced and its jobs are issued again.

What becomes of a job whose actor fails:

    actor dies, raises or hangs -> a new actor -> the same job again
                                -> the second time, if it holds several items: each item a job of its own
    an item's third failure     -> `Failed`, with the reason; the others go on

ValueError is a refusal of the input, not a failure of the actor: the actor stays, and the item is `Failed` at once.

How many actors there are may change at any time (`target`): new ones work once they are up and settled, those too many
finish what they have. One thread works with a pool; others may set `target` and read.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from actors.crew import SOURCE_LOST, Crew, place_of, telling_line
from actors.deadlines import StageTimeoutError, limits, wait_for_all, who_is_where

TRIES = 3
"""An item that was in work when this many actors failed is given up."""
LOOK_SECONDS = 0.2
"""How often a working pool looks after its size."""
LOST_SECONDS = 1.0
"""How long a loss is looked into: who else died with it."""
PATIENCE_SECONDS = 60.0
"""The jobs of the others wait at most this long for the successor of one that died."""


@dataclass(frozen=True)
class Failed:
    """An item that no actor could work on: the last reason."""

    reason: str


@dataclass(frozen=True)
class Loss:
    """An actor that was replaced: why, the seconds from the start of its job to its successor, items issued again."""

    role: str
    reason: str
    seconds: float
    items: int


@dataclass(frozen=True)
class Work:
    """One job that an actor has done: wall-clock seconds; the items by their places in the call."""

    actor: int
    issued: float
    began: float
    ended: float
    places: tuple[int, ...]


class CallError(RuntimeError):
    """What an actor raised in a call on all of its pool, with its number."""


@dataclass
class _Job:
    places: list[int]
    items: list[Any]
    failures: int = 0
    started: float = 0.0
    warm: bool = False


class Pool(Crew):
    """Actors of one role, `count` at the start. `start` makes one; `settle` brings a new one to where the others are.

    on_loss is called for every actor that was replaced, and may raise to stop the run; it may be another one for each
    stage that the pool serves.
    """

    def __init__(
        self,
        role: str,
        start: Callable[[], Any],
        count: int,
        settle: Callable[[Any], None] = lambda actor: None,
        on_loss: Callable[[Loss], None] = lambda loss: None,
    ) -> None:
        super().__init__(role, start, count, settle)
        self.on_loss = on_loss
        self.work: deque[Work] = deque(maxlen=10_000)
        """What was done since somebody last took it away, the newest."""
        self.waiting = 0
        """Items of the present call that are not done."""
        self.meanwhile: Callable[[], None] = lambda: None
        """Called again and again while a call is at work."""

    def fix(self, count: int | None) -> None:
        """So many actors from now on. Raises ValueError for None, where no rule says how many."""
        if count is None:
            raise ValueError(f"there is no automatic number of {self.role}s; name one")
        self.target = count

    def call_all(self, call: Callable[[Any], ray.ObjectRef], stage: str) -> list[Any]:
        """The results of one call on every actor. One that dies is replaced and settled, and gives no result.

        Raises CallError naming the actor that raised, StageTimeoutError after deadlines.call_seconds, and one of
        SOURCE_LOST where that is why an actor raised.
        """
        refs = {actor: call(actor) for actor in self.actors}
        results = []
        began = time.monotonic()
        self.busy.update(refs)
        try:
            for number, (actor, ref) in enumerate(refs.items()):
                try:
                    results += wait_for_all([ref], stage, max(0.0, began + limits.call - time.monotonic()))
                except ray.exceptions.RayActorError as error:
                    self._replace([actor], _reason(error), began, 0)
                except ray.exceptions.RayTaskError as error:  # its text is a traceback
                    if isinstance(error.cause, SOURCE_LOST):
                        raise error.cause from None
                    raise CallError(f"{stage}: {self.role} {number}: {error.cause}") from error
        finally:
            self.busy.clear()
        return results

    def map(
        self,
        items: Sequence[Any],
        call: Callable[[Any, list[Any]], ray.ObjectRef],
        chunk: int,
        seconds: float | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Any]:
        """`call(actor, part)` for parts of `chunk` items, which returns one result an item; all results in order.

        An actor that works longer than `seconds` (deadlines.call_seconds where None) on a part has failed. An item that
        could not be worked on has `Failed` in its place. progress(done, total) counts items.
        """
        seconds = limits.call if seconds is None else seconds
        results: list[Any] = [None] * len(items)
        places = range(len(items))
        queue = deque(
            _Job(list(places[first : first + chunk]), list(items[first : first + chunk]))
            for first in range(0, len(items), chunk)
        )
        running: dict[ray.ObjectRef, tuple[Any, _Job]] = {}
        self.busy.clear()
        issued = time.monotonic()
        done = 0
        while queue or running:
            self.waiting = len(items) - done
            self._watch([(job.started, len(job.items)) for _, job in running.values() if job.warm])
            looked = time.monotonic()
            self.tend()
            self.meanwhile()
            _cool(running, looked)
            for actor in [actor for actor in self.actors if actor not in self.busy]:
                if not queue:
                    break
                job = queue.popleft()
                job.started, job.warm = time.monotonic(), actor in self.places
                running[call(actor, job.items)] = (actor, job)
                self.busy.add(actor)
            if not running:
                self.wait_for_one()
                continue
            late = min(job.started for _, job in running.values()) + seconds - time.monotonic()
            ready, _ = ray.wait(list(running), num_returns=1, timeout=max(0.0, min(LOOK_SECONDS, late)))
            if not ready and late > LOOK_SECONDS:
                continue
            ref = ready[0] if ready else min(running, key=lambda ref: running[ref][1].started)
            actor, job = running.pop(ref)
            self.busy.discard(actor)
            answer = (
                self._answer(ref, job) if ready else StageTimeoutError(f"no answer in {seconds:g} s{who_is_where()}")
            )
            if isinstance(answer, Exception):
                refused = isinstance(answer, ValueError)
                fallen = {actor: job}
                if isinstance(answer, ray.exceptions.RayActorError):
                    fallen |= self._fallen_too(running)
                issued_again = 0
                for failed in fallen.values():
                    for place in failed.places:
                        results[place] = Failed(_reason(answer))
                    again = self._again(failed, refused)
                    queue.extendleft(reversed(again))
                    items_again = sum(len(part.items) for part in again)
                    issued_again += items_again
                    done += len(failed.items) - items_again
                if not refused:
                    looked = time.monotonic()
                    self._replace(list(fallen), _reason(answer), job.started, issued_again)
                    _cool(running, looked)
            else:
                for place, result in zip(job.places, answer, strict=True):
                    results[place] = result
                done += len(job.items)
                self._done(actor, job, issued)
            if progress is not None:
                progress(done, len(items))
        self.waiting = 0
        self.tend()
        return results

    def _fallen_too(self, running: dict[ray.ObjectRef, tuple[Any, _Job]]) -> dict[Any, _Job]:
        """Those at work that died with one that did (a node is lost): taken out of `running`, with their jobs."""
        ready = ray.wait(list(running), num_returns=len(running), timeout=LOST_SECONDS)[0] if running else []
        fallen = {}
        for ref in ready:
            if isinstance(self._answer(ref, running[ref][1]), ray.exceptions.RayActorError):
                actor, job = running.pop(ref)
                self.busy.discard(actor)
                fallen[actor] = job
        return fallen

    def _watch(self, running: Sequence[tuple[float, int]]) -> None:
        """Called while jobs run, with when they began (monotonic seconds) and their items."""

    def _measured(self, items: int, seconds: float, waited: float) -> None:
        """A job was done in so many seconds, by an actor that was up; waited: since its items were handed in."""

    def _done(self, actor: Any, job: _Job, issued: float) -> None:
        now, wall = time.monotonic(), time.time()
        number = self.numbers[actor]
        self.work.append(Work(number, wall - now + issued, wall - now + job.started, wall, tuple(job.places)))
        self._measured(len(job.items), now - job.started if job.warm else 0.0, now - issued)

    def _answer(self, ref: ray.ObjectRef, job: _Job) -> list[Any] | Exception:
        try:
            answer = ray.get(ref, timeout=60)
        except ray.exceptions.RayTaskError as error:
            return error.cause if isinstance(error.cause, ValueError) else error
        except (ray.exceptions.RayActorError, ray.exceptions.ObjectLostError) as error:
            return error
        assert len(answer) == len(job.items), f"{self.role}: {len(answer)} results for {len(job.items)} items"
        return list(answer)

    def _again(self, job: _Job, refused: bool) -> list[_Job]:
        """What to issue again after a failure: the job, its items one by one, or nothing."""
        failures = job.failures + 1
        if len(job.items) > 1 and (refused or failures > 1):
            return [_Job([place], [item], failures) for place, item in zip(job.places, job.items, strict=True)]
        if refused or failures >= TRIES:
            return []
        return [_Job(job.places, job.items, failures)]

    def _replace(self, failed: Sequence[Any], reason: str, started: float, items: int) -> None:
        """A settled actor for those that failed, and for idle ones that died with them: together they are one loss.

        Raises StageTimeoutError when none starts in deadlines.start_seconds, and nodes_seconds for a node to come.
        Where others can work on, they go on after a while although it has not started.
        """
        for actor in failed:
            if actor in self.actors:
                self.dismiss(actor)
        lost = len(failed) + self._dismiss_dead()
        self.replaced += lost
        self.tend()
        if self.starting:
            patience = PATIENCE_SECONDS if self.actors else limits.join
            self.wait_for_one(patience, must=not self.actors)
        if lost > 1:
            reason += f", and {lost - 1} more with it"
        self.on_loss(Loss(self.role, reason, time.monotonic() - started, items))

    def _dismiss_dead(self) -> int:
        """Of the idle actors, those that are dead leave, before they are given work; how many."""
        asked = {a.__ray_call__.remote(place_of): a for a in self.actors if a not in self.busy and a in self.places}
        answered = ray.wait(list(asked), num_returns=len(asked), timeout=LOST_SECONDS)[0] if asked else []
        dead = []
        for ref in answered:
            try:
                ray.get(ref, timeout=60)
            except ray.exceptions.RayActorError:
                dead.append(asked[ref])
        for actor in dead:
            self.dismiss(actor)
        return len(dead)

    def _lost_at_start(self, reason: str) -> None:
        self.replaced += 1
        self.on_loss(Loss(self.role, reason, 0.0, 0))


def _cool(running: dict[ray.ObjectRef, tuple[Any, _Job]], since: float) -> None:
    """The driver did not look for a while: how long the jobs that run took will not be known."""
    if time.monotonic() - since > LOOK_SECONDS:
        for _, job in running.values():
            job.warm = False


def _reason(error: Exception) -> str:
    """What is worth knowing of an actor's error: that its process died or hangs, or the last line of what it raised."""
    return "its process died" if isinstance(error, ray.exceptions.RayActorError) else telling_line(error)
