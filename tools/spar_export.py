"""A dataset of ours written as SPAR-7M-RGBD is published, so that the reader meets every field without 221 GB.

What differs from the published archives: colour files keep their own format (PNG, lossless), marker values may have
decimals, and there is no video_idx.txt, since our datasets have no videos.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any, TextIO

import numpy as np
import typer
from scipy.spatial.transform import Rotation

from hatch_ray.cli import run_command
from hatch_ray.data.spar.layout import SOURCES, TASKS, UP, beside
from hatch_ray.data.spar.views import link_file
from hatch_ray.data.store import is_dataset, read_dataset
from hatch_ray.sample import Mark, Sample, View

app = typer.Typer(add_completion=False)

SPAR_SPLIT = {"train": "train", "heldout": "val"}


def export_spar(dataset: str | Path, out: str | Path, source: str = "scannet") -> dict[str, int]:
    """Write the samples below `out`/spar/`source`; returns rows by "TASK/FORMAT".

    dataset: one split (becomes SPAR's train), or a folder with train/ and heldout/ (become train and val). Worlds are
    turned so that z is up, as SPAR's are. Raises ValueError when `out` exists, when a sample is of a task that SPAR
    does not have, when its marks have no place in that task's record, or when its world's up is unknown.
    """
    dataset, out = Path(dataset), Path(out).expanduser().absolute()
    if source not in SOURCES:
        raise ValueError(f"source {source!r} is not one of SPAR's: {', '.join(SOURCES)}")
    if out.exists():
        raise ValueError(f"{out} exists already; choose another folder or remove it")
    if is_dataset(dataset) and not (dataset / "index.jsonl").is_file():
        splits = {SPAR_SPLIT[name]: read_dataset(dataset / name) for name in SPAR_SPLIT}
    else:
        splits = {"train": read_dataset(dataset)}
    building = out.with_name(f".{out.name}.building-{os.getpid()}")
    try:
        writer = _Writer(building / "spar" / source)
        for split, samples in splits.items():
            writer.write(split, samples)
        os.replace(building, out)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return dict(sorted(writer.counts.items()))


class _Writer:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.counts: dict[str, int] = defaultdict(int)
        self._views: dict[Path, str] = {}
        self._intrinsics: dict[Path, np.ndarray] = {}
        self._rows_of_scene: dict[str, int] = defaultdict(int)

    def write(self, split: str, samples: list[Sample]) -> None:
        """One JSONL file a task and format, named by its format and count as the published ones are."""
        files: dict[Path, TextIO] = {}
        counts: dict[Path, int] = defaultdict(int)
        try:
            for sample in samples:
                form = _format(sample)
                place = self.folder / "qa_jsonl" / split / sample.task / form
                if place not in files:
                    place.mkdir(parents=True, exist_ok=True)
                    files[place] = (place / "rows").open("w", encoding="utf-8")
                files[place].write(json.dumps(self._record(sample), allow_nan=False) + "\n")
                counts[place] += 1
                self.counts[f"{sample.task}/{form}"] += 1
        finally:
            for file in files.values():
                file.close()
        for place, count in counts.items():
            (place / "rows").rename(place / f"{place.name}_{count}.jsonl")

    def _record(self, sample: Sample) -> dict[str, Any]:
        number = self._rows_of_scene[sample.scene]
        self._rows_of_scene[sample.scene] += 1
        turn = _to_z_up(sample)
        images = [self._view(sample, view, turn) for view in sample.views]
        record: dict[str, Any] = {
            "id": f"{sample.scene}_{number}",
            "conversations": [
                {"from": "human", "value": sample.question},
                {"from": "gpt", "value": sample.answer},
            ],
            "image": images,
            "type": sample.task,
        }
        if all(view.depth_path is not None for view in sample.views):
            record["depth"] = [beside(image, "depth") for image in images]
        return record | _markers(sample)

    def _view(self, sample: Sample, view: View, turn: Rotation | None) -> str:
        """Write the view's files once; its image path below SOURCE/images."""
        if view.image_path in self._views:
            return self._views[view.image_path]
        name = view.image_path.name
        folder = "video_color" if name.startswith("video-") else "image_color"
        image = f"{sample.scene}/{folder}/{name.removeprefix('video-')}"
        images = self.folder / "images"
        link_file(view.image_path, images / image)
        if view.depth_path is not None:
            link_file(view.depth_path, images / beside(image, "depth"))
        if view.pose is not None and turn is not None:
            pose = view.pose.copy()
            pose[:3] = turn.as_matrix() @ pose[:3]
            path = images / beside(image, "pose")
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savetxt(path, pose, fmt="%.17g")
        for grid, k in (("color", view.intrinsics), ("depth", view.depth_intrinsics)):
            if k is not None:
                self._matrix(images / sample.scene / "intrinsic" / f"intrinsic_{grid}.txt", k)
        self._views[view.image_path] = image
        return image

    def _matrix(self, path: Path, k: np.ndarray) -> None:
        if path in self._intrinsics:
            if not np.array_equal(self._intrinsics[path], k):
                raise ValueError(f"views of scene {path.parts[-3]} have different intrinsics; SPAR keeps one a scene")
            return
        self._intrinsics[path] = k
        matrix = np.eye(4)
        matrix[:3, :3] = k
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savetxt(path, matrix, fmt="%.17g")


def _format(sample: Sample) -> str:
    """The folder of the sample's answer format. Raises ValueError for a task that SPAR does not have."""
    if sample.task not in TASKS:
        raise ValueError(f"sample {sample.id}: SPAR has no image task {sample.task!r}; leave it out with data.tasks")
    if TASKS[sample.task].listed:
        return "sentence"
    return str(sample.meta.get("format") or ("select" if sample.answer_form == "letter" else "fill"))


def _to_z_up(sample: Sample) -> Rotation | None:
    """The turn of the sample's world that makes z up; None without poses. Raises ValueError when up is unknown."""
    if any(view.pose is None for view in sample.views):
        return None
    up = sample.meta.get("up")
    if up is None:
        raise ValueError(
            f"sample {sample.id}: world up is unknown, and SPAR's worlds have z up; give gravity-direction.txt"
        )
    return Rotation.identity() if np.allclose(up, UP) else Rotation.align_vectors([UP], [up])[0]


def _markers(sample: Sample) -> dict[str, Any]:
    """The marks as the task's record fields, every value wrapped in one more list."""
    spec = TASKS[sample.task]
    if spec.listed:
        return {
            "bbox_list": [[_plain(mark) for mark in sample.marks]],
            "bbox_img_idx": [[mark.view for mark in sample.marks]],
        }
    colors = spec.marks.colors if spec.marks else ()
    kinds = {"point" if len(mark.xy) == 2 else "bbox" for mark in sample.marks}
    ordered = sorted((mark for mark in sample.marks if mark.color in colors), key=lambda mark: colors.index(mark.color))
    if len(ordered) != len(sample.marks) or len({mark.color for mark in ordered}) != len(ordered) or len(kinds) > 1:
        marks = ", ".join(f"{mark.color} {len(mark.xy) // 2}-point" for mark in sample.marks)
        raise ValueError(f"sample {sample.id}: a {sample.task} record has no place for the marks {marks}")
    if not ordered:
        return {}
    kind = kinds.pop()
    record: dict[str, Any] = {f"{mark.color}_{kind}": [_plain(mark)] for mark in ordered}
    if len(sample.views) > 1:
        record[f"{kind}_img_idx"] = [[mark.view for mark in ordered]]
    return record


def _plain(mark: Mark) -> list[float]:
    """Coordinates, whole numbers as integers."""
    return [int(value) if float(value).is_integer() else float(value) for value in mark.xy]


@app.command()
def main(
    dataset: Annotated[Path, typer.Argument(help="folder written by `hatch data build`", metavar="DATASET")],
    out: Annotated[Path, typer.Argument(help="folder to write; it must not exist", metavar="OUT")],
    source: Annotated[str, typer.Option(help="SPAR source to write it as")] = "scannet",
) -> None:
    """Write a dataset in the layout of SPAR-7M-RGBD, for `data.kind=spar data.root=OUT`."""
    counts = export_spar(dataset, out, source)
    print(f"{out}: {sum(counts.values())} rows")
    for name, count in counts.items():
        print(f"  {count} {name}")


if __name__ == "__main__":
    run_command(app)
