"""Posed RGB-D views of a painted wall, exact by construction: cameras that look straight at the plane z = 2 m."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from hatch_ray.sample import PairPlan, Sample, View

DEPTH_M = 2.0


def wall_view(
    folder: Path,
    seed: int,
    name: str,
    place: tuple[float, float],
    size: tuple[int, int] = (112, 112),
    other_light: bool = False,
) -> View:
    """A view of (width, height) pixels, 90 degrees wide, from (x, y, 0); the wall's paint follows from the seed.

    other_light changes every colour, so that equal places no longer have equal pixels.
    """
    folder.mkdir(parents=True, exist_ok=True)
    width, height = size
    focal = width / 2
    k = np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1.0]])
    u, v = np.meshgrid(np.arange(width), np.arange(height))
    x = place[0] + (u - k[0, 2]) / focal * DEPTH_M
    y = place[1] + (v - k[1, 2]) / focal * DEPTH_M
    paint = np.random.default_rng(seed).integers(0, 256, size=(64, 64, 3), dtype=np.uint8)
    cell = np.stack([np.floor((x + 8) * 2), np.floor((y + 8) * 2)]).astype(int) % 64
    image_path, depth_path = folder / f"{name}.png", folder / f"{name}_depth.png"
    rgb = paint[cell[1], cell[0]]
    Image.fromarray(255 - rgb[..., ::-1] if other_light else rgb).save(image_path)
    Image.fromarray(np.full((height, width), DEPTH_M * 1000, dtype=np.uint16)).save(depth_path)
    pose = np.eye(4)
    pose[:2, 3] = place
    return View(image_path, depth_path, k, k.copy(), pose)


def wall_sample(
    folder: Path,
    seed: int,
    places: list[tuple[float, float]],
    task: str = "depth_prediction_oc_mv",
    other_light: bool = False,
) -> Sample:
    """A sample over one wall; with `other_light` every second view is coloured differently. The plans are made up."""
    views = tuple(
        wall_view(folder / f"wall{seed}", seed, f"view{i}", place, other_light=other_light and i % 2 == 1)
        for i, place in enumerate(places)
    )
    pairs = [(i, j) for i in range(len(views)) for j in range(i + 1, len(views))]
    plans = tuple(
        PairPlan(i, j, (("turn_right_deg", 90.0), ("move_forward_m", 0.5 + i + j), ("turn_left_deg", 90.0)))
        for i, j in pairs
    )
    return Sample(
        id=f"{task}-{seed}",
        scene=f"wall{seed}",
        task=task,
        answer_form="number",
        question=f"How far is the wall {seed}?",
        answer="2.0",
        views=views,
        plans=plans,
    )
