"""What every system gets: its samples checked, blind replies to compare with, words for what it lacks."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from actors.stages.recipe import load_datasets
from examples.brighter import Brighter
from hatch_ray.config import ConfigError, make_config
from hatch_ray.data.store import read_dataset
from hatch_ray.run_folder import RunFolder
from hatch_ray.sample import Sample
from hatch_ray.systems.base import Stage


def test_a_sample_that_the_system_cannot_reward_is_refused_before_anything_starts(tmp_path: Path) -> None:
    own = make_config({"system": "examples.brighter:Brighter", "data": {"samples": 3, "heldout_samples": 3}})
    for split in ("train", "heldout"):
        Brighter(own).build("data", split, tmp_path / "data" / split)
    config = make_config({"data": {"root": str(tmp_path / "data")}, "run_dir": str(tmp_path / "run")})
    with pytest.raises(ConfigError, match="sample pair0 has the answer form 'photo'; the system hatch rewards letter"):
        load_datasets(config, RunFolder(tmp_path / "run"), Console(quiet=True))


def test_the_constant_reply_is_each_tasks_most_rewarded_one(tmp_path: Path) -> None:
    config = make_config({"system": "examples.brighter:Brighter", "data": {"samples": 21}})
    system = Brighter(config)
    system.build("data", "train", tmp_path / "train")
    samples = read_dataset(tmp_path / "train")
    first = [sample.answer for sample in samples].count("first")
    expected = "It is the first." if first > len(samples) - first else "It is the second."
    assert system.blind_replies(samples) == {"constant": [expected] * len(samples)}


def test_what_a_system_does_not_say_has_a_plain_default() -> None:
    system = Brighter(make_config({"system": "examples.brighter:Brighter"}))
    assert system.read(" It is the first.\n", 2, "grpo").answer == "It is the first."
    assert system.read("  ", 2, "grpo").problems == ("empty_answer",)
    assert not system.writes_plans("grpo")
    with pytest.raises(ValueError, match="has no grammar for constrained replies"):
        system.grammar(2, "photo", "grpo", 0, lambda text: True)
    assert system.prompt(Sample.asked("Which?", 2, "photo"), "grpo")[0]["content"][-1]["text"].startswith("Which?")


class Misnamed(Brighter):
    stages = (Stage("teach", "sft", "Teach"), Stage("practice", "grpo", "Practice"))


class Homeless(Brighter):
    stages = (Stage("teach", "sft", "Teach"), Stage("repeat", "sft", "Repeat"))


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("Misnamed", "the stage of kind grpo is called grpo, and no other one is"),
        ("Homeless", "its Config has no section repeat, which stage repeat needs"),
    ],
)
def test_a_system_that_cannot_work_is_refused_by_what_it_lacks(name: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        make_config({"system": f"tests.systems.test_base:{name}"})
