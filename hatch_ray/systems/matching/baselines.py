"""What matchers and poses answer to questions of wide-baseline matching, without a model.

Each mark of the first photo is decided by itself, from matches of the unmarked photos:

transfer    with three of them near, the affine map of the five nearest carries the mark into the second photo; its
            partner is the nearest mark there, if near enough, else none. Counts alone say little: on real frames with
            an overlap below 0.25 a learned matcher found 124 that fit one motion, 5 % of them right.
epipolar    else its partner is the only mark near its epipolar line, if there is one, else none.

A pair with fewer than eight matches that fit one motion gets none for all marks.
"""

from __future__ import annotations

import numpy as np

from hatch_ray.systems.matching.epipolar import line_distances
from hatch_ray.systems.matching.matchers import LEAST_MATCHES, Matched
from hatch_ray.systems.matching.reply import NONE

NEAR, REACH, LINE = 60 / 640, 25 / 640, 4 / 640
"""In widths of the picture: matches that support a mark, how near its partner lies to where it is carried, and how near
to its epipolar line."""
SUPPORT, CARRIERS = 3, 5


def by_matches(found: Matched, first: np.ndarray, second: np.ndarray, width: int) -> dict[int, int]:
    """What matches say of marks (n, 2) and (m, 2), in pixels of pictures of this width: mark -> partner or NONE."""
    if len(found.matches) < LEAST_MATCHES or found.fundamental is None:
        return dict.fromkeys(range(1, len(first) + 1), NONE)
    said = by_pose(found.fundamental, first, second, width)
    for mark, point in enumerate(first, start=1):
        away = np.hypot(*(found.matches[:, :2] - point).T)
        if (away <= NEAR * width).sum() < SUPPORT:
            continue
        carried = _carry(found.matches[np.argsort(away, kind="stable")[:CARRIERS]], point)
        gaps = np.hypot(*(second - carried).T)
        nearest = int(np.argmin(gaps))
        said[mark] = nearest + 1 if gaps[nearest] <= REACH * width else NONE
    return said


def by_pose(fundamental: np.ndarray, first: np.ndarray, second: np.ndarray, width: int) -> dict[int, int]:
    """What epipolar lines alone say."""
    near = line_distances(fundamental, first, second) < LINE * width
    return {mark: int(np.flatnonzero(row)[0]) + 1 if row.sum() == 1 else NONE for mark, row in enumerate(near, start=1)}


def _carry(matches: np.ndarray, point: np.ndarray) -> np.ndarray:
    """(2,) where the affine map of matches (k, 4) takes a point; matches in a row give the least map that fits."""
    middle = matches.mean(axis=0)
    linear, *_ = np.linalg.lstsq(matches[:, :2] - middle[:2], matches[:, 2:] - middle[2:], rcond=1e-3)
    return np.asarray((point - middle[:2]) @ linear + middle[2:])
