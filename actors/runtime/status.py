"""The driver's window to the outside: a heartbeat with the run's state, and the commands of `hatch scale`.

A thread of its own, so that a run shows that it lives while it waits for something. It reads the sets of actors and
sets their targets; the driving thread does the rest.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from actors.runtime.actor_set import ActorSet
from actors.runtime.metrics import Metrics
from actors.runtime.placement import Need, describe, describe_all, placed
from actors.runtime.resources import free, nodes
from actors.runtime.stopping import StopAsked
from hatch_ray.config_sections import DeadlinesConfig
from hatch_ray.control import answer, clear, take, whoami
from hatch_ray.run_folder import RunFolder, read_jsonl, write_atomic

LOOK_SECONDS = 0.5
BEAT_SECONDS = 1.0
STEPS_OF_ETA = 20
log = logging.getLogger("hatch_ray")


@dataclass(frozen=True)
class Role:
    """Actors that can be scaled, what one more takes, and why the role cannot be scaled, where it cannot."""

    actors: ActorSet
    need: Need
    refusal: str = ""


@dataclass(frozen=True)
class Shown:
    """What a stage shows beside its steps: its part of status.json, and its roles by name."""

    status: Callable[[], dict[str, Any]]
    roles: Mapping[str, Role]


@dataclass(eq=False)
class _Order:
    """What was asked. Once it is under way: how many there were, and until when it may come true."""

    answer: Path
    wanted: dict[str, int | None]
    before: dict[str, int] = field(default_factory=dict)
    end: float = 0.0


class Live:
    """One driver's heartbeat, as a context. What was asked of an earlier driver of the folder is dropped."""

    def __init__(
        self, run: RunFolder, stages: Sequence[str], deadlines: DeadlinesConfig, notes: Sequence[str] = ()
    ) -> None:
        """notes: what is to be known of the run as a whole, one line each."""
        self.run, self.stages, self.deadlines = run, stages, deadlines
        self.by_hand: dict[str, int] = {}
        """Numbers asked for by `hatch scale`: they outlive a stage that starts again."""
        self._state: dict[str, Any] = {"state": "running", "stage": None, "step": 0, "steps": 0} | whoami()
        if notes:
            self._state["notes"] = list(notes)
        self._steps: deque[tuple[float, int]] = deque(maxlen=STEPS_OF_ETA)
        self._shown: Shown | None = None
        self._orders: list[_Order] = []
        """Those that have no answer yet."""
        self._answering = threading.Lock()
        self.metrics = Metrics(str(run.path))
        self._lost = len(read_jsonl(run.recoveries))
        self._beat = 0
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._loop, name="hatch-live", daemon=True)

    def __enter__(self) -> Live:
        clear(self.run)
        self.write()
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._stop.set()
        self._thread.join()
        self._end_orders("the run has ended")
        if error is None:
            self._state["state"] = "ended"
        elif isinstance(error, KeyboardInterrupt | SystemExit | StopAsked):
            self._state["state"] = "was stopped"
        else:
            self._state["state"] = f"failed: {' '.join(str(error).split())[:500]}"
        self._shown = None
        self.write()

    def at(self, stage: str, step: int, steps: int) -> None:
        """The stage has done so many of its steps."""
        before = self._state
        if stage != before["stage"] or not before["steps"] or step < before["step"]:
            self._steps.clear()  # the pace counts from the first step that this stage, or this start of it, has done
        self._state |= {"stage": stage, "step": step, "steps": steps}
        self._steps.append((time.monotonic(), step))

    def show(self, stage: Shown | None) -> None:
        """From now on this stage's state is shown; None: it is over."""
        with self._lock:
            self._shown = stage
        if stage is None:
            self._end_orders("the stage has ended")

    def write(self) -> None:
        """One heartbeat."""
        with self._lock:
            shown = self._shown.status() if self._shown is not None else {}
        self._beat += 1
        status = self._state | {"beat": self._beat, "time": round(time.time(), 3), "eta_seconds": self._eta()} | shown
        write_atomic(self.run.status_path, json.dumps(status))
        self.metrics.beat(status)
        lost = len(read_jsonl(self.run.recoveries))
        self.metrics.lost(lost - self._lost)
        self._lost = lost

    def _eta(self) -> float | None:
        """Seconds to the end of the stage, at the pace of its last steps."""
        steps = list(self._steps)
        done = steps[-1][1] - steps[0][1] if steps else 0
        if not done:
            return None
        pace = (steps[-1][0] - steps[0][0]) / done
        return round(max(0.0, (self._state["steps"] - steps[-1][1]) * pace), 1)

    def _loop(self) -> None:
        written = time.monotonic()
        while not self._stop.wait(LOOK_SECONDS):
            try:
                for path, request in take(self.run):
                    self._orders.append(_Order(path, request["scale"]))
                for order in list(self._orders):
                    self._follow(order)
                if time.monotonic() - written >= BEAT_SECONDS:
                    written = time.monotonic()
                    self.write()
            except Exception:  # a run must not end because it could not be watched; the next round tries again
                log.exception("the run's status could not be written or a command not read")

    def _follow(self, order: _Order) -> None:
        try:
            found = self._outcome(order) if order.end else self._take_up(order)
        except Exception as error:  # whoever asked is told, and the run goes on
            log.exception("a command could not be followed")
            found = False, [f"{type(error).__name__}: {error}"]
        if found is not None:
            self._answer(order, *found)

    def _answer(self, order: _Order, ok: bool, lines: list[str]) -> None:
        """Answer an order, unless it has its answer: this thread and the one that ends its stage may both want to."""
        with self._answering:
            if order in self._orders:
                answer(order.answer, ok, lines)
                self._orders.remove(order)

    def _take_up(self, order: _Order) -> tuple[bool, list[str]] | None:
        """Begin with an order. What became of it, where that is known at once."""
        shown = self._shown
        if shown is None:
            stage = self._state["stage"] or "its start"
            if "grpo" not in self.stages or self.run.progress().get("grpo", {}).get("done"):
                return False, [f"the run is at {stage}, and no GRPO is to come. Nothing was changed"]
            self._keep(order.wanted)
            return True, [f"the run is at {stage}: GRPO will start with {_words(order.wanted)}"]
        refusals = [f"{name}: {why}" for name in order.wanted if (why := shown.roles[name].refusal)]
        if refusals := refusals or self._no_room(shown.roles, order.wanted):
            return False, [f"{'; '.join(refusals)}. Nothing was changed"]
        order.before = {name: len(shown.roles[name].actors) for name in order.wanted}
        order.end = time.monotonic() + self.deadlines.join_seconds
        for name, count in order.wanted.items():
            shown.roles[name].actors.trouble = ""
            shown.roles[name].actors.fix(count)
        self._keep(order.wanted)
        return None

    def _keep(self, wanted: dict[str, int | None]) -> None:
        self.by_hand = {name: count for name, count in (self.by_hand | wanted).items() if count is not None}

    def _no_room(self, roles: Mapping[str, Role], wanted: dict[str, int | None]) -> list[str]:
        """For which roles the cluster has no room, all of them together; none where more nodes may be waited for."""
        there = {name: len(roles[name].actors) + len(roles[name].actors.starting) for name in wanted}
        more = {name: count - there[name] for name, count in wanted.items() if count and count > there[name]}
        if self.deadlines.nodes_seconds or not more:
            return []
        needs = {name: replace(roles[name].need, count=count) for name, count in more.items()}
        found = dict(zip(needs, placed(list(needs.values()), free()), strict=True))
        return [
            f"{name}: {need.count} more with {describe(need.each)} each are needed and {found[name]} find a place "
            f"beside what runs (the cluster has {describe_all(nodes())}); ask for at most "
            f"{there[name] + found[name]}, or add nodes"
            for name, need in needs.items()
            if found[name] < need.count
        ]

    def _outcome(self, order: _Order) -> tuple[bool, list[str]] | None:
        """Whether an order that is under way has come true, by role; None while it may."""
        shown = self._shown
        if shown is None:
            return None  # the stage starts again, or has ended: `show` tells
        lines, ok, late = [], True, time.monotonic() > order.end
        for role, count in order.wanted.items():
            actors = shown.roles[role].actors
            now, going = len(actors), len(actors.starting)
            if count is None:
                lines.append(f"{role}: by queue from now on, {now} at work")
            elif now == count and not going:
                nodes = len({place.node for place in list(actors.places.values())})
                lines.append(f"{role}: {order.before[role]} -> {now}, on {nodes} node{'' if nodes == 1 else 's'}")
            elif late or (actors.trouble and now == actors.target and not going):
                ok = False
                self.by_hand[role] = actors.target
                seconds = f"{self.deadlines.join_seconds:.0f} s"
                slow = f"{going} have not started in {seconds}; they will join later"
                if now > count:
                    slow = f"{now - count} are still at work after {seconds}; they will leave later"
                lines.append(f"{role}: {order.before[role]} -> {now}, not {count}: {actors.trouble or slow}")
            else:
                return None
        return ok, lines

    def _end_orders(self, why: str) -> None:
        for order in list(self._orders):
            self._answer(order, False, [f"{why} before there were {_words(order.wanted)}"])


def _words(wanted: dict[str, int | None]) -> str:
    return ", ".join(f"{role}={'auto' if count is None else count}" for role, count in wanted.items())
