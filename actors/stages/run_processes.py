"""The processes of a run that outlive its stages: the learner's workers, and engines that need no GPU.

Importing what they need is most of a short run's start (docs/performance.md), so they start together at the beginning,
while the data are built, and the engines stay for the evaluation. Where that may not be, `why_not_early` says why, and
the engines start with GRPO.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from actors.runtime.actor_set import Loss
from actors.stages.train_workers import TrainWorkers
from hatch_ray.config import Config
from hatch_ray.model.memory import workers_used
from hatch_ray.model.source import model_source
from hatch_ray.run_folder import RunFolder

if TYPE_CHECKING:  # it brings torch along; by then the learner's workers are on their way
    from actors.rollout.engines import EnginePool


def why_not_early(config: Config) -> str | None:
    """Why the engines do not start with the run; None where they do."""
    if config.colocated:
        return "they share the learner's GPUs"
    if config.rollout.gpus:
        return "they would keep GPUs idle in the stages before"
    if config.deadlines.nodes_seconds:
        return "they would keep nodes idle that GRPO waits for (deadlines.nodes_seconds)"
    return None


class RunProcesses:
    """As a context: what it started ends with the block."""

    def __init__(self, config: Config, run: RunFolder) -> None:
        self.config, self.run = config, run
        self.workers = TrainWorkers(config, run)
        self._kept: EnginePool | None = None
        self.notes: list[str] = []
        """What `hatch status` says about these processes."""

    def __enter__(self) -> RunProcesses:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.workers.end()
        finally:
            self.stop_engines()

    def start(self, stages: Sequence[str], evaluated: bool = False) -> None:
        """Begin what the stages to come need, in the order that they need it; the caller goes on meanwhile.

        evaluated: the engines are needed after the stages too.
        """
        counts = list(dict.fromkeys(workers_used(self.config, stage) for stage in stages))
        if counts:
            self.workers.start(counts[0])
        if len(counts) > 1:
            words = ", ".join(f"{stage} {workers_used(self.config, stage)}" for stage in stages)
            self.notes.append(f"stages use different numbers of learner workers ({words}): each starts its own")
        if "grpo" not in stages and not evaluated:
            return
        if why := why_not_early(self.config):
            self.notes.append(f"the engines start with GRPO: {why}")
            return
        from actors.rollout.engines import EnginePool

        self._kept = EnginePool(model_source(self.config.model.base), self.config)

    @contextmanager
    def engines(
        self, model: str | Path, on_loss: Callable[[Loss], None] | None = None, beside: Sequence[str] = ()
    ) -> Iterator[EnginePool]:
        """Engines for a stage: those that run already, with whatever weights they hold, else new ones with `model`'s,
        which end with the block. They are up when the block begins.
        """
        from actors.rollout.engines import EnginePool

        engines = self._kept or EnginePool(model, self.config, beside=beside)
        engines.pool.actors.on_loss = on_loss
        try:
            engines.ready()
            yield engines
        finally:
            engines.pool.actors.on_loss, engines.pool.meanwhile = None, lambda: None
            if engines is not self._kept:
                engines.stop()

    def stop_engines(self) -> None:
        """End the engines that were kept."""
        engines, self._kept = self._kept, None
        if engines is not None:
            engines.stop()
