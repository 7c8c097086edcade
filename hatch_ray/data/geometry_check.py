"""Whether a root's poses, depth and intrinsics fit each other, scene by scene: one check for every reader of files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from hatch_ray.geometry.agreement import Pairs as PairsOfViews
from hatch_ray.geometry.agreement import StoredView, Verdict, judge, near_pairs
from hatch_ray.geometry.convention import Convention

Found = TypeVar("Found")

MOST_SCENES = 6
"""Scenes that are looked at, evenly spread."""
MOST_POSES = 300
"""Poses of a scene that are read to find near views."""
CANNOT_TELL = "too few views see the same"


@dataclass(frozen=True)
class StoredScene:
    """Views in order of time, nothing loaded. pose, load: of view `index`, as stored; ValueError or OSError when it
    cannot be read.
    """

    name: str
    count: int
    pose: Callable[[int], np.ndarray]
    load: Callable[[int], StoredView]


@dataclass(frozen=True)
class SceneVerdict:
    """What was found of one scene."""

    name: str
    verdict: Verdict

    def words(self) -> str:
        """One line: the figure, and what would fit."""
        found = self.verdict
        share = CANNOT_TELL if found.share is None else f"{found.share:.2f} of the pixels agree in depth"
        line = f"{self.name}: {found.state}: {share} ({found.pairs} of {found.compared} pairs say something)"
        if found.fits is not None:
            line += f"; {found.fits_share:.2f} with {_reading(found.fits)}"
        return line


def _reading(fits: Convention) -> str:
    """What would fit, and what would fit alike: a factor of the places is one of depth the other way round."""
    alike = ""
    if fits.translation != 1 and fits.depth == 1:
        alike = f"; depth*{1 / fits.translation:.3g} would agree alike"
    elif fits.depth != 1 and fits.translation == 1:
        alike = f"; translation*{1 / fits.depth:.3g} would agree alike"
    return f"data.convention={fits or 'empty'} ({fits.words()}{alike})"


def check_geometry(scenes: Sequence[StoredScene], read_as: Convention, thorough: bool = False) -> list[SceneVerdict]:
    """The verdicts of some of the scenes. thorough: try all usual conventions even where the files fit well."""
    return [_check_scene(scene, read_as, thorough) for scene in evenly(scenes)]


def evenly(scenes: Sequence[Found]) -> list[Found]:
    """At most MOST_SCENES of them, evenly spread."""
    if len(scenes) <= MOST_SCENES:
        return list(scenes)
    return [scenes[int(pick)] for pick in np.linspace(0, len(scenes) - 1, MOST_SCENES)]


def _check_scene(scene: StoredScene, read_as: Convention, thorough: bool) -> SceneVerdict:
    """A view that cannot be read says nothing here: its reader refuses it by name."""
    poses: dict[int, np.ndarray] = {}
    for index in np.unique(np.linspace(0, scene.count - 1, min(MOST_POSES, scene.count)).astype(int)).tolist():
        with suppress(ValueError, OSError):
            if np.isfinite(pose := scene.pose(index)).all():
                poses[index] = pose
    numbers = list(poses)
    pairs = near_pairs(np.array(list(poses.values())).reshape(-1, 4, 4))
    views: dict[int, StoredView] = {}
    for place in sorted({place for pair in pairs for place in pair}):
        with suppress(ValueError, OSError):
            views[place] = scene.load(numbers[place])
    order = {place: number for number, place in enumerate(views)}
    kept = [(order[i], order[j]) for i, j in pairs if i in views and j in views]
    return SceneVerdict(scene.name, judge(PairsOfViews(list(views.values()), kept), read_as, thorough))


def refuse_misread(verdicts: Sequence[SceneVerdict], root: object) -> None:
    """Raise ValueError naming the first scene that agrees too little, and what would fit."""
    bad = [each for each in verdicts if each.verdict.state in ("other convention", "agrees too little")]
    if not bad:
        return
    first, found = bad[0], bad[0].verdict
    share = "too few pixels meet to compare" if found.share is None else f"only {found.share:.2f} of the pixels agree"
    fix = "check axes, direction of the poses, units and intrinsics"
    if found.fits is not None:
        fix = f"{found.fits_share:.2f} would with {_reading(found.fits)}"
    more = f" (and {len(bad) - 1} more of {len(verdicts)} scenes looked at)" if len(bad) > 1 else ""
    raise ValueError(
        f"{root}: poses, depth and intrinsics of {first.name}{more} do not fit each other: {share} in depth with a "
        f"near view; {fix}; data.check_geometry=false goes on as it is"
    )


def words_or_refusal(scenes: Sequence[StoredScene], read_as: Convention, root: object) -> list[str]:
    """What the check found, a line a scene that was looked at. Raises ValueError as `refuse_misread`."""
    verdicts = check_geometry(scenes, read_as)
    refuse_misread(verdicts, root)
    return [verdict.words() for verdict in verdicts]
