"""Controls of viewpoint: photos turned round, one side always, and what is right by type and angle."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hatch_ray.config import make_config
from hatch_ray.data.store import read_dataset
from hatch_ray.evaluation.findings import Evaluations
from hatch_ray.evaluation.heldout import Row, score_rows, swap_images, write_evaluation
from hatch_ray.run_folder import RunFolder
from hatch_ray.sample import Sample
from hatch_ray.systems import system_of
from hatch_ray.systems.viewpoint.controls import by_type_and_angle, turned_round
from hatch_ray.systems.viewpoint.system import Viewpoint


@pytest.fixture(scope="module")
def system() -> Viewpoint:
    rooms = {"train_scenes": 1, "heldout_scenes": 24, "image_size": 28}
    views = {"heldout_samples": 144, "tasks": ["ego_translation", "ego_rotation", "rotation_degrees"], "rooms": rooms}
    found = system_of(make_config({"system": "viewpoint", "views": views}))
    assert isinstance(found, Viewpoint)
    return found


@pytest.fixture(scope="module")
def samples(system: Viewpoint, tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    out = tmp_path_factory.mktemp("views") / "heldout"
    system.build("views", "heldout", out)
    return read_dataset(out)


def test_turned_round_the_opposite_is_right(samples: list[Sample]) -> None:
    for sample in samples:
        other = turned_round(sample)
        assert other.views == sample.views[::-1] and other.question == sample.question
        assert {sample.meta["side"], other.meta["side"]} == {"left", "right"}
        if sample.answer_form == "letter":
            options = sample.meta["options"]
            assert options["ABC".index(other.answer)] == f"to the {other.meta['side']}"
        else:
            assert float(other.answer) == -float(sample.answer)
        assert turned_round(other).answer == sample.answer


def seeing(system: Viewpoint, asked: list[Sample], shown: list[Sample]) -> list[str]:
    """Replies of one who sees: the way that the photos of `shown` tell, under the letters of `asked`."""
    replies = []
    for sample, seen in zip(asked, shown, strict=True):
        side, answer = seen.meta["side"], seen.answer
        if sample.answer_form == "letter":
            answer = "ABC"[sample.meta["options"].index(f"to the {side}")]
        replies.append(f"<think>To the {side}.</think><answer>{answer}</answer>")
    return replies


def judged(system: Viewpoint, run: RunFolder, name: str, asked: list[Sample], replies: list[str]) -> list[Row]:
    rows = score_rows(system, "grpo", asked, replies)
    write_evaluation(run, name, rows, 200, 0)
    return rows


@pytest.mark.parametrize(("blind", "holds"), [(False, "yes"), (True, "no")])
def test_claims_tell_who_looks(
    blind: bool, holds: str, system: Viewpoint, samples: list[Sample], tmp_path: Path
) -> None:
    run = RunFolder(tmp_path)
    lettered = [sample for sample in samples if sample.answer_form == "letter"]
    turned = system.controls(lettered)["turned_round"]
    for name, asked in (("final", lettered), ("final_turned_round", turned)):
        replies = system.blind_replies(asked)["one_side"] if blind else seeing(system, asked, asked)
        rows = judged(system, run, name, asked, replies)
        assert sum(row["terms"]["exact"] for row in rows) == len(rows) * (0.5 if blind else 1)
    found = {claim["claim"].partition(":")[0]: claim for claim in system.claims(Evaluations(system, run, 200, 0))}
    assert found["Photos turned round turn its answer"]["holds"] == holds
    assert (found["ego_rotation"]["holds"] == "yes") != blind
    assert "30-50 degrees" in found["ego_translation"]["measured"]
    json.dumps(list(found.values()))


def test_another_objects_photos_cost_half(system: Viewpoint, samples: list[Sample], tmp_path: Path) -> None:
    """Who says what the photos show is wrong in half of all where they are those of another object."""
    lettered = [sample for sample in samples if sample.task == "ego_translation"]
    swapped = swap_images(lettered, 0)
    of = {sample.id: sample for sample in lettered}
    shown = [of[sample.meta["swapped_from"]] for sample in swapped]
    rows = judged(system, RunFolder(tmp_path), "final_swapped", swapped, seeing(system, swapped, shown))
    assert 0.25 < sum(row["terms"]["exact"] for row in rows) / len(rows) < 0.75


def test_by_type_and_angle(system: Viewpoint, samples: list[Sample]) -> None:
    rows = score_rows(system, "grpo", samples, [system.gold(sample, "grpo") for sample in samples])
    table = by_type_and_angle(rows, 200, 0)
    assert set(table) == {"ego_translation", "ego_rotation", "rotation_degrees"}
    for name, cells in table.items():
        assert sum(cell["n"] for cell in cells.values()) == sum(sample.task == name for sample in samples)
        assert all(cell["value"] == 1 for cell in cells.values())
