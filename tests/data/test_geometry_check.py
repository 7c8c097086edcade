"""Files whose poses, depth and intrinsics mean something else are named; what is merely bad passes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from hatch_ray.config_sections import DataConfig
from hatch_ray.data.check import check_root
from hatch_ray.data.rgbd import read_sequences
from hatch_ray.data.rooms import Room, RoomOptions
from hatch_ray.geometry.agreement import Pairs, StoredView, Verdict, judge, near_pairs
from hatch_ray.geometry.convention import OPENGL, ROS, UNITY, Convention, scale_intrinsics

VIEWS = 14


@cache
def views(seed: int = 5) -> tuple[StoredView, ...]:
    """A walk through a room: near views, exact by construction."""
    room = Room(seed, RoomOptions(width=128, height=96, n_views=VIEWS, heading_spread=12, step=(0.1, 0.2)))
    frames = [room.frame(index) for index in range(VIEWS)]
    return tuple(StoredView(frame.name, frame.depth, frame.depth_intrinsics, frame.pose) for frame in frames)


def verdict(stored: list[StoredView], read_as: str = "") -> Verdict:
    pairs = near_pairs(np.stack([view.pose for view in stored]))
    return judge(Pairs(stored, pairs), Convention.parse(read_as))


def changed(
    pose: Callable[[np.ndarray], np.ndarray] = lambda pose: pose, depth: float = 1.0, k: float = 1.0, seed: int = 5
) -> list[StoredView]:
    return [
        StoredView(view.name, view.depth * np.float32(depth), scale_intrinsics(view.intrinsics, k), pose(view.pose))
        for view in views(seed)
    ]


def moved(factor: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda pose: np.block([[pose[:3, :3], factor * pose[:3, 3:]], [pose[3:]]])


def turned_back(pose: np.ndarray) -> np.ndarray:
    return np.block([[pose[:3, :3].T, pose[:3, 3:]], [pose[3:]]])


MISREAD: dict[str, list[StoredView]] = {
    "world_to_camera": changed(np.linalg.inv),
    "opengl": changed(lambda pose: pose @ OPENGL),
    "ros": changed(lambda pose: pose @ np.linalg.inv(ROS)),
    "unity": changed(lambda pose: UNITY @ pose @ UNITY),
    "transposed": changed(np.transpose),
    "rotation_transposed": changed(turned_back),
    "world_to_camera,opengl": changed(lambda pose: np.linalg.inv(pose @ OPENGL)),
    "translation*0.001": changed(moved(1000)),
    "depth*0.2": changed(depth=5),
    "intrinsics_to_size": changed(k=3),
    "opengl,intrinsics_to_size": changed(lambda pose: pose @ OPENGL, k=0.5),
}


def test_views_that_fit_agree_and_nothing_else_is_named() -> None:
    found = verdict(list(views()))
    assert found.state == "agrees"
    assert found.share is not None
    assert found.share > 0.9


@pytest.mark.parametrize("convention", MISREAD)
def test_what_the_files_mean_is_named(convention: str) -> None:
    found = verdict(MISREAD[convention])
    assert found.state == "other convention"
    assert str(found.fits) == convention
    assert verdict(MISREAD[convention], convention).state == "agrees"


@pytest.mark.parametrize("factor", [0.37, 2.6])
def test_another_scale_is_named_within_a_tenth(factor: float) -> None:
    found = verdict(changed(moved(factor)))
    assert found.fits is not None
    assert found.fits.translation / found.fits.depth == pytest.approx(1 / factor, rel=0.1)


@settings(max_examples=20, phases=(Phase.explicit, Phase.generate))
@given(
    seed=st.integers(0, 2**16),
    noise=st.floats(0, 0.03),
    holes=st.floats(0, 0.8),
    moving=st.floats(0, 0.3),
    pose_noise=st.floats(0, 0.02),
)
def test_noise_holes_and_moving_things_pass(
    seed: int, noise: float, holes: float, moving: float, pose_noise: float
) -> None:
    rng = np.random.default_rng(seed)
    stored = []
    for view in views(5 + seed % 3):
        depth = view.depth * (1 + noise * rng.standard_normal(view.depth.shape))
        height, width = depth.shape
        if moving:
            rows, columns = (int(side * moving**0.5) for side in (height, width))
            top, left = rng.integers(height - rows + 1), rng.integers(width - columns + 1)
            depth[top : top + rows, left : left + columns] = rng.uniform(0.5, 3)
        depth[rng.random(depth.shape) < holes] = 0
        pose = view.pose.copy()
        pose[:3, 3] += pose_noise * rng.standard_normal(3)
        stored.append(StoredView(view.name, depth.astype(np.float32), view.intrinsics, pose))
    assert verdict(stored).state in ("agrees", "cannot tell")


@settings(max_examples=15)
@given(seed=st.integers(0, 400), spread=st.floats(38, 180))
def test_few_overlaps_pass(seed: int, spread: float) -> None:
    """Photos that look about a room in any order, as of a handful of pictures."""
    room = Room(seed, RoomOptions(width=64, height=48, n_views=8, walk=False, heading_spread=spread, spread=1.2))
    frames = [room.frame(index) for index in range(8)]
    stored = [StoredView(frame.name, frame.depth, frame.depth_intrinsics, frame.pose) for frame in frames]
    assert verdict(stored).state in ("agrees", "cannot tell")


def test_too_little_to_compare_is_no_fault() -> None:
    assert verdict(list(views())[:2]).state in ("agrees", "cannot tell")
    still = [StoredView(view.name, views()[0].depth, view.intrinsics, views()[0].pose) for view in views()]
    assert verdict(still).state == "agrees"
    blind = [StoredView(view.name, view.depth * 0, view.intrinsics, view.pose) for view in views()]
    assert verdict(blind).state == "cannot tell"


def test_depths_of_points_stand_for_depth() -> None:
    """A grid with the depths of known points alone, as a reconstruction gives them."""
    rng = np.random.default_rng(0)

    def sparse(depth: np.ndarray) -> np.ndarray:
        return np.where(rng.random(depth.shape) < 0.2, depth, 0).astype(np.float32)

    fits = [StoredView(view.name, sparse(view.depth), view.intrinsics, view.pose) for view in views()]
    assert verdict(fits).state == "agrees"
    misread = [StoredView(view.name, sparse(view.depth), view.intrinsics, view.pose @ OPENGL) for view in views()]
    assert str(verdict(misread).fits) == "opengl"


@pytest.mark.parametrize("text", ["opengl,ros", "metres", "translation*0", "translation*nan", "depth", "depth*two"])
def test_a_convention_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"data\.convention"):
        DataConfig(convention=text)


def real(redkitchen: Path, folder: Path, pose: Callable[[np.ndarray], np.ndarray]) -> Path:
    """The first frames of the real folder with other poses; pictures are links."""
    folder.mkdir()
    for path in sorted(redkitchen.glob("frame-*.pose.txt"))[:60]:
        np.savetxt(folder / path.name, pose(np.loadtxt(path)))
        for part in ("color.jpg", "depth.png"):
            name = path.name.replace("pose.txt", part)
            os.symlink(redkitchen / name, folder / name)
    shutil.copy(redkitchen / "camera-intrinsics.txt", folder)
    return folder


@pytest.mark.parametrize(
    ("convention", "pose"),
    [
        ("", lambda pose: pose),
        ("opengl", lambda pose: pose @ OPENGL),
        ("world_to_camera", np.linalg.inv),
        ("translation*0.001", moved(1000)),
    ],
)
def test_real_frames(
    redkitchen: Path, tmp_path: Path, convention: str, pose: Callable[[np.ndarray], np.ndarray]
) -> None:
    root = real(redkitchen, tmp_path / "frames", pose)
    lines: list[str] = []
    if not convention:
        check_root(root, "", lines.append)
        assert "agrees: 0.9" in lines[0]
        return
    named = f"data.convention={convention} "
    with pytest.raises(ValueError, match=r"do not fit each other") as refused:
        read_sequences(DataConfig(kind="rgbd", root=root))
    assert named in str(refused.value)
    assert "\n" not in str(refused.value)
    with pytest.raises(ValueError, match="do not fit each other"):
        check_root(root, "", lines.append)
    assert named in lines[0]
    read_as = read_sequences(DataConfig(kind="rgbd", root=root, convention=convention))
    assert "agrees: 0.9" in read_as.geometry[0]
    assert read_sequences(DataConfig(kind="rgbd", root=root, check_geometry=False)).geometry == []
