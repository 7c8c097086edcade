"""Bootstrap 95 % intervals for means and medians over held-out samples.

Samples of one scene share its furniture and its cameras, so they are not independent: scenes are drawn with
replacement and all samples of a drawn scene come with it (the cluster bootstrap). With fewer than MIN_SCENES scenes,
as in a recording of a single room, that would say nothing; single samples are drawn then, and `unit` says so.
Where several training runs answered the same samples, runs are drawn too (the crossed "pigeonhole" bootstrap of Owen,
2007), so that an interval covers the luck of training beside that of the questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypedDict

import numpy as np

MIN_SCENES = 8
TAIL_PERCENT = 2.5


class Interval(TypedDict):
    """A statistic of `n` samples with the ends of its 95 % interval."""

    value: float
    low: float
    high: float
    n: int


Verdict = Literal["yes", "no", "not shown"]


def verdict(interval: Interval, line: float = 0.0, *, above: bool = True) -> Verdict:
    """Whether a statistic lies above a line (or with above=False at it or above), as far as its interval shows it.

    "yes" where the whole interval lies on the claimed side, "no" where it lies on the other one, else "not shown".
    """
    low, high = interval["low"], interval["high"]
    if low > line or (low == line and not above):
        return "yes"
    return "no" if high < line or (high == line and above) else "not shown"


def all_hold(*verdicts: Verdict) -> Verdict:
    """The verdict on a claim of several parts: it holds where each does, and fails where one fails."""
    if "no" in verdicts:
        return "no"
    return "yes" if set(verdicts) == {"yes"} else "not shown"


class Bootstrap:
    """The same resamples for every statistic of one set of samples, so that differences are paired.

    scenes     the scene of each sample, in the samples' order.
    resamples  number of bootstrap draws.
    runs, ids  the training run that each value comes from, and its sample, where several runs answered all samples.
    unit       what was drawn: "scene" or "sample".
    """

    def __init__(
        self, scenes: Sequence[str], resamples: int, seed: int, runs: Sequence[int] | None = None,
        ids: Sequence[str] | None = None,
    ) -> None:  # fmt: skip
        if not scenes:
            raise ValueError("there are no samples to evaluate")
        if resamples < 1:
            raise ValueError(f"the bootstrap needs at least 1 resample, got {resamples}")
        names, index = np.unique(list(scenes), return_inverse=True)
        self.unit: Literal["scene", "sample"] = "scene" if len(names) >= MIN_SCENES else "sample"
        self.scenes = len(names)
        samples = np.arange(len(scenes)) if ids is None else np.unique(list(ids), return_inverse=True)[1]
        cluster = index if self.unit == "scene" else samples
        random = np.random.default_rng(seed)
        self._weights = _draws(cluster, resamples, random)
        if runs is not None:
            self._weights *= _draws(np.unique(list(runs), return_inverse=True)[1], resamples, random)
        """(resamples, samples): how often each sample was drawn."""

    def mean(self, values: np.ndarray) -> Interval | None:
        """Mean of the values that are not NaN, or None when all are."""
        return self.ratio(np.nan_to_num(values), (~np.isnan(values)).astype(np.float64))

    def ratio(self, parts: np.ndarray, wholes: np.ndarray) -> Interval | None:
        """sum(parts) / sum(wholes), or None when the wholes are 0: the share of patches, say, that were matched."""
        if not wholes.any():
            return None
        sums = self._weights @ wholes
        drawn = sums > 0
        return _interval(parts.sum() / wholes.sum(), (self._weights[drawn] @ parts) / sums[drawn], int(wholes.sum()))

    def weighted_mean(self, values: np.ndarray, groups: Sequence[np.ndarray], shares: Sequence[float]) -> Interval:
        """Mean of the groups' means with these weights (brought to a sum of 1), as a balanced accuracy.

        groups: (samples,) bool each, none empty. A resample that misses a group averages over the others.
        """
        weights = np.asarray(shares, dtype=np.float64)[:, None]
        counts = np.stack([self._weights[:, group].sum(axis=1) for group in groups])
        sums = np.stack([self._weights[:, group] @ values[group] for group in groups])
        drawn = (counts > 0).any(axis=0)
        counts, sums = counts[:, drawn], sums[:, drawn]
        means = np.divide(sums, counts, out=np.zeros_like(sums), where=counts > 0)
        resampled = (weights * means).sum(axis=0) / (weights * (counts > 0)).sum(axis=0)
        value = np.average([values[group].mean() for group in groups], weights=shares)
        return _interval(float(value), resampled, int(np.logical_or.reduce(groups).sum()))

    def median(self, values: np.ndarray) -> Interval | None:
        """Median of the values that are not NaN, or None when all are."""
        known = ~np.isnan(values)
        if not known.any():
            return None
        data = values[known]
        order = np.argsort(data)
        reached = np.cumsum(self._weights[:, known][:, order], axis=1)
        reached = reached[reached[:, -1] > 0]
        middle = (reached >= reached[:, -1:] / 2).argmax(axis=1)
        return _interval(np.median(data), data[order][middle], len(data))


def _draws(cluster: np.ndarray, resamples: int, random: np.random.Generator) -> np.ndarray:
    """(resamples, samples) float: how often the cluster of each sample was drawn."""
    clusters = int(cluster.max()) + 1
    draws = random.multinomial(clusters, np.full(clusters, 1 / clusters), size=resamples)
    return draws[:, cluster].astype(np.float64)


def _interval(value: float, resampled: np.ndarray, n: int) -> Interval:
    low, high = np.percentile(resampled, [TAIL_PERCENT, 100 - TAIL_PERCENT])
    return Interval(value=round(float(value), 6), low=round(float(low), 6), high=round(float(high), 6), n=n)
