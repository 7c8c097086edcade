"""PaStA and SFT as whole stages on real Ray Train workers: results, resuming, refusals."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from actors.runtime.checkpoints import Checkpoints
from actors.stages.pasta import run_pasta
from actors.stages.run_processes import RunProcesses
from actors.stages.sft import run_sft
from actors.stages.supervised import check_finite
from hatch_ray.config import Config, make_config
from hatch_ray.data.store import SampleOrder
from hatch_ray.learning.pasta import PairOrder, PastaObjective, make_batch, make_targets
from hatch_ray.learning.pixels import PixelCache
from hatch_ray.learning.sft import pack_samples
from hatch_ray.learning.trainer_state import make_optimizer
from hatch_ray.model.base import checksum, load_model, load_processor, part_checksum, set_trainable
from hatch_ray.model.logprobs import ReplyScorer
from hatch_ray.model.memory import workers_used
from hatch_ray.run_folder import RunFolder, read_jsonl
from hatch_ray.sample import Sample
from tests.support.hatch import encoder_of
from tests.support.trl_sft import trl_history
from tests.support.wall_scene import wall_sample


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
        "pasta": {"max_steps": 12, "batch_size": 4, "lr": 1e-3, "save_every": 5, "schedule": "cosine"},
        "qa_sft": {"max_steps": 7, "batch_size": 4, "lr": 1e-3, "save_every": 3, "schedule": "cosine"},
        "cold_start": {"max_steps": 4, "batch_size": 2, "lr": 1e-3, "save_every": 3, "fraction": 0.5},
    }
    for key, value in changes.items():
        tree[key] = tree.get(key, {}) | value
    return make_config(tree)


@pytest.fixture(scope="module")
def processes(ray_cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunProcesses]:
    """The learner's workers of all these stages: importing what one needs takes longer than any of the stages."""
    folder = tmp_path_factory.mktemp("workers")
    with RunProcesses(config_of(folder), RunFolder(folder)) as shared:
        yield shared


def pasta_by_hand(config: Config, model_path: Path, samples: list[Sample]) -> list[float]:
    """The losses of the stage, by a plain loop over whole batches with the encoder as transformers has it."""
    model, settings = load_model(model_path), config.pasta
    set_trainable(model, "vision")
    objective, pixels = PastaObjective(model.model.visual, settings), PixelCache(load_processor(model_path))
    targets = make_targets(samples, settings)
    order = PairOrder([pair.scene for pair in targets.pairs], settings.batch_size, config.seed)
    optimizer, scheduler = make_optimizer(list(model.model.visual.parameters()), settings, settings.max_steps)
    losses = []
    for step in range(settings.max_steps):
        loss = objective(make_batch(targets, order.batch(step), pixels))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.model.visual.parameters(), settings.grad_clip)
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
    return losses


def exact(run: RunFolder) -> list[dict[str, Any]]:
    """The metrics but for times."""
    timed = ("time", "samples_per_s")
    return [{k: v for k, v in row.items() if k not in timed} for row in read_jsonl(run.metrics_path)]


def damage_newest(run: RunFolder, stage: str) -> None:
    """Flip a bit of the stage's last state and drop its result: it was stopped before that state was whole."""
    newest = Checkpoints(run.checkpoints(stage)).all()[-1]
    file = next(newest.glob("*.safetensors"))
    data = bytearray(file.read_bytes())
    data[-100] ^= 1
    file.write_bytes(data)
    shutil.rmtree(run.stage_model(stage))


def resume_exactly(run: RunFolder, stage: str, again: Callable[[], Any], caplog: pytest.LogCaptureFixture) -> None:
    """Take the stage's last steps again from the state before: the same metrics and weights, to the last bit."""
    rows, weights = exact(run), checksum(load_model(run.stage_model(stage)).state_dict())
    first, last = [Checkpoints.step(path) for path in Checkpoints(run.checkpoints(stage)).all()]
    damage_newest(run, stage)
    caplog.clear()
    again()
    assert f"and the stage goes on from step-{first:06d}" in caplog.text
    assert exact(run) == rows
    assert checksum(load_model(run.stage_model(stage)).state_dict()) == weights
    assert sorted(path.name for path in run.checkpoints(stage).iterdir()) == [
        f"bad-step-{last:06d}", f"step-{first:06d}", f"step-{last:06d}"
    ]  # fmt: skip


def test_pasta_on_two_workers_stopped_and_resumed(
    processes: RunProcesses, samples: list[Sample], tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The losses are those of one process; resumed, the stage is bit-identical."""
    run, seen = RunFolder(tmp_path / "run"), []
    config = config_of(run.path, model={"base": str(tiny_model)})

    def stage() -> dict[str, Any]:
        return run_pasta(
            "pasta", config, run, tiny_model, samples[:4], samples[4:6], lambda *done: seen.append(done), processes
        )

    result = stage()
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
    pairs = table["by_pair"]
    assert len(pairs["scene"]) == table["pairs"] and sum(pairs["judged"]) == table["n"]
    for when in ("before", "after"):
        assert sum(pairs[when]) / table["n"] == pytest.approx(table[when]["mean"])
    matches = json.loads(run.evaluation("patch_matches").read_text())
    assert len(matches) == 2
    assert set(matches[0]) == {"images", "grid", "target", "before", "after", "kept"}
    (row,) = json.loads(run.evaluation("kept").read_text())["kept"]  # a model of random weights has no skills
    assert (row["name"], row["unit"], row["before"]["n"]) == ("log-probability of the right answer", "nats", 2)
    for when, folder in (("before", tiny_model), ("after", run.stage_model("pasta"))):
        encoder, model = encoder_of(load_processor(folder), "direct", config.model), load_model(folder)
        logprobs, _ = ReplyScorer(model)(pack_samples(model, encoder, samples[4:6]))
        assert len({len(encoder.reply(sample)) for sample in samples[4:6]}) == 1
        assert row[when]["value"] == pytest.approx(logprobs.mean().item(), abs=1e-4)
    assert row["gain"]["value"] == pytest.approx(row["after"]["value"] - row["before"]["value"], abs=2e-6)
    resume_exactly(run, "pasta", stage, caplog)
    assert json.loads(run.evaluation("patch_retrieval").read_text()) == table


def test_sft_on_two_workers_stopped_and_resumed(
    processes: RunProcesses, samples: list[Sample], tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The losses are those of one process; resumed inside its last epoch, the stage is bit-identical."""
    run, seen = RunFolder(tmp_path / "run"), []
    config = config_of(run.path, qa_sft={"save_every": 5})  # 2 steps an epoch: step 5 lies inside the third

    def stage() -> dict[str, Any]:
        return run_sft("qa_sft", config, run, tiny_model, samples, lambda *done: seen.append(done), processes)

    result = stage()
    rows = read_jsonl(run.metrics_path)
    assert [row["step"] for row in rows] == list(range(1, 8))
    encoder = encoder_of(load_processor(tiny_model), "direct", config.model)
    order = SampleOrder(len(samples), 4, config.seed)
    batches = [[samples[index] for index in order.indices(step)] for step in range(7)]
    settings = {"learning_rate": 1e-3, "lr_scheduler_type": "cosine", "weight_decay": 0.0, "max_grad_norm": 1.0}
    history = trl_history(load_model(tiny_model), encoder, batches, tmp_path / "alone", **settings)
    expected = [row["loss"] for row in history]
    assert [row["loss"] for row in rows] == pytest.approx(expected, rel=1e-3)
    assert all({"loss", "lr", "grad_norm", "samples_per_s"} <= row.keys() for row in rows)
    assert result["steps"] == 7
    assert result["loss_last"] < result["loss_first"]
    assert seen[-1] == (7, 7)
    assert sorted(path.name for path in (run.path / "qa_sft").iterdir()) == ["checkpoints", "model"]
    processor = load_processor(run.stage_model("qa_sft"))
    assert processor.image_processor.size == load_processor(tiny_model, config.model.max_pixels).image_processor.size
    assert load_model(run.stage_model("qa_sft")).config.get_text_config().use_cache is not False
    resume_exactly(run, "qa_sft", stage, caplog)


@pytest.mark.rest
def test_cold_start_with_lora_merges_its_adapters(
    processes: RunProcesses, samples: list[Sample], tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Resumed from its adapters, and again after its last step, the stage is bit-identical."""
    run = RunFolder(tmp_path / "run")
    config = config_of(run.path, learner={"workers": 1}, model={"lora_rank": 2}, cold_start={"max_steps": 5})

    def stage() -> dict[str, Any]:
        return run_sft("cold_start", config, run, tiny_model, samples, ignore, processes)

    result = stage()
    assert result["samples"] == 4
    assert [row["stage"] for row in read_jsonl(run.metrics_path)] == ["cold_start"] * 5
    model, base = load_model(run.stage_model("cold_start")).state_dict(), load_model(tiny_model).state_dict()
    assert model.keys() == base.keys()
    changed = {name for name in model if not torch.equal(model[name], base[name])}
    assert changed
    assert all("language_model" in name for name in changed)
    resume_exactly(run, "cold_start", stage, caplog)
    rows = exact(run)
    shutil.rmtree(run.stage_model("cold_start"))
    stage()  # the last state is there, the result is not: no step is taken again
    assert exact(run) == rows
    assert checksum(load_model(run.stage_model("cold_start")).state_dict()) == checksum(model)


@pytest.mark.rest
def test_a_loss_that_is_not_finite_stops_the_stage_with_its_step(
    processes: RunProcesses, samples: list[Sample], tiny_model: Path, tmp_path: Path
) -> None:
    run = RunFolder(tmp_path / "run")
    config = config_of(run.path, qa_sft={"lr": 1e30, "grad_clip": 1e30}, learner={"workers": 1})
    with pytest.raises(FloatingPointError, match=r"qa_sft: (loss|grad_norm) is .* at step [2-5]; lower qa_sft\.lr"):
        run_sft("qa_sft", config, run, tiny_model, samples, ignore, processes)
    assert not run.stage_model("qa_sft").exists()


def test_a_sample_too_long_is_refused_before_ray_starts(
    samples: list[Sample], tiny_model: Path, tmp_path: Path
) -> None:
    config = config_of(tmp_path, model={"max_length": 90})
    with pytest.raises(ValueError, match=r"tokens .* more than model\.max_length=90"):
        run_sft("cold_start", config, RunFolder(tmp_path), tiny_model, samples, ignore)
    assert not list(tmp_path.iterdir())


def test_workers_share_a_batch_evenly(tmp_path: Path) -> None:
    found = []
    for batch in (1, 2, 4, 6, 32):
        config = config_of(tmp_path, learner={"workers": 4}, pasta={"batch_size": batch})
        found.append(workers_used(config, "pasta"))
    assert found == [1, 2, 4, 2, 4]
    assert workers_used(config, "grpo") == 4


def test_not_finite_values_are_named() -> None:
    check_finite("pasta", 3, {"loss": 0.1})
    with pytest.raises(FloatingPointError, match=r"pasta: loss is nan at step 3; lower pasta\.lr"):
        check_finite("pasta", 3, {"loss": float("nan")})


def test_metrics_beyond_the_state_are_forgotten(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for stage, step in (("pasta", 1), ("pasta", 2), ("qa_sft", 1), ("qa_sft", 2), ("qa_sft", 3)):
        run.log(stage, step, {"loss": 1.0})
    run.forget_after("qa_sft", 1)
    assert [(row["stage"], row["step"]) for row in read_jsonl(run.metrics_path)] == [
        ("pasta", 1), ("pasta", 2), ("qa_sft", 1)
    ]  # fmt: skip
