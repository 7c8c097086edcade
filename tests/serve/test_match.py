"""`POST /match` without a service: marks where points are, corners where none are given, replies read."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from hatch_ray.config import make_config
from hatch_ray.data.markers import draw_marks
from hatch_ray.data.numbered import circle_radius, footprint, thousandth
from hatch_ray.data.rooms import Room, RoomOptions
from hatch_ray.sample import Mark
from hatch_ray.systems.matching.corners import ACROSS, DOWN, corners
from serve.match import mark, matcher, read
from serve.reply import Written
from serve.schema import Refusal
from serve.settings import Settings
from tests.support.pictures import photo


def encoded(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def pixels_of(picture: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(picture))))


def test_points_are_marked_as_in_training_and_told_in_the_pixels_that_were_sent() -> None:
    image = photo(0, 224, 224)
    points = [[40, 50], [120, 90], [200, 200]]
    found = mark(encoded(image), 0, points, 224 * 224)
    marks = [Mark(0, "green", (thousandth(x, 224), thousandth(y, 224)), str(n)) for n, (x, y) in enumerate(points, 1)]
    assert np.array_equal(pixels_of(found.picture), np.asarray(draw_marks(image, marks)))
    assert found.points.tolist() == points
    large = mark(encoded(image.resize((896, 896))), 1, [[4 * x + 1.5, 4 * y + 1.5] for x, y in points], 224 * 224)
    assert pixels_of(large.picture).shape == (224, 224, 3)
    ring = (pixels_of(large.picture) == (0, 255, 0)).all(axis=2)
    assert np.array_equal(ring, (pixels_of(found.picture) == (0, 255, 0)).all(axis=2))
    assert large.points.tolist() == [[161.5, 201.5], [481.5, 361.5], [801.5, 801.5]]


@pytest.mark.parametrize(
    ("points", "code", "where", "told"),
    [
        ([[10, 10], [224, 10]], "point_outside", "second.1", r"\(224, 10\) lies outside the photo of 224 x 224"),
        ([[10, 10], [100, 100], [104, 103]], "points_too_near", "second.2", "points 1 and 2 are 5 pixels apart"),
    ],
)
def test_points_that_cannot_be_marked_are_refused(points: list[list[float]], code: str, where: str, told: str) -> None:
    with pytest.raises(Refusal, match=told) as refusal:
        mark(encoded(photo(0, 224, 224)), 1, points, 224 * 224)
    assert (refusal.value.body["code"], refusal.value.body["where"]) == (code, where)


def test_where_no_points_are_given_corners_are_found() -> None:
    """Spread over the grid, apart, on what stands out; on a blank photo there are none, which is told."""
    rgb = Room(3, RoomOptions(224, 224, 90.0, 4)).frame(0).rgb
    guard = footprint(224, 12)
    found = corners(rgb, guard)
    assert 6 <= len(found) <= ACROSS * DOWN
    apart = np.hypot(*(found[:, None] - found[None]).transpose(2, 0, 1)) + np.diag([np.inf] * len(found))
    assert apart.min() >= guard and circle_radius(224) < found.min() and found.max() < 224 - circle_radius(224)
    grey = rgb.astype(float).mean(axis=2)
    spread = [grey[int(y) - 3 : int(y) + 4, int(x) - 3 : int(x) + 4].std() for x, y in found]
    assert np.median(spread) > 2 * np.median([grey[y : y + 7, x : x + 7].std() for x, y in np.ndindex(217, 217)][::97])
    square = np.zeros((60, 80, 3), np.uint8)
    square[20:, 30:] = 255
    assert np.abs(corners(square, 20) - [30, 20]).max(axis=1).min() <= 1, "the corner of the square is found"
    with pytest.raises(Refusal, match=r"nothing in images.0 stands out") as refusal:
        mark(encoded(Image.new("RGB", (112, 112), (90, 60, 30))), 0, None, 112 * 112)
    assert refusal.value.body["code"] == "no_points"


def test_what_the_model_says_of_each_mark() -> None:
    first, second = np.array([[1.0, 2], [30, 40], [50, 60], [70, 80]]), np.array([[5.0, 6], [7, 8]])

    def said(answer: str, thinking: bool = False) -> dict[str, object]:
        return read(Written([answer], [9], ["stop"], 50, 32), first, second, thinking, "v").model_dump()

    reply = said('<answer>{"1":"2","2":"none","3":"7"}</answer>')
    assert reply["pairs"] == [{"mark": 1, "partner": 2, "first": [1, 2], "second": [7, 8]}]
    assert (reply["none"], reply["unread"], reply["format_ok"]) == ([2], [3, 4], False)
    assert reply["problems"] == ["illegal_value", "missing_key"] and reply["tokens"]["images"] == 32
    assert said('<answer>{"1":1,"2":2,"3":null,"4":null}</answer>')["format_ok"] is True
    assert said("hm")["unread"] == [1, 2, 3, 4] and said("hm")["pairs"] == []
    assert said("<thinking>so</thinking><answer>{}</answer>", thinking=True)["problems"] == ["missing_key"]


def test_a_run_of_another_system_matches_nothing(service: str) -> None:
    """Its description does not offer it, /healthz says so, and who asks all the same is told."""
    import httpx

    assert httpx.get(f"{service}/healthz").json()["matches"] is False
    assert "/match" not in httpx.get(f"{service}/openapi.json").json()["paths"]
    answer = httpx.post(f"{service}/match", json={"images": [encoded(photo(0)), encoded(photo(1))]})
    assert (answer.status_code, answer.json()["code"], answer.json()["where"]) == (404, "no_matcher", "path")
    assert "of the system hatch" in answer.json()["what"]
    with pytest.raises(Refusal):
        matcher(Settings("", "v", "grpo", "", make_config({})))
