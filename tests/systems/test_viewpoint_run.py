"""The whole recipe of viewpoint, a few steps a stage: killed and resumed to the bit, evaluated with its controls."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.runs import ALONE, differences, finish, hatch_here, kill, rows_of, start, wait_for_step

SHORT = [
    "views.samples=24", "views.heldout_samples=8", "data.samples=12", "data.heldout_samples=12",
    "views.rooms.train_scenes=4", "views.rooms.heldout_scenes=3", "data.rooms.train_scenes=4",
    "data.rooms.heldout_scenes=4", "view_sft.max_steps=2", "view_sft.batch_size=4", "view_sft.save_every=1",
    "grpo.max_steps=2", "grpo.prompts_per_step=2", "grpo.group_size=4", "grpo.save_every=1", "grpo.max_new_tokens=24",
    "eval.samples=12", "eval.max_new_tokens=24", "eval.bootstrap=100", *ALONE,
]  # fmt: skip


def words(run: Path, model: Path) -> list[str]:
    return ["train", "configs/viewpoint_tiny.yaml", f"run_dir={run}", f"model.base={model}", *SHORT]


@pytest.mark.rest
def test_trained_killed_and_resumed_to_the_bit_then_evaluated(
    ray_cluster: Any, tiny_model: Path, tmp_path: Path
) -> None:
    run, again = tmp_path / "run", tmp_path / "again"
    hatch_here(*words(run, tiny_model))
    rows = rows_of(run / "metrics.jsonl")
    assert [row["step"] for row in rows if row["stage"] == "view_sft"] == [1, 2]
    grpo = [row for row in rows if row["stage"] == "grpo"]
    assert len(grpo) == 2 and all({"reward_format", "reward_exact", "reward_total"} <= set(row) for row in grpo)

    process = start(words(again, tiny_model))
    wait_for_step(process, again, "grpo", 1, timeout=240)
    kill(process)
    process = start(words(again, tiny_model))
    output = finish(process, 240)
    assert process.returncode == 0, output
    assert "View SFT: which way the camera went and turned: already done" in output
    assert differences(run, again) == []

    output = hatch_here("eval", str(run))
    assert "exact" in output
    made = {path.stem for path in (run / "eval").glob("*.jsonl")}
    assert {"base", "view_sft", "final", "final_swapped", "final_turned_round", "constant", "one_side"} <= made
    comparison = json.loads((run / "eval" / "comparison.json").read_text())
    assert any(claim["claim"].startswith("Photos turned round") for claim in comparison["claims"])
    hatch_here("report", str(run))
    assert "always left" in (run / "report.html").read_text()
