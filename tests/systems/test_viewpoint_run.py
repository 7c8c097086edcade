"""The whole recipe of viewpoint, a few steps a stage, evaluated with its controls. It has no state of its own: that a
killed run goes on to the bit is shown with HATCH and matching.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.runs import ALONE, hatch_here, rows_of

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
def test_it_is_trained_evaluated_and_reported(ray_cluster: Any, tiny_model: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    hatch_here(*words(run, tiny_model))
    rows = rows_of(run / "metrics.jsonl")
    assert [row["step"] for row in rows if row["stage"] == "view_sft"] == [1, 2]
    grpo = [row for row in rows if row["stage"] == "grpo"]
    assert len(grpo) == 2 and all({"reward_format", "reward_exact", "reward_total"} <= set(row) for row in grpo)

    output = hatch_here("eval", str(run))
    assert "exact" in output
    made = {path.stem for path in (run / "eval").glob("*.jsonl")}
    assert {"base", "view_sft", "final", "final_swapped", "final_turned_round", "constant", "one_side"} <= made
    comparison = json.loads((run / "eval" / "comparison.json").read_text())
    assert any(claim["claim"].startswith("Photos turned round") for claim in comparison["claims"])
    hatch_here("report", str(run))
    assert "always left" in (run / "report.html").read_text()
