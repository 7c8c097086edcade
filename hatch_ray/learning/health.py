"""Is a GRPO run still learning? Warnings in words from one row of metrics a step. Pure Python.

    health = Health(config.grpo, system.rates())
    for row in earlier_rows: health.add(row["step"], row)      # a resumed run: what was said is not said again
    for text in health.add(step, metrics): ...                 # [] while all is well

Each signal is followed by a level: 1 is trouble, below 0.5 is well again. A warning comes when the level reaches 1, and
not again before it was below 0.5. Values that are missing or not finite are passed over.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from hatch_ray.config_sections import GrpoConfig

WINDOW = 20
"""Steps in the moving means that are compared with their best. The reward of one step of the demo varies by 7 % of its
mean (64 replies), a mean of 20 by 2 %."""
SHORT = 10
"""Steps in the moving means of shares, which have a bound of their own."""
REWARD_FALL = 0.2
"""Trouble: the reward's moving mean is this share below its best. The demo's own curve falls by 1.5 % at most."""
RATE_FALL = 0.15
"""Trouble: the moving mean of a rate of well-formed replies is this far below its best (the demo: 0.01)."""
SURE = 5.0
"""A fall must also be this many standard errors, so that small and noisy batches do not look like one: over 1,000 steps
of pure noise the moving mean itself wanders by up to 4."""
BEGIN = 5
"""Steps whose mean entropy is what the run began with."""
ENTROPY_LEFT = 0.25
"""Trouble: less than this share of the first entropy is left. The demo keeps 70 %."""
SAME_REWARDS = 1e-6
"""A mean standard deviation within the groups of no more than this: every group has equal rewards."""
SAME_GROUPS = 32
"""So many groups without variance in a row (and SAME_STEPS steps) are no chance."""
SAME_STEPS = 5
CLIPPED = 0.3
"""Trouble: share of tokens that the clip takes out of the gradient; up to 0.2 is common."""
CORRECTED = 0.1
"""Trouble: share of tokens whose importance correction is cut at its cap; bfloat16 alone gives less than 0.01."""
CUT = 0.2
"""Trouble: share of replies cut at max_new_tokens, which can earn no answer and teach that long is bad."""


@dataclass
class _Signal:
    """One kind of trouble. `look` gives (level, what is seen) for the newest row, or None while it cannot tell."""

    name: str
    look: Callable[[Mapping[str, Any]], tuple[float, str] | None]
    help: str
    since: int | None = None
    said: bool = False

    def add(self, step: int, row: Mapping[str, Any]) -> str | None:
        seen = self.look(row)
        if seen is None:
            return None
        level, figures = seen
        if level < 0.5:
            self.since, self.said = None, False
        elif self.since is None:
            self.since = step
        if level < 1 or self.said:
            return None
        self.said = True
        return f"{self.name} since step {self.since}: {figures}. What usually helps: {self.help}"


class Health:
    """Follows the metrics of a GRPO stage; `add` returns what there is to say about a step.

    rates: `System.rates`.
    """

    def __init__(self, config: GrpoConfig, rates: Mapping[str, str]) -> None:
        self.config = config
        same = max(SAME_STEPS, math.ceil(SAME_GROUPS / config.prompts_per_step))
        self.signals = [
            _Signal(
                "reward collapse",
                _Fall("reward_total", relative=REWARD_FALL),
                f"lower grpo.lr ({config.lr:g}), raise grpo.beta ({config.beta:g}), and read the newest replies in "
                "samples/grpo.jsonl; a run can start again from an earlier checkpoint's model",
            ),
            *(
                _Signal(f"{name} rate falling", _Fall(f"reward_{name}", absolute=RATE_FALL), helps)
                for name, helps in rates.items()
            ),
            _Signal(
                "entropy collapse",
                _EntropyLeft(),
                f"raise grpo.temperature ({config.temperature:g}) or grpo.beta ({config.beta:g}), lower grpo.lr "
                f"({config.lr:g}), or more different questions (data.samples, data.tasks)",
            ),
            _Signal(
                "all groups without variance",
                _SameRewards(same),
                "with a low reward, easier tasks or a longer cold start; with a high one, stop here or ask harder "
                f"tasks; a higher grpo.temperature ({config.temperature:g}) or grpo.group_size ({config.group_size}) "
                "tells replies apart",
            ),
            _Signal(
                "clip share high",
                _High(lambda row: _value(row, "clip_share"), CLIPPED, "of the tokens were clipped"),
                f"lower grpo.lr ({config.lr:g}), grpo.updates_per_step ({config.updates_per_step}) or "
                f"grpo.max_staleness ({config.max_staleness})",
            ),
            _Signal(
                "importance-correction share high",
                _High(
                    lambda row: _value(row, "correction_share"),
                    CORRECTED,
                    f"of the tokens were cut at grpo.importance_cap ({config.importance_cap:g})",
                ),
                f"lower grpo.max_staleness ({config.max_staleness}) or grpo.lr ({config.lr:g}); with staleness 0 "
                "learner and vLLM disagree, see sampler_gap",
            ),
            _Signal(
                "replies cut at grpo.max_new_tokens",
                _High(_cut, CUT, f"of the replies did not end within {config.max_new_tokens} tokens"),
                f"raise grpo.max_new_tokens ({config.max_new_tokens}) and model.max_length, or lower "
                f"grpo.temperature ({config.temperature:g}); replies that ramble come from too short a cold start",
            ),
        ]  # fmt: skip

    def add(self, step: int, row: Mapping[str, Any]) -> list[str]:
        """Take in the metrics of one step, in the order of steps; returns the warnings that it gives rise to."""
        said = [text for signal in self.signals if (text := signal.add(step, row)) is not None]
        return _skipped(step, row, self.config) + said


def _skipped(step: int, row: Mapping[str, Any], config: GrpoConfig) -> list[str]:
    """A skipped step is always worth a line."""
    if not row.get("skipped"):
        return []
    name = f"bad_batches/step-{step:06d}-rank0"
    replay = f"`python -m tools.replay RUN/{name}` looks for the cause"
    where = replay if row.get("batch_kept") else f"{name} could not be written"
    return [
        "step skipped: its loss or gradient was not finite, the weights stay as they were; "
        f"{where}; grpo.bad_steps={config.bad_steps} in a row end the run"
    ]


def _value(row: Mapping[str, Any], name: str) -> float | None:
    value = row.get(name)
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def _cut(row: Mapping[str, Any]) -> float | None:
    ended = _value(row, "ended_share")
    return None if ended is None else 1 - ended


class _Fall:
    """How far a metric's moving mean lies below its best."""

    def __init__(self, name: str, relative: float = 0.0, absolute: float = 0.0) -> None:
        self.name, self.relative, self.absolute = name, relative, absolute
        self.values: deque[float] = deque(maxlen=WINDOW)
        self.best: tuple[float, float, int] | None = None
        self.taken = 0

    def __call__(self, row: Mapping[str, Any]) -> tuple[float, str] | None:
        value = _value(row, self.name)
        if value is None:
            return None
        self.values.append(value)
        self.taken += 1
        if len(self.values) < WINDOW:
            return None
        mean = fmean(self.values)
        spread = sum((value - mean) * (value - mean) for value in self.values) / (WINDOW - 1) / WINDOW
        if self.best is None or mean > self.best[0]:
            self.best = mean, spread, self.taken
        best, best_spread, when = self.best
        allowed = max(self.relative * abs(best), self.absolute, SURE * math.sqrt(spread + best_spread))
        level = (best - mean) / allowed if allowed else 0.0
        ago = self.taken - when
        return level, f"{self.name} is {mean:.3g} in the mean of {WINDOW} steps, {best:.3g} at its best {ago} steps ago"


class _EntropyLeft:
    """How little of the first steps' entropy is left."""

    def __init__(self) -> None:
        self.first: list[float] = []
        self.values: deque[float] = deque(maxlen=SHORT)

    def __call__(self, row: Mapping[str, Any]) -> tuple[float, str] | None:
        value = _value(row, "entropy")
        if value is None:
            return None
        if len(self.first) < BEGIN:
            self.first.append(value)
            return None
        self.values.append(value)
        if len(self.values) < SHORT:
            return None
        mean, first = fmean(self.values), fmean(self.first)
        if first <= 0:
            return None
        level = ENTROPY_LEFT * first / mean if mean > 0 else math.inf
        return level, (
            f"entropy is {mean:.3g} nats a token in the mean of {SHORT} steps, "
            f"{first:.3g} in the first {BEGIN} steps: the policy hardly explores any more"
        )


class _SameRewards:
    """The share of the last steps in which no group had unequal rewards."""

    def __init__(self, steps: int) -> None:
        self.same: deque[bool] = deque(maxlen=steps)
        self.rewards: deque[float] = deque(maxlen=steps)

    def __call__(self, row: Mapping[str, Any]) -> tuple[float, str] | None:
        spread, reward = _value(row, "reward_std"), _value(row, "reward_total")
        if spread is None or reward is None:
            return None
        self.same.append(spread <= SAME_REWARDS)
        self.rewards.append(reward)
        if len(self.same) < (self.same.maxlen or 0):
            return None
        return fmean(self.same), (
            f"for {len(self.same)} steps every reply of a group got the same reward ({fmean(self.rewards):.3g} in the "
            "mean): there is nothing to learn from"
        )


class _High:
    """The moving mean of a share, against its bound."""

    def __init__(self, value: Callable[[Mapping[str, Any]], float | None], bound: float, words: str) -> None:
        self.value, self.bound, self.words = value, bound, words
        self.values: deque[float] = deque(maxlen=SHORT)

    def __call__(self, row: Mapping[str, Any]) -> tuple[float, str] | None:
        value = self.value(row)
        if value is None:
            return None
        self.values.append(value)
        if len(self.values) < SHORT:
            return None
        mean = fmean(self.values)
        return mean / self.bound, f"{mean:.0%} {self.words} in the mean of {SHORT} steps (bound {self.bound:.0%})"
