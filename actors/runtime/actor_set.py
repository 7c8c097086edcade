"""The actors of one role: who is there, who starts, who leaves, and who takes the place of one that died.

Life of an actor: started -> up and `settle`d -> in the set, where it gets work -> dismissed. New ones start beside the
work, those too many leave after it.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count as counter
from typing import Any

import ray

from actors.runtime.deadlines import StageTimeoutError, expired, limits

DEATHS = (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError)
"""What a call raises whose actor is dead: the second where Ray itself ended it, because its node ran out of memory."""
SOURCE_LOST = (ray.exceptions.ObjectLostError, ray.exceptions.RayDirectTransportError)
"""What an actor raises when the process that held what it was to read is gone."""
LOST_SECONDS = 1.0
"""How long a loss is looked into: who else died with it."""
PATIENCE_SECONDS = 60.0
"""The jobs of the others wait at most this long for the successor of one that died."""
STARTS = 3
"""Where no `on_loss` stops it, a role stops when so many for each that is to be died as they started, in a row."""


class StartError(RuntimeError):
    """The actors of a role die as they start, again and again."""


@dataclass(frozen=True)
class Place:
    """Where an actor runs: Ray's id of the node, its host name, the process."""

    node: str
    host: str
    pid: int


@dataclass(frozen=True)
class Loss:
    """An actor that was replaced: why, seconds from the start of its job to its successor, items issued again."""

    role: str
    reason: str
    seconds: float
    items: int


def place_of(_: Any) -> Place:
    """Called in the actor's own process, as its first work: it answers once the actor is up."""
    return Place(ray.get_runtime_context().get_node_id(), socket.gethostname(), os.getpid())


def reason_of(error: Exception) -> str:
    """What is worth knowing of an actor's error: how it died, or the line of what it raised that says what happened:
    the last, but of a deadline the first (below it: where every process stands).
    """
    text = str(error)
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        return "its node ran out of memory"
    if isinstance(error, ray.exceptions.RayActorError) and not error.actor_init_failed:
        return "its node died" if "node has died" in text else "its process died"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0 if isinstance(error, StageTimeoutError) else -1] if lines else type(error).__name__


class ActorSet(Sequence[Any]):
    """As a sequence: the actors that get work.

    start makes an actor; settle brings a new one to where the others are. One thread works with the set; others may
    read, `fix` and set `target`.
    """

    def __init__(
        self,
        role: str,
        start: Callable[[], Any],
        settle: Callable[[Any], None] = lambda actor: None,
        on_loss: Callable[[Loss], None] | None = None,
    ) -> None:
        self.role, self._start, self._settle = role, start, settle
        self.on_loss = on_loss
        """Hears of every actor that was replaced, and may raise to stop the run. Stages may set one of their own."""
        self.target = 0
        """How many there are to be; any thread may set it (1 or more)."""
        self.by_hand = False
        self.busy: set[Any] = set()
        """Those that have work, which they are left to finish."""
        self.numbers: dict[Any, int] = {}
        self.places: dict[Any, Place] = {}
        self.replaced = 0
        self.reached = 0
        """The last number that all were up at: what the role goes back to when more of them do not start."""
        self.trouble = ""
        """Why the last actors that were to join did not."""
        self._at_work: list[Any] = []
        self._asked: dict[Any, ray.ObjectRef] = {}
        """Those that are not known to be up, with the answer to `place_of`."""
        self._next = counter()
        self._died_starting = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._at_work)

    def __getitem__(self, index: Any) -> Any:
        return self._at_work[index]

    @property
    def starting(self) -> list[Any]:
        """Those that join when they are up."""
        return [actor for actor in list(self._asked) if actor not in self._at_work]

    def begin(self, count: int) -> None:
        """Start the first ones. They get work at once: it waits for them."""
        self.target = self.reached = count
        self._at_work += [self._make() for _ in range(count)]

    def fix(self, count: int | None) -> None:
        """So many actors from now on, by hand; None: as the owner `aim`s."""
        with self._lock:
            self.by_hand = count is not None
            if count is not None:
                self.target = count

    def aim(self, count: int) -> None:
        """So many by the owner's rule, unless a number was given by hand, from another thread perhaps just now."""
        with self._lock:
            if not self.by_hand:
                self.target = count

    def tend(self) -> None:
        """Bring the actors nearer to `target`, without waiting: begin new ones, take in those that are up, dismiss
        those too many that are not busy.
        """
        wanted = max(1, self.target)
        for _ in range(wanted - len(self) - len(self.starting)):
            self._make()
        for actor in self.starting[::-1][: max(0, len(self) + len(self.starting) - wanted)]:
            self._end(actor)
        spare = [actor for actor in self._at_work[::-1] if actor not in self.busy]
        for actor in spare[: max(0, len(self) - wanted)]:
            self._dismiss(actor)
        for actor in _answered(self._asked):
            self._arrived(actor)
        if len(self) == wanted == self.target:
            self.reached = wanted

    def replace(self, failed: Sequence[Any], reason: str, began: float, items: int = 0) -> None:
        """A settled actor for those that failed, and for idle ones that died with them: together they are one loss.

        began: of their job (monotonic seconds). Raises StageTimeoutError when none starts in deadlines.start_seconds,
        and nodes_seconds for a node to come. Where others can work on, they do so after PATIENCE_SECONDS.
        """
        for actor in failed:
            self._dismiss(actor)
        lost = len(failed) + self._dismiss_dead()
        self.replaced += lost
        self.tend()
        before, seconds = len(self), PATIENCE_SECONDS if self._at_work else limits.join
        end = time.monotonic() + seconds
        while len(self) <= before and (self.starting or not self._at_work) and time.monotonic() < end:
            if self._asked:
                ray.wait(list(self._asked.values()), num_returns=1, timeout=0.5)
            self.tend()
        if not self._at_work:
            raise expired(f"a new {self.role}", seconds)
        if lost > 1:
            reason += f", and {lost - 1} more with it"
        if self.on_loss is not None:
            self.on_loss(Loss(self.role, reason, time.monotonic() - began, items))

    def stop(self) -> None:
        """End the actors and free their resources."""
        for actor in self.numbers:
            ray.kill(actor)

    def _make(self) -> Any:
        actor = self._start()
        self.numbers[actor] = next(self._next)
        self._asked[actor] = actor.__ray_call__.remote(place_of)
        return actor

    def _arrived(self, actor: Any) -> None:
        """It is up, or has died as it started."""
        ref = self._asked.pop(actor)
        if actor in self:
            with suppress(*DEATHS):  # one that gets work is missed there
                self.places[actor] = ray.get(ref, timeout=60)
            return
        try:
            self.places[actor] = ray.get(ref, timeout=60)
            self._settle(actor)
        except (*DEATHS, *SOURCE_LOST, RuntimeError, ValueError) as error:
            self._end(actor)
            if len(self) + len(self.starting) + 1 > self.reached:
                self.trouble = reason_of(error)  # the work goes on as it did before more were asked for
                self.target = min(self.target, self.reached)
            elif isinstance(error, DEATHS):
                self._died_at_start(error)
            else:
                raise
            return
        self._died_starting = 0
        self._at_work.append(actor)

    def _died_at_start(self, error: Exception) -> None:
        """A successor died before it worked; another one is begun."""
        self.replaced += 1
        self._died_starting += 1
        if self.on_loss is not None:
            self.on_loss(Loss(self.role, reason_of(error), 0.0, 0))
        elif self._died_starting >= STARTS * max(1, self.target):
            raise StartError(
                f"{self.role}: {self._died_starting} in a row died as they started, the last: {reason_of(error)}. Look "
                "at the machine's memory and log; fewer or smaller actors may fit"
            ) from error

    def _dismiss_dead(self) -> int:
        """Of the idle actors, those that are dead leave, before they are given work; how many."""
        idle = [actor for actor in self._at_work if actor not in self.busy and actor in self.places]
        asked = {actor: actor.__ray_call__.remote(place_of) for actor in idle}
        dead = []
        for actor in _answered(asked, LOST_SECONDS):
            try:
                ray.get(asked[actor], timeout=60)
            except DEATHS:
                dead.append(actor)
        for actor in dead:
            self._dismiss(actor)
        return len(dead)

    def _dismiss(self, actor: Any) -> None:
        self._at_work.remove(actor)
        self.busy.discard(actor)
        self._end(actor)

    def _end(self, actor: Any) -> None:
        ray.kill(actor)
        for known in (self._asked, self.numbers, self.places):
            known.pop(actor, None)


def _answered(asked: dict[Any, ray.ObjectRef], seconds: float = 0) -> list[Any]:
    refs = list(asked.values())
    ready = set(ray.wait(refs, num_returns=len(refs), timeout=seconds)[0]) if refs else set()
    return [actor for actor, ref in asked.items() if ref in ready]
