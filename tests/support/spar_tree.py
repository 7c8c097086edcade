"""Small trees in the published form of SPAR-7M-RGBD, for tests: rendered rooms, colour 160 x 120, depth 80 x 60."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hatch_ray.data.images import save_depth
from hatch_ray.data.rooms import Room, RoomOptions
from hatch_ray.data.scene import Frame
from hatch_ray.geometry.convention import scale_intrinsics

VIEWS = 4


@lru_cache(maxsize=8)
def frames(seed: int) -> tuple[Frame, ...]:
    """Views of one room."""
    room = Room(seed, RoomOptions(width=80, height=60, n_views=VIEWS))
    return tuple(room.frame(index) for index in range(VIEWS))


class SparTree:
    """Writes ROOT/spar/... as section 1 of docs/spar.md describes it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def images(self, source: str) -> Path:
        return self.root / "spar" / source / "images"

    def scene(
        self, name: str, seed: int = 3, source: str = "scannet", rgbd: bool = True, pose_scale: float = 1.0
    ) -> Sequence[Frame]:
        """A scene's files: FRAME is 10 times the view's number; video_color has the first view too."""
        folder = self.images(source) / name
        for number, frame in enumerate(frames(seed)):
            for color, depth, pose in (
                ("image_color", "image_depth", "pose"),
                ("video_color", "video_depth", "video_pose"),
            ):
                if color == "video_color" and number:
                    continue
                for part in (color, depth, pose) if rgbd else (color,):
                    (folder / part).mkdir(parents=True, exist_ok=True)
                big = Image.fromarray(frame.rgb).resize((160, 120))
                big.save(folder / color / f"{number * 10}.jpg", quality=95)
                if rgbd:
                    save_depth(folder / depth / f"{number * 10}.png", frame.depth)
                    matrix = frame.pose.copy()
                    matrix[:3, 3] *= pose_scale
                    np.savetxt(folder / pose / f"{number * 10}.txt", matrix)
        if rgbd:
            (folder / "intrinsic").mkdir(exist_ok=True)
            k = frames(seed)[0].depth_intrinsics
            for grid, values in (("color", scale_intrinsics(k, 2, 2)), ("depth", k)):
                matrix = np.eye(4)
                matrix[:3, :3] = values
                np.savetxt(folder / "intrinsic" / f"intrinsic_{grid}.txt", matrix)
        return frames(seed)

    def rows(
        self,
        records: Sequence[dict[str, Any] | str],
        form: str = "fill",
        task: str | None = None,
        source: str = "scannet",
        split: str = "train",
    ) -> Path:
        """A JSONL file of the records (texts are written as they are), in the folder of `task` or the first's type."""
        first = records[0]
        name = task or (first["type"] if isinstance(first, dict) else "view_change_infer")
        folder = self.root / "spar" / source / "qa_jsonl" / split / name / form
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{form}_{len(records)}.jsonl"
        lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
        path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        return path


def record(
    task: str,
    answer: str,
    scene: str = "scene0001_00",
    views: Sequence[int] = (0, 1, 2),
    number: int = 0,
    question: str = "",
    **fields: Any,
) -> dict[str, Any]:
    """A record as published, depth paths included."""
    return {
        "id": f"{scene}_{number}",
        "conversations": [
            {"from": "human", "value": question or f"A question about {task}, number {number}?"},
            {"from": "gpt", "value": answer},
        ],
        "image": [f"{scene}/image_color/{view * 10}.jpg" for view in views],
        "type": task,
        "depth": [f"{scene}/image_depth/{view * 10}.png" for view in views],
        **fields,
    }
