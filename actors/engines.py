"""The rollout engines of a run as one pool: they take over weights together and share the requests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray

from actors.deadlines import limits, wait_for, wait_for_all
from actors.messages import ProbeScores, Request, Rollout, Sampling, SyncAnswer, WeightsHandle
from actors.parity import ParityError, check_engines, check_sync
from actors.pools import CallError, Failed, Loss, Pool
from actors.rollout import RolloutEngine
from hatch_ray.config import Config, ConfigError
from hatch_ray.run_folder import RunFolder

PROGRESS_CHUNK = 32
"""Requests in one call when somebody watches."""


class EnginePool(Pool):
    """`rollout.actors` vLLM engines with the weights of `version`; they load while the caller goes on (see `ready`)."""

    def __init__(
        self,
        model: str | Path,
        config: Config,
        version: int = 0,
        on_loss: Callable[[Loss], None] = lambda loss: None,
        engine: type[RolloutEngine] = RolloutEngine,
    ) -> None:
        config = config.model_copy(update={"run_dir": RunFolder(config.run_dir).path})  # an actor has its own directory
        actor = ray.remote(engine).options(num_cpus=config.rollout.cpus, num_gpus=config.rollout.gpus)
        self._catch_up: Callable[[Any], None] = lambda engine: None
        super().__init__(
            "rollout engine", lambda: actor.remote(str(model), config, version), config.rollout.actors,
            lambda engine: self._catch_up(engine), on_loss,
        )  # fmt: skip

    def ready(self) -> None:
        """Wait until all engines are up. Raises StageTimeoutError, or ConfigError with an engine's own complaint."""
        try:
            wait_for_all([engine.ready.remote() for engine in self.actors], "start of the vLLM engines", limits.start)
        except ray.exceptions.ActorDiedError as error:
            reason = str(error).strip().splitlines()[-1]
            raise ConfigError(f"a vLLM engine did not start: {reason}") from error

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
        self.call_all(load, "loading a model")

    def try_generate(
        self, requests: Sequence[Request], sampling: Sampling, progress: Callable[[int, int], None] | None = None
    ) -> list[Rollout | Failed]:
        """Rollouts of all requests, in order, with `Failed` where every engine failed.

        Engines take equal parts, or small ones when `progress` is wanted. progress(done, total) counts requests.
        """
        chunk = PROGRESS_CHUNK if progress is not None else -(-len(requests) // len(self.actors))
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
