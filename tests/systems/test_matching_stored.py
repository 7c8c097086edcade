"""View pairs on disk, and questions from scenes that have landmarks and no depth."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from actors.commands.pool import make_pools
from hatch_ray.config import Config, load_config, make_config
from hatch_ray.data.markers import mark_pixels
from hatch_ray.data.numbered import footprint
from hatch_ray.data.store import read_dataset
from hatch_ray.geometry.convention import scale_intrinsics
from hatch_ray.sample import Sample
from hatch_ray.systems.matching.data import KINDS, build_matching
from hatch_ray.systems.matching.pools import LEAST, MOST
from hatch_ray.systems.matching.questions import EXACT, LARGEST
from hatch_ray.systems.matching.stored import Making, StoredPools
from tests.support.runs import REPOSITORY
from tests.support.scene_forms import Synthetic, synthetic, write_colmap

WIDTH, HEIGHT = 640, 480
QUIET = Console(quiet=True)


def landmark_scene(seed: int, views: int = 5, points: int = 700) -> Synthetic:
    """The synthetic scene in pictures of 640 x 480, its points over most of them."""
    small = synthetic(seed, views, points, square=True)
    large = replace(
        small, k=scale_intrinsics(small.k, 10, 10), points=2.5 * small.points, depths=small.depths[:, :1, :1],
        pictures=small.pictures.repeat(10, 1).repeat(10, 2),
    )  # fmt: skip
    for view in range(views):  # no two points within three pixels of each other in any view
        at = large.keypoints(view)
        near = np.hypot(*(at[:, None] - at[None]).transpose(2, 0, 1)) < 3
        kept = ~np.tril(near, -1).any(axis=1)
        large = replace(large, points=large.points[kept], seen=large.seen[:, kept])
    inside = [(large.keypoints(view) > 0).all(1) & (large.keypoints(view) < [639, 479]).all(1) for view in range(views)]
    return replace(large, seen=large.seen & np.array(inside))


@pytest.fixture(scope="module")
def landmark_scenes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Synthetic]]:
    """Three COLMAP folders, one of them with a cut file."""
    root = tmp_path_factory.mktemp("scenes")
    scenes = {name: landmark_scene(seed) for seed, name in enumerate(("a", "b", "c"))}
    for name, scene in scenes.items():
        write_colmap(scene, root / name)
    cut = root / "c" / "sparse" / "0" / "images.bin"
    cut.write_bytes(cut.read_bytes()[:-7])
    return root, scenes


def config_of(root: Path, *words: str) -> Config:
    base = ["data.kind=scenes", f"data.root={root}", "data.heldout_fraction=0.3", "data.min_overlap=0.02",
            f"model.max_pixels={WIDTH * HEIGHT}", "data.samples=36", "data.heldout_samples=9"]  # fmt: skip
    return load_config(REPOSITORY / "configs" / "wbm_tiny.yaml", [*base, *words])


def marks_of(sample: Sample, view: int) -> np.ndarray:
    return np.array([mark_pixels(mark, WIDTH, HEIGHT) for mark in sample.marks if mark.view == view])


def landmark_at(scene: Synthetic, view: int, marks: np.ndarray) -> np.ndarray:
    """Which point each mark stands on."""
    away = np.hypot(*(marks[:, None] - scene.keypoints(view)[None]).transpose(2, 0, 1))
    away[:, ~scene.seen[view]] = np.inf
    assert away.min(axis=1).max() < 1
    return away.argmin(axis=1)


def test_landmarks_alone_give_every_kind_of_question(
    landmark_scenes: tuple[Path, dict[str, Synthetic]], tmp_path: Path
) -> None:
    """Each mark is a point of the scene, whose place in the other photo is known by the scene's own formula."""
    root, scenes = landmark_scenes
    config = config_of(root, "data.heldout_fraction=0.1")
    summary = build_matching(config.data, 3, "train", tmp_path / "train", WIDTH * HEIGHT)
    samples = read_dataset(tmp_path / "train")
    assert {(one.meta["level"], one.meta["spread"]) for one in samples} == set(KINDS)
    assert len(summary["scenes_left_out"]) + len({one.scene for one in samples}) == 2
    assert {one.meta["source"] for one in samples} == {"colmap-landmarks"}
    guard = footprint(WIDTH, LARGEST)
    for one in samples:
        scene = scenes[one.scene]
        views = [int(name[6:11]) - 1 for name in one.meta["frames"]]
        marks = [marks_of(one, view) for view in range(2)]
        partner = np.array(one.meta["gold"])[:, None] == np.arange(1, one.meta["second"] + 1)
        for way, same in ((0, partner), (1, partner.T)):
            there = scene.keypoints(views[1 - way])[landmark_at(scene, views[way], marks[way])]
            away = np.hypot(*(there[:, None] - marks[1 - way][None]).transpose(2, 0, 1))
            assert (away[same] < EXACT).all() and (away[~same] > guard).all()
        both = (scene.seen[views[0]] & scene.seen[views[1]]).sum()
        assert one.meta["omega"] == pytest.approx(both / scene.seen[views[0]].sum(), abs=1e-3)


@pytest.mark.rest
def test_pools_are_made_once_counted_and_trained_on(
    ray_cluster: Any, landmark_scenes: tuple[Path, dict[str, Synthetic]], tmp_path: Path
) -> None:
    """What was stopped goes on with the parts that are missing; what is refused has a name and a number."""
    root, scenes = landmark_scenes
    config, out = config_of(root), tmp_path / "pools"
    summary = make_pools(config, out, 60, QUIET)
    assert sum(summary["pairs"].values()) + sum(summary["refused"].values()) == 2 * 10
    assert len(summary["scenes_left_out"]) == 1 and "images.bin" in summary["scenes_left_out"][0]
    files = {file.name: file.read_bytes() for file in sorted(out.glob("*.parquet"))}
    assert len(files) == 6, "60 pairs are two parts of each scene"
    first = next(name for name, data in files.items() if pq.read_metadata(out / name).num_rows)
    (out / first).unlink()
    assert make_pools(config, out, 60, QUIET) == summary
    assert {file.name: file.read_bytes() for file in sorted(out.glob("*.parquet"))} == files
    row = pq.read_table(out / first).to_pylist()[0]
    assert LEAST <= row["spread"] <= MOST and len(row["matches"]) >= 4 * row["spread"]
    scene, views = scenes[row["scene"]], [int(name[6:11]) - 1 for name in row["frames"]]
    matches = np.array(row["matches"]).reshape(-1, 4)
    here = landmark_at(scene, views[0], matches[:, :2])
    assert np.hypot(*(scene.keypoints(views[1])[here] - matches[:, 2:]).T).max() < 0.01

    system_config = config_of(root, f"pools={out}")
    made = [tmp_path / name for name in ("stored", "direct")]
    for path, pools in zip(made, (out, None), strict=True):
        build_matching(system_config.data, 0, "train", path, WIDTH * HEIGHT, pools=pools)
    stored, direct = (read_dataset(path) for path in made)
    assert Counter(one.meta["level"] for one in stored) == Counter(one.meta["level"] for one in direct)
    omega = {one.meta["pair"]: one.meta["omega"] for one in direct}
    assert all(omega.get(one.meta["pair"], one.meta["omega"]) == one.meta["omega"] for one in stored)


@pytest.mark.rest
def test_pools_of_other_data_are_refused(ray_cluster: Any, tmp_path: Path) -> None:
    """And pictures that share nothing, or have no depth and no landmarks, are counted by name."""
    rooms = {"kind": "rooms", "rooms": {"train_scenes": 1, "heldout_scenes": 1, "views_per_scene": 3}}
    config = make_config({"system": "matching", "data": rooms, "model": {"max_pixels": 112 * 112}})
    out = tmp_path / "pools"
    summary = make_pools(config, out, 3, QUIET)
    assert sum(summary["pairs"].values()) + sum(summary["refused"].values()) == 6
    assert set(summary["refused"]) <= {"no_overlap", "too_few_matches"}
    StoredPools(out, Making(config.data, 0, 112 * 112))
    for making, told in (
        (Making(config.data, 1, 112 * 112), r"another seed \(0, not 1\)"),
        (Making(config.data, 0, 999), r"another max_pixels \(12544, not 999\)"),
        (
            Making(config.data.model_copy(update={"frame_step": 2}), 0, 112 * 112),
            r"another data.frame_step \(1, not 2\)",
        ),
    ):
        with pytest.raises(ValueError, match=told):
            StoredPools(out, making)
    with pytest.raises(ValueError, match="has pools of other data or settings"):
        make_pools(config, out, 4, QUIET)
    (out / "summary.json").unlink()
    with pytest.raises(ValueError, match="no whole folder of pools"):
        StoredPools(out, Making(config.data, 0, 112 * 112))
    with pytest.raises(ValueError, match="pools are for the system matching"):
        make_pools(make_config({}), tmp_path / "no", 4, QUIET)
    with pytest.raises(ValueError, match=r"set data.kind to rooms, rgbd or scenes"):
        make_pools(make_config({"system": "matching", "data": {"kind": "spar"}}), tmp_path / "no", 4, QUIET)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("x")
    with pytest.raises(ValueError, match="exists already and has no pools"):
        make_pools(config, tmp_path / "other", 4, QUIET)
