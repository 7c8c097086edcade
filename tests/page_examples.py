"""Make the examples of the service's page from rendered rooms: `python -m tests.page_examples` (10 s).

They lie in serve/page/examples: the views with their marks as JPEG files, and index.json with the question, the form of
the answer and what is true.
"""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from hatch_ray.config import make_config
from hatch_ray.data.build import build_dataset
from hatch_ray.data.store import model_images, read_dataset
from hatch_ray.geometry.se3 import as_transform, relative
from hatch_ray.report.words import atoms_in_words
from hatch_ray.sample import Sample

FOLDER = Path(__file__).resolve().parent.parent / "serve" / "page" / "examples"
SIDE = 224
FOV_DEG = 90.0
QUALITY = 88
CHOSEN = (
    ("obj_spatial_relation_oc_mv", 2, 11, "Which side?"),
    ("position_matching", 2, 12, "Find it again"),
    ("distance_prediction_oo_mv", 3, 13, "How far apart?"),
)
"""Task, views, seed of the room, title on the page."""
OPTION = re.compile(r" ([A-D])\. ")


def make_sample(task: str, views: int, seed: int, folder: Path) -> Sample:
    """The task's first question about a room that no run trains on."""
    rooms = {"train_scenes": 1, "heldout_scenes": 1, "views_per_scene": 8, "image_size": SIDE, "fov_deg": FOV_DEG}
    asked = {"tasks": [task], "max_views": views, "formats": ["fill"]}
    config = make_config({"data": {"samples": 1, "heldout_samples": 1, "rooms": rooms} | asked})
    build_dataset(config.data, seed, "heldout", folder / task)
    return read_dataset(folder / task)[0]


def example(sample: Sample, title: str, name: str) -> dict[str, Any]:
    """The sample as the page reads it; its files are written beside index.json."""
    files = []
    for index, image in enumerate(model_images(sample, SIDE * SIDE)):
        files.append(f"{name}-{index}.jpg")
        image.save(FOLDER / files[-1], quality=QUALITY)
    poses = [as_transform(np.asarray(view.pose)) for view in sample.views]
    question, *options = OPTION.split(sample.question)
    return {
        "title": title,
        "question": question,
        "answer_form": sample.answer_form,
        "options": options[1::2],
        "images": files,
        "fov_deg": FOV_DEG,
        "constrained": len(sample.views) > 2,
        "truth": {
            "answer": sample.answer,
            "actions": [
                {"from": plan.source, "to": plan.target, "words": ", then ".join(atoms_in_words(plan.atoms))}
                for plan in sample.plans
            ],
            "poses": [
                {"from": 0, "to": index, "matrix": relative(poses[0], pose).as_matrix().round(4).tolist()}
                for index, pose in enumerate(poses)
                if index
            ],
        },
    }


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        made = [
            example(make_sample(task, views, seed, Path(folder)), title, f"room-{seed}")
            for task, views, seed, title in CHOSEN
        ]
    lines = ",\n".join(json.dumps(item) for item in made)
    (FOLDER / "index.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
