"""Datasets are written: whole or not at all, in the form that `data.store` reads."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from hatch_ray.data.images import save_depth, save_image
from hatch_ray.data.pairs import LARGE_RESIDUAL_DEG
from hatch_ray.data.scene import Frame, SceneObject
from hatch_ray.data.store import MATRICES
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
        self.by_task: Counter[str] = Counter()
        self.large_residuals = 0
        """Samples with an action list that loses more roll than LARGE_RESIDUAL_DEG."""
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
        summary = json.dumps({"format": FORMAT} | self.summary, indent=2, allow_nan=False)
        write_atomic(self.folder / "summary.json", summary)
        if self.path.is_dir():
            self.path.rmdir()
        os.replace(self.folder, self.path)

    def add_view(self, scene: str, index: int, frame: Frame) -> View:
        """Write the frame's files once; the view names them relative to the dataset."""
        name = f"{scene}/{index:06d}.png"
        images, depth = Path("images") / name, Path("depth") / name
        pose = np.asarray(frame.pose, dtype=float).tobytes()
        assert self._written.setdefault(name, pose) == pose, f"two views are called {name}"
        if not (self.folder / images).exists():
            save_image(self.folder / images, frame.rgb)
            save_depth(self.folder / depth, frame.depth)
        return View(images, depth, frame.intrinsics, frame.depth_intrinsics, frame.pose)

    def add_photo(self, scene: str, index: int, rgb: np.ndarray) -> View:
        """Write a photo, (H, W, 3) uint8, of which nothing else is known."""
        path = Path("images") / scene / f"{index:06d}.png"
        save_image(self.folder / path, rgb)
        return View(path)

    def add_photo_file(self, scene: str, index: int, data: bytes, ending: str) -> View:
        """Keep a photo's file as it is; ending: "jpg"."""
        path = Path("images") / scene / f"{index:06d}.{ending}"
        (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / path).write_bytes(data)
        return View(path)

    def add_scene(self, scene: str, up: np.ndarray | None, objects: Iterable[SceneObject]) -> None:
        """Remember what plans from above need."""
        self.scenes[scene] = {
            "up": _plain(up),
            "objects": [{key: _plain(value) for key, value in asdict(thing).items()} for thing in objects],
        }

    def add(self, sample: Sample) -> None:
        """Append a sample whose views came from `add_view`."""
        self.by_task[sample.task] += 1
        self.large_residuals += any(plan.residual_deg > LARGE_RESIDUAL_DEG for plan in sample.plans)
        self._rows.append(json.dumps(sample_to_row(sample), allow_nan=False) + "\n")

    def __len__(self) -> int:
        return len(self._rows)


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value


def sample_to_row(sample: Sample) -> dict[str, Any]:
    """A sample as plain JSON values."""
    views = [
        {"image": view.image_path.as_posix(), "depth": view.depth_path.as_posix() if view.depth_path else None}
        | {name: _plain(getattr(view, name)) for name in MATRICES}
        for view in sample.views
    ]
    plans = [asdict(plan) | {"atoms": [list(atom) for atom in plan.atoms]} for plan in sample.plans]
    row = {field.name: getattr(sample, field.name) for field in fields(sample)}
    return row | {"views": views, "marks": [mark.to_row() for mark in sample.marks], "plans": plans}
