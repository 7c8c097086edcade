"""`hatch data show`: samples of a dataset on one HTML page that needs no network and no script."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hatch_ray.data.scene import SceneObject
from hatch_ray.data.store import model_images, read_dataset, read_scenes
from hatch_ray.report.pages import each_task_in_turn, inline_image, render
from hatch_ray.report.plan import PlanCamera, horizontal_fov, plan_svg
from hatch_ray.report.words import atoms_in_words
from hatch_ray.run_folder import write_atomic
from hatch_ray.sample import Sample

LARGEST_INLINED_PIXELS = 640 * 480
VIEW_WIDTHS = {1: 320, 2: 300}
THREE_VIEWS_WIDTH = 228
"""CSS pixels of one view, so that a question's views stand in one row."""


def sample_plan(sample: Sample, objects: tuple[SceneObject, ...] = ()) -> str | None:
    """The sample's cameras from above, with the marked places; None when a pose is unknown."""
    cameras = []
    for index, view in enumerate(sample.views):
        if view.pose is None or view.intrinsics is None:
            return None
        with Image.open(view.image_path) as image:
            fov = horizontal_fov(view.intrinsics, image.width)
        cameras.append(PlanCamera(view.pose, str(index), fov))
    places = sample.meta.get("gold", {}).get("points", [])
    points = [(np.array(place), mark.color) for place, mark in zip(places, sample.marks, strict=False)]
    up = sample.meta.get("up")
    return plan_svg(cameras, None if up is None else np.array(up), objects, points)


def _card(sample: Sample, objects: tuple[SceneObject, ...]) -> dict[str, Any]:
    images = model_images(sample, LARGEST_INLINED_PIXELS)
    return {
        "sample": sample,
        "images": [inline_image(image) for image in images],
        "width": VIEW_WIDTHS.get(len(images), THREE_VIEWS_WIDTH),
        "shape": f"{images[0].width} × {images[0].height}",
        "plan": sample_plan(sample, objects),
        "overlaps": list(zip(sample.pairs, sample.meta.get("overlaps", []), strict=False)),
        "gold": json.dumps(sample.meta.get("gold", {})),
    }


def pages_of(path: Path, out_html: Path) -> list[tuple[Path, Path]]:
    """(dataset, its page) of a folder: itself, or the train dataset of each section in it, samples-views.html, ..."""
    path = path.expanduser()
    inside = [found.parent for found in sorted(path.glob("*/train/index.jsonl"))]
    if (path / "index.jsonl").is_file() or not inside:
        return [(path, out_html)]
    return [(each, out_html.with_stem(f"{out_html.stem}-{each.parent.name}")) for each in inside]


def show_dataset(path: str | Path, out_html: str | Path, count: int = 12, seed: int = 0) -> Path:
    """Write the page and return its path.

    Raises ValueError when the dataset is missing, empty or broken, or an image of a chosen sample cannot be read.
    """
    path, out_html = Path(path).expanduser(), Path(out_html).expanduser()
    samples = read_dataset(path)
    scenes = read_scenes(path)
    summary_file = path / "summary.json"
    summary = json.loads(summary_file.read_text(encoding="utf-8")) if summary_file.is_file() else {}
    counts = Counter(sample.task for sample in samples)
    chosen = each_task_in_turn(samples, lambda sample: sample.task, count, seed)
    page = render(
        "data.html", name="/".join(path.resolve().parts[-2:]), total=len(samples), counts=sorted(counts.items()),
        scene_count=len({sample.scene for sample in samples}), largest=max(counts.values()), summary=summary,
        steps=atoms_in_words,
        cards=[_card(sample, scenes.get(sample.scene, (None, ()))[1]) for sample in chosen],
    )  # fmt: skip
    write_atomic(out_html, page)
    return out_html
