"""PaStA and SFT as whole stages on real Ray Train workers: results, resuming, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from wall_scene import wall_sample

from actors.fit import Checkpoints, forget_after, stage_workers
from actors.supervised import check_finite, run_pasta, run_sft
from hatch_ray.config import Config, make_config
from hatch_ray.learning.pasta import PairOrder, PastaObjective, make_batch, make_targets
from hatch_ray.learning.pixels import PixelCache
from hatch_ray.learning.sft import SampleEncoder, make_trainer, trl_config
from hatch_ray.model.base import load_model, load_processor, part_checksum, set_trainable
from hatch_ray.run_folder import RunFolder, read_jsonl
from hatch_ray.sample import Sample


def ignore(done: int, total: int) -> None:
    """A progress report that nobody reads."""


PLACES = [(0.0, 0.0), (1.3, 0.2), (0.4, 1.2)]


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    folder = tmp_path_factory.mktemp("walls")
    return [wall_sample(folder, seed, PLACES, other_light=True) for seed in range(8)]


def config_of(run: Path, **changes: Any) -> Config:
    tree: dict[str, Any] = {
        "run_dir": str(run),
        "model": {"template": "compact-v1", "max_length": 512},
        "learner": {"workers": 2, "cpus": 1},
        "grpo": {"prompts_per_step": 4},
        "pasta": {"max_steps": 12, "batch_size": 4, "lr": 1e-3, "save_every": 5},
        "qa_sft": {"max_steps": 6, "batch_size": 4, "lr": 1e-3, "save_every": 4},
        "cold_start": {"max_steps": 4, "batch_size": 2, "lr": 1e-3, "save_every": 3, "fraction": 0.5},
    }
    for key, value in changes.items():
        tree[key] = tree.get(key, {}) | value
    return make_config(tree)


def pasta_by_hand(config: Config, model_path: Path, samples: list[Sample]) -> list[float]:
    """The losses of the stage, by a plain loop over whole batches with the encoder as transformers has it."""
    model, settings = load_model(model_path), config.pasta
    set_trainable(model, "vision")
    objective, pixels = PastaObjective(model.model.visual, settings), PixelCache(load_processor(model_path))
    targets = make_targets(samples, settings)
    order = PairOrder([pair.scene for pair in targets.pairs], settings.batch_size, config.seed)
    optimizer = torch.optim.AdamW(model.model.visual.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    losses = []
    for step in range(settings.max_steps):
        loss = objective(make_batch(targets, order.batch(step), pixels))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.model.visual.parameters(), settings.grad_clip)
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.slow
def test_pasta_on_two_workers_stopped_and_resumed(
    ray_cluster: Any, samples: list[Sample], tiny_model: Path, tmp_path: Path
) -> None:
    """Seven steps, then on to twelve: the losses are those of one process that never stopped."""
    run, seen = RunFolder(tmp_path / "run"), []
    run_pasta(config_of(run.path, pasta={"max_steps": 7}), run, tiny_model, samples[:4], samples[4:6], ignore)
    run.log("pasta", 9, {"loss": 1.0})  # of a step that a killed process had taken after its last checkpoint
    config = config_of(run.path)
    result = run_pasta(config, run, tiny_model, samples[:4], samples[4:6], lambda *done: seen.append(done))
    rows = read_jsonl(run.metrics_path)
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert [row["loss"] for row in rows] == pytest.approx(pasta_by_hand(config, tiny_model, samples[:4]), rel=1e-3)
    assert all({"loss", "lr", "grad_norm", "samples_per_s"} <= row.keys() for row in rows)
    assert seen[-1] == (12, 12)
    assert result["steps"] == 12
    assert "patch retrieval on held-out views" in result["line"]
    before, after = load_model(tiny_model), load_model(run.stage_model("pasta"))
    assert part_checksum(before, "language") == part_checksum(after, "language")
    assert part_checksum(before, "vision") != part_checksum(after, "vision")
    assert load_processor(run.stage_model("pasta")).chat_template == load_processor(tiny_model).chat_template
    table = json.loads(run.evaluation("patch_retrieval").read_text())
    assert set(table["before"]) == {"mean", "low", "high"}
    assert table["after"]["mean"] > table["before"]["mean"]
    matches = json.loads(run.evaluation("patch_matches").read_text())
    assert len(matches) == 2
    assert set(matches[0]) == {"images", "grid", "target", "before", "after", "kept"}
    assert sorted(path.name for path in run.checkpoints("pasta").iterdir()) == ["step-000012"]


@pytest.mark.slow
def test_sft_on_two_workers_stopped_and_resumed(
    ray_cluster: Any, samples: list[Sample], tiny_model: Path, tmp_path: Path
) -> None:
    """Three steps, then on to six: the losses are those of one process that never stopped."""
    run, seen = RunFolder(tmp_path / "run"), []
    run_sft("qa_sft", config_of(run.path, qa_sft={"max_steps": 3}), run, tiny_model, samples, ignore)
    config = config_of(run.path)
    result = run_sft("qa_sft", config, run, tiny_model, samples, lambda *done: seen.append(done))
    rows = read_jsonl(run.metrics_path)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    encoder = SampleEncoder(load_processor(tiny_model), "direct", config.model)
    arguments = trl_config(config.qa_sft, config.model, tmp_path / "alone", 1, gpu=False, seed=config.seed)
    alone = make_trainer(load_model(tiny_model), encoder, samples, arguments)
    alone.train()
    expected = [row["loss"] for row in alone.state.log_history if "loss" in row]
    assert [row["loss"] for row in rows] == pytest.approx(expected, rel=1e-3)
    assert all({"loss", "lr", "grad_norm", "samples_per_s", "token_accuracy"} <= row.keys() for row in rows)
    assert result["steps"] == 6
    assert result["loss_last"] < result["loss_first"]
    assert seen[-1] == (6, 6)
    assert sorted(path.name for path in (run.path / "qa_sft").iterdir()) == ["checkpoints", "model"]
    assert sorted(path.name for path in run.checkpoints("qa_sft").iterdir()) == ["step-000006"]
    processor = load_processor(run.stage_model("qa_sft"))
    assert processor.image_processor.size == load_processor(tiny_model, config.model.max_pixels).image_processor.size
    assert load_model(run.stage_model("qa_sft")).config.get_text_config().use_cache is not False


@pytest.mark.slow
def test_cold_start_with_lora_merges_its_adapters(
    ray_cluster: Any, samples: list[Sample], tiny_model: Path, tmp_path: Path
) -> None:
    run = RunFolder(tmp_path / "run")
    config = config_of(run.path, learner={"workers": 1}, model={"lora_rank": 2})
    result = run_sft("cold_start", config, run, tiny_model, samples, ignore)
    assert result["samples"] == 4
    assert [row["stage"] for row in read_jsonl(run.metrics_path)] == ["cold_start"] * 4
    model, base = load_model(run.stage_model("cold_start")).state_dict(), load_model(tiny_model).state_dict()
    assert model.keys() == base.keys()
    changed = {name for name in model if not torch.equal(model[name], base[name])}
    assert changed
    assert all("language_model" in name for name in changed)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_stage_with_its_step(
    ray_cluster: Any, samples: list[Sample], tiny_model: Path, tmp_path: Path
) -> None:
    run = RunFolder(tmp_path / "run")
    config = config_of(run.path, qa_sft={"lr": 1e30, "grad_clip": 1e30}, learner={"workers": 1})
    with pytest.raises(FloatingPointError, match=r"qa_sft: (loss|grad_norm) is .* at step [2-5]; lower qa_sft\.lr"):
        run_sft("qa_sft", config, run, tiny_model, samples, ignore)
    assert not run.stage_model("qa_sft").exists()


def test_a_sample_too_long_is_refused_before_ray_starts(
    samples: list[Sample], tiny_model: Path, tmp_path: Path
) -> None:
    config = config_of(tmp_path, model={"max_length": 90})
    with pytest.raises(ValueError, match=r"tokens .* more than model\.max_length=90"):
        run_sft("cold_start", config, RunFolder(tmp_path), tiny_model, samples, ignore)
    assert not list(tmp_path.iterdir())


def test_workers_share_a_batch_evenly(tmp_path: Path) -> None:
    config = config_of(tmp_path, learner={"workers": 4})
    assert [stage_workers(config, batch) for batch in (1, 2, 4, 6, 32)] == [1, 2, 4, 2, 4]


def test_not_finite_values_are_named() -> None:
    check_finite("pasta", 3, {"loss": 0.1})
    with pytest.raises(FloatingPointError, match=r"pasta: loss is nan at step 3; lower pasta\.lr"):
        check_finite("pasta", 3, {"loss": float("nan")})


def test_checkpoints_are_whole_and_only_the_newest_stays(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "states")
    assert checkpoints.latest() is None
    for step in (5, 10):
        with checkpoints.write(step) as folder:
            (folder / "state.pt").write_text(str(step))
    with pytest.raises(RuntimeError, match="killed"), checkpoints.write(15) as folder:
        raise RuntimeError("killed")
    latest = checkpoints.latest()
    assert latest is not None
    assert checkpoints.step(latest) == 10
    assert (latest / "state.pt").read_text() == "10"
    assert sorted(path.name for path in checkpoints.folder.glob("step-*")) == ["step-000010"]


def test_metrics_beyond_the_state_are_forgotten(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for stage, step in (("pasta", 1), ("pasta", 2), ("qa_sft", 1), ("qa_sft", 2), ("qa_sft", 3)):
        run.log(stage, step, {"loss": 1.0})
    forget_after(run, "qa_sft", 1)
    assert [(row["stage"], row["step"]) for row in read_jsonl(run.metrics_path)] == [
        ("pasta", 1), ("pasta", 2), ("qa_sft", 1)
    ]  # fmt: skip
