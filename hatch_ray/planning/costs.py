"""Costs of GRPO's phases, taken from the metrics of runs.

A phase that several processes share costs each of them `step + group * groups + reply * replies` seconds, of the groups
and replies that are its share. The three coefficients are the least squares fit over the runs, none below 0; runs of
one size tell one coefficient (all of it goes by replies), of two sizes two.

Engines that work at once on one machine, or learner workers, slow each other down (caches, memory, cores that others
use too): where there are runs with one of each and runs with several, the first give the coefficients and the second
how many times as long a share then takes (`beside`).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ValidationError
from scipy.optimize import nnls

from hatch_ray.config import Config, ConfigError, load_config
from hatch_ray.run_folder import RunFolder, read_jsonl

WARM_UP = 2
"""First steps of a run, which are left out."""
FEWEST_STEPS = 3


@dataclass(frozen=True)
class Line:
    """Seconds of a process: a fixed part, and what each of its groups and replies adds."""

    step: float = 0.0
    group: float = 0.0
    reply: float = 0.0

    def seconds(self, groups: float, replies: float) -> float:
        """For a share of this size."""
        return self.step + self.group * groups + self.reply * replies

    def times(self, factor: float) -> Line:
        """Every part multiplied."""
        return Line(self.step * factor, self.group * factor, self.reply * factor)


@dataclass(frozen=True)
class Costs:
    """What each phase costs. Seconds; bytes; `machine` and `parameters` say of what."""

    generate: Line
    """Of an engine's share of a step."""
    reward: Line
    """Of a reward actor's share."""
    learn: Line
    """Of a learner worker's share, without the network."""
    control: Line
    """Of the driver, between the phases: groups, shards, hand-over, logs."""
    prepare: float
    """Of the driver, for a group's images and prompt: at work while the learner is."""
    sync: float
    """Of an engine that takes over weights, without the network."""
    reply_tokens: float
    parameters: int
    image_bytes: int
    """Of a group's images in the object store."""
    machine: str
    runs: int
    generate_beside: float = 1.0
    """How many times as long an engine takes when others work on its machine at the same time."""
    learn_beside: float = 1.0
    """The same of a learner worker."""

    def on(self, parameters: int, speed: float, image_bytes: int) -> Costs:
        """The costs of a model of another size, with other images, on another machine.

        Engine and learner work grows with the parameters and falls with `speed`, how many times as fast the other
        machine computes; preparing images grows with their bytes; the rest of the driver and the reward actors stay as
        they are.
        """
        factor = parameters / self.parameters / speed
        return replace(
            self, parameters=parameters, generate=self.generate.times(factor), learn=self.learn.times(factor),
            sync=self.sync * factor, image_bytes=image_bytes, prepare=self.prepare * image_bytes / self.image_bytes,
        )  # fmt: skip


class CostsFile(BaseModel):
    """What a plan needs of a file of `bench.planning`."""

    costs: Costs


def read_costs(path: Path) -> Costs:
    """From a file that `bench.planning` wrote. Raises ConfigError for any other."""
    try:
        return CostsFile.model_validate_json(path.read_bytes()).costs
    except (OSError, ValidationError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path} has no measured costs; make it with `python -m bench.planning`: {reason}") from None


@dataclass(frozen=True)
class Sizes:
    """How a run was made: what divides the work."""

    groups: int
    group_size: int
    engines: int
    reward_actors: int
    workers: int
    max_staleness: int = 0

    @classmethod
    def of(cls, config: Config) -> Sizes:
        return cls(
            config.grpo.prompts_per_step, config.grpo.group_size, config.rollout.actors, config.reward_actors.actors,
            config.learner.workers, config.grpo.max_staleness,
        )  # fmt: skip

    def share(self, processes: int) -> tuple[int, int]:
        """(groups, replies) of the process that has most of a step."""
        groups = math.ceil(self.groups / processes)
        return groups, groups * self.group_size

    def at_work(self, processes: int) -> int:
        """How many of so many processes have a share."""
        return min(self.groups, processes)

    def rewarded(self) -> tuple[int, int]:
        """(0, replies) of the reward actor that has most: replies are dealt one by one."""
        return 0, math.ceil(self.groups * self.group_size / self.reward_actors)


@dataclass(frozen=True)
class Measured:
    """A run's sizes and the medians of its phases, seconds."""

    sizes: Sizes
    seconds: float
    generate: float
    reward: float
    learn: float
    sync: float
    control: float
    prepare: float
    """Of a group, at a step that found nothing prepared."""
    reply_tokens: float

    @classmethod
    def of_run(cls, run: RunFolder) -> Measured:
        """Of a run's GRPO stage. Raises ConfigError where it has too few steps."""
        if not run.config_path.is_file():
            raise ConfigError(f"{run.path} is not a run folder (no config.yaml)")
        config = load_config(run.config_path)
        rows = [row for row in read_jsonl(run.metrics_path) if row["stage"] == "grpo"]
        used = rows[WARM_UP:]
        if len(used) < FEWEST_STEPS:
            raise ConfigError(
                f"{run.path} has {len(rows)} GRPO steps; costs need at least {WARM_UP + FEWEST_STEPS}, the first "
                f"{WARM_UP} of which are not counted"
            )

        per_step = config.grpo.prompts_per_step

        def draws(row: dict[str, Any]) -> float:
            """How many times as many prompts a step sampled and rewarded as it has places (grpo.redraw)."""
            return 1 + float(row.get("redrawn_groups", 0.0)) / per_step

        def median(name: str) -> float:
            return float(statistics.median(row[name] for row in used))

        def of_one_draw(name: str) -> float:
            return float(statistics.median(row[name] / draws(row) for row in used))

        phases = ("sync", "prepare", "generate", "reward", "learn")
        own = [row["seconds"] - sum(row[f"seconds_{name}"] for name in phases) for row in used]
        return cls(
            Sizes.of(config),
            median("seconds"),
            **{name: of_one_draw(f"seconds_{name}") for name in ("generate", "reward")},
            **{name: median(f"seconds_{name}") for name in ("learn", "sync")},
            # With max_staleness the learner works meanwhile, so that what is left of the step says nothing.
            control=0.0 if config.grpo.max_staleness else max(0.0, statistics.median(own)),
            prepare=float(rows[0]["seconds_prepare"]) / draws(rows[0]) / per_step,
            reply_tokens=median("reply_tokens"),
        )


def fit(shares: Sequence[tuple[int, int]], seconds: Sequence[float]) -> Line:
    """The line through the measured seconds of shares (groups, replies). Raises ValueError when there are none."""
    if not shares:
        raise ValueError("nothing was measured")
    table = np.array([[1.0, groups, replies] for groups, replies in shares])
    told = ([0, 1, 2], [0, 2], [2])
    columns = next((some for some in told if np.linalg.matrix_rank(table[:, some]) == len(some)), told[-1])
    # Relative errors: a second too much on a step of two is worse than on one of ten.
    target = np.array(seconds, dtype=float)
    weights = 1 / np.maximum(target, 1e-9)
    found = np.zeros(3)
    found[columns] = nnls(table[:, columns] * weights[:, None], target * weights)[0]
    return Line(*found.tolist())


def costs_of(measured: Sequence[Measured], parameters: int, image_bytes: int, machine: str) -> Costs:
    """The costs of runs of one model on one machine; runs of several sizes tell more.

    Synchronous runs count alone where there are some: with max_staleness phases disturb each other. Of these, runs with
    one engine and one worker count alone where there are some, and the others tell what being several costs.
    """
    calm = [one for one in measured if one.sizes.max_staleness == 0] or list(measured)
    used = [one for one in calm if one.sizes.engines == one.sizes.workers == 1] or calm

    def line(phase: str, share: Callable[[Sizes], tuple[int, int]]) -> Line:
        return fit([share(one.sizes) for one in used], [getattr(one, phase) for one in used])

    def median(name: str) -> float:
        return float(statistics.median(getattr(one, name) for one in used))

    def beside(phase: str, processes: str, alone: Line) -> float:
        several = [one for one in calm if used is not calm and getattr(one.sizes, processes) > 1]
        shares = [one.sizes.share(getattr(one.sizes, processes)) for one in several]
        factors = [getattr(one, phase) / alone.seconds(*share) for one, share in zip(several, shares, strict=True)]
        return max(1.0, statistics.median(factors)) if factors else 1.0

    generate, learn = line("generate", lambda s: s.share(s.engines)), line("learn", lambda s: s.share(s.workers))
    reward, control = line("reward", Sizes.rewarded), line("control", lambda s: s.share(1))
    return Costs(
        generate, reward, learn, control, median("prepare"), median("sync"), median("reply_tokens"), parameters,
        image_bytes, machine, len(calm), beside("generate", "engines", generate), beside("learn", "workers", learn),
    )  # fmt: skip
