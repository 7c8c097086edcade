"""Camera actions as viewpoint's reward: which side a list goes to, what it earns, and both arms on one measure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from actors.commands.ablate import Ablation
from hatch_ray.ablation.variants import read_variants
from hatch_ray.config import ConfigError, load_config, make_config
from hatch_ray.data.pairs import gold_plans
from hatch_ray.data.rooms import camera_pose
from hatch_ray.data.store import read_dataset
from hatch_ray.evaluation.heldout import score_rows
from hatch_ray.geometry.se3 import as_transform, pitch_roll
from hatch_ray.protocol.prompt import format_plans
from hatch_ray.rewards.score import check_scores
from hatch_ray.sample import ActionFrame, Atom, Sample
from hatch_ray.systems import system_of
from hatch_ray.systems.viewpoint.controls import turned_round
from hatch_ray.systems.viewpoint.motion import motion
from hatch_ray.systems.viewpoint.plans import actions_to, signed_by_actions, upright
from hatch_ray.systems.viewpoint.questions import SIDES, TYPES
from hatch_ray.systems.viewpoint.reward import ACTION_WEIGHTS
from hatch_ray.systems.viewpoint.system import Viewpoint

UP = np.array([0, 0, 1.0])
ANGLE = st.floats(-25, 25)


def viewpoint(kind: str) -> Viewpoint:
    found = system_of(make_config({"system": "viewpoint", "reward": {"kind": kind}}))
    assert isinstance(found, Viewpoint)
    return found


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """Orbit and free pairs, every type."""
    found = []
    rooms = {"heldout_scenes": 6, "image_size": 28}
    for mode in ("orbit", "free"):
        tasks = [name for name in TYPES if mode == "orbit" or not TYPES[name].orbit_only]
        views = {"mode": mode, "heldout_samples": 48, "tasks": tasks, "rooms": rooms}
        out = tmp_path_factory.mktemp(mode) / "heldout"
        system_of(make_config({"system": "viewpoint", "views": views})).build("views", "heldout", out)
        found += read_dataset(out)
    return found


@given(ANGLE, ANGLE, st.floats(-180, 180))
def test_up_in_a_cameras_axes(pitch: float, roll: float, heading: float) -> None:
    pose = camera_pose(np.zeros(3), heading, pitch, roll)
    frame = ActionFrame(*pitch_roll(Rotation.from_matrix(pose[:3, :3]), UP))
    np.testing.assert_allclose(upright(frame), pose[:3, :3].T @ UP, atol=1e-9)


@given(st.lists(st.floats(-1.5, 1.5), min_size=6, max_size=6), ANGLE, ANGLE, st.floats(-80, 80), ANGLE)
def test_a_gold_list_shows_what_the_poses_show(
    at: list[float], pitch: float, roll: float, turn: float, pitch_2: float
) -> None:
    poses = camera_pose(np.array(at[:3]), 10, pitch, roll), camera_pose(np.array(at[3:]), 10 + turn, pitch_2, roll)
    exact = motion(*poses, UP, 1.0)
    (plan,) = gold_plans([as_transform(pose) for pose in poses], UP)
    for name, kind in TYPES.items():
        found = signed_by_actions(name, plan.atoms, plan.frame) or 0.0
        off = 1.0 if name.endswith(("rotation", "degrees")) else 0.15
        assert abs(found - kind.signed(exact)) < off + 0.02 * abs(kind.signed(exact)), name


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("side", SIDES)
def test_a_plain_list_goes_to_its_side(name: str, side: str) -> None:
    for frame in (None, ActionFrame(20, -10)):
        signed = signed_by_actions(name, actions_to(name, side), frame)
        assert signed is not None and SIDES[signed > 0] == side


def test_lists_that_show_no_side() -> None:
    still: tuple[Atom, ...] = (("move_forward_m", 1.0),)
    assert signed_by_actions("ego_translation", still, None) is None
    assert signed_by_actions("ego_rotation", (("turn_up_deg", 90.0),), ActionFrame(0, 0)) is None


def test_gold_earns_all_in_both_orders_and_kinds(pairs: list[Sample]) -> None:
    for kind in ("actions", "letter"):
        system = viewpoint(kind)
        for asked in (pairs, [turned_round(sample) for sample in pairs]):
            rows = score_rows(system, "grpo", asked, [system.gold(sample, "grpo") for sample in asked])
            for row in rows:
                assert row["terms"]["format"] == row["terms"]["total"] == 1
                assert row["terms"]["exact"] > (0.95 if row["task"] == "rotation_degrees" else 0.999)
                assert check_scores("x", [row], system.weights()) == []


def test_both_arms_are_told_on_one_measure(pairs: list[Sample]) -> None:
    """Who always goes and says left is right in half of all in either arm, by the same term."""
    lettered = [sample for sample in pairs if sample.answer_form == "letter"]
    for kind in ("actions", "letter"):
        system = viewpoint(kind)
        rows = score_rows(system, "grpo", lettered, system.blind_replies(lettered)["one_side"])
        assert np.mean([row["terms"][system.measure] for row in rows]) == pytest.approx(0.5, abs=0.03)
        assert all(row["terms"]["format"] == 1 for row in rows)


def test_the_side_of_the_actions_counts_and_the_letter_is_only_told(pairs: list[Sample]) -> None:
    system = viewpoint("actions")
    sample = next(each for each in pairs if each.task == "ego_rotation")
    right, side = sample.answer, sample.meta["side"]
    other = SIDES[1 - SIDES.index(side)]
    target = system.target(sample, "grpo")

    def terms(way: str, letter: str) -> dict[str, float | None]:
        plan = format_plans({(0, 1): actions_to(sample.task, way)})
        return dict(system.score(f"<action>{plan}</action><answer>{letter}</answer>", target).terms)

    wrong = "A" if right != "A" else "B"
    assert (terms(side, wrong)["exact"], terms(side, wrong)["letter"]) == (1, 0)
    assert (terms(other, right)["exact"], terms(other, right)["letter"]) == (0, 1)
    assert ACTION_WEIGHTS["exact"] == ACTION_WEIGHTS["letter"] == 0
    unread = system.score("<action>[{</action><answer>B</answer>", target)
    assert unread.terms["exact"] == 0 and "exact:no_plan" in unread.reasons and "format:bad_json" in unread.reasons
    still = '<action>[{"from":0,"to":1,"action":[]}]</action><answer>B</answer>'
    assert "exact:no_side" in system.score(still, target).reasons


def test_it_teaches_and_reads_actions(pairs: list[Sample], tmp_path: Path) -> None:
    rooms = {"train_scenes": 3, "image_size": 28}
    views = {"samples": 20, "think_share": 0.25, "rooms": rooms}
    system = system_of(make_config({"system": "viewpoint", "views": views, "reward": {"kind": "actions"}}))
    system.build("views", "train", tmp_path / "train")
    samples = read_dataset(tmp_path / "train")
    golds = {bool(sample.meta.get("direct")): system.gold(sample, "view_sft") for sample in samples}
    assert golds[True].startswith("<answer>") and golds[False].startswith('<action>[{"from":0,"to":1')
    assert system.writes_plans("grpo") and system.read(golds[False], 2, "grpo").format_ok
    assert "turn_left_deg" in system.prompt(samples[-1], "grpo")[0]["content"][-1]["text"]


@pytest.mark.parametrize(
    ("tree", "told"),
    [
        ({"reward": {"kind": "actions", "strict": True}}, "reward.strict is the published reward, of letters"),
        ({"reward": {"kind": "actions"}, "data": {"kind": "sat"}}, r"needs poses in metres, which data \(kind sat"),
        ({"reward": {"kind": "actions"}, "views": {"kind": "rgbd"}}, r"which views \(kind rgbd, mode orbit\)"),
        ({"views": {"kind": "spar"}}, "viewpoint has no kind: spar"),
    ],
)
def test_what_does_not_go_together_is_one_line(tree: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        make_config({"system": "viewpoint"} | tree)
    if "views" in tree and "reward" in tree:
        make_config({"system": "viewpoint", "stages": ["grpo"]} | tree)


def test_variants_share_what_is_the_same(repository: Path, tmp_path: Path) -> None:
    """configs/ablations/viewpoint.yaml: SFT alone is the first one's; letters have a SFT of their own."""
    base = load_config(repository / "configs" / "viewpoint_tiny.yaml")
    plan = Ablation(base, read_variants(repository / "configs" / "ablations" / "viewpoint.yaml"), tmp_path, 1)
    owner = {
        (Path(str(run)).name, stage): Path(str(config.run_dir)).name for (run, stage), config in plan.owners.items()
    }
    assert owner["sft", "view_sft"] == "actions" and owner["letter", "view_sft"] == "letter"
    assert owner["rl", "grpo"] == "rl" and ("rl", "view_sft") not in owner
