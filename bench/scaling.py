"""Reward actors that grow and shrink: waits when a reward becomes ten times dearer, and throughput by their number.

    python -m bench.scaling                       # about 4 minutes

The cost of a reward is simulated: verifiers sleep, on top of the real reward function, so that 32 of them fit on any
machine; what is measured is the pool and its transport. One pool lives through a whole series: cheap batches, dear
ones, cheap ones again. A wait is from the end of sampling (the batch is handed in) to the score.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray

from actors.reward.verifier import RewardActors, Verifier
from bench.measure import write_results
from bench.verifiers import completion
from hatch_ray.config import Config, make_config
from hatch_ray.environment import variables
from hatch_ray.rewards.terms import RewardTarget

DEARER = 10
COLD_BATCHES = 2
"""Dear batches that are not counted as "dear": the pool finds out in them, and is given as "first dear batches"."""


class SleepingVerifier(Verifier):
    """The real reward, and a sleep of as many seconds a reply as the file says."""

    cost: Path

    def score_many(self, jobs: Sequence[tuple[str, RewardTarget]]) -> list[dict[str, Any]]:
        """Scores as `Verifier` gives them, later."""
        time.sleep(len(jobs) * float(self.cost.read_text(encoding="utf-8")))
        return super().score_many(jobs)


def verifier_at(cost: Path) -> type[SleepingVerifier]:
    """The verifier with its file: a class of its own, which Ray sends by value."""
    return type("SleepingVerifier", (SleepingVerifier,), {"cost": cost})


def settings(actors: int, most: int, queue_seconds: float) -> Config:
    """Reward actors that take next to no CPU in Ray's count."""
    return make_config({"reward_actors": {"actors": actors, "cpus": 0.01, "max": most, "queue_seconds": queue_seconds}})


def replies(count: int) -> list[tuple[str, RewardTarget]]:
    """As many replies, no two alike."""
    text, target = completion()
    return [(text.replace("2.4", f"{2 + place / 1000}"), target) for place in range(count)]


class Series:
    """Batches through one pool: every score is compared, every reply must have been scored once."""

    def __init__(self, config: Config, cost: Path, count: int) -> None:
        self.cost, self.jobs, self.losses = cost, replies(count), 0
        self.expected = Verifier(config).score_many(self.jobs)
        self.rewards = RewardActors(config, self._lost, verifier_at(cost), room=lambda more: more)
        self.pool, self.actors = self.rewards.pool, self.rewards.pool.actors
        self.wrong = self.repeated = self.judged = 0

    def _lost(self, loss: object) -> None:
        self.losses += 1

    def batches(self, count: int, seconds: float) -> dict[str, float]:
        """p50 and p95 of the waits of so many batches at this cost, and how many actors there were at the end."""
        self.cost.write_text(str(seconds), encoding="utf-8")
        self.rewards.waits.clear()
        for _ in range(count):
            self.pool.work.clear()
            scores = self.rewards.score(self.jobs)
            places = Counter(place for work in self.pool.work for place in work.places)
            self.repeated += sum(times != 1 for times in places.values()) + len(self.jobs) - len(places)
            self.wrong += sum(score != right for score, right in zip(scores, self.expected, strict=True))
            self.judged += len(scores)
        p50, p95 = np.percentile(list(self.rewards.waits), [50, 95])
        return {"p50_s": round(float(p50), 4), "p95_s": round(float(p95), 4), "actors": len(self.actors)}

    def ready(self) -> None:
        """Until all actors that there are to be have started."""
        while self.actors.starting or len(self.actors.places) < self.actors.target:
            self.actors.tend()
            time.sleep(0.05)

    def end(self) -> dict[str, int]:
        """Stop the pool; what went wrong."""
        self.rewards.stop()
        return {"judged": self.judged, "wrong": self.wrong, "lost_or_repeated": self.repeated, "restarts": self.losses}


def waits(config: Config, cost: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Cheap batches, dear ones, cheap ones again, through one pool."""
    series = Series(config, cost, options.replies)
    series.ready()
    cheap = options.milliseconds / 1000
    found: dict[str, Any] = {"cheap": series.batches(options.batches, cheap)}
    found["first dear batches"] = series.batches(COLD_BATCHES, DEARER * cheap)
    series.ready()
    found["dear"] = series.batches(options.batches, DEARER * cheap)
    series.batches(2 * options.batches, cheap)
    found["cheap again"] = series.batches(options.batches, cheap)
    return found | {"checks": series.end()}


def throughput(cost: Path, options: argparse.Namespace) -> tuple[list[dict[str, float]], dict[str, int]]:
    """Scores a second for each number of actors, set by hand on one pool."""
    series = Series(settings(1, 1, 1.0), cost, options.replies)
    seconds = DEARER * options.milliseconds / 1000
    series.batches(1, seconds)
    rows = []
    for actors in options.actors:
        series.actors.fix(actors)
        series.ready()
        start = time.perf_counter()
        series.batches(options.batches, seconds)
        rate = options.batches * options.replies / (time.perf_counter() - start)
        rows.append({"actors": actors, "scores_per_s": round(rate, 2), "of_ideal": round(rate * seconds / actors, 3)})
        print(
            f"{actors} actors: {rate:.1f} scores/s, {rate * seconds / actors:.0%} of what the sleeps allow", flush=True
        )
    return rows, series.end()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--replies", type=int, default=64, help="in a batch")
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--milliseconds", type=float, default=10.0, help="of sleep a reply, when it is cheap")
    parser.add_argument("--start", type=int, default=2, help="reward actors at the start")
    parser.add_argument("--most", type=int, default=32)
    parser.add_argument("--actors", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    ray.init(
        address="local", include_dashboard=False, logging_level="warning", log_to_driver=False,
        runtime_env={"env_vars": variables()},
    )  # fmt: skip
    queue_seconds = options.replies * options.milliseconds / 1000 / options.start
    with tempfile.TemporaryDirectory() as folder:
        cost = Path(folder) / "cost"
        found: dict[str, Any] = {"simulated": "verifiers sleep", "queue_seconds": queue_seconds}
        for name, most in (("scaled", options.most), ("fixed", 0)):
            found[name] = waits(settings(options.start, most, queue_seconds), cost, options)
            cheap, dear = (found[name][phase] for phase in ("cheap", "dear"))
            print(
                f"{name}: p95 wait {cheap['p95_s']:.2f} s with {cheap['actors']} actors, {DEARER} times dearer "
                f"{dear['p95_s']:.2f} s with {dear['actors']}; {found[name]['checks']}",
                flush=True,
            )
        found["throughput"], found["throughput_checks"] = throughput(cost, options)
    ray.shutdown()
    command = {name: value for name, value in vars(options).items() if name != "out"}
    print(f"written: {write_results('scaling', {'command': command, **found}, options.out)}")


if __name__ == "__main__":
    main()
