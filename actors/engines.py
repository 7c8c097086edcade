"""The rollout engines of a run as one pool: they take over weights together and share the requests."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.deadlines import limits, wait_for
from actors.messages import ProbeScores, Request, Rollout, Sampling, SyncAnswer, WeightsHandle
from actors.parity import ParityError, check_engines, check_sync
from actors.placement import actor_options, rollout_resources
from actors.pools import CallError, Failed, Loss, Pool
from actors.rollout import RolloutEngine
from hatch_ray.config import Config, ConfigError
from hatch_ray.run_folder import RunFolder

PROGRESS_CHUNK = 32
"""Requests in one call when somebody watches."""


class EnginePool(Pool):
    """`rollout.actors` vLLM engines with the weights of `version`; they load while the caller goes on (see `ready`).

    beside: the nodes of the learner's workers, one engine on each, which take their CPUs in turn (colocated). folder:
    the model whose weights the engines hold, until a published version takes their place.
    """

    def __init__(
        self,
        model: str | Path,
        config: Config,
        version: int = 0,
        on_loss: Callable[[Loss], None] = lambda loss: None,
        engine: type[RolloutEngine] = RolloutEngine,
        beside: Sequence[str] = (),
    ) -> None:
        rollout = config.rollout
        config = config.model_copy(update={"run_dir": RunFolder(config.run_dir).path})  # an actor has its own directory
        actor = ray.remote(engine)
        options = actor_options(rollout_resources(config, colocated=bool(beside)))
        self.folder = str(model)
        self._nodes: dict[Any, str] = {}
        self._prompts_per_call = rollout.prompts_per_call
        self._catch_up: Callable[[Any], None] = lambda engine: None

        def start() -> Any:
            if not beside:
                return actor.options(**options).remote(str(model), config, version)
            node = self._free_node(beside)
            where = NodeAffinitySchedulingStrategy(node, soft=False)
            threads = {"env_vars": {"OMP_NUM_THREADS": str(max(1, math.floor(rollout.cpus)))}}
            placed = actor.options(**options, scheduling_strategy=where, runtime_env=threads)
            started = placed.remote(str(model), config, version)
            self._nodes[started] = node
            return started

        super().__init__("rollout engine", start, rollout.actors, lambda engine: self._catch_up(engine), on_loss)

    def _free_node(self, nodes: Sequence[str]) -> str:
        """Of the learner's nodes, the one with the most workers that have no engine beside them yet."""
        alive = [*self.actors, *self.starting.values()]
        taken = Counter(node for actor, node in self._nodes.items() if actor in alive)
        return max(nodes, key=lambda node: nodes.count(node) - taken[node])

    def ready(self) -> None:
        """Wait until all engines are up; one whose process died is replaced. Raises StageTimeoutError, or ConfigError
        with an engine's own complaint.
        """
        began = time.monotonic()
        asked = {engine: engine.ready.remote() for engine in self.actors}
        for engine, ref in asked.items():
            if engine not in self.actors:  # replaced with one that died before it
                continue
            try:
                wait_for(ref, "start of the vLLM engines", max(0.0, began + limits.start - time.monotonic()))
            except ray.exceptions.RayActorError as error:
                if getattr(error, "actor_init_failed", False):
                    reason = str(error).strip().splitlines()[-1]
                    raise ConfigError(f"a vLLM engine did not start: {reason}") from error
                self._replace([engine], "its process died", began, 0)

    def check(self, scores: Sequence[ProbeScores]) -> None:
        """The parity gate: every engine answers every probe as the learner does. Raises ParityError."""
        check_engines(self.actors, scores)
        before = self._catch_up

        def catch_up(engine: Any) -> None:
            before(engine)
            check_engines([engine], scores)

        self._catch_up = catch_up

    def sync(self, handle: WeightsHandle) -> None:
        """Every engine takes over a published version, and shows it; nothing is sampled with it before.

        Raises ParityError naming engine, version and probable fault.
        """
        stage = f"weight update to version {handle.version}"
        self.folder = ""

        def load(engine: Any) -> ray.ObjectRef:
            return engine.load_weights.remote(handle)

        self._catch_up = lambda engine: check_sync(
            "a new engine", handle, wait_for(load(engine), f"{stage} of a new engine", limits.call)
        )
        try:
            answers: list[SyncAnswer] = self.call_all(load, stage)
        except CallError as error:
            raise ParityError(str(error)) from error
        for number, answer in enumerate(answers):
            check_sync(f"{stage}: {self.role} {number}", handle, answer)

    def load_folder(self, folder: str | Path, version: int = 0) -> None:
        """Every engine takes over a saved model of the same architecture."""

        def load(engine: Any) -> ray.ObjectRef:
            return engine.load_folder.remote(str(folder), version)

        self._catch_up = lambda engine: wait_for(load(engine), "loading a model into a new engine", limits.call)
        self.folder = str(folder)
        self.call_all(load, "loading a model")

    def try_generate(
        self, requests: Sequence[Request], sampling: Sampling, progress: Callable[[int, int], None] | None = None
    ) -> list[Rollout | Failed]:
        """Rollouts of all requests, in order, with `Failed` where every engine failed.

        Engines take equal parts, or those of rollout.prompts_per_call, or small ones when `progress` is wanted.
        progress(done, total) counts requests.
        """
        chunk = self._prompts_per_call or -(-len(requests) // len(self.actors))
        if progress is not None:
            chunk = PROGRESS_CHUNK
        return self.map(
            requests, lambda engine, part: engine.generate.remote(part, sampling), max(1, chunk), progress=progress
        )

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, progress: Callable[[int, int], None] | None = None
    ) -> list[Rollout]:
        """`try_generate`; raises ValueError naming the first request that failed."""
        rollouts = []
        for request, found in zip(requests, self.try_generate(requests, sampling, progress), strict=True):
            if isinstance(found, Failed):
                raise ValueError(f"no reply to {request.id}: {found.reason}")
            rollouts.append(found)
        return rollouts
