"""CPU work beside the model: PaStA's overlap matrices of a pair of views, and the reward of a completion. One core.

python -m bench.verifiers
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from bench.measure import write_results
from hatch_ray.config_sections import RewardConfig
from hatch_ray.geometry.overlap import PosedDepth, overlap_matrices
from hatch_ray.protocol.prompt import format_plans
from hatch_ray.rewards.terms import RewardTarget, score_reply
from hatch_ray.sample import ActionFrame, Atom, PairPlan

VIEW = (480, 640)


def seconds_each(work: Callable[[], object], at_least_s: float = 2.0) -> float:
    """Median seconds of a call, over as many as fit into the time."""
    work()
    found: list[float] = []
    end = time.perf_counter() + at_least_s
    while time.perf_counter() < end:
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return float(np.median(found))


def dearest(work: Callable[[], object], calls: int = 200, count: int = 4) -> list[str]:
    """Which functions most of the time is spent in themselves: "reproject 43 %", ..."""
    profile = cProfile.Profile()
    profile.enable()
    for _ in range(calls):
        work()
    profile.disable()
    stats = pstats.Stats(profile)
    own = sorted(((row[2], key[2]) for key, row in stats.stats.items()), reverse=True)  # type: ignore[attr-defined]
    total = sum(seconds for seconds, _ in own)
    return [f"{name} {seconds / total:.0%}" for seconds, name in own[:count]]


def views() -> tuple[PosedDepth, PosedDepth]:
    """Two cameras before an uneven wall, half a metre and ten degrees apart; every pixel has a reading."""
    random = np.random.default_rng(0)
    k = np.array([[585.0, 0, 320], [0, 585, 240], [0, 0, 1]])
    turn = np.deg2rad(10)
    pose = np.array([[np.cos(turn), 0, np.sin(turn), 0.5], [0, 1, 0, 0], [-np.sin(turn), 0, np.cos(turn), 0],
                     [0, 0, 0, 1]])  # fmt: skip
    depths = (2.5 + 0.01 * random.standard_normal(VIEW) for _ in range(2))
    first, second = (depth.astype(np.float32) for depth in depths)
    return PosedDepth(first, k, np.eye(4)), PosedDepth(second, k, pose)


def completion() -> tuple[str, RewardTarget]:
    """A reply over three views, five atoms a pair, and what it is judged by; all three terms are earned in part."""
    atoms: tuple[Atom, ...] = (("turn_right_deg", 31.0), ("turn_up_deg", 12.0), ("move_forward_m", 1.4),
                               ("move_up_m", 0.3), ("turn_left_deg", 8.0))  # fmt: skip
    gold = tuple((name, value + 1) for name, value in atoms)
    pairs = ((0, 1), (0, 2), (1, 2))
    plans = tuple(PairPlan(i, j, gold, ActionFrame(-10.0, 1.0)) for i, j in pairs)
    text = f"<action>{format_plans(dict.fromkeys(pairs, atoms))}</action><answer>2.4</answer>"
    return text, RewardTarget("sample", 3, "2.5", "number", plans)


def main() -> None:
    argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0]).parse_args()
    x, y = views()
    text, target = completion()
    reward = RewardConfig()
    work = {
        "overlap": lambda: overlap_matrices(x, y, 4, 4),
        "reward": lambda: score_reply(text, target, reward),
    }
    figures: dict[str, dict[str, Any]] = {name: {"ms": round(1000 * seconds_each(call), 4), "most_of_it": dearest(call)}
               for name, call in work.items()}  # fmt: skip
    for name, found in figures.items():
        print(f"{name}: {found['ms']} ms; most of it: {', '.join(found['most_of_it'])}")
    print(f"written: {write_results('verifiers', figures)}")


if __name__ == "__main__":
    main()
