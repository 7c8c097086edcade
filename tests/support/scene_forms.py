"""One synthetic scene, written in every published form: by the forms' own formulas, not by our readers'."""

from __future__ import annotations

import gzip
import json
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.spatial.transform import Rotation

from hatch_ray.data.images import save_depth

NONE = 2**64 - 1
MODELS = {"SIMPLE_PINHOLE": 0, "PINHOLE": 1, "SIMPLE_RADIAL": 2, "RADIAL": 3, "OPENCV": 4}
FLOAT32 = ("sens",)


@dataclass(frozen=True)
class Synthetic:
    """Ours: k with pixel centres at integers, poses (V, 4, 4) camera-to-world, pictures and depths of (height, width).

    seen (V, P): which of the points (P, 3) each view has a keypoint of, exactly where it projects.
    """

    k: np.ndarray
    distortion: tuple[float, float, float, float]
    poses: np.ndarray
    points: np.ndarray
    seen: np.ndarray
    pictures: np.ndarray
    depths: np.ndarray

    @property
    def size(self) -> tuple[int, int]:
        return self.pictures.shape[2], self.pictures.shape[1]

    def keypoints(self, view: int) -> np.ndarray:
        """(P, 2) pixels in our convention, bent by the lens: OpenCV's formula, written down once more."""
        x, y, z = ((self.points - self.poses[view, :3, 3]) @ self.poses[view, :3, :3]).T
        return pixels_of(self.k, self.distortion, np.stack([x / z, y / z], axis=-1))


def pixels_of(k: np.ndarray, distortion: tuple[float, ...], plane: np.ndarray) -> np.ndarray:
    """(n, 2) pixels of points of the plane z = 1."""
    (x, y), (k1, k2, p1, p2) = plane.T, distortion
    r2 = x**2 + y**2
    across = x * (1 + k1 * r2 + k2 * r2**2) + 2 * p1 * x * y + p2 * (r2 + 2 * x**2)
    down = y * (1 + k1 * r2 + k2 * r2**2) + 2 * p2 * x * y + p1 * (r2 + 2 * y**2)
    return np.stack([k[0, 0] * across + k[0, 2], k[1, 1] * down + k[1, 2]], axis=-1)


def synthetic(
    seed: int = 0, views: int = 4, points: int = 40, distortion: tuple[float, float, float, float] = (0, 0, 0, 0),
    square: bool = False,
) -> Synthetic:  # fmt: skip
    """Cameras on an arc about the origin, rolled at random, all points in front of all of them. square: fx = fy."""
    rng = np.random.default_rng(seed)
    width, height = 64, 48
    fx = rng.uniform(50, 90)
    k = np.array(
        [[fx, 0, rng.uniform(28, 36)], [0, fx if square else rng.uniform(50, 90), rng.uniform(20, 27)], [0, 0, 1]]
    )
    poses = np.tile(np.eye(4), (views, 1, 1))
    turn = Rotation.random(random_state=seed).as_matrix()
    for pose, azimuth in zip(poses, np.linspace(0, 1.2, views), strict=True):
        look = Rotation.from_euler("yxz", [azimuth, rng.uniform(-0.4, 0.4), rng.uniform(-0.5, 0.5)]).as_matrix()
        pose[:3, :3] = turn @ look
        pose[:3, 3] = pose[:3, :3] @ [rng.uniform(-0.1, 0.1), rng.uniform(-0.1, 0.1), -rng.uniform(2.5, 3.5)]
    return Synthetic(
        k, distortion, poses, rng.uniform(-0.35, 0.35, (points, 3)), rng.random((views, points)) < 0.8,
        rng.integers(0, 256, (views, 3, 4, 3), np.uint8).repeat(16, 1).repeat(16, 2),
        rng.uniform(0.5, 4, (views, height, width)),
    )  # fmt: skip


def _pictures(scene: Synthetic, folder: Path, names: list[str]) -> None:
    for name, picture in zip(names, scene.pictures, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(folder / name, quality=95)


def names_of(scene: Synthetic) -> list[str]:
    return [f"frame_{view + 1:05d}.png" for view in range(len(scene.poses))]


def world_to_camera(pose: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return pose[:3, :3].T, -pose[:3, :3].T @ pose[:3, 3]


def colmap_parameters(scene: Synthetic, model: str) -> list[float]:
    """In COLMAP's order; its pixels begin half a pixel earlier."""
    k, (k1, k2, p1, p2) = scene.k, scene.distortion
    center = [k[0, 2] + 0.5, k[1, 2] + 0.5]
    one, two = [k[0, 0], *center], [k[0, 0], k[1, 1], *center]
    return {"SIMPLE_PINHOLE": one, "PINHOLE": two, "SIMPLE_RADIAL": [*one, k1], "RADIAL": [*one, k1, k2],
            "OPENCV": [*two, k1, k2, p1, p2]}[model]  # fmt: skip


def write_colmap(
    scene: Synthetic, root: Path, model: str = "OPENCV", text: bool = False, below: str = "sparse/0"
) -> Path:
    """Ids as COLMAP deals them: from 1, here with gaps; every image has a keypoint without a point."""
    folder = root / below
    folder.mkdir(parents=True)
    _pictures(scene, root / "images", names_of(scene))
    parameters, (width, height) = colmap_parameters(scene, model), scene.size
    images: list[tuple[int, list[float], str, list[tuple[float, float, int]]]] = []
    track: dict[int, list[tuple[int, int]]] = {}
    for view, pose in enumerate(scene.poses):
        rotation, translation = world_to_camera(pose)
        quaternion = Rotation.from_matrix(rotation).as_quat(scalar_first=True)
        keypoints: list[tuple[float, float, int]] = [(1.5, 2.5, NONE)]
        for point in np.flatnonzero(scene.seen[view]):
            track.setdefault(int(point), []).append((view * 2 + 1, len(keypoints)))
            keypoints.append((*(scene.keypoints(view)[point] + 0.5), int(point) * 3 + 7))
        images.append((view * 2 + 1, [*quaternion, *translation], names_of(scene)[view], keypoints))
    points = [(point * 3 + 7, scene.points[point], track[point]) for point in track]
    if text:
        _colmap_text(
            folder, f"5 {model} {width} {height} {' '.join(map(repr, map(float, parameters)))}", images, points
        )
        return root
    cameras = struct.pack("<QIiQQ", 1, 5, MODELS[model], width, height) + struct.pack(
        f"<{len(parameters)}d", *parameters
    )
    (folder / "cameras.bin").write_bytes(cameras)
    data = struct.pack("<Q", len(images))
    for image, numbers, name, keypoints in images:
        data += struct.pack("<I7dI", image, *numbers, 5) + name.encode() + b"\0" + struct.pack("<Q", len(keypoints))
        data += b"".join(struct.pack("<2dQ", *keypoint) for keypoint in keypoints)
    (folder / "images.bin").write_bytes(data)
    data = struct.pack("<Q", len(points))
    for point, xyz, seen in points:
        data += struct.pack("<Q3d3BdQ", point, *xyz, 1, 2, 3, 0.25, len(seen))
        data += b"".join(struct.pack("<II", *place) for place in seen)
    (folder / "points3D.bin").write_bytes(data)
    return root


def _colmap_text(folder: Path, camera: str, images: list[Any], points: list[Any]) -> None:
    (folder / "cameras.txt").write_text(f"# Camera list\n# Number of cameras: 1\n{camera}\n")
    lines = ["# Image list with two lines of data per image:"]
    for image, numbers, name, keypoints in images:
        lines.append(f"{image} {' '.join(repr(float(number)) for number in numbers)} 5 {name}")
        lines.append(
            " ".join(f"{float(x)!r} {float(y)!r} {-1 if point == NONE else point}" for x, y, point in keypoints)
        )
    (folder / "images.txt").write_text("\n".join(lines) + "\n")
    lines = ["# 3D point list"]
    for point, xyz, seen in points:
        places = " ".join(f"{image} {index}" for image, index in seen)
        lines.append(f"{point} {' '.join(repr(float(value)) for value in xyz)} 1 2 3 0.25 {places}")
    (folder / "points3D.txt").write_text("\n".join(lines) + "\n")


APPLIED = np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0]])
"""nerfstudio's way from COLMAP's world to its own."""


def write_transforms(
    scene: Synthetic, root: Path, per_frame: bool = False, folder: str = "images", scale: int = 1, model: bool = False
) -> Path:
    """scale: the lens is of pictures this much larger than those that are there (DL3DV). model: COLMAP's lies below,
    its world turned against the file's.
    """
    _pictures(scene, root / folder, names_of(scene))
    (width, height), k = scene.size, scene.k
    k1, k2, p1, p2 = scene.distortion
    lens = {"w": width * scale, "h": height * scale, "fl_x": k[0, 0] * scale, "fl_y": k[1, 1] * scale,
            "cx": (k[0, 2] + 0.5) * scale, "cy": (k[1, 2] + 0.5) * scale,
            "k1": k1, "k2": k2, "p1": p1, "p2": p2}  # fmt: skip
    frames: list[dict[str, Any]] = []
    for view, (name, pose) in enumerate(zip(names_of(scene), scene.poses, strict=True)):
        opengl = pose.copy()
        opengl[:3, 1:3] *= -1
        depth = f"depths/{view}.png"
        save_depth(root / depth, scene.depths[view])
        frames.append({"file_path": f"images/{name}", "transform_matrix": opengl.tolist(), "depth_file_path": depth,
                       "colmap_im_id": view * 2 + 1} | (lens if per_frame else {}))  # fmt: skip
    shared = {} if per_frame else lens
    stored = {"camera_model": "OPENCV", **shared, "applied_transform": APPLIED.tolist(), "frames": frames}
    (root / "transforms.json").write_text(json.dumps(stored))
    if model:
        back = np.eye(4)
        back[:3, :3] = APPLIED[:, :3].T
        write_colmap(replace(scene, poses=back @ scene.poses, points=scene.points @ APPLIED[:, :3]), root / "colmap")
    return root


def write_co3d(scene: Synthetic, root: Path, form: str | None = "ndc_isotropic") -> Path:
    """Returns the sequence's folder. PyTorch3D: row vectors, x left, y up; u = s (1 - x'/..) by its NDC formulas."""
    sequence = root / "teddybear" / "34_1403_4393"
    (width, height), k = scene.size, scene.k
    half = np.array([width, height]) / 2
    unit = np.full(2, half.min()) if form == "ndc_isotropic" else half
    frames = []
    for view, (pose, depth) in enumerate(zip(scene.poses, scene.depths, strict=True)):
        rotation, translation = world_to_camera(pose)
        mirror = np.diag([-1.0, -1, 1])
        relative = f"teddybear/34_1403_4393/images/frame{view + 1:06d}.png"
        (root / relative).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(scene.pictures[view]).save(root / relative)
        for part in ("depths", "depth_masks"):
            (sequence / part).mkdir(exist_ok=True)
        bits = (depth / 2).astype(np.float16)
        bits[0, 0] = np.inf
        Image.fromarray(bits.view(np.uint16)).save(sequence / "depths" / f"{view}.png")
        mask = np.ones((height, width), np.uint8)
        mask[0, 1] = 0
        Image.fromarray(mask * 255).convert("1").save(sequence / "depth_masks" / f"{view}.png")
        viewpoint = {
            "R": (mirror @ rotation).T.tolist(), "T": (mirror @ translation).tolist(),
            "focal_length": (np.diag(k)[:2] / unit).tolist(),
            "principal_point": ((half - (k[:2, 2] + 0.5)) / unit).tolist(),
        }  # fmt: skip
        if form:
            viewpoint["intrinsics_format"] = form
        frames.append({
            "sequence_name": sequence.name, "frame_number": view, "frame_timestamp": view / 10,
            "image": {"path": relative, "size": [height, width]},
            "depth": {"path": f"teddybear/34_1403_4393/depths/{view}.png", "scale_adjustment": 2.0,
                      "mask_path": f"teddybear/34_1403_4393/depth_masks/{view}.png"},
            "mask": None, "viewpoint": viewpoint,
        })  # fmt: skip
    other = {**frames[0], "sequence_name": "another"}
    (root / "teddybear" / "frame_annotations.jgz").write_bytes(gzip.compress(json.dumps([other, *frames]).encode()))
    return sequence


def write_realestate(scene: Synthetic, root: Path) -> Path:
    folder = root / "train" / "0000cc6d8b108390"
    (width, height), k = scene.size, scene.k
    lines = ["https://www.youtube.com/watch?v=xxxxxxxxxxx"]
    for view, pose in enumerate(scene.poses):
        time = 52553000 + 33000 * view
        _pictures(replace(scene, pictures=scene.pictures[view : view + 1]), folder, [f"{time}.png"])
        lens = [k[0, 0] / width, k[1, 1] / height, (k[0, 2] + 0.5) / width, (k[1, 2] + 0.5) / height]
        rotation, translation = world_to_camera(pose)
        numbers = [*lens, 0.0, 0.0, *np.hstack([rotation, translation[:, None]]).ravel()]
        lines.append(" ".join([str(time), *(repr(float(number)) for number in numbers)]))
    (folder.parent / f"{folder.name}.txt").write_text("\n".join(lines) + "\n")
    return folder


def write_sens(scene: Synthetic, root: Path) -> Path:
    folder = root / "scene0000_00"
    folder.mkdir(parents=True)
    (width, height), k = scene.size, np.eye(4, dtype="<f4")
    k[:3, :3] = scene.k
    same = np.eye(4, dtype="<f4").tobytes()
    data = struct.pack("<IQ", 4, 7) + b"Structu" + k.tobytes() + same + k.tobytes() + same
    data += struct.pack("<2i4If", 2, 1, width, height, width, height, 1000.0) + struct.pack("<Q", len(scene.poses))
    for pose, picture, depth in zip(scene.poses, scene.pictures, scene.depths, strict=True):
        jpeg = BytesIO()
        Image.fromarray(picture).save(jpeg, format="JPEG", quality=98, subsampling=0)
        packed = zlib.compress(np.rint(depth * 1000).astype("<u2").tobytes())
        data += pose.astype("<f4").tobytes() + struct.pack("<4Q", 1, 2, len(jpeg.getvalue()), len(packed))
        data += jpeg.getvalue() + packed
    (folder / "scene0000_00.sens").write_bytes(data)
    return folder


def write_recorded(scene: Synthetic, root: Path) -> Path:
    root.mkdir(parents=True)
    np.savetxt(root / "camera-intrinsics.txt", scene.k)
    for view, pose in enumerate(scene.poses):
        stem = f"{root}/frame-{view:06d}"
        Image.fromarray(scene.pictures[view]).save(f"{stem}.color.png")
        save_depth(Path(f"{stem}.depth.png"), scene.depths[view])
        np.savetxt(f"{stem}.pose.txt", pose)
    return root


WRITERS: dict[str, Callable[[Synthetic, Path], Path]] = {
    "colmap": write_colmap,
    "colmap, text": lambda scene, root: write_colmap(scene, root, text=True),
    "colmap, sparse": lambda scene, root: write_colmap(scene, root, "PINHOLE", below="sparse"),
    "transforms": write_transforms,
    "transforms, each": lambda scene, root: write_transforms(scene, root, per_frame=True),
    "transforms, DL3DV": lambda scene, root: write_transforms(scene, root, folder="images_4", scale=4),
    "transforms, model": lambda scene, root: write_transforms(scene, root, model=True),
    "co3d": write_co3d,
    "co3d, bounds": lambda scene, root: write_co3d(scene, root, "ndc_norm_image_bounds"),
    "co3d, version 1": lambda scene, root: write_co3d(scene, root, None),
    "realestate": write_realestate,
    "sens": write_sens,
    "recorded": write_recorded,
}
"""Each writes a scene without distortion below a folder that is not there yet, and returns what `read_scene` takes."""
