"""A camera's lens: pinhole matrix, size of its picture, and OpenCV's distortion k1 k2 p1 p2, with the way in and out.

A point (x, y) of the plane z = 1 in front of the camera falls, with r2 = x^2 + y^2, onto
    x (1 + k1 r2 + k2 r2^2) + 2 p1 x y + p2 (r2 + 2 x^2),   y (1 + k1 r2 + k2 r2^2) + p1 (r2 + 2 y^2) + 2 p2 x y
and from there by the pinhole matrix onto a pixel (OpenCV's camera model; COLMAP's OPENCV, RADIAL and SIMPLE_RADIAL).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.ndimage import map_coordinates

from hatch_ray.geometry.convention import scale_intrinsics

SAME_SHAPE = 0.02
"""A picture whose sides are scaled by factors that differ by more than this is another one."""
GRID = 33
STEPS = 20
"""Of Newton's way back through the distortion."""


@dataclass(frozen=True)
class Lens:
    """k (3, 3), pixel centres at integers; size of the picture in pixels; distortion (k1, k2, p1, p2).

    Raises ValueError when the matrix is no pinhole one of this picture, or the distortion folds the picture.
    """

    k: np.ndarray
    width: int
    height: int
    distortion: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)

    def __post_init__(self) -> None:
        k = self.k
        if not (np.isfinite(k).all() and np.isfinite(self.distortion).all()) or min(k[0, 0], k[1, 1]) <= 0:
            raise ValueError(f"needs finite numbers and focal lengths above 0, got {self.words()}")
        if not (-0.5 < k[0, 2] < self.width - 0.5 and -0.5 < k[1, 2] < self.height - 0.5):
            raise ValueError(f"has its principal point outside its picture: {self.words()}")
        if self.distorts:
            x, y = np.meshgrid(np.linspace(-0.5, self.width - 0.5, GRID), np.linspace(-0.5, self.height - 0.5, GRID))
            if (_least_slope(self.plane(np.stack([x, y], axis=-1)), self.distortion) <= 0).any():
                raise ValueError(f"has a distortion that folds the picture: {self.words()}; undistort the images first")

    @classmethod
    def of(
        cls, focal: tuple[float, float], center: tuple[float, float], size: tuple[int, int],
        distortion: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0),
    ) -> Lens:  # fmt: skip
        """From files that have the middle of the top left pixel at (0.5, 0.5): COLMAP, nerfstudio, PyTorch3D."""
        k = np.array([[focal[0], 0, center[0] - 0.5], [0, focal[1], center[1] - 0.5], [0, 0, 1]], dtype=float)
        return cls(k, *size, distortion)

    @property
    def distorts(self) -> bool:
        """Whether the picture differs from a pinhole camera's."""
        return any(self.distortion)

    def words(self) -> str:
        """For messages."""
        k = self.k
        return (
            f"f ({k[0, 0]:g}, {k[1, 1]:g}), c ({k[0, 2]:g}, {k[1, 2]:g}) in {self.width} x {self.height}, "
            f"k1 k2 p1 p2 {' '.join(f'{value:g}' for value in self.distortion)}"
        )

    def resized(self, width: int, height: int) -> Lens:
        """Of the same picture scaled to this size. Raises ValueError when it has another shape."""
        across, down = width / self.width, height / self.height
        if abs(across / down - 1) > SAME_SHAPE:
            raise ValueError(f"is {width} x {height}, its intrinsics are of {self.width} x {self.height}")
        return replace(self, k=scale_intrinsics(self.k, across, down), width=width, height=height)

    def plane(self, pixels: np.ndarray) -> np.ndarray:
        """(..., 2) points of the plane z = 1 that a pinhole camera has at pixels (..., 2)."""
        return (pixels - self.k[:2, 2]) / np.diag(self.k)[:2]

    def pixels(self, plane: np.ndarray) -> np.ndarray:
        """(..., 2) pixels of a pinhole camera for points (..., 2) of the plane z = 1."""
        return plane * np.diag(self.k)[:2] + self.k[:2, 2]

    def project(self, points: np.ndarray, pose: np.ndarray) -> np.ndarray:
        """(..., 2) pinhole pixels of world points (..., 3) for a camera-to-world pose (4, 4); NaN behind the camera."""
        x, y, z = np.moveaxis((points - pose[:3, 3]) @ pose[:3, :3], -1, 0)
        z = np.where(z > 0, z, np.nan)
        return self.pixels(np.stack([x / z, y / z], axis=-1))

    def distort(self, pixels: np.ndarray) -> np.ndarray:
        """(..., 2) where a point that a pinhole camera has at `pixels` lies in the picture."""
        return self.pixels(_bend(self.plane(pixels), self.distortion)) if self.distorts else pixels

    def undistort(self, pixels: np.ndarray) -> np.ndarray:
        """(..., 2) where a pinhole camera has what lies at `pixels` of the picture; NaN for what no point falls on."""
        if not self.distorts:
            return pixels
        aim = self.plane(np.asarray(pixels, dtype=float))
        place = aim.copy()
        for _ in range(STEPS):
            (along, across, down), off = _jacobian(place, self.distortion), _bend(place, self.distortion) - aim
            area = along * down - across**2
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                step = np.stack([down * off[..., 0] - across * off[..., 1], along * off[..., 1] - across * off[..., 0]])
                place = place - np.moveaxis(step / area, 0, -1)
        with np.errstate(invalid="ignore", over="ignore"):
            off = np.abs(_bend(place, self.distortion) - aim).max(axis=-1)
            met = (off < 1e-9) & (_least_slope(place, self.distortion) > 0)
        return self.pixels(np.where(met[..., None], place, np.nan))

    def straighten(self, grid: np.ndarray, order: int) -> np.ndarray:
        """A picture (height, width, ...) as a pinhole camera has it; 0 where it shows nothing. order: 0 nearest, 1."""
        if not self.distorts:
            return grid
        pixels = self.distort(np.stack(np.meshgrid(np.arange(self.width), np.arange(self.height)), axis=-1))
        at = [pixels[..., 1], pixels[..., 0]]
        bands = np.moveaxis(grid.reshape(self.height, self.width, -1), -1, 0)
        straight = np.stack([map_coordinates(band, at, np.float32, order, cval=0) for band in bands], axis=-1)
        return (np.rint(straight) if grid.dtype.kind == "u" else straight).astype(grid.dtype).reshape(grid.shape)


def _bend(place: np.ndarray, distortion: tuple[float, float, float, float]) -> np.ndarray:
    """(..., 2) of the plane z = 1, bent by the lens."""
    (k1, k2, p1, p2), x, y = distortion, place[..., 0], place[..., 1]
    r2 = x * x + y * y
    radial = 1 + r2 * (k1 + r2 * k2)
    return np.stack(
        [x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x), y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y], -1
    )


def _jacobian(
    place: np.ndarray, distortion: tuple[float, float, float, float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of `_bend`: its entries xx, xy = yx, yy."""
    (k1, k2, p1, p2), x, y = distortion, place[..., 0], place[..., 1]
    r2 = x * x + y * y
    radial, growth = 1 + r2 * (k1 + r2 * k2), 2 * (k1 + 2 * k2 * r2)
    return (
        radial + x * x * growth + 2 * p1 * y + 6 * p2 * x,
        x * y * growth + 2 * p1 * x + 2 * p2 * y,
        radial + y * y * growth + 6 * p1 * y + 2 * p2 * x,
    )


def _least_slope(place: np.ndarray, distortion: tuple[float, float, float, float]) -> np.ndarray:
    """The smaller eigenvalue of the (symmetric) Jacobian: above 0 where the lens folds nothing over."""
    along, across, down = _jacobian(place, distortion)
    return (along + down) / 2 - np.hypot((along - down) / 2, across)
