"""A run of wide-baseline matching on rendered rooms: trained, killed and resumed to the bit, evaluated, reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hatch_ray.config import load_config
from hatch_ray.data.store import read_dataset
from hatch_ray.run_folder import RunFolder
from hatch_ray.systems.matching.curriculum import Curriculum
from hatch_ray.systems.matching.settings import MatchingConfig
from hatch_ray.systems.matching.tables import by_level, main, measured, way
from tests.support.runs import ALONE, differences, hatch_here, kill_and_go_on, rows_of

pytestmark = pytest.mark.rest

SHORT = [
    "data.samples=54", "data.heldout_samples=18", "data.rooms.train_scenes=3", "data.rooms.heldout_scenes=2",
    "data.rooms.views_per_scene=4", "curriculum.bins=2", "curriculum.window=1", "curriculum.demote_after=1",
    "match_sft.max_steps=2", "match_sft.save_every=1", "grpo.max_steps=2", "grpo.prompts_per_step=2",
    "grpo.group_size=4", "grpo.max_new_tokens=24", "grpo.save_every=1", "grpo.redraw=1", "eval.samples=18",
    "eval.bootstrap=100", "eval.max_new_tokens=24", *ALONE,
]  # fmt: skip


def words(run: Path, model: Path) -> list[str]:
    return ["train", "configs/wbm_tiny.yaml", f"run_dir={run}", f"model.base={model}", *SHORT]


@pytest.fixture(scope="module")
def run(ray_cluster: Any, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    run = tmp_path_factory.mktemp("runs") / "matching"
    hatch_here(*words(run, tiny_model))
    return run


def test_a_run_that_is_killed_goes_on_to_the_same_bits(run: Path, tiny_model: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    output = kill_and_go_on(words(again, tiny_model), again, 1)
    assert "Match SFT: the form of the answer: already done" in output
    assert differences(run, again) == []


def test_its_ledger_is_all_that_the_curriculum_needs(run: Path) -> None:
    config = load_config(run / "config.yaml")
    assert isinstance(config, MatchingConfig)
    sampler = Curriculum(config, read_dataset(run / "data" / "train"))
    ledger, redrawn = rows_of(run / "ledger.jsonl"), 0
    for step in range(2):
        rows = [row for row in ledger if row["step"] == step]
        first, again = ([row["id"] for row in rows if bool(row.get("draw")) is late] for late in (False, True))
        assert first == [one.id for one in sampler.samples(step)]
        assert again == [one.id for one in sampler.others(step, 1, set(first), len(again))]
        flat = [row["place"] for row in rows if row["status"] == "redrawn"]
        assert flat == [row["place"] for row in rows if row.get("draw")], "each gave its place to another one"
        redrawn += len(flat)
        sampler.observe(step, rows)
    counted = [row["redrawn_groups"] for row in rows_of(run / "metrics.jsonl") if row["stage"] == "grpo"]
    assert sum(counted) == redrawn > 0
    told = [row["asks_bin"] for row in rows_of(run / "metrics.jsonl") if row["stage"] == "grpo"]
    assert len(told) == 2 and told[0] == 0 and set(told) <= {0, 1, 2}
    steps = list(way(RunFolder(run), config))
    assert [step for step, _ in steps] == ([1] if told[0] == told[1] else [1, 2])
    assert steps[0][1] == {"bin": "1 of 2", "level": "L1"} | dict.fromkeys(("L1", "L2", "L3"), "sparse")


def test_it_is_evaluated_and_reported(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = hatch_here("eval", str(run))
    assert "best constant" in output and "all none" in output and "F1" in output
    rows = rows_of(run / "eval" / "none.jsonl")
    figures = measured("none", rows, 100, 0)
    whole = {name: found["value"] for name, found in figures.whole("none").items() if found}
    assert [line[1] for line in by_level(figures)] == ["all", "L1", "L2", "L3"] and whole["f1"] == 0
    assert figures.of("none", "accuracy", figures.parts("level")["L1"])["value"] == 0  # type: ignore[index]
    assert json.loads((run / "eval" / "none.json").read_text())["overall"]["match"]["value"] == pytest.approx(
        whole["accuracy"] / 100, abs=1e-6
    )
    main(run)
    printed = capsys.readouterr().out
    assert "1:1" in printed and "identity" in printed and "step 1: bin 1 of 2, level L1, L1 sparse" in printed
    hatch_here("report", str(run))
    page = (run / "report.html").read_text()
    assert "Match SFT" in page and "what was asked by step" in page
