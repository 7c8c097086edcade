"""Pairs of photos as a dataset: balanced, split by object, the same from the same seed, re-checked from its poses."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hatch_ray.config import ConfigError, make_config
from hatch_ray.data.images import load_image
from hatch_ray.data.rooms import RoomOptions
from hatch_ray.data.store import Split, read_dataset, read_scenes
from hatch_ray.protocol.response import parse_response
from hatch_ray.sample import Sample
from hatch_ray.systems import system_of
from hatch_ray.systems.viewpoint.motion import motion, orbit_motion
from hatch_ray.systems.viewpoint.objects import ObjectOrbit, object_names
from hatch_ray.systems.viewpoint.questions import SIDES, TYPES
from tests.support.scene_forms import write_colmap

SMALL = {"train_scenes": 12, "heldout_scenes": 5, "image_size": 28}


def built(out: Path, split: Split = "train", section: str = "views", **data: Any) -> list[Sample]:
    size = {"samples": 120, "heldout_samples": 24, "rooms": SMALL}
    config = make_config({"system": "viewpoint", section: size | data})
    system_of(config).build(section, split, out)
    return read_dataset(out)


def options_of(sample: Sample) -> list[str]:
    return list(sample.meta["options"])


def said(sample: Sample) -> str:
    """The text of the right option."""
    return options_of(sample)["ABC".index(sample.answer)]


@pytest.fixture(scope="module")
def orbit(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    return built(tmp_path_factory.mktemp("views") / "train")


def test_sides_and_letters_are_balanced_and_still_is_never_right(orbit: list[Sample]) -> None:
    direct = [sample for sample in orbit if sample.meta.get("direct")]
    assert len(orbit) == 120 and len(direct) == 108
    counts = Counter((sample.task, sample.meta["side"], sample.answer) for sample in direct)
    assert set(counts.values()) == {6} and len(counts) == 18
    for sample in orbit:
        assert said(sample) == f"to the {sample.meta['side']}" and sample.meta["side"] in SIDES
        assert sorted(options_of(sample)) == sorted(TYPES[sample.task].options)
        for letter, option in zip("ABC", options_of(sample), strict=True):
            assert f"{letter}. {option}" in sample.question


@pytest.mark.rest
def test_five_thousand(tmp_path: Path) -> None:
    rooms = {"train_scenes": 40, "views_per_scene": 16, "image_size": 28}
    samples = built(tmp_path / "train", samples=5000, think_share=0, rooms=rooms)
    assert len(samples) == 5000
    assert all(abs(count / 5000 - 1 / 3) < 0.02 for count in Counter(s.answer for s in samples).values())
    assert Counter(s.meta["side"] for s in samples) == {"left": 2500, "right": 2500}
    assert {said(s) for s in samples} == {"to the left", "to the right"}


def test_answers_follow_from_the_stored_poses(orbit: list[Sample], tmp_path: Path) -> None:
    options = RoomOptions(28, 28, walk=False)
    for sample in orbit:
        number = int(sample.scene.removeprefix("object-"))
        poses = [view.pose for view in sample.views]
        centre = ObjectOrbit(number, "train", options).centre
        found = orbit_motion(*poses, centre, np.array([0, 0, 1.0]))
        assert SIDES[TYPES[sample.task].signed(found) > 0] == sample.meta["side"]
        assert found.dphi_deg == pytest.approx(sample.meta["dphi_deg"], abs=1e-3)
    for sample in built(tmp_path / "free", section="data", mode="free"):
        found = motion(*(view.pose for view in sample.views), np.array([0, 0, 1.0]), 1.0)
        assert SIDES[TYPES[sample.task].signed(found) > 0] == sample.meta["side"]


def test_the_object_is_in_the_photo_and_looks_other_from_another_side() -> None:
    scene = ObjectOrbit(3, "train", RoomOptions(56, 56, 60.0, walk=False))
    for index in range(len(scene)):
        frame = scene.frame(index)
        assert frame.instances is not None
        shown = np.argwhere(frame.instances == 0)
        assert len(shown) > 30 and np.all(np.abs(shown.mean(axis=0) - 28) < 14)
    again = ObjectOrbit(3, "train", RoomOptions(56, 56, 60.0, walk=False))
    np.testing.assert_array_equal(again.frame(5).rgb, scene.frame(5).rgb)
    assert np.abs(scene.frame(0).rgb.astype(int) - scene.frame(4).rgb).mean() > 5


def test_no_object_is_in_two_splits(tmp_path: Path) -> None:
    train, heldout = (set(object_names(split)) for split in ("train", "heldout"))
    assert not train & heldout
    assert {kind for _, kind in train} == {kind for _, kind in heldout} and len({kind for _, kind in train}) >= 30
    samples = [built(tmp_path / split, split) for split in ("train", "heldout")]
    assert not {s.scene for s in samples[0]} & {s.scene for s in samples[1]}
    assert len({s.scene for s in samples[0]}) == 12 and len({s.scene for s in samples[1]}) == 5


def test_the_same_seed_gives_the_same_to_the_byte(tmp_path: Path) -> None:
    built(tmp_path / "a"), built(tmp_path / "b")
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert files and all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)


def test_free_pairs_balance_both_bits(tmp_path: Path) -> None:
    samples = built(tmp_path / "train", section="data", mode="free", every_question=True, samples=120)
    pairs: Counter[tuple[str, str]] = Counter()
    by_pair: dict[tuple[str, ...], dict[str, str]] = {}
    for sample in samples:
        by_pair.setdefault(tuple(sample.meta["frames"]), {})[sample.task] = sample.meta["side"]
    for sides in by_pair.values():
        pairs[sides["ego_translation"], sides["ego_rotation"]] += 1
    assert sum(pairs.values()) == 60 and len(pairs) == 4
    for turned in SIDES:
        assert abs(pairs["left", turned] - pairs["right", "right" if turned == "left" else "left"]) <= 1
    assert not read_scenes(tmp_path / "train")


def test_thoughts_lead_to_the_answer_and_come_again(tmp_path: Path) -> None:
    samples = built(tmp_path / "train", think_share=0.25, think_pool=12)
    system = system_of(make_config({"system": "viewpoint"}))
    thinking = [sample for sample in samples if not sample.meta.get("direct")]
    assert len(thinking) == 30
    summary = json.loads((tmp_path / "train" / "summary.json").read_text())
    assert (summary["thinking"], summary["thinking_pool"], summary["thinking_repeats"]) == (30, 12, 3)
    for sample in thinking:
        response = parse_response(system.gold(sample, "view_sft"), 2, "language")
        assert response.format_ok and response.answer == sample.answer
        assert sample.meta["thought"].rstrip(".").endswith(f" {sample.answer}")
        assert (
            system.score(system.gold(sample, "view_sft"), system.target(sample, "view_sft")).total(system.weights())
            == 1
        )
    for sample in samples:
        content = system.prompt(sample, "view_sft")[0]["content"]
        assert ("think" in content[-1]["text"]) == (not sample.meta.get("direct"))
    assert len({sample.id for sample in samples}) == len(samples)
    assert all(not sample.meta.get("direct") for sample in built(tmp_path / "heldout", "heldout"))


def test_angles_are_asked_where_they_are_named(tmp_path: Path) -> None:
    for sample in built(tmp_path / "train", tasks=["rotation_degrees"], samples=12, think_share=0):
        assert sample.answer_form == "number" and sample.answer[0] in "+-"
        assert float(sample.answer) == round(sample.meta["yaw_deg"])


def test_who_looks_at_nothing_is_right_half_of_the_time(orbit: list[Sample]) -> None:
    system = system_of(make_config({"system": "viewpoint"}))
    samples = [sample for sample in orbit if sample.meta.get("direct")]
    replies = system.blind_replies(samples)["one_side"]
    right = [s.answer == r.partition("<answer>")[2][0] for s, r in zip(samples, replies, strict=True)]
    assert np.mean(right) == 0.5


def test_posed_sequences_are_split_whole(tmp_path: Path) -> None:
    from dataclasses import replace

    from tests.support.scene_forms import synthetic
    from tests.systems.test_viewpoint_geometry import camera

    for number in range(8):
        base = synthetic(number, views=8, square=True)
        poses = np.stack([camera(20 * i, radius=2.5, height=0.5 + 0.1 * (i % 2)) for i in range(8)])
        write_colmap(replace(base, poses=poses, seen=np.ones_like(base.seen)), tmp_path / "all" / f"cup-{number}")
    alone = synthetic(9, views=1, square=True)
    write_colmap(replace(alone, seen=np.ones_like(alone.seen)), tmp_path / "all" / "lone-1")
    data = {"kind": "rgbd", "root": tmp_path / "all", "samples": 24, "heldout_samples": 6}
    train, heldout = built(tmp_path / "t", **data), built(tmp_path / "h", "heldout", **data)
    assert {s.scene for s in train} and {s.scene for s in heldout}
    assert not {s.scene for s in train} & {s.scene for s in heldout}
    assert load_image(train[0].views[0].image_path).size == (64, 48)
    assert all(view.pose is None for view in train[0].views) and not train[0].plans
    refused = [json.loads((tmp_path / s / "summary.json").read_text())["refused_pairs_by_reason"] for s in ("t", "h")]
    assert sum(reasons.get("one_photo", 0) for reasons in refused) >= 1


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ({"tasks": ["ego_rotaton"]}, "'ego_rotaton' is no question type of viewpoint"),
        ({"tasks": ["object_translation"], "mode": "free"}, "object_translation needs an object"),
        ({"kind": "spar"}, "viewpoint has no kind: spar"),
    ],
)
def test_a_mistake_is_one_line(data: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        make_config({"system": "viewpoint", "views": data})


def test_no_pair_is_told_with_its_reasons(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no pair of photos could be asked about for train \(\d+ "):
        built(tmp_path / "t", section="data", mode="free", rooms=SMALL | {"views_per_scene": 2, "train_scenes": 1})
    assert not (tmp_path / "t").exists()
