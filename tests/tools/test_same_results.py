"""What `tools/same_results.py` says of two runs, on folders made by hand."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tools import same_results
from tools.same_results import checked_out, compare, rows_of, table

WEIGHTS = {"layer": np.arange(6, dtype=np.float32).reshape(2, 3), "bias": np.zeros(3, np.float32)}


def make_run(folder: Path, second: dict[str, Any] | None = None) -> Path:
    """Two stages of two steps, each with a model; `second` is added to GRPO's second step. Times are never the same."""
    rows: list[dict[str, Any]] = []
    for number, stage in enumerate(("cold_start", "grpo")):
        for step in (1, 2):
            took = {name: random.random() for name in ("time", "seconds_learn", "tokens_per_s")}
            rows.append({"stage": stage, "step": step, "loss": 0.1 * step, "reward": None} | took)
        (folder / stage / "model").mkdir(parents=True)
        save_file({name: weight + number for name, weight in WEIGHTS.items()}, model_of(folder, stage))
    rows[-1] |= second or {}
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return folder


def model_of(run: Path, stage: str) -> Path:
    return run / stage / "model" / "model.safetensors"


@pytest.fixture
def before(tmp_path: Path) -> Path:
    return make_run(tmp_path / "before")


def test_equal_runs_are_equal_to_the_bit(before, tmp_path):
    rows = compare("seed 0", before, make_run(tmp_path / "after"), {})
    assert [(row.stage, row.metrics, row.weights, row.trained) for row in rows] == [
        ("cold_start", 2, 2, 2), ("grpo", 2, 2, 2),
    ]  # fmt: skip
    assert not any(row.differences or row.added for row in rows)
    assert "| seed 0 | grpo | 2 | 2 | 2 | equal to the bit |" in table(rows)


def test_the_last_bit_of_a_metric_and_of_a_weight_is_seen(before, tmp_path):
    after = make_run(tmp_path / "after", {"loss": float(np.nextafter(0.2, 1)), "reward": 0.0})
    weights = load_file(model_of(after, "cold_start"))
    weights["bias"][1] = np.nextafter(weights["bias"][1], np.float32(1))
    save_file(weights, model_of(after, "cold_start"))
    cold_start, grpo = compare("seed 0", before, after, {})
    assert [text[:5] for text in cold_start.differences] == ["bias:"]
    assert grpo.differences[0].startswith("loss at step 2: 0.2 before, 0.2000000")
    assert "DIFFERS: loss at step 2" in table([grpo]) and "(and 1 more)" in table([grpo])


def test_what_one_side_has_alone_is_said(before, tmp_path):
    after = make_run(tmp_path / "after", {"entropy": 1.0})
    rows = compare("seed 0", before, after, {})
    assert not any(row.differences for row in rows), "what is new differs from nothing"
    assert table(rows).endswith("\ngrpo: entropy: after only")
    model_of(after, "grpo").unlink()
    back = compare("seed 0", before, after, {})[1], compare("seed 0", after, before, {}, ("killed", "left alone"))[1]
    assert [row.differences for row in back] == [["model.safetensors: before only"], ["entropy: killed only"]]
    (after / "metrics.jsonl").write_text("".join((after / "metrics.jsonl").read_text().splitlines(True)[:3]) + '{"st')
    assert len(rows_of(after)) == 3, "a line that is being written is none yet"
    assert compare("seed 0", before, after, {})[1].differences[0] == "loss at step 2: 0.2 before, nothing after"


def test_a_renamed_metric_is_the_same_one(before, tmp_path):
    after = make_run(tmp_path / "after")
    text = (after / "metrics.jsonl").read_text()
    (after / "metrics.jsonl").write_text(text.replace('"reward"', '"score"'))
    assert "reward: before only" in compare("seed 0", before, after, {})[1].differences
    assert not compare("seed 0", before, after, {"reward": "score"})[1].differences


def test_a_stage_that_trained_nothing_shows_nothing(before, tmp_path):
    after = make_run(tmp_path / "after")
    for run in (before, after):
        model_of(run, "grpo").write_bytes(model_of(run, "cold_start").read_bytes())
    assert compare("seed 0", before, after, {})[1].differences == ["no weight was trained, so that nothing is shown"]


def test_an_unknown_commit_is_one_line(tmp_path):
    with pytest.raises(ValueError, match="--before nothing"), checked_out("nothing", tmp_path / "tree"):
        raise AssertionError("not reached")


@pytest.mark.parametrize("loss", [0.2, 0.3])
def test_the_command_compares_both_trees_and_the_killed_runs(loss, tmp_path, monkeypatch, capsys):
    """Folders made by hand in place of training, of this commit's tree and of this one."""

    def train(tree: Path, run: Path, seed: int, killed: bool = False) -> None:
        assert (tree / "configs" / "tiny.yaml").is_file() and killed == (run.name == "killed")
        make_run(run, {"loss": loss} if run.parent.name == "after" and run.name == "seed-1" else None)

    monkeypatch.setattr(same_results, "train", train)
    monkeypatch.setattr("sys.argv", ["same_results.py", "--before", "HEAD"])
    assert same_results.main() == (loss != 0.2)
    lines = capsys.readouterr().out.splitlines()
    assert sum("equal to the bit" in line for line in lines) == (8 if loss == 0.2 else 7)
    assert ("| seed 1 | grpo | 2 | 2 | 2 | DIFFERS: loss at step 2: 0.2 before, 0.3 after |" in lines) == (loss != 0.2)
