"""The rollout engines of a run: they take over weights together and share the requests."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.rollout.engine import RolloutEngine
from actors.runtime.actor_pool import ActorPool, CallError, Failed
from actors.runtime.actor_set import DEATHS, ActorSet, reason_of
from actors.runtime.deadlines import limits, wait_for
from actors.runtime.messages import ProbeScores, Request, Rollout, Sampling, SyncAnswer, WeightsHandle
from actors.runtime.placement import actor_options, rollout_resources
from actors.weights.parity import ParityError, check_engines, check_sync
from hatch_ray.config import Config, ConfigError
from hatch_ray.run_folder import RunFolder

PROGRESS_CHUNK = 32
"""Requests in one call when somebody watches."""


@dataclass(frozen=True)
class Held:
    """What every engine holds, and a new one takes over before it works: a saved model, or a published version (then
    `folder` is empty); and the probes that it answers as the learner does.
    """

    folder: str
    version: int = 0
    handle: WeightsHandle | None = None
    probes: tuple[ProbeScores, ...] = ()


class EnginePool:
    """`rollout.actors` vLLM engines with the weights of `model`; they load while the caller goes on (see `ready`).

    beside: the nodes of the learner's workers, one engine on each, which take their CPUs in turn (colocated).
    """

    def __init__(
        self,
        model: str | Path,
        config: Config,
        engine: type[RolloutEngine] = RolloutEngine,
        beside: Sequence[str] = (),
    ) -> None:
        self._model, self._beside = str(model), beside
        self.held = Held(self._model)
        self._config = config.model_copy(update={"run_dir": RunFolder(config.run_dir).path})  # an actor has another cwd
        self._engine = ray.remote(engine)
        self._nodes: dict[Any, str] = {}
        self.pool = ActorPool(ActorSet("rollout engine", self._start, self._settle))
        self.pool.actors.begin(config.rollout.actors)

    def _start(self) -> Any:
        options = actor_options(rollout_resources(self._config, colocated=bool(self._beside)))
        if not self._beside:
            return self._engine.options(**options).remote(self._model, self._config)
        node, threads = self._free_node(), max(1, math.floor(self._config.rollout.cpus))
        options |= {"scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False)}
        options |= {"runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(threads)}}}
        started = self._engine.options(**options).remote(self._model, self._config)
        self._nodes[started] = node
        return started

    def _free_node(self) -> str:
        """Of the learner's nodes, the one with the most workers that have no engine beside them yet."""
        taken = Counter(node for actor, node in self._nodes.items() if actor in self.pool.actors.numbers)
        return max(self._beside, key=lambda node: self._beside.count(node) - taken[node])

    def _settle(self, engine: Any) -> None:
        """Bring a new engine to where the others are."""
        held = self.held
        if held.handle is not None:
            stage = f"weight update to version {held.version} of a new engine"
            answer = wait_for(engine.load_weights.remote(held.handle), stage, limits.call)
            check_sync("a new engine", held.handle, answer)
        elif (held.folder, held.version) != (self._model, 0):
            loaded = engine.load_folder.remote(held.folder, held.version)
            wait_for(loaded, "loading a model into a new engine", limits.call)
        check_engines([engine], held.probes)

    def ready(self) -> None:
        """Wait until all engines are up; one whose process died is replaced.

        Raises ConfigError with an engine's own complaint, StartError when one after the other dies, StageTimeoutError.
        """
        began = time.monotonic()
        for engine in list(self.pool.actors):
            if engine not in self.pool.actors:  # replaced with one that died before it
                continue
            left = max(0.0, began + limits.start - time.monotonic())
            try:
                wait_for(engine.ready.remote(), "start of the vLLM engines", left)
            except DEATHS as error:
                if getattr(error, "actor_init_failed", False):  # it ran, and raised
                    raise ConfigError(f"a vLLM engine did not start: {reason_of(error)}") from error
                self.pool.actors.replace([engine], reason_of(error), began)

    def check(self, scores: Sequence[ProbeScores]) -> None:
        """The parity gate: every engine answers every probe as the learner does. Raises ParityError."""
        check_engines(self.pool.actors, scores)
        self.held = replace(self.held, probes=tuple(scores))

    def sync(self, handle: WeightsHandle) -> None:
        """Every engine takes over a published version, and shows it; nothing is sampled with it before.

        Raises ParityError naming engine, version and probable fault.
        """
        stage = f"weight update to version {handle.version}"
        self.held = Held("", handle.version, handle)
        try:
            answers: list[SyncAnswer] = self.pool.call_all(lambda engine: engine.load_weights.remote(handle), stage)
        except CallError as error:
            raise ParityError(str(error)) from error
        for number, answer in enumerate(answers):
            check_sync(f"{stage}: {self.pool.actors.role} {number}", handle, answer)

    def load_folder(self, folder: str | Path, version: int = 0) -> None:
        """Every engine takes over a saved model of the same architecture."""
        self.held = Held(str(folder), version)
        self.pool.call_all(lambda engine: engine.load_folder.remote(str(folder), version), "loading a model")

    def forget(self) -> None:
        """Every engine empties its caches: what it says next is what a new engine in its place would say."""
        self.pool.call_all(lambda engine: engine.reset_caches.remote(), "emptying the engines' caches")

    def try_generate(
        self, requests: Sequence[Request], sampling: Sampling, progress: Callable[[int, int], None] | None = None
    ) -> list[Rollout | Failed]:
        """Rollouts of all requests, in order, with `Failed` where every engine failed.

        Engines take equal parts, or those of rollout.prompts_per_call, or small ones when `progress` is wanted.
        progress(done, total) counts requests.
        """
        equal = max(1, -(-len(requests) // len(self.pool.actors)))
        chunk = PROGRESS_CHUNK if progress is not None else self._config.rollout.prompts_per_call or equal
        return self.pool.map(requests, lambda engine, part: engine.generate.remote(part, sampling), chunk, progress)

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

    def stop(self) -> None:
        """End the engines and free their resources."""
        self.pool.actors.stop()
