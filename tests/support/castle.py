"""The posed views of one building, which lie in no published form, written in the 7-Scenes form."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image

from hatch_ray.data.images import save_depth

K = np.array([[700.0, 0, 320], [0, 700, 240], [0, 0, 1]])
"""Of both cameras, as the folder's README says."""
UNIT_M = 1e-4
COLOR_FROM_DEPTH = np.array([0.05, 0, 0])
"""Metres: where a point of the depth camera lies in the colour camera, which stands beside it."""


def castle_as_recorded(castle: Path, folder: Path) -> Path:
    """Colour and poses are linked; depth is moved to the colour camera and stored in millimetres."""
    folder.mkdir()
    np.savetxt(folder / "camera-intrinsics.txt", K)
    for pose in sorted(castle.glob("view-*.pose.txt")):
        view = pose.name.removesuffix(".pose.txt")
        stem = f"frame-{int(view.removeprefix('view-')):06d}"
        os.symlink(pose, folder / f"{stem}.pose.txt")
        os.symlink(castle / f"{view}.color.jpg", folder / f"{stem}.color.jpg")
        with Image.open(castle / f"{view}.depth.png") as image:
            save_depth(folder / f"{stem}.depth.png", to_color(np.asarray(image) * UNIT_M))
    return folder


def to_color(depth: np.ndarray) -> np.ndarray:
    """(h, w) metres seen by the colour camera: the nearest of the points that fall onto a pixel, 0 where none does."""
    v, u = np.nonzero(depth)
    z = depth[v, u]
    points = np.stack([(u - K[0, 2]) / K[0, 0] * z, (v - K[1, 2]) / K[1, 1] * z, z], axis=-1) + COLOR_FROM_DEPTH
    across, down = np.rint(points @ K.T / points[:, 2:])[:, :2].astype(int).T
    inside = (across >= 0) & (across < depth.shape[1]) & (down >= 0) & (down < depth.shape[0])
    moved = np.full(depth.shape, np.inf)
    np.minimum.at(moved, (down[inside], across[inside]), points[inside, 2])
    return np.where(np.isfinite(moved), moved, 0)
