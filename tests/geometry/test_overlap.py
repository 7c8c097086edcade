"""Overlap matrices (eq. 1) on planes that can be computed by hand, and on two real frames."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import map_coordinates

from hatch_ray.geometry.overlap import PosedDepth, overlap_matrices, patch_index, reproject, view_overlap

K = np.array([[50.0, 0, 49.5], [0, 50.0, 49.5], [0, 0, 1]])


def facing_wall(x: float = 0.0, depth: float = 2.0, size: int = 100) -> PosedDepth:
    """A camera at x metres to the right, looking along z at a wall `depth` metres from the origin."""
    pose = np.eye(4)
    pose[0, 3] = x
    return PosedDepth(np.full((size, size), depth, dtype=np.float32), K, pose)


def test_a_view_overlaps_itself_patch_by_patch():
    forward, backward, s = overlap_matrices(facing_wall(), facing_wall(), n=4, stride=1)
    assert forward == pytest.approx(np.eye(16)) and backward == pytest.approx(np.eye(16))
    assert s == pytest.approx(np.eye(16))


def test_a_shift_by_one_patch_moves_every_column():
    # One patch is 25 px = 1 m at 2 m depth with f = 50.
    _, _, s = overlap_matrices(facing_wall(), facing_wall(x=1.0), n=4, stride=1)
    for row in range(4):
        for column in range(4):
            expected = np.zeros(16)
            if column > 0:
                expected[row * 4 + column - 1] = 1
            assert s[row * 4 + column] == pytest.approx(expected)


def test_a_wall_in_front_hides_the_one_behind():
    assert view_overlap(facing_wall(), facing_wall(depth=1.0)) == 0


def test_no_reading_gives_no_overlap():
    empty = PosedDepth(np.zeros((100, 100), dtype=np.float32), K, np.eye(4))
    assert view_overlap(facing_wall(), empty) == 0
    assert not overlap_matrices(empty, facing_wall())[2].any()


@given(st.floats(-1.5, 1.5), st.floats(-0.5, 0.5), st.floats(-40, 40), st.integers(2, 6))
def test_swapping_the_views_transposes_s(x, z, yaw, n):
    first = facing_wall()
    pose = np.eye(4)
    angle = np.radians(yaw)
    pose[:3, :3] = [[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]]
    pose[:3, 3] = [x, 0, z]
    second = PosedDepth(first.depth, K, pose)
    _, _, s = overlap_matrices(first, second, n=n, stride=3)
    _, _, swapped = overlap_matrices(second, first, n=n, stride=3)
    assert s == pytest.approx(swapped.T)
    assert ((s >= 0) & (s <= 1)).all()


@given(st.integers(5, 90), st.integers(5, 90), st.floats(-0.8, 0.8))
def test_a_point_survives_the_way_there_and_back(u, v, x):
    first, second = facing_wall(), facing_wall(x=x)
    moved = reproject(first, second, stride=1)
    pixel = np.nonzero((moved.u == u) & (moved.v == v))[0][0]
    back = moved.u_in[pixel] + 50.0 * x / 2.0
    assert back == pytest.approx(u) and moved.depth_in[pixel] == pytest.approx(2.0)


def test_patches_tile_grids_of_any_size():
    v, u = np.mgrid[:30, :47]
    index = patch_index(u.ravel(), v.ravel(), (30, 47), 4)
    assert sorted(set(index)) == list(range(16))


def test_on_real_frames_the_warped_image_looks_like_the_other(redkitchen):
    intrinsics = np.loadtxt(redkitchen / "camera-intrinsics.txt")

    def load(name):
        depth = np.asarray(Image.open(redkitchen / f"{name}.depth.png")).astype(np.float32) / 1000
        depth[depth > 60] = 0
        gray = np.asarray(Image.open(redkitchen / f"{name}.color.jpg").convert("L"), dtype=float)
        return PosedDepth(depth, intrinsics, np.loadtxt(redkitchen / f"{name}.pose.txt")), gray

    (first, gray_first), (second, gray_second) = load("frame-000000"), load("frame-000025")
    moved = reproject(first, second)
    kept = moved.consistent
    assert kept.mean() > 0.3
    here = gray_first[moved.v[kept], moved.u[kept]]
    there = map_coordinates(gray_second, [moved.v_in[kept], moved.u_in[kept]], order=1)
    assert np.corrcoef(here, there)[0, 1] > 0.8
    shuffled = np.random.default_rng(0).permutation(there)
    assert abs(np.corrcoef(here, shuffled)[0, 1]) < 0.1
    assert overlap_matrices(first, second)[2] == pytest.approx(overlap_matrices(second, first)[2].T)
