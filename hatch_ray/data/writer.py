"""Datasets are written: whole or not at all, in the form that `data.store` reads."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from hatch_ray.data.images import save_depth, save_image
from hatch_ray.data.scene import Frame, SceneObject
from hatch_ray.run_folder import write_atomic
from hatch_ray.sample import Sample, View

FORMAT = 1
"""Version of the folder's form."""


class DatasetWriter:
    """Writes a dataset beside its final place and renames it when whole: `with DatasetWriter(path) as writer`.

    Raises ValueError when the folder exists already. An exception inside the block leaves nothing behind.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser().absolute()
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise ValueError(f"{self.path} exists already; choose another folder or remove it")
        self.folder = self.path.with_name(f".{self.path.name}.building-{os.getpid()}")
        self.summary: dict[str, Any] = {}
        self.scenes: dict[str, dict[str, Any]] = {}
        self._rows: list[str] = []
        self._written: dict[str, bytes] = {}

    def __enter__(self) -> DatasetWriter:
        try:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
        except OSError as error:
            raise ValueError(f"cannot write a dataset at {self.path}: {error.strerror}") from None
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
            return
        (self.folder / "index.jsonl").write_text("".join(self._rows), encoding="utf-8")
        write_atomic(self.folder / "scenes.json", json.dumps(self.scenes, allow_nan=False))
        write_atomic(
            self.folder / "summary.json", json.dumps({"format": FORMAT} | self.summary, indent=2, allow_nan=False)
        )
        if self.path.is_dir():
            self.path.rmdir()
        os.replace(self.folder, self.path)

    def add_view(self, scene: str, index: int, frame: Frame) -> View:
        """Write the frame's files once; the view names them relative to the dataset."""
        name = f"{scene}/{index:06d}.png"
        view = View(
            image_path=Path("images") / name,
            depth_path=Path("depth") / name,
            intrinsics=frame.intrinsics,
            depth_intrinsics=frame.depth_intrinsics,
            pose=frame.pose,
        )
        pose = np.asarray(frame.pose, dtype=float).tobytes()
        assert self._written.setdefault(name, pose) == pose, f"two views are called {name}"
        if not (self.folder / "images" / name).exists():
            save_image(self.folder / "images" / name, frame.rgb)
            save_depth(self.folder / "depth" / name, frame.depth)
        return view

    def add_photo(self, scene: str, index: int, rgb: np.ndarray) -> View:
        """Write a photo, (H, W, 3) uint8, of which nothing else is known."""
        path = Path("images") / scene / f"{index:06d}.png"
        save_image(self.folder / path, rgb)
        return View(path)

    def add_scene(self, scene: str, up: np.ndarray | None, objects: Iterable[SceneObject]) -> None:
        """Remember what plans from above need."""
        self.scenes[scene] = {
            "up": _plain(up),
            "objects": [{key: _plain(value) for key, value in asdict(thing).items()} for thing in objects],
        }

    def add(self, sample: Sample) -> None:
        """Append a sample whose views came from `add_view`."""
        self._rows.append(json.dumps(sample_to_row(sample), allow_nan=False) + "\n")

    def __len__(self) -> int:
        return len(self._rows)


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value


def sample_to_row(sample: Sample) -> dict[str, Any]:
    """A sample as plain JSON values."""
    return {
        "id": sample.id,
        "scene": sample.scene,
        "task": sample.task,
        "answer_form": sample.answer_form,
        "question": sample.question,
        "answer": sample.answer,
        "views": [
            {
                "image": view.image_path.as_posix(),
                "depth": view.depth_path.as_posix() if view.depth_path else None,
                "intrinsics": _plain(view.intrinsics),
                "depth_intrinsics": _plain(view.depth_intrinsics),
                "pose": _plain(view.pose),
            }
            for view in sample.views
        ],
        "marks": [mark.to_row() for mark in sample.marks],
        "plans": [
            {
                "source": plan.source,
                "target": plan.target,
                "atoms": [list(atom) for atom in plan.atoms],
                "frame": asdict(plan.frame) if plan.frame else None,
                "residual_deg": plan.residual_deg,
            }
            for plan in sample.plans
        ],
        "meta": sample.meta,
    }
