"""Do poses, depth and intrinsics fit each other? Pixels of a view, carried into a near one, are compared in depth.

A right reading of the files agrees in nearly all pixels that fall into the near view; a wrong one (axes, direction of
the poses, units, intrinsics of another size) does not. Where depth is not dense, a grid with the depths of known points
and 0 elsewhere does as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hatch_ray.geometry.convention import AXES, POSES, Convention
from hatch_ray.geometry.overlap import ABSOLUTE_TOLERANCE_M, RELATIVE_TOLERANCE

POINTS = 500
"""Pixels of a view that are carried into the other."""
LEAST_INSIDE = 0.1
"""Share of the pixels that must fall onto readings of the other view; else the pair says nothing."""
BEHIND = 0.6
"""A pair of which more than this share lies behind the other's surfaces, from both sides, has a wall between."""
FEWEST = 4
"""Pairs (in one direction) that must say something."""
GOOD = 0.9
"""With this agreement nothing else is tried."""
LEAST = 0.3
"""Below it a recording agrees too little, whether another reading fits or not."""
CLEARLY = 0.12
"""By so much another reading must agree better."""
WINS = 0.75
"""In so many of the pairs."""
SURE, SURE_A_PART = 0.7, 0.05
"""What another reading must agree where the files as they are say nothing or agree too little; the more it changes, the
more."""
NEAR_TURN_DEG, FAR_TURN_DEG = 20.0, 45.0
ANCHORS = 7
UNITS = (1.0, 0.001, 0.01, 0.1, 0.3048, 0.0254, 0.2, 0.25, 0.5, 2.0, 4.0, 5.0, 10.0, 100.0, 1000.0)
"""Factors that are tried first: units that a length may be in, and depth that is stored in parts of a millimetre."""
DEPTH_UNITS = (0.2, 0.25, 0.1, 0.125, 0.5, 10.0, 1000.0, 1000 / 256, 0.01, 0.001)
"""Factors to millimetres of depth as datasets store it: 1/5 mm (TUM), 1/4 (some cameras), 1/10, 1/8, .., 1/256 m."""
NEAR_UNIT = 0.06
PLAUSIBLE_MEDIAN_M = (0.3, 15.0)


@dataclass(frozen=True)
class StoredView:
    """One view as its files have it: depth (h, w) in stored metres, 0 = no reading; pose (4, 4) as stored;
    intrinsics (3, 3) as stored for the depth grid; color_width: of the picture beside it.
    """

    name: str
    depth: np.ndarray
    intrinsics: np.ndarray
    pose: np.ndarray
    color_width: int = 0


@dataclass(frozen=True)
class Verdict:
    """share: median agreement as it is read, None where too few pairs say something. fits: a reading that agrees
    clearly better, with its share. pairs: those that say something as it is read, of `compared`.
    """

    share: float | None
    pairs: int
    compared: int
    fits: Convention | None = None
    fits_share: float | None = None

    @property
    def state(self) -> str:
        """ "agrees", "cannot tell", "other convention" or "agrees too little"."""
        if self.fits is not None:
            return "other convention"
        if self.share is None:
            return "cannot tell"
        return "agrees too little" if self.share < LEAST else "agrees"


def near_pairs(poses: np.ndarray, anchors: int = ANCHORS) -> list[tuple[int, int]]:
    """Pairs of views, in order of time, that likely see the same: turned by little. (V, 4, 4) stored poses.

    The angle between two cameras is the same under every convention.
    """
    count = len(poses)
    pairs: set[tuple[int, int]] = set()
    window = max(2, count // 6)
    for first in np.unique(np.linspace(0, max(0, count - 2), anchors).astype(int)):
        last = min(count - 1, first + window)
        turns = [_turn(poses[first], poses[other]) for other in range(first + 1, last + 1)]
        reach = next((index for index, turn in enumerate(turns) if turn > NEAR_TURN_DEG), len(turns))
        if reach == 0:
            if turns and turns[0] <= FAR_TURN_DEG:
                pairs.add((int(first), int(first) + 1))
            continue
        pairs.update({(int(first), int(first) + reach), (int(first), int(first) + max(1, reach // 3))})
    return sorted(pairs)


def _turn(a: np.ndarray, b: np.ndarray) -> float:
    cosine = (np.trace(a[:3, :3].T @ b[:3, :3]) - 1) / 2
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1)))) if np.isfinite(cosine) else 180.0


class Pairs:
    """Sampled pixels of near views, ready to be carried over under any convention: all pairs at once."""

    def __init__(self, views: Sequence[StoredView], pairs: Sequence[tuple[int, int]], seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        both = [*pairs, *((j, i) for i, j in pairs)]
        self.count = len(both)
        self._flat = np.concatenate([view.depth.ravel() for view in views]) if views else np.zeros(0)
        starts = np.cumsum([0, *(view.depth.size for view in views)])
        pixels = [_sample(view.depth, rng) for view in views]
        self._uvz = np.stack([pixels[i] for i, _ in both]) if both else np.zeros((0, POINTS, 3))
        self._from, self._to = np.array([i for i, _ in both], int), np.array([j for _, j in both], int)
        self._start = starts[self._to]
        self._shape = np.array([views[j].depth.shape for _, j in both], int).reshape(-1, 2)
        self._poses = np.stack([view.pose for view in views]) if views else np.zeros((0, 4, 4))
        self._k = {
            to_size: np.stack([
                Convention(to_size=to_size).intrinsics(
                    view.intrinsics, view.depth.shape[1], view.depth.shape[0],
                    (view.color_width,) if view.color_width else (),
                )
                for view in views
            ]) if views else np.zeros((0, 3, 3))
            for to_size in (False, True)
        }  # fmt: skip
        self.sizes_differ = not np.allclose(self._k[False], self._k[True])
        readings = self._flat[self._flat > 0]
        self.median = float(np.median(readings)) if readings.size else 0.0
        self.transposed = bool(len(self._poses)) and float(np.abs(self._poses[:, 3, :3]).max()) > 1e-3

    def shares(self, convention: Convention) -> np.ndarray:
        """Per pair the share of the pixels inside the other view that agree in depth; NaN where it says nothing.

        A pixel agrees within max(5 cm, 5 %) of its depth.
        """
        poses = convention.pose(self._poses)
        turn = poses[:, :3, :3]
        sound = np.isfinite(poses).all((1, 2)) & (np.abs(turn @ np.swapaxes(turn, 1, 2) - np.eye(3)).max((1, 2)) < 0.05)
        sound &= np.linalg.det(np.nan_to_num(turn)) > 0
        poses = np.where(sound[:, None, None], poses, np.eye(4))
        to_other = np.linalg.inv(poses[self._to]) @ poses[self._from]
        k = self._k[convention.to_size]
        k_x, k_y = k[self._from], k[self._to]
        u, v, z = np.moveaxis(self._uvz, -1, 0)
        z = z * convention.depth
        points = np.stack([
            (u - k_x[:, 0, 2, None]) / k_x[:, 0, 0, None] * z, (v - k_x[:, 1, 2, None]) / k_x[:, 1, 1, None] * z, z,
        ], axis=1)  # fmt: skip
        x_in, y_in, z_in = np.moveaxis(to_other[:, :3, :3] @ points + to_other[:, :3, 3:], 1, 0)
        front = z_in > 1e-6
        safe = np.where(front, z_in, 1.0)
        column = np.rint(np.clip(k_y[:, 0, 0, None] * x_in / safe + k_y[:, 0, 2, None], -9, 1e6)).astype(int)
        row = np.rint(np.clip(k_y[:, 1, 1, None] * y_in / safe + k_y[:, 1, 2, None], -9, 1e6)).astype(int)
        height, width = self._shape[:, :1], self._shape[:, 1:]
        inside = front & (z > 0) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
        seen = self._flat[self._start[:, None] + np.where(inside, row * width + column, 0)] * convention.depth
        inside &= seen > 0
        apart = z_in - seen
        tolerance = np.maximum(ABSOLUTE_TOLERANCE_M, RELATIVE_TOLERANCE * z_in)
        counts = inside.sum(1)
        agree = (inside & (np.abs(apart) < tolerance)).sum(1)
        behind = (inside & (apart >= tolerance)).sum(1) > BEHIND * np.maximum(counts, 1)
        half = self.count // 2
        walled = np.tile(behind[:half] & behind[half:], 2)
        known = sound[self._from] & sound[self._to] & (counts >= LEAST_INSIDE * (z > 0).sum(1)) & (counts >= 20)
        return np.where(known & ~walled, agree / np.maximum(counts, 1), np.nan)


def _sample(depth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(POINTS, 3): u, v and depth of random pixels with a reading; zeros where there are none."""
    rows, columns = np.nonzero(depth > 0)
    if not len(rows):
        return np.zeros((POINTS, 3))
    pick = rng.choice(len(rows), POINTS, replace=len(rows) < POINTS)
    return np.stack([columns[pick], rows[pick], depth[rows[pick], columns[pick]]], axis=1).astype(float)


def _median(shares: np.ndarray) -> float | None:
    known = shares[np.isfinite(shares)]
    return float(np.median(known)) if len(known) >= FEWEST else None


def judge(pairs: Pairs, read_as: Convention, thorough: bool = False) -> Verdict:
    """Whether the files fit when they are read as `read_as`, and which usual convention fits clearly better.

    thorough: try the others also where these fit well.
    """
    shares = pairs.shares(read_as)
    share = _median(shares)
    verdict = Verdict(share, int(np.isfinite(shares).sum()), pairs.count)
    plausible = PLAUSIBLE_MEDIAN_M[0] <= pairs.median * read_as.depth <= PLAUSIBLE_MEDIAN_M[1]
    if not pairs.count or (share is not None and share >= GOOD and not thorough and plausible):
        return verdict
    best, best_shares = _search(pairs, read_as.depth)
    best_share = _median(best_shares)
    if best_share is None or best == read_as:
        return verdict
    compared = np.isfinite(best_shares)
    wins = best_shares[compared] > np.nan_to_num(shares[compared]) + CLEARLY / 2
    least = share + CLEARLY if share is not None and share >= LEAST else SURE + SURE_A_PART * (best.parts - 1)
    better = best_share >= max(least, (share or 0.0) + CLEARLY) and wins.mean() >= WINS
    enough = compared.sum() >= max(FEWEST, pairs.count / 4)
    return replace(verdict, fits=best, fits_share=best_share) if better and enough else verdict


def _search(pairs: Pairs, depth: float) -> tuple[Convention, np.ndarray]:
    """The convention with the greatest agreement, the simplest among equals; its shares."""
    if not PLAUSIBLE_MEDIAN_M[0] <= pairs.median * depth <= PLAUSIBLE_MEDIAN_M[1]:
        depth = next((unit for unit in DEPTH_UNITS if 0.5 <= pairs.median * unit <= 8.0), depth)
    orders = ("transposed",) if pairs.transposed else ("", *(name for name in POSES if name != "transposed"))
    first = [
        Convention(order, axes, translation, depth, to_size)
        for order in orders
        for axes in ("", *AXES)
        for to_size in (False, True)[: 1 + pairs.sizes_differ]
        for translation in UNITS
    ]
    found: dict[Convention, float] = {each: _worth(pairs.shares(each), each) for each in first}
    kinds = sorted(found, key=found.__getitem__, reverse=True)
    leaders = list(dict.fromkeys(replace(kind, translation=1.0) for kind in kinds))[:3]
    for leader in leaders:
        steps = [replace(leader, translation=float(factor)) for factor in np.geomspace(1e-3, 1e3, 91)]
        found |= {each: _worth(pairs.shares(each), each) for each in steps}
    best = max(found, key=found.__getitem__)
    for width in (0.07, 0.02):
        near = [replace(best, translation=best.translation * float(np.exp(step)))
                for step in np.linspace(-width, width, 9)]  # fmt: skip
        found |= {each: _worth(pairs.shares(each), each) for each in near}
        best = max(found, key=found.__getitem__)
    if best.translation not in UNITS:
        best = replace(best, translation=_middle(found, best))
    best = _named(best)
    return best, pairs.shares(best)


def _middle(found: Mapping[Convention, float], best: Convention) -> float:
    """The middle of the factors about the best that agree as well: depth agrees within a tolerance."""
    level = [
        np.log(each.translation)
        for each, worth in found.items()
        if replace(each, translation=best.translation) == best
        and worth >= found[best] - 0.005
        and abs(np.log(each.translation / best.translation)) < 0.15
    ]
    return float(np.exp((min(level) + max(level)) / 2))


def _worth(shares: np.ndarray, convention: Convention) -> float:
    """What the search maximises: the median share, over as many pairs as can be; simple readings first."""
    known = shares[np.isfinite(shares)]
    if len(known) < FEWEST:
        return 0.0
    simple = 0.004 * (convention.parts + (convention.translation not in UNITS))
    better = np.sort(known)[len(known) // 4 :]
    return float(better.mean()) * min(1.0, 2 * len(known) / len(shares)) - simple


def _named(best: Convention) -> Convention:
    """A known unit where the factor is near one: of depth where datasets store it so, else of the places."""
    factor = best.translation
    if best.depth == 1 and factor != 1:
        for unit in DEPTH_UNITS[:5]:
            if abs(factor * unit - 1) < NEAR_UNIT:
                return replace(best, translation=1.0, depth=unit)
    for unit in UNITS:
        if abs(factor / unit - 1) < NEAR_UNIT:
            return replace(best, translation=unit)
    return replace(best, translation=float(f"{factor:.3g}"))
