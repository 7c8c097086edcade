"""Pools of matches: exact on rendered rooms, by ray casting; on real frames; from landmarks; and their reduction."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster.hierarchy import fcluster, linkage

from hatch_ray.data.rooms import Room, RoomOptions
from hatch_ray.data.scene import Frame
from hatch_ray.data.scenes.forms import read_scene
from hatch_ray.systems.matching.pools import LEAST, MOST, depth_pool, landmark_pool, one_a_cluster, spread
from tests.support.room_truth import HEIGHT, WIDTH, room_of, seen_at, surface
from tests.support.scene_forms import synthetic, write_colmap


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 200), st.sampled_from([(0, 1), (1, 2), (2, 0)]))
def test_every_match_on_a_rendered_room_is_within_half_a_pixel(seed: int, pair: tuple[int, int]) -> None:
    """The surface that the first pixel shows lies in the second view where the match says, and is what that view shows
    there: no hidden point is matched.
    """
    room = room_of(seed)
    first, second = (room.frame(index) for index in pair)
    pool = depth_pool(first, second)
    here, there = pool.matches[:, :2], pool.matches[:, 2:]
    assert len(here) > 0.2 * pool.omega[0] * WIDTH * HEIGHT
    truth = seen_at(room, surface(room, here, first.pose), second.pose)
    back = seen_at(room, surface(room, there, second.pose), first.pose)
    np.testing.assert_allclose(truth, there, atol=0.01)
    assert np.linalg.norm(back - here, axis=1).max(initial=0) < 0.51


def test_a_view_sees_all_of_itself_and_swapping_the_views_swaps_the_overlap() -> None:
    room = room_of(2)
    first, second = room.frame(0), room.frame(2)
    assert depth_pool(first, first).omega_valid == (1.0, 1.0)
    assert depth_pool(first, first).omega == (np.mean(first.depth > 0),) * 2
    there, back = depth_pool(first, second), depth_pool(second, first)
    assert there.omega == back.omega[::-1] and there.omega_valid == back.omega_valid[::-1]
    assert all(share <= valid for share, valid in zip(there.omega, there.omega_valid, strict=True))
    coarse = depth_pool(first, second, stride=3)
    assert set(map(tuple, coarse.matches[:, :2])) <= set(map(tuple, there.matches[:, :2]))
    assert coarse.omega[0] == pytest.approx(there.omega[0], abs=0.03)


def test_what_differs_in_colour_or_depth_or_lies_elsewhere_is_not_matched() -> None:
    room = room_of(2)
    first, second = room.frame(0), room.frame(2)
    plain = depth_pool(first, second)
    others: list[Frame] = [
        replace(second, rgb=second.rgb ^ 128),
        replace(second, depth=second.depth * np.float32(1.2)),
        replace(second, depth=np.zeros_like(second.depth)),
        replace(second, pose=second.pose @ np.diag([-1.0, 1, -1, 1])),
    ]
    for other in others:
        pool = depth_pool(first, other)
        assert len(pool.matches) < 0.05 * len(plain.matches) and pool.omega[0] < 0.15 * plain.omega[0]


def test_the_picture_may_be_finer_than_the_depth() -> None:
    """Depth of half the size, each at the middle of four pixels: matches are of the picture's pixels."""
    room, double = room_of(4), Room(4, RoomOptions(width=2 * WIDTH, height=2 * HEIGHT, n_views=3))
    coarse, fine = (room.frame(0), room.frame(1)), (double.frame(0), double.frame(1))
    mixed = [replace(one, rgb=two.rgb, intrinsics=two.intrinsics) for one, two in zip(coarse, fine, strict=True)]
    matches = depth_pool(mixed[0], mixed[1]).matches
    np.testing.assert_allclose(matches[:, :2] % 2, 0.5)
    truth = seen_at(double, surface(double, matches[:, :2], fine[0].pose), fine[1].pose)
    np.testing.assert_allclose(truth, matches[:, 2:], atol=0.02)


def test_landmarks_that_both_views_see(tmp_path: Path) -> None:
    stored = synthetic(6, square=True)
    landmarks = read_scene(write_colmap(stored, tmp_path / "scene")).landmarks
    assert landmarks is not None
    both = stored.seen[1] & stored.seen[3]
    pool = landmark_pool(landmarks, 1, 3)
    expected = np.hstack([stored.keypoints(1)[both], stored.keypoints(3)[both]])
    np.testing.assert_allclose(pool.matches[np.lexsort(pool.matches.T)], expected[np.lexsort(expected.T)], atol=1e-6)
    assert pool.omega == (both.sum() / stored.seen[1].sum(), both.sum() / stored.seen[3].sum())
    twice = replace(landmarks, point=np.where(landmarks.view == 1, landmarks.point[0], landmarks.point))
    assert len(landmark_pool(twice, 1, 3).matches) <= 1


@given(st.integers(0, 10**6), st.integers(0, 400), st.floats(0, 0.3), st.floats(0, 2))
@settings(max_examples=60, deadline=None)
def test_a_reduced_pool_is_spread_and_nothing_could_be_added(
    seed: int, count: int, spacing: float, cluster: float
) -> None:
    rng = np.random.default_rng(seed)
    matches = rng.uniform(0, [640, 480, 640, 480], (count, 4))
    taken = spread(matches, 640, spacing, cluster)
    assert taken.size == 0 or LEAST <= taken.size <= MOST
    assert len(set(taken)) == len(taken)
    points = matches[taken]
    step = points[:, None] - points[None]
    apart = (np.hypot(step[..., 0], step[..., 1]) + np.hypot(step[..., 2], step[..., 3])) / 2
    assert (apart[~np.eye(len(taken), dtype=bool)] >= spacing * 640).all()
    for half in (points[:, :2], points[:, 2:]):
        assert len(np.unique(half // 8, axis=0)) == len(points)
    if 0 < taken.size < MOST and cluster == 0:
        step = matches[:, None] - points[None]
        away = ((np.hypot(step[..., 0], step[..., 1]) + np.hypot(step[..., 2], step[..., 3])) / 2).min(axis=1)
        assert (away < spacing * 640 + 16).all()  # those of a cell stand for each other


@given(st.integers(0, 10**6), st.integers(2, 80), st.floats(1, 300))
@settings(max_examples=60, deadline=None)
def test_clusters_are_those_of_single_linkage(seed: int, count: int, reach: float) -> None:
    matches = np.random.default_rng(seed).uniform(0, 500, (count, 4))
    label = fcluster(linkage(matches, "single"), reach, "distance")
    kept = one_a_cluster(matches, np.arange(count), reach)
    assert sorted(label[kept]) == sorted(set(label))
    for index in kept:
        members = matches[label == label[index]]
        away = np.linalg.norm(members - members.mean(axis=0), axis=1)
        assert np.linalg.norm(matches[index] - members.mean(axis=0)) == pytest.approx(away.min())


def test_real_frames(redkitchen: Path) -> None:
    """Carried back by the other view's own depth, read at the nearest pixel, 99 % of the matches come within 4 px; and
    colours at matches are alike.
    """
    scene = read_scene(redkitchen)
    for i, j in ((0, 4), (30, 38), (100, 108)):
        first, second = scene.frame(i), scene.frame(j)
        pool = depth_pool(first, second, stride=4)
        u, v = pool.matches[:, 2:].T
        column, row = np.rint(u).astype(int), np.rint(v).astype(int)
        k, z = second.intrinsics, second.depth[row, column]
        points = np.stack([(u - k[0, 2]) / k[0, 0] * z, (v - k[1, 2]) / k[1, 1] * z, z, np.ones_like(z)])
        inside = first.intrinsics @ (np.linalg.inv(first.pose) @ second.pose @ points)[:3]
        off = np.linalg.norm(inside[:2] / inside[2] - pool.matches[:, :2].T, axis=0)
        assert np.mean(off < 4) > 0.99
        here, there = first.rgb[tuple(pool.matches[:, 1::-1].astype(int).T)], second.rgb[row, column]
        assert np.corrcoef(here.mean(axis=1), there.mean(axis=1))[0, 1] > 0.8
        taken = spread(pool.matches, first.rgb.shape[1])
        assert len(taken) > 30 and 0.2 < pool.omega[0] <= pool.omega_valid[0] <= 1


@pytest.mark.parametrize(("depth", "matched"), [(2.0, True), (1.99, True), (1.92, False), (1.7, False)])
def test_a_point_just_behind_what_the_other_view_sees_counts_as_overlap_and_is_no_match(
    depth: float, matched: bool
) -> None:
    """A wall at 2 m, cameras 1 m apart, a focal length of 50 pixels: the way back by a depth d ends 50 (1 / d - 1 / 2)
    pixels off, and in a picture 100 wide it may be 0.31. Depth agrees within 5 %.
    """
    k, pose = np.array([[50.0, 0, 49.5], [0, 50, 49.5], [0, 0, 1]]), np.eye(4)
    pose[0, 3] = 1
    grey = np.full((100, 100, 3), 128, np.uint8)
    first = Frame("first", grey, np.full((100, 100), 2, np.float32), k, k, np.eye(4))
    pool = depth_pool(first, Frame("second", grey, np.full((100, 100), depth, np.float32), k, k, pose))
    assert pool.omega[0] == pytest.approx(0.75 if depth > 1.9 else 0, abs=0.01)
    assert (len(pool.matches) > 7000) == matched
    np.testing.assert_allclose(pool.matches[:, 0] - pool.matches[:, 2], 25)
