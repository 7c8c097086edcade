"""Questions over two or more cameras at random places, whose images nobody opens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.spatial.transform import RigidTransform, Rotation

from hatch_ray.geometry.actions import plan_between
from hatch_ray.sample import PairPlan, Sample, View

UP = np.array([0.0, -1.0, 0.0])


def random_pose(random: np.random.Generator) -> RigidTransform:
    angles = [random.normal(0, 25), random.normal(-10, 5), random.normal(0, 2)]
    place = random.normal(0, 0.7, 3) * [1, 0.1, 1]
    return RigidTransform.from_components(place, Rotation.from_euler("YXZ", angles, degrees=True))


def make_samples(count: int = 60, per_scene: int = 3, views: int = 2, up: np.ndarray | None = UP) -> list[Sample]:
    random = np.random.default_rng(7)
    samples = []
    for index in range(count):
        poses = [random_pose(random) for _ in range(views)]
        plans = tuple(
            PairPlan(i, j, *plan_between(poses[i], poses[j], up)) for i in range(views) for j in range(i + 1, views)
        )
        samples.append(
            Sample(
                id=f"q{index}",
                scene=f"room{index // per_scene}",
                task=("depth_prediction_oc_mv", "obj_spatial_relation_oc_mv")[index % 2],
                answer_form=("number", "text")[index % 2],  # type: ignore[arg-type]
                question="?",
                answer=(f"{random.uniform(1, 4):.1f}", str(random.choice(["left", "right"])))[index % 2],
                views=tuple(View(Path(f"q{index}_{view}.png")) for view in range(views)),
                plans=plans,
            )
        )
    return samples
