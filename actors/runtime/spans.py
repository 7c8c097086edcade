"""When each part of a step was at work: one row a step in RUN/spans.jsonl, read by `hatch trace`.

A row: {"step", "spans": [[role, actor, name, began, ended, issued, groups], ...]}; wall-clock seconds of the machine
that noted them; groups: their places in the step, empty for all of it; issued: when the work began to wait.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from actors.runtime.actor_pool import ActorPool, Work
from hatch_ray.run_folder import append_jsonl, read_jsonl, write_jsonl

KEPT_STEPS = 1000
"""The file holds the newest steps, twice as many before it is cut."""
MANY = 200
"""Jobs of one role in one step; more are told as one span an actor."""


@dataclass(frozen=True)
class Span:
    role: str
    actor: int
    name: str
    began: float
    ended: float
    issued: float | None = None
    groups: tuple[int, ...] = ()


class Spans:
    """Collects the spans of the steps at work; a step is written when it is closed."""

    def __init__(self, path: Path, first: int) -> None:
        """Steps from `first` on are taken again: their rows are dropped."""
        self.path = path
        self.phase = "start"
        """What the driver does, for `hatch status`."""
        self._open: dict[int, list[Span]] = {}
        rows = read_jsonl(path)
        self._rows = len(rows)
        if any(row["step"] >= first for row in rows):
            self._rewrite([row for row in rows if row["step"] < first])

    @contextmanager
    def at(self, step: int, phase: str) -> Iterator[None]:
        """The driver is in this phase of a step."""
        self.phase, began = phase, time.time()
        yield
        self.add(step, Span("driver", 0, phase, began, time.time()))

    def add(self, step: int, span: Span) -> None:
        """Note one span."""
        self._open.setdefault(step, []).append(span)

    def work(self, step: int, role: str, pool: ActorPool, groups: Sequence[int]) -> None:
        """Take what a pool's last call did; groups: the group of each of its items."""
        done = list(pool.work)
        pool.work.clear()
        for work in _merged(done) if len(done) > MANY else done:
            of = tuple(sorted({groups[place] for place in work.places}))
            self.add(step, Span(role, work.actor, NAMES[role], work.began, work.ended, work.issued, of))

    def close(self, step: int) -> None:
        """Write a step."""
        spans = [[round(x, 4) if isinstance(x, float) else x for x in astuple(s)] for s in self._open.pop(step, [])]
        append_jsonl(self.path, [{"step": step, "spans": spans}])
        self._rows += 1
        if self._rows > 2 * KEPT_STEPS:
            self._rewrite(read_jsonl(self.path)[-KEPT_STEPS:])

    def _rewrite(self, rows: list[dict[str, Any]]) -> None:
        write_jsonl(self.path, rows)
        self._rows = len(rows)


NAMES = {"rollout": "generate", "reward": "reward"}


def _merged(done: Sequence[Work]) -> list[Work]:
    """One for each actor, from its first job to its last."""
    of: dict[int, list[Work]] = {}
    for work in done:
        of.setdefault(work.actor, []).append(work)
    return [
        Work(
            actor,
            min(work.issued for work in all_),
            min(work.began for work in all_),
            max(work.ended for work in all_),
            tuple(place for work in all_ for place in work.places),
        )
        for actor, all_ in of.items()
    ]
