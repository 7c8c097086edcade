"""Which model of a run that trains is the newest, and when the service is told."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

import hatch_ray.manifest
from actors.runtime.checkpoints import Checkpoints
from hatch_ray.config import make_config
from hatch_ray.run_folder import RunFolder
from serve.follow import Follower, newest_model
from serve.settings import Settings

STAGES = ("qa_sft", "grpo")


def write_model(folder: Path, weights: str) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_text(weights)


def write_state(run: RunFolder, stage: str, step: int, weights: str) -> Path:
    Checkpoints(run.checkpoints(stage)).write(step, lambda folder: write_model(folder / "model", weights))
    return run.checkpoints(stage) / f"step-{step:06d}"


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run whose question stage is done."""
    run = RunFolder(tmp_path)
    write_model(run.stage_model("qa_sft"), "a")
    run.link_model("qa_sft")
    return run


@pytest.fixture
def settings(run: RunFolder) -> Settings:
    return Settings.of(make_config({"run_dir": str(run.path)}), run)


def test_the_newest_is_the_last_good_state_of_what_still_trains(run, tmp_path, monkeypatch):
    assert newest_model(RunFolder(tmp_path / "empty"), STAGES) is None
    assert newest_model(run, STAGES) == run.stage_model("qa_sft")
    first = write_state(run, "grpo", 9, "b")
    assert newest_model(run, STAGES) == first / "model"
    second = write_state(run, "grpo", 10, "c")
    assert newest_model(run, STAGES) == second / "model"
    (second / "model" / "model.safetensors").write_text("C")
    monkeypatch.setattr(hatch_ray.manifest, "_good", set())  # as in a process that has not written the states
    assert newest_model(run, STAGES) == first / "model", "a damaged state is passed over"
    (first / "manifest.json").unlink()
    assert newest_model(run, STAGES) == run.stage_model("qa_sft"), "and a half-written one"


def test_a_stage_that_is_done_comes_before_its_states_and_those_of_former_stages(run):
    write_state(run, "grpo", 10, "b")
    write_model(run.stage_model("grpo"), "c")
    run.link_model("grpo")
    assert newest_model(run, STAGES) == run.stage_model("grpo")


def test_a_model_folder_that_is_no_link_stays(run):
    run.model.unlink()
    shutil.copytree(run.stage_model("qa_sft"), run.model)
    write_state(run, "grpo", 10, "b")
    assert newest_model(run, STAGES) == run.model


def test_the_version_and_the_way_of_asking_follow_the_stage(run, settings):
    assert settings.stage == "qa_sft"
    state = write_state(run, "grpo", 10, "b")
    newest = Follower(settings).first(settings)
    assert newest.model == str(state / "model")
    assert newest.version.startswith("grpo-")
    assert newest.stage == "grpo"


def test_each_new_model_is_told_once_and_a_wrong_one_is_refused_once(run, settings, caplog):
    told: list[str] = []
    versions: list[str] = []
    served = settings

    async def take_over(new: Settings) -> None:
        nonlocal served
        told.append(new.model)
        versions.append(new.version)
        if len(told) == 2:
            raise ValueError("other shapes")
        served = new

    follower = Follower(settings)
    follower.first(settings)

    def look() -> None:
        for _ in range(3):
            asyncio.run(follower.look(served, take_over))

    look()
    assert told == []
    states = []
    for step in (10, 20, 30):
        states.append(str(write_state(run, "grpo", step, f"weights {step}") / "model"))
        look()
    assert told == states
    (refused,) = [record.message for record in caplog.records if "not taken over" in record.message]
    assert refused.endswith(f"{versions[0]} stays: other shapes")
    write_state(run, "grpo", 40, "weights 30")  # served already
    look()
    assert len(told) == 3
