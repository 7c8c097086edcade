"""The rollout engines of a run as one pool: they take over weights together and share the requests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray

from actors.deadlines import CALL_SECONDS, START_SECONDS, wait_for, wait_for_all
from actors.messages import Request, Rollout, Sampling, WeightsHandle
from actors.pools import Failed, Loss, Pool
from actors.rollout import RolloutEngine
from hatch_ray.config import Config, ConfigError

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
    ) -> None:
        actor = ray.remote(RolloutEngine).options(num_cpus=config.rollout.cpus, num_gpus=config.rollout.gpus)
        self._load: Callable[[Any], ray.ObjectRef] | None = None
        super().__init__(
            "rollout engine", lambda: actor.remote(str(model), config, version), config.rollout.actors,
            self._catch_up, on_loss,
        )  # fmt: skip

    def ready(self) -> None:
        """Wait until all engines are up. Raises StageTimeoutError, or ConfigError with an engine's own complaint."""
        try:
            wait_for_all([engine.ready.remote() for engine in self.actors], "start of the vLLM engines", START_SECONDS)
        except ray.exceptions.ActorDiedError as error:
            reason = str(error).strip().splitlines()[-1]
            raise ConfigError(f"a vLLM engine did not start: {reason}") from error

    def sync(self, handle: WeightsHandle) -> None:
        """Every engine takes over a published version."""
        self._load = lambda engine: engine.load_weights.remote(handle)
        versions = self.call_all(self._load, "weight update")
        assert set(versions) <= {handle.version}, versions

    def load_folder(self, folder: str | Path, version: int = 0) -> None:
        """Every engine takes over a saved model of the same architecture."""
        self._load = lambda engine: engine.load_folder.remote(str(folder), version)
        self.call_all(self._load, "loading a model")

    def _catch_up(self, engine: Any) -> None:
        if self._load is not None:
            wait_for(self._load(engine), "weights of a new rollout engine", CALL_SECONDS)

    def try_generate(
        self, requests: Sequence[Request], sampling: Sampling, progress: Callable[[int, int], None] | None = None
    ) -> list[Rollout | Failed]:
        """Rollouts of all requests, in order, with `Failed` where every engine failed.

        Engines take equal parts, or small ones when `progress` is wanted. progress(done, total) counts requests.
        """
        chunk = PROGRESS_CHUNK if progress is not None else -(-len(requests) // len(self.actors))
        return self.map(
            requests, lambda engine, part: engine.generate.remote(part, sampling), max(1, chunk), CALL_SECONDS, progress
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
