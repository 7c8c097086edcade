"""How many actors a role has, and who they are: new ones start beside the work, those too many leave after it."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count as counter
from typing import Any

import ray

from actors.deadlines import StageTimeoutError, expired, limits

SOURCE_LOST = (ray.exceptions.ObjectLostError, ray.exceptions.RayDirectTransportError)
"""What an actor raises when the process that held what it was to read is gone."""


@dataclass(frozen=True)
class Place:
    """Where an actor runs: Ray's id of the node, its host name, the process."""

    node: str
    host: str
    pid: int


def place_of(_: Any) -> Place:
    """Called in the actor's own process, as its first work: it answers once the actor is up."""
    return Place(ray.get_runtime_context().get_node_id(), socket.gethostname(), os.getpid())


class Crew:
    """The actors of one role.

    Life of an actor: _make -> starting -> up, `settle`d -> in `actors`, where it gets work -> dismiss.
    The `count` at the start are in `actors` at once: what they are given waits for them.
    """

    def __init__(self, role: str, start: Callable[[], Any], count: int, settle: Callable[[Any], None]) -> None:
        self.role = role
        self.target = count
        """How many there are to be; any thread may set it (1 or more)."""
        self._start, self._settle = start, settle
        self.actors: list[Any] = []
        self.busy: set[Any] = set()
        """Those that have work, which they are left to finish."""
        self.starting: dict[ray.ObjectRef, Any] = {}
        self.numbers: dict[Any, int] = {}
        self.places: dict[Any, Place] = {}
        self.replaced = 0
        self.reached = count
        """The last number that all were up at: what the role goes back to when more of them do not start."""
        self.trouble = ""
        """Why the last actors that were to join did not."""
        self._next = counter()
        self._asked: dict[ray.ObjectRef, Any] = {}
        for _ in range(count):
            actor = self._make()
            self.actors.append(actor)
            self._asked[actor.__ray_call__.remote(place_of)] = actor

    def _make(self) -> Any:
        actor = self._start()
        self.numbers[actor] = next(self._next)
        return actor

    def tend(self) -> None:
        """Bring the actors nearer to `target`, without waiting: begin new ones, take in those that are up, dismiss
        those too many that are not busy.
        """
        wanted = max(1, self.target)
        for _ in range(wanted - len(self.actors) - len(self.starting)):
            actor = self._make()
            self.starting[actor.__ray_call__.remote(place_of)] = actor
        for ref in list(self.starting)[::-1][: max(0, len(self.actors) + len(self.starting) - wanted)]:
            self._forget(self.starting.pop(ref))
        spare = [actor for actor in self.actors[::-1] if actor not in self.busy]
        for actor in spare[: max(0, len(self.actors) - wanted)]:
            self.dismiss(actor)
        for ref in _up(self.starting):
            self._arrived(ref)
        if len(self.actors) == wanted == self.target:
            self.reached = wanted
        for ref in _up(self._asked):
            actor = self._asked.pop(ref)
            if actor in self.actors:
                self._note(ref, actor)

    def _arrived(self, ref: ray.ObjectRef) -> None:
        actor = self.starting.pop(ref)
        try:
            self._note(ref, actor)
            self._settle(actor)
        except (ray.exceptions.RayActorError, *SOURCE_LOST, RuntimeError, ValueError) as error:
            self._forget(actor)
            reason = telling_line(error)
            if len(self.actors) + len(self.starting) + 1 > self.reached:
                self.trouble = reason  # the work goes on as it did before more were asked for
                self.target = min(self.target, self.reached)
            elif isinstance(error, ray.exceptions.RayActorError):
                self._lost_at_start(reason)
            else:
                raise
            return
        self.actors.append(actor)

    def _lost_at_start(self, reason: str) -> None:
        """A successor died before it worked; another one is begun. May raise to stop the run."""

    def _note(self, ref: ray.ObjectRef, actor: Any) -> None:
        try:
            self.places[actor] = ray.get(ref, timeout=60)
        except ray.exceptions.RayActorError:
            if actor not in self.actors:  # a member that died is noticed by its work
                raise

    def wait_for_one(self, seconds: float | None = None, must: bool = True) -> None:
        """Until one of those that start is up and works. Raises StageTimeoutError after `seconds` (deadlines.
        start_seconds where None), if one must come.
        """
        seconds = limits.start if seconds is None else seconds
        before, end = len(self.actors), time.monotonic() + seconds
        while True:
            self.tend()
            if len(self.actors) > before or (self.actors and not self.starting):
                return
            if time.monotonic() >= end:
                if must:
                    raise expired(f"a new {self.role}", seconds)
                return
            if self.starting:
                ray.wait(list(self.starting), num_returns=1, timeout=max(0.0, min(0.5, end - time.monotonic())))

    def dismiss(self, actor: Any) -> None:
        """End a member."""
        self.actors.remove(actor)
        self.busy.discard(actor)
        self._forget(actor)

    def _forget(self, actor: Any) -> None:
        ray.kill(actor)
        self.numbers.pop(actor, None)
        self.places.pop(actor, None)

    def stop(self) -> None:
        """End the actors and free their resources."""
        for actor in [*self.actors, *self.starting.values()]:
            ray.kill(actor)


def telling_line(error: Exception) -> str:
    """The line of an error's text that says what happened: the last, but of a deadline the first (below it: where every
    process stands).
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0 if isinstance(error, StageTimeoutError) else -1] if lines else type(error).__name__


def _up(asked: dict[ray.ObjectRef, Any]) -> list[ray.ObjectRef]:
    return ray.wait(list(asked), num_returns=len(asked), timeout=0)[0] if asked else []
