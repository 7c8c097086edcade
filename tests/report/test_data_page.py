"""The page of samples and the plan from above: offline, whole, and drawn where things are."""

from __future__ import annotations

import dataclasses
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from hatch_ray.config_sections import DataConfig, RoomsConfig
from hatch_ray.data.build import build_dataset
from hatch_ray.data.rooms import camera_pose
from hatch_ray.data.scene import SceneObject
from hatch_ray.data.store import read_dataset
from hatch_ray.report.data_page import sample_plan, show_dataset
from hatch_ray.report.pages import each_task_in_turn
from hatch_ray.report.plan import PlanCamera, horizontal_fov, plan_svg
from hatch_ray.report.words import atoms_in_words
from tests.support.datasets import write_dataset

SVG = "{http://www.w3.org/2000/svg}"
UP = np.array([0.0, 0.0, 1.0])


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "train"
    build_dataset(DataConfig(samples=18, rooms=RoomsConfig(train_scenes=3)), 4, "train", path)
    return path


def test_page_shows_questions_answers_actions_and_plans(dataset: Path, tmp_path: Path) -> None:
    out = show_dataset(dataset, tmp_path / "pages" / "samples.html", count=8, seed=1)
    page = out.read_text(encoding="utf-8")
    shown = each_task_in_turn(read_dataset(dataset), lambda sample: sample.task, 8, 1)
    assert len({sample.task for sample in shown}) == 8
    for sample in shown:
        assert sample.question.replace("'", "&#39;") in page
        assert f">{sample.answer}<" in page
        for plan in sample.plans:
            assert f"{plan.source} → {plan.target}" in page
            assert all(f">{words}<" in page for words in atoms_in_words(plan.atoms))
    assert page.count("<article>") == page.count("<svg") == 8
    assert page.count('src="data:image/png;base64,') == sum(len(sample.views) for sample in shown)


def test_page_needs_nothing_from_outside(dataset: Path, tmp_path: Path) -> None:
    page = show_dataset(dataset, tmp_path / "samples.html").read_text(encoding="utf-8")
    assert "<script" not in page
    sources = re.findall(r"""\b(?:src|href)=["']([^"']*)""", page)
    assert sources
    assert all(source.startswith("data:image/") for source in sources)
    assert "url(" not in page
    assert "@import" not in page
    assert set(re.findall(r"https?://[^\"\s<]+", page)) <= {"http://www.w3.org/2000/svg"}


def test_page_escapes_questions(dataset: Path, tmp_path: Path) -> None:
    sample = dataclasses.replace(read_dataset(dataset)[0], question="<script>alert(1)</script> & more?")
    write_dataset(tmp_path / "odd", [sample])
    page = show_dataset(tmp_path / "odd", tmp_path / "odd.html").read_text(encoding="utf-8")
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; more?" in page


def test_page_of_samples_without_poses(dataset: Path, tmp_path: Path) -> None:
    sample = read_dataset(dataset)[0]
    views = tuple(dataclasses.replace(view, pose=None, intrinsics=None) for view in sample.views)
    write_dataset(tmp_path / "bare", [dataclasses.replace(sample, views=views, plans=(), meta={})])
    page = show_dataset(tmp_path / "bare", tmp_path / "bare.html").read_text(encoding="utf-8")
    assert "the poses of these views are not known" in page
    assert "<svg" not in page


def test_missing_dataset_and_image(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist; make one with `hatch data build`"):
        show_dataset(tmp_path / "nowhere", tmp_path / "x.html")
    write_dataset(tmp_path / "copy", read_dataset(dataset)[:1])
    for image in (tmp_path / "copy" / "images").rglob("*.png"):
        image.write_bytes(image.read_bytes()[:300])
    with pytest.raises(ValueError, match="cannot be decoded"):
        show_dataset(tmp_path / "copy", tmp_path / "x.html")
    assert not (tmp_path / "x.html").exists()


def polygons(svg: str) -> list[np.ndarray]:
    """Points of each polygon, in pixels."""
    return [
        np.array([[float(value) for value in corner.split(",")] for corner in polygon.attrib["points"].split()])
        for polygon in ElementTree.fromstring(svg).iter(f"{SVG}polygon")
    ]


@given(st.floats(0, 360), st.floats(-40, 40), st.floats(-30, 30), st.floats(-180, 180), st.floats(0.3, 4))
def test_plan_is_drawn_from_the_first_camera(
    heading: float, pitch: float, roll: float, bearing: float, distance: float
) -> None:
    """A second camera at a bearing (right positive) and distance is drawn there, whatever the first one's heading."""
    first = camera_pose(np.array([1.0, -2.0, 1.5]), heading, pitch, roll)
    away = np.radians(heading + bearing)
    place = np.array([1 + distance * np.sin(away), -2 + distance * np.cos(away), 1.1])
    svg = plan_svg([PlanCamera(first, "0"), PlanCamera(camera_pose(place, 10, 0, 0), "1")], UP)
    (apex_0, *ends), (apex_1, *_) = polygons(svg)
    middle = np.mean(ends, axis=0)
    assert abs(middle[0] - apex_0[0]) < 0.2
    assert middle[1] < apex_0[1]
    scale = np.linalg.norm(apex_1 - apex_0) / distance
    offset = (apex_1 - apex_0) / scale
    expected = distance * np.array([np.sin(np.radians(bearing)), -np.cos(np.radians(bearing))])
    np.testing.assert_allclose(offset, expected, atol=0.05)


def test_plan_has_objects_points_and_dashed_cameras() -> None:
    camera = camera_pose(np.zeros(3), 0, 0, 0)
    table = SceneObject(3, "red <table>", np.array([0.0, 2.0, 0.4]), np.array([2.0, 1.0, 0.8]), 0.0)
    far = SceneObject(4, "blue bed", np.array([0.0, 40.0, 0.4]), np.array([2.0, 1.0, 0.8]), 0.0)
    svg = plan_svg(
        [PlanCamera(camera, "0"), PlanCamera(camera, "said", dashed=True)],
        UP,
        [table, far],
        [(np.array([0.5, 2.0, 0.4]), "red")],
    )
    root = ElementTree.fromstring(svg)
    assert [title.text for title in root.iter(f"{SVG}title")] == ["red <table>"]
    box, wedge, said = polygons(svg)
    assert np.ptp(box[:, 0]) == pytest.approx(2 * np.ptp(box[:, 1]), abs=0.5)
    assert box[:, 1].max() < wedge[0, 1]
    assert np.array_equal(wedge, said)
    assert svg.count("stroke-dasharray") == 1
    assert svg.count("<circle") == 3


def test_plan_without_up_and_of_a_camera_that_looks_down() -> None:
    down = np.eye(4)
    down[:3, :3] = Rotation.from_euler("x", -180, degrees=True).as_matrix()
    for pose, up in ((np.eye(4), None), (down, UP), (down, None)):
        ElementTree.fromstring(plan_svg([PlanCamera(pose, "0")], up))


def test_field_of_view() -> None:
    k = np.array([[56.0, 0, 55.5], [0, 56.0, 55.5], [0, 0, 1]])
    assert horizontal_fov(k, 112) == pytest.approx(90)


def test_plan_of_a_sample(dataset: Path) -> None:
    sample = next(sample for sample in read_dataset(dataset) if len(sample.views) == 3)
    svg = sample_plan(sample)
    assert svg is not None
    assert len(polygons(svg)) == 3


def test_actions_in_words() -> None:
    atoms = [("turn_right_deg", 30.0), ("turn_down_deg", 5.0), ("move_forward_m", 1.0), ("move_up_m", 0.2)]
    assert atoms_in_words(atoms) == ["turn right 30°", "tilt down 5°", "go forward 1.0 m", "go up 0.2 m"]
    assert atoms_in_words([]) == ["stay"]
