"""Rooms: determinism, geometry of depth and boxes, cameras that one could hold."""

from __future__ import annotations

import numpy as np
import pytest

from hatch_ray.data.room_furniture import KINDS
from hatch_ray.data.rooms import Room, RoomOptions, camera_pose


@pytest.fixture(scope="module")
def room() -> Room:
    return Room(7)


def test_the_seed_makes_the_room(room: Room) -> None:
    again, other = Room(7), Room(8)
    for index in range(len(room)):
        np.testing.assert_array_equal(room.frame(index).rgb, again.frame(index).rgb)
        np.testing.assert_array_equal(room.frame(index).pose, again.frame(index).pose)
    assert not np.array_equal(room.frame(0).rgb, other.frame(0).rgb)


def test_frame_shapes_and_bounds(room: Room) -> None:
    frame = room.frame(0)
    assert frame.rgb.shape == (112, 112, 3) and frame.rgb.dtype == np.uint8
    assert frame.depth.shape == (112, 112) and frame.depth.dtype == np.float32
    assert frame.instances is not None and frame.instances.max() < len(room.objects)
    assert frame.depth.min() >= 0 and frame.depth.max() < 12
    with pytest.raises(ValueError, match="views 0 to 7"):
        room.frame(8)


def test_depth_lands_on_the_objects_and_the_floor(room: Room) -> None:
    """Back-projected pixels of an object lie in its box, the others on the floor or the walls."""
    checked = 0
    for index in range(len(room)):
        frame = room.frame(index)
        assert frame.instances is not None
        v, u = np.nonzero(frame.depth)
        pixel = np.stack([u, v, np.ones_like(u)], axis=1)
        local = (pixel @ np.linalg.inv(frame.depth_intrinsics).T) * frame.depth[v, u][:, None]
        world = local @ frame.pose[:3, :3].T + frame.pose[:3, 3]
        owner = frame.instances[v, u]
        empty = world[owner < 0]
        on_floor = np.abs(empty[:, 2]) < 0.01
        on_wall = np.isclose(np.abs(empty[:, :2]), room.size / 2, atol=0.01).any(axis=1)
        assert (on_floor | on_wall).all()
        for thing in room.objects:
            points = world[owner == thing.id] - thing.center
            turn = np.array([[np.cos(thing.yaw), np.sin(thing.yaw)], [-np.sin(thing.yaw), np.cos(thing.yaw)]])
            assert (np.abs(points[:, :2] @ turn.T) <= thing.size[:2] / 2 * 1.07 + 0.01).all(), thing.name
            assert (np.abs(points[:, 2]) <= thing.size[2] / 2 + 0.01).all(), thing.name
            checked += len(points)
    assert checked > 1000


def test_every_kind_appears_and_names_are_unique() -> None:
    kinds: set[str] = set()
    for seed in range(30):
        names = [thing.name for thing in Room(seed).objects]
        assert len(set(names)) == len(names)
        kinds |= {name.split()[1] for name in names}
    assert kinds == set(KINDS) and len(kinds) >= 8


def test_cameras_are_walkable_and_near_each_other() -> None:
    headings = []
    for seed in range(10):
        place = Room(seed)
        up = place.poses[:, :3, :3].transpose(0, 2, 1) @ [0, 0, 1]
        assert (up[:, 1] < -0.9).all(), "the image's down is roughly the world's"
        assert ((place.poses[:, 2, 3] >= 1.2) & (place.poses[:, 2, 3] <= 1.7)).all()
        for position in place.poses[:, :2, 3]:
            assert (np.abs(position) < place.size / 2 - 0.3).all()
            assert all(item.clearance(position) > 0.25 for item in place._furniture)
        baseline = np.linalg.norm(place.poses[:, None, :3, 3] - place.poses[None, :, :3, 3], axis=-1)
        assert baseline.max() <= 2 * place.options.spread + 0.5
        headings.append(np.degrees(np.arctan2(place.poses[:, 0, 2], place.poses[:, 1, 2])) % 360)
    assert np.ptp(np.concatenate(headings)) > 180


def test_the_compass_colours_the_sky_by_heading_alone() -> None:
    """Two rooms look different, yet the sky in the same direction has the same hue."""
    hues = []
    for seed in (1, 2, 3):
        room = Room(seed, RoomOptions(pitch=(0.0, 0.0), roll_std=0.0))
        rgb, depth, _ = room.rendered
        poses = room.poses
        for view in range(len(room)):
            top = rgb[view, 0, 56].astype(float)
            if depth[view, 0, 56] == 0:
                azimuth = np.arctan2(poses[view, 0, 2], poses[view, 1, 2])
                tone = np.array([np.cos(azimuth - 2 * np.pi * k / 3) for k in range(3)])
                hues.append(np.corrcoef(top, tone)[0, 1])
    assert len(hues) > 5 and min(hues) > 0.99


def test_without_the_compass_the_sky_is_grey() -> None:
    rgb, depth, _ = Room(3, RoomOptions(compass=False)).rendered
    sky = rgb[depth == 0]
    assert np.ptp(sky.astype(int), axis=1).max() == 0


def test_options_that_leave_no_place_are_refused() -> None:
    with pytest.raises(ValueError, match="no place for 8 cameras"):
        Room(0, RoomOptions(side=(2.0, 2.0), min_ahead=3.0))


def test_camera_pose_looks_where_it_says() -> None:
    pose = camera_pose(np.array([1.0, 2, 3]), 90.0, 0.0, 0.0)
    np.testing.assert_allclose(pose[:3, 2], [1, 0, 0], atol=1e-12)
    np.testing.assert_allclose(pose[:3, 1], [0, 0, -1], atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(pose[:3, :3]), 1)
