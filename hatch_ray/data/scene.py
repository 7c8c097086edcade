"""A place in memory: posed RGB-D frames and, where they are known, its objects. Questions are generated from this."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from hatch_ray.geometry.overlap import PosedDepth


@dataclass(frozen=True)
class SceneObject:
    """A thing in the room. `name` is colour and kind ("red chair"); the box is axis-aligned in its own yaw.

    center (3,) and size (3,) in metres, world frame; yaw in radians about world up.
    """

    id: int
    name: str
    center: np.ndarray
    size: np.ndarray
    yaw: float = 0.0


@dataclass(frozen=True)
class Frame:
    """One posed RGB-D view.

    rgb               (H, W, 3) uint8.
    depth             (h, w) float32 z-depth in metres, 0 = no reading.
    intrinsics        (3, 3) of the colour grid; depth_intrinsics (3, 3) of the depth grid.
    pose              (4, 4) camera-to-world, OpenCV axes, metres.
    instances         (h, w) int32 object id of each depth pixel, -1 = none; None when the data has no objects.
    """

    name: str
    rgb: np.ndarray
    depth: np.ndarray
    intrinsics: np.ndarray
    depth_intrinsics: np.ndarray
    pose: np.ndarray
    instances: np.ndarray | None = None

    @property
    def posed_depth(self) -> PosedDepth:
        """What reprojection needs of it."""
        return PosedDepth(self.depth, self.depth_intrinsics, self.pose)


class Scene(Protocol):
    """What a source of data gives: frames by index (loaded or rendered when asked), objects, and up.

    id       unique name; the unit of the train / held-out split.
    objects  empty when the source knows none (posed RGB-D without boxes).
    up       (3,) unit vector of world up, or None when unknown.
    """

    @property
    def id(self) -> str: ...

    @property
    def objects(self) -> tuple[SceneObject, ...]: ...

    @property
    def up(self) -> np.ndarray | None: ...

    def __len__(self) -> int: ...

    def frame(self, index: int) -> Frame: ...
