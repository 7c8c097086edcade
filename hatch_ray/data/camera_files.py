"""Text files of poses and intrinsics, read where their meaning is plain; and whether intrinsics fit their grid."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hatch_ray.data.refusals import Refusal
from hatch_ray.geometry.convention import AS_OURS, TO_SIZE, Convention, size_ratio
from hatch_ray.geometry.se3 import as_transform

ANOTHER_SIZE = (0.67, 1.5)
"""Outside, the grid's size over that which its intrinsics seem to be of says that they are of another image size."""


def read_matrix(path: Path, shapes: tuple[tuple[int, ...], ...]) -> np.ndarray:
    """Numbers of a text file. Raises ValueError when it does not hold a matrix of one of these shapes."""
    if path.stat().st_size == 0:
        raise ValueError("the file is empty")
    try:
        matrix = np.loadtxt(path, dtype=float)
    except (ValueError, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"not a table of numbers ({error})") from None
    if matrix.shape not in shapes:
        wanted = " or ".join("x".join(map(str, shape)) for shape in shapes)
        raise ValueError(f"holds an array of shape {matrix.shape}, expected {wanted}")
    return matrix


def read_intrinsics(path: Path) -> np.ndarray:
    """(3, 3) from a 3x3 or 4x4 text file, or its numbers on one line. Raises ValueError naming the file."""
    try:
        matrix = read_matrix(path, ((3, 3), (4, 4), (9,), (16,)))
    except ValueError as error:
        raise ValueError(f"intrinsics {path}: {error}") from None
    side = 3 if matrix.size == 9 else 4
    k = matrix.reshape(side, side)[:3, :3]
    if not np.isfinite(k).all() or k[0, 0] <= 0 or k[1, 1] <= 0 or k[2, 2] != 1:
        raise ValueError(f"intrinsics {path} are not a pinhole matrix with positive focal lengths")
    return k


def read_pose(path: Path) -> np.ndarray:
    """(4, 4) as stored: 4x4, 3x4, or 16 or 12 numbers on a line. Raises ValueError."""
    matrix = read_matrix(path, ((4, 4), (3, 4), (16,), (12,)))
    return matrix.reshape(4, 4) if matrix.size == 16 else np.vstack([matrix.reshape(3, 4), [0, 0, 0, 1]])


def load_pose(path: Path, convention: Convention = AS_OURS) -> np.ndarray:
    """(4, 4) camera-to-world of a text file. Raises Refusal when it is missing or not a pose."""
    if not path.is_file():
        raise Refusal("missing pose", f"{path} does not exist")
    try:
        pose = convention.pose(read_pose(path))
        as_transform(pose)
    except ValueError as error:
        raise Refusal("broken pose", f"{path}: {error}") from None
    return pose


def check_grid(k: np.ndarray, width: int, height: int, what: str) -> None:
    """Raise Refusal when intrinsics (3, 3) cannot be of a grid of this size. what: names grid and file."""
    ratio = size_ratio(k, width, height)
    if 0 < k[0, 2] < width and 0 < k[1, 2] < height and ANOTHER_SIZE[0] < ratio < ANOTHER_SIZE[1]:
        return
    seems = f", as of {width / ratio:.0f} x {height / ratio:.0f}" if ratio != 1 else ""
    raise Refusal(
        "intrinsics of another grid",
        f"{what} is {width} x {height}, its intrinsics have their centre at ({k[0, 2]:g}, {k[1, 2]:g}){seems}; give "
        f"those of this size, or data.convention={TO_SIZE}",
    )
