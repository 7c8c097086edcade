"""`hatch data show`: samples of a dataset on one HTML page that needs no network and no script."""

from __future__ import annotations

import base64
import io
import json
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from hatch_ray.data.scene import SceneObject
from hatch_ray.data.store import model_images, read_dataset, read_scenes
from hatch_ray.report.plan import PlanCamera, PlanPoint, horizontal_fov, plan_svg
from hatch_ray.report.words import atoms_in_words
from hatch_ray.run_folder import write_atomic
from hatch_ray.sample import Sample

T = TypeVar("T")
TEMPLATES = Path(__file__).parent / "templates"
LARGEST_INLINED_PIXELS = 640 * 480
PNG_BELOW_PIXELS = 256 * 256
VIEW_WIDTHS = {1: 320, 2: 300}
THREE_VIEWS_WIDTH = 228
"""CSS pixels of one view, so that a question's views stand in one row."""


def template_environment() -> Environment:
    """Jinja for the pages of this package: HTML is escaped, a missing name is an error."""
    return Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip


def inline_image(image: Image.Image) -> str:
    """A data: URL; small images stay exact (PNG), large ones become JPEG."""
    buffer = io.BytesIO()
    if image.width * image.height <= PNG_BELOW_PIXELS:
        image.save(buffer, format="PNG")
        kind = "png"
    else:
        image.save(buffer, format="JPEG", quality=85)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def each_task_in_turn(items: Sequence[T], task: Callable[[T], str], count: int, seed: int) -> list[T]:
    """`count` of the items in random order, each task in turn."""
    queues: dict[str, list[T]] = {}
    for index in np.random.default_rng(seed).permutation(len(items)):
        queues.setdefault(task(items[index]), []).append(items[index])
    turns = zip_longest(*queues.values())
    return [item for turn in turns for item in turn if item is not None][:count]


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
    points = [PlanPoint(np.array(place), mark.color) for place, mark in zip(places, sample.marks, strict=False)]
    up = sample.meta.get("up")
    return plan_svg(cameras, None if up is None else np.array(up), objects, points)


def _card(sample: Sample, objects: tuple[SceneObject, ...]) -> dict[str, Any]:
    images = model_images(sample, LARGEST_INLINED_PIXELS)
    plans = [
        {
            "pair": f"{plan.source} → {plan.target}",
            "steps": atoms_in_words(plan.atoms),
            "lost": f"{plan.residual_deg:.1f}°",
            "aligned": plan.frame is not None,
        }
        for plan in sample.plans
    ]
    overlaps = dict(zip(sample.pairs, sample.meta.get("overlaps", []), strict=False))
    return {
        "sample": sample,
        "images": [inline_image(image) for image in images],
        "width": VIEW_WIDTHS.get(len(images), THREE_VIEWS_WIDTH),
        "shape": f"{images[0].width} × {images[0].height}",
        "plan": sample_plan(sample, objects),
        "plans": plans,
        "overlaps": ", ".join(f"{i}–{j} {omega:.0%}" for (i, j), omega in overlaps.items()),
        "gold": json.dumps(sample.meta.get("gold", {})),
        "seed": sample.meta.get("seed", ""),
    }


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
    page = (
        template_environment()
        .get_template("data.html")
        .render(
            name="/".join(path.resolve().parts[-2:]),
            total=len(samples),
            scene_count=len({sample.scene for sample in samples}),
            counts=sorted(counts.items()),
            largest=max(counts.values()),
            summary=summary,
            cards=[_card(sample, scenes.get(sample.scene, (None, ()))[1]) for sample in chosen],
        )
    )
    write_atomic(out_html, page)
    return out_html
