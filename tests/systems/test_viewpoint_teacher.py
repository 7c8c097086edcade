"""A teacher's thoughts: it is given the answer, and what it writes is kept where it leads there and does not tell."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from actors.commands.think import teacher_replies, think
from hatch_ray.config import ConfigError, make_config
from hatch_ray.data.store import read_dataset
from hatch_ray.systems import system_of
from hatch_ray.systems.viewpoint.teacher import asked_of_teacher, kept_thought, pool_of, write_thoughts

TREE: dict[str, Any] = {
    "system": "viewpoint",
    "model": {"max_pixels": 112 * 112, "max_length": 1024, "max_images": 2, "template": "compact-v1"},
    "rollout": {"cpus": 0.5, "kv_cache_mb": 64},
    "eval": {"max_new_tokens": 16},
    "views": {
        "samples": 40, "think_share": 0.25, "think_pool": 5,
        "rooms": {"train_scenes": 4, "heldout_scenes": 2, "image_size": 28},
    },
}  # fmt: skip
THOUGHT = "The second photo shows more of the left side, so the camera went there."


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    system_of(make_config(TREE)).build("views", "train", tmp_path / "train")
    return tmp_path / "train"


def test_the_teacher_is_given_what_is_right(dataset: Path) -> None:
    pool = pool_of(read_dataset(dataset))
    assert len(pool) == 5
    for sample in pool.values():
        asked = asked_of_teacher(sample)
        assert asked.question.startswith(sample.question) and f"The right answer is {sample.answer}." in asked.question
        went = "right" if sample.meta["lateral"] > 0 else "left"
        assert f"its place moved to the {went}, about" in asked.question and asked.views == sample.views
    direct = [sample for sample in read_dataset(dataset) if "thought" not in sample.meta]
    with pytest.raises(ValueError, match="no sample of the dataset has a thought"):
        pool_of(direct)


@pytest.mark.parametrize(
    ("thought", "answer", "reason"),
    [
        (THOUGHT, "gold", ""),
        (THOUGHT, "other", "other_answer"),
        ("It went left.", "gold", "too_short"),
        ("As stated, the camera moved to the left and turned to the right.", "gold", "leak"),
        ("Both photos agree with the given answer, so that is what I choose here.", "gold", "leak"),
        ("We are told that it turned by thirty degrees, hence it moved to the left.", "gold", "leak"),
        ("Given how far the chair has shifted, the camera must have moved to the left.", "gold", ""),
        ("", "gold", "format:empty_think_block"),
    ],
)
def test_what_is_kept(thought: str, answer: str, reason: str, dataset: Path) -> None:
    sample = next(iter(pool_of(read_dataset(dataset)).values()))
    letter = sample.answer if answer == "gold" else next(x for x in "ABC" if x != sample.answer)
    gold = (2, sample.answer, "letter")
    found = kept_thought(f"<think>{thought}</think><answer>{letter}</answer>", *gold)
    assert found == (("", reason) if reason else (thought, ""))
    assert kept_thought(f"{thought}<answer>{sample.answer}</answer>", *gold)[1].startswith("format:no_think")


def test_kept_thoughts_come_in_turn_and_others_stay(dataset: Path) -> None:
    before = {sample.id: sample for sample in read_dataset(dataset)}
    pool = pool_of(list(before.values()))
    first, second, *_ = pool.values()
    names = list(pool)
    good = [f"<think>{THOUGHT} ({k})</think><answer>{first.answer}</answer>" for k in range(2)]
    replies = {names[0]: [*good, "no"], names[1]: ["<think>hm</think><answer>Z</answer>"]}
    told = write_thoughts(dataset, replies, "teacher-7b")
    assert (told["asked"], told["replies"], told["kept"], told["samples"]) == (2, 4, 2, 2)
    assert told["refused"] == {"format:no_answer_block": 1, "other_answer": 1}
    after = {sample.id: sample for sample in read_dataset(dataset)}
    assert after.keys() == before.keys()
    for name, sample in after.items():
        if name.startswith(f"{names[0]}-thought-"):
            assert sample.meta["thought"] == f"{THOUGHT} ({int(name[-1]) % 2})"
            assert sample.meta["thought_by"] == "teacher-7b"
        else:
            assert sample.meta == before[name].meta
    summary = json.loads((dataset / "summary.json").read_text())
    assert summary["thoughts"] == told and summary["samples"] == 40
    assert second.meta["thought"]


def test_only_letters_of_viewpoint_have_thoughts(tmp_path: Path) -> None:
    from rich.console import Console

    for tree in ({}, {"system": "viewpoint", "reward": {"kind": "actions"}}):
        with pytest.raises(ConfigError, match="hatch data think writes the thoughts of viewpoint"):
            think(make_config(tree), tmp_path, 1, Console())


@pytest.mark.rest
def test_a_model_is_asked(engine_pool: Callable[..., Any], tiny_model: Path, dataset: Path) -> None:
    config = make_config(TREE)
    pool = pool_of(read_dataset(dataset))
    replies = teacher_replies(engine_pool(tiny_model, config), config, tiny_model, pool, 2, lambda *_: None)
    assert replies.keys() == pool.keys() and all(len(texts) == 2 for texts in replies.values())
    told = write_thoughts(dataset, replies, "tiny")
    assert told["replies"] == 10 and told["kept"] + sum(told["refused"].values()) == 10
