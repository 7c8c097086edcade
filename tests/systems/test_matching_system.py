"""The system matching: its data, prompt, gold, blind replies; and a run that trains, is killed and goes on."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hatch_ray.config import Config, ConfigError, load_config, make_config
from hatch_ray.data.store import model_images, read_dataset
from hatch_ray.evaluation.heldout import score_rows
from hatch_ray.sample import Sample
from hatch_ray.systems import load_system, system_of
from hatch_ray.systems.matching.curriculum import Curriculum
from hatch_ray.systems.matching.data import KINDS, build_matching
from hatch_ray.systems.matching.measures import MEASURES, Case, Measured
from hatch_ray.systems.matching.questions import LEVELS
from hatch_ray.systems.matching.reply import read_reply
from hatch_ray.systems.matching.system import Matching
from hatch_ray.systems.matching.tables import by_level, measured
from tests.support.runs import REPOSITORY

CONFIG = REPOSITORY / "configs" / "wbm_tiny.yaml"
SMALL = [
    "data.samples=54", "data.heldout_samples=20", "data.rooms.train_scenes=3", "data.rooms.heldout_scenes=2",
    "data.rooms.views_per_scene=4", "curriculum.bins=2",
]  # fmt: skip


def config_of(*words: str) -> Config:
    return load_config(CONFIG, [*SMALL, *words])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("matching")
    system = system_of(config_of())
    for split in ("train", "heldout"):
        system.build("data", split, folder / split)
    return folder


@pytest.fixture(scope="module")
def samples(data: Path) -> list[Sample]:
    return read_dataset(data / "train")


def test_every_view_pair_gives_every_kind_of_question(samples: list[Sample], data: Path) -> None:
    kinds = Counter((one.meta["level"], one.meta["spread"]) for one in samples)
    assert kinds == dict.fromkeys(KINDS, 6) and len({one.meta["pair"] for one in samples}) == 6
    assert len({one.scene for one in samples}) == 3 and all(one.meta["omega"] >= 0.05 for one in samples)
    heldout = read_dataset(data / "heldout")
    assert len(heldout) == 20 and not {one.scene for one in heldout} & {one.scene for one in samples}
    summary = json.loads((data / "train" / "summary.json").read_text())
    assert summary["samples"] == 54 and summary["view_pairs"] == 6 and summary["generator"] == "matching-v1"


def test_a_dataset_is_the_same_again(data: Path, tmp_path: Path) -> None:
    system_of(config_of()).build("data", "train", tmp_path / "again")
    assert (tmp_path / "again" / "index.jsonl").read_bytes() == (data / "train" / "index.jsonl").read_bytes()


def test_marks_gold_and_question_belong_together(samples: list[Sample]) -> None:
    for one in samples:
        counts = Counter(mark.view for mark in one.marks)
        assert counts[0] == len(one.meta["gold"]) and counts[1] == one.meta["second"]
        assert json.loads(one.answer) == {str(i): str(j) if j else "none" for i, j in enumerate(one.meta["gold"], 1)}
        assert f"marks 1-{counts[0]} of the first" in one.question and f"marks 1-{counts[1]} of the" in one.question
    marked = np.asarray(model_images(samples[0], 50176)[0])
    assert marked.shape == (224, 224, 3) and (marked == (0, 255, 0)).all(axis=2).sum() > 20


@pytest.mark.parametrize("thinking", [False, True])
def test_the_gold_reply_earns_everything(samples: list[Sample], thinking: bool) -> None:
    system = system_of(config_of(f"thinking={thinking}"))
    rows = score_rows(system, "match_sft", samples, [system.gold(one, "match_sft") for one in samples])
    assert {row["terms"]["total"] for row in rows} == {2.0} and all(row["terms"]["f1"] == 1 for row in rows)
    replied = [("<thinking>a</thinking>" if thinking else "") + system.gold(one, "grpo") for one in samples]
    assert {row["terms"]["total"] for row in score_rows(system, "grpo", samples, replied)} == {2.0}
    wrong = [system.gold(one, "grpo") if thinking else "<think>a</think>" + system.gold(one, "grpo") for one in samples]
    assert {row["terms"]["total"] for row in score_rows(system, "grpo", samples, wrong)} == {1.5}


def test_prompts_ask_for_what_is_read(samples: list[Sample]) -> None:
    system = system_of(config_of("model.template=full-v1", "thinking=true"))
    texts = {stage: system.prompt(samples[0], stage)[0]["content"][-1]["text"] for stage in ("match_sft", "grpo")}
    assert "<thinking>" in texts["grpo"] and "<thinking>" not in texts["match_sft"]
    example = read_reply(texts["match_sft"][texts["match_sft"].index("<answer>\n") :], 4, 4, False)
    assert example.pairs == {1: 2, 2: 0, 3: 1, 4: 3} and not example.problems
    assert [part["type"] for part in system.prompt(samples[0], "grpo")[0]["content"]] == ["image", "image", "text"]
    with pytest.raises(ValueError, match="reserved token"):
        system.prompt(Sample.asked("<|image_pad|>", 2, "matching"), "grpo")


def test_blind_replies(samples: list[Sample]) -> None:
    system = system_of(config_of())
    replies = system.blind_replies(samples)
    found = Measured([Case.of(one.meta["gold"], one.meta["second"], one.id, {}) for one in samples], 10, 0)
    for name, texts in replies.items():
        for text, one in zip(texts, samples, strict=True):
            assert not read_reply(text, len(one.meta["gold"]), one.meta["second"], False).problems
        found.add(name, texts)

    def of(name: str, measure: str) -> float:
        interval = found.of(name, measure)
        assert interval is not None
        return interval["value"]

    assert of("none", "f1") == 0 and of("none", "none_recall") == 100 and of("random", "one_to_one") == 100
    assert of("constant", "accuracy") >= max(of(name, "accuracy") for name in ("none", "identity", "random"))


def test_the_service_reads_replies_of_any_size() -> None:
    system = system_of(config_of())
    found = system.read('<answer>{"1":"2","2":null,"3":"x"}</answer>', 2, "grpo")
    assert found.answer == '{"1":"2","2":"none"}' and found.problems == ("illegal_value",)
    assert system.read("hm", 2, "grpo").answer is None


def test_it_is_known_by_name_and_its_sampler_is_the_curriculum(samples: list[Sample]) -> None:
    assert load_system("matching") is Matching
    config = config_of()
    assert config.stages == ["match_sft", "grpo"]
    sampler = system_of(config).sampler(samples)
    assert isinstance(sampler, Curriculum) and {one.meta["level"] for one in sampler.samples(0)} == {"L1"}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ({"kind": "spar"}, "set data.kind to rooms, rgbd or scenes"),
        ({"tasks": ["position_matching"]}, "has the task wide_baseline_matching alone"),
        ({"rooms": {"image_size": 252, "train_scenes": 1}}, r"252 x 252 pixels, more than model.max_pixels=50176"),
        ({"min_overlap": 0.89, "rooms": {"train_scenes": 1}}, r"no question could be made for train \(.*out_of_range"),
    ],
)
def test_data_that_gives_no_questions_is_refused(words: dict[str, Any], told: str, tmp_path: Path) -> None:
    data = make_config({"system": "matching", "data": words}).data
    with pytest.raises(ValueError, match=told):
        build_matching(data, 0, "train", tmp_path / "train", 50176)
    assert not (tmp_path / "train").exists()


def test_a_setting_that_contradicts_the_paper_is_refused() -> None:
    with pytest.raises(ConfigError, match="one_to_one is not the paper's reward"):
        config_of("reward.paper=true", "reward.one_to_one=true")
    assert system_of(config_of("reward.paper=true")).weights()["mapping"] == 1.0


def test_figures_of_an_evaluation_are_those_of_its_rows(samples: list[Sample]) -> None:
    system = system_of(config_of())
    golds = [system.gold(one, "grpo") for one in samples]
    best = list(by_level(measured("final", score_rows(system, "grpo", samples, golds), 10, 0)))
    assert [line[:3] for line in best] == [["final", "all", "54"], *(["final", level, "18"] for level in LEVELS)]
    assert {cell for line in best for cell in line[3:]} == {"100.0", "-"}
    (none, *_) = by_level(measured("final", score_rows(system, "grpo", samples, ["hm"] * len(samples)), 10, 0))
    told = dict(zip(MEASURES, none[3:], strict=True))
    assert told["f1"] == told["accuracy"] == told["none_recall"] == told["parsed"] == "0.0"


def test_real_frames_give_the_same_kinds(redkitchen: Path, tmp_path: Path) -> None:
    """Sensor depth with holes, 640 x 480: a question of every kind for each view pair; most pairs can give them."""
    data = make_config({"data": {"kind": "rgbd", "root": str(redkitchen), "samples": 27}}).data
    summary = build_matching(data, 0, "train", tmp_path / "train", 640 * 480)
    samples = read_dataset(tmp_path / "train")
    assert Counter((one.meta["level"], one.meta["spread"]) for one in samples) == dict.fromkeys(KINDS, 3)
    assert all(0.1 <= one.meta["omega"] <= 0.9 for one in samples) and summary["view_pairs"] == 3
    by_level = {"L1": 0, "L2": 0, "L3": 3}
    assert all(sum(partner == 0 for partner in one.meta["gold"]) >= by_level[one.meta["level"]] for one in samples)
