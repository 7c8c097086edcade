"""What files of poses, depth and intrinsics may mean, and the way from each meaning to ours.

Ours: camera-to-world, OpenCV axes (x right, y down, z forward), metres, intrinsics of the grid that they stand beside.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])
"""x right, y up, z back: OpenGL, Blender, NeRF's transforms.json, ARKit."""
ROS = np.array([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
"""x forward, y left, z up: a robot's body. Maps OpenCV's coordinates of a point to these."""
UNITY = np.diag([1.0, -1.0, 1.0, 1.0])
"""Left-handed world and camera with y up."""

POSES = ("world_to_camera", "transposed", "rotation_transposed")
AXES = ("opengl", "ros", "unity")
FACTORS = ("translation", "depth")
TO_SIZE = "intrinsics_to_size"
WORDS = {
    "world_to_camera": "poses take world coordinates to the camera's",
    "transposed": "matrices are written in columns",
    "rotation_transposed": "rotations are inverse, places are the cameras'",
    "opengl": "camera axes are OpenGL's (x right, y up, z back)",
    "ros": "camera axes are a robot's (x forward, y left, z up)",
    "unity": "axes are left-handed, y up",
    "intrinsics_to_size": "intrinsics are of another image size",
}
NEAR_SIZE = 0.15
"""A principal point nearer than this share to its grid's middle belongs to the grid."""


@dataclass(frozen=True)
class Convention:
    """How stored numbers become ours; the default changes nothing.

    poses, axes: one of POSES, AXES, or "". translation, depth: factors on stored metres. to_size: each intrinsic matrix
    is scaled to the size of its own grid.
    """

    poses: str = ""
    axes: str = ""
    translation: float = 1.0
    depth: float = 1.0
    to_size: bool = False

    @classmethod
    def parse(cls, text: str) -> Convention:
        """ "world_to_camera,opengl,translation*2.7". Raises ValueError for a part that is not known."""
        found: dict[str, str | float | bool] = {}
        for part in (part.strip() for part in text.split(",") if part.strip()):
            key: str
            value: str | float | bool
            name, times, factor = part.partition("*")
            if times and name.strip() in FACTORS:
                key, value = name.strip(), _factor(part, factor)
            elif part in POSES or part in AXES:
                key, value = ("poses" if part in POSES else "axes"), part
            elif part == TO_SIZE:
                key, value = "to_size", True
            else:
                known = ", ".join([*POSES, *AXES, *(f"{name}*FACTOR" for name in FACTORS), TO_SIZE])
                raise ValueError(f"data.convention: {part!r} is not known; known are {known}")
            if key in found:
                raise ValueError(f"data.convention={text} says two things of one; leave one out")
            found[key] = value
        return cls(**found)  # type: ignore[arg-type]

    def __str__(self) -> str:
        factors = [f"{name}*{value:.4g}" for name in FACTORS if (value := getattr(self, name)) != 1]
        return ",".join([*(part for part in (self.poses, self.axes) if part), *factors, *[TO_SIZE] * self.to_size])

    @property
    def parts(self) -> int:
        """How many things it changes."""
        return str(self).count(",") + bool(str(self))

    def words(self) -> str:
        """The same in plain words."""
        said = [WORDS[part] for part in (self.poses, self.axes) if part]
        said += [f"{name} is to be multiplied by {getattr(self, name):.4g}" for name in FACTORS
                 if getattr(self, name) != 1]  # fmt: skip
        return "; ".join([*said, *[WORDS[TO_SIZE]] * self.to_size]) or "as it is"

    def pose(self, stored: np.ndarray) -> np.ndarray:
        """(..., 4, 4) stored matrices as camera-to-world, OpenCV axes, metres. NaN where one cannot be turned round."""
        pose = np.array(stored, dtype=float)
        if self.poses == "transposed":
            pose = np.swapaxes(pose, -1, -2)
        elif self.poses == "rotation_transposed":
            pose[..., :3, :3] = np.swapaxes(pose[..., :3, :3], -1, -2).copy()
        elif self.poses == "world_to_camera":
            pose = _inverse(pose)
        if self.axes == "opengl":
            pose = pose @ OPENGL
        elif self.axes == "ros":
            pose = pose @ ROS
        elif self.axes == "unity":
            pose = UNITY @ pose @ UNITY
        pose[..., :3, 3] *= self.translation
        return pose

    def world(self, direction: np.ndarray) -> np.ndarray:
        """(3,) direction of the stored world in ours."""
        return UNITY[:3, :3] @ direction if self.axes == "unity" else direction

    def intrinsics(self, k: np.ndarray, width: int, height: int, known: tuple[int, ...] = ()) -> np.ndarray:
        """(3, 3) of a grid of this size. known: widths of other grids, whose ratio to this one is the likely scale."""
        return scale_intrinsics(k, size_ratio(k, width, height, known)) if self.to_size else k


AS_OURS = Convention()
"""Files that mean what ours do."""


def _factor(part: str, text: str) -> float:
    try:
        factor = float(text)
    except ValueError:
        factor = 0.0
    if not (np.isfinite(factor) and factor > 0):
        raise ValueError(f"data.convention: {part!r} needs a factor above 0, such as translation*0.001")
    return factor


def _inverse(pose: np.ndarray) -> np.ndarray:
    """(..., 4, 4) inverses of [R t; 0 1]; NaN for singular ones."""
    pose = np.where(np.abs(np.linalg.det(pose))[..., None, None] > 1e-9, pose, np.eye(4) * np.nan)
    return np.linalg.inv(pose)


def scale_intrinsics(k: np.ndarray, scale_x: float, scale_y: float | None = None) -> np.ndarray:
    """(3, 3) of the same camera on a grid scaled by these factors (pixel centres at integers)."""
    scale_y = scale_x if scale_y is None else scale_y
    result = k.astype(float).copy()
    result[0] *= scale_x
    result[1] *= scale_y
    result[0, 2] = (k[0, 2] + 0.5) * scale_x - 0.5
    result[1, 2] = (k[1, 2] + 0.5) * scale_y - 0.5
    return result


def size_ratio(k: np.ndarray, width: int, height: int, known: tuple[int, ...] = ()) -> float:
    """The grid's size over the size that the matrix seems to be of, whose middle is its principal point.

    1 where the two are near, or where width and height do not tell the same.
    """
    across, down = width / 2 / (k[0, 2] + 0.5), height / 2 / (k[1, 2] + 0.5)
    if not (across > 0 and down > 0) or abs(across / down - 1) > NEAR_SIZE:
        return 1.0
    ratio = (across * down) ** 0.5
    likely = [1.0, *(width / other for other in known), *(float(n) for n in range(2, 9)), *(1 / n for n in range(2, 9))]
    nearest = min(likely, key=lambda value: abs(np.log(value / ratio)))
    if abs(np.log(nearest / ratio)) < 0.03:
        return nearest
    return 1.0 if abs(ratio - 1) < NEAR_SIZE else ratio
