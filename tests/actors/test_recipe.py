"""Two stages of the recipe for real, in small. One run is left alone; another loses its driver in both stages, an
engine, a reward actor and a learner worker: both end alike, to the last bit. (`make chaos` does that with all four
stages.)
"""

import json
import shutil
import tempfile
import time
from pathlib import Path

import pytest
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

from hatch_ray.config import ConfigError
from tests.support.runs import (
    ALONE,
    ROOMS,
    SHORT,
    differences,
    finish,
    hatch_here,
    kill,
    kill_worker,
    metrics,
    rows_of,
    start,
    wait_for_step,
)  # fmt: skip
from tests.support.taught import TASKS

STAGES = ["cold_start", "grpo"]
"""PaStA and QA SFT, stopped and resumed, are in test_supervised_stage."""
STEPS = 8
"""GRPO steps: enough that each fault meets a run at work."""


def words(run: Path, model: Path, *more: str) -> list[str]:
    """One reward actor: of several, one that dies without work is noticed when it is given some, which these steps are
    too short for. A batch of three leaves the first stage to one of two workers, which starts the sooner.
    """
    return [
        "train", "configs/tiny.yaml", f"run_dir={run}", f"model.base={model}", *SHORT, *ROOMS,
        f"data.tasks=[{','.join(TASKS)}]", f"stages=[{','.join(STAGES)}]",
        "cold_start.batch_size=3", f"grpo.max_steps={STEPS}", "grpo.save_every=2", "grpo.lr=5e-4",
        "reward_actors.actors=1", *more,
    ]  # fmt: skip


def lose(process, run: Path, title: str, step: int, stage: str = "grpo") -> None:
    """kill -9 of the run's worker of that title once the step is logged; until the run has noticed."""
    wait_for_step(process, run, stage, step, timeout=240)
    before = len(rows_of(run / "recoveries.jsonl"))
    kill_worker(process, title)
    end = time.monotonic() + 240
    while len(rows_of(run / "recoveries.jsonl")) <= before:
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < end, "no recovery"
        time.sleep(0.1)


def finished(process) -> str:
    """The output of a run that must come to its end."""
    output = finish(process, 300)
    assert process.returncode == 0, output
    return output


@pytest.fixture(scope="module")
def undisturbed(ray_cluster, taught_model, tmp_path_factory):
    """The run that loses nothing."""
    run = tmp_path_factory.mktemp("runs") / "undisturbed"
    hatch_here(*words(run, taught_model, *ALONE))
    return run


@pytest.fixture(scope="module")
def without_driver(taught_model, tmp_path_factory):
    """A run that lost its driver in its first stage."""
    run = tmp_path_factory.mktemp("runs") / "disturbed"
    process = start(words(run, taught_model, *ALONE))
    wait_for_step(process, run, "cold_start", 1, timeout=240)
    kill(process)
    return run


@pytest.fixture(scope="module")
def without_sampling(without_driver, taught_model):
    """That run, its command typed again, which then lost an engine at work, a reward actor, and its driver again."""
    process = start(words(without_driver, taught_model, *ALONE))
    lose(process, without_driver, "RolloutEngine.generate", 1)
    lose(process, without_driver, "Verifier", 2)
    wait_for_step(process, without_driver, "grpo", 3, timeout=240)
    kill(process)
    return without_driver


@pytest.fixture(scope="module")
def disturbed(without_sampling, taught_model):
    """(run, output of the last start) of that run, typed a third time, which then lost its learner's worker."""
    process = start(words(without_sampling, taught_model, *ALONE))
    lose(process, without_sampling, "RayTrainWorker", 4)
    return without_sampling, finished(process)


def test_a_driver_dies_in_the_first_stage(without_driver):
    assert not (without_driver / "grpo").exists() and metrics(without_driver, "cold_start")


def test_an_engine_and_a_reward_actor_die_and_again_the_driver(without_sampling):
    assert [row["what"] for row in rows_of(without_sampling / "recoveries.jsonl")] == ["rollout engine", "reward actor"]
    assert not (without_sampling / "grpo" / "model").exists()


def test_a_learner_worker_dies_and_each_recovery_is_told_and_counted(disturbed):
    run, output = disturbed
    told = [row["what"] for row in rows_of(run / "recoveries.jsonl")]
    assert told == ["rollout engine", "reward actor", "learner worker"]
    assert "already done" in output and "GRPO" in output


def test_deaths_change_no_bit_of_the_run(undisturbed, disturbed):
    assert differences(undisturbed, disturbed[0]) == []
    learned = [row["grad_norm"] for row in metrics(disturbed[0], "grpo")]
    assert sum(norm > 0 for norm in learned) >= STEPS // 2, "nothing was learned that could have differed"


def test_every_group_of_the_run_is_trained_once(disturbed):
    run, _ = disturbed
    ledger = rows_of(run / "ledger.jsonl")
    assert [row["place"] for row in ledger] == list(range(2 * STEPS))
    assert {row["status"] for row in ledger} == {"trained"}
    assert [row["step"] for row in metrics(run, "grpo")] == list(range(1, STEPS + 1))


def test_every_stage_leaves_a_hugging_face_folder(disturbed):
    run, _ = disturbed
    for stage in STAGES:
        folder = run / stage / "model"
        model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder)
        assert model.num_parameters() > 1e5
        assert AutoProcessor.from_pretrained(folder).tokenizer.eos_token_id is not None
    assert (run / "model").resolve() == (run / "grpo" / "model").resolve()


def test_samples_hold_each_reward_term(disturbed):
    run, _ = disturbed
    rows = rows_of(run / "samples" / "grpo.jsonl")
    assert len(rows) == STEPS * 2 * 4
    assert {"completion", "images", "question", "advantage", "plans", "terms", "measures", "reasons"} <= set(rows[0])
    assert {row["step"] for row in rows} == set(range(STEPS))
    assert list(rows[0]["terms"]) == ["answer", "format", "action", "total"]
    assert list(rows[0]["measures"]) == ["d_t", "d_r"]


def test_eval_and_report_of_the_run(ray_cluster, undisturbed):
    output = hatch_here("eval", str(undisturbed))
    assert "images swapped" in output and "best constant" in output
    final = json.loads((undisturbed / "eval" / "final.json").read_text())
    assert final["samples"] == 12 and final["overall"]["format"]["low"] <= final["overall"]["format"]["high"]
    hatch_here("report", str(undisturbed))
    page = (undisturbed / "report.html").read_text()
    assert "<svg" in page and "data:image/" in page and "http://" not in page.replace("http://www.w3.org", "")
    assert list((undisturbed / "tensorboard" / "grpo").iterdir())


def test_another_config_is_refused_by_name(undisturbed, taught_model):
    with pytest.raises(ConfigError, match=r"grpo\.beta.*0\.5"):
        hatch_here(*words(undisturbed, taught_model, *ALONE, "grpo.beta=0.5"))


@pytest.mark.rest
@pytest.mark.timeout(900)  # engines that read over NIXL keep both cores of a small machine busy
def test_two_of_each_role_and_the_other_carrier(ray_cluster, taught_model, tmp_path):
    """Two engines and two workers of the learner, whose weights NIXL carries; on a machine that holds what a killed
    cluster leaves behind. The run ends as one that lost nothing, and whose weights went through the object store.
    """
    run, reference = tmp_path / "run", tmp_path / "reference"
    with tempfile.TemporaryDirectory(prefix="hatch-", dir="/tmp", ignore_cleanup_errors=True) as scratch:
        (Path(scratch) / "ray").mkdir()
        (Path(scratch) / "ray" / "ray_current_cluster").write_text("127.0.0.1:1")
        said, environment = words(run, taught_model, "rollout.weights=nixl"), {"RAY_TMPDIR": scratch}
        process = start(said, environment)
        for title in ("RolloutEngine.generate", "Verifier", "RayTrainWorker"):
            lose(process, run, title, 1 + len(rows_of(run / "recoveries.jsonl")))
        finished(process)
    hatch_here(*words(reference, taught_model))
    assert differences(reference, run) == []


def test_the_same_on_a_dozen_real_frames(ray_cluster, redkitchen, tiny_model, tmp_path):
    """PaStA, the stage that looks at the frames' depth and poses."""
    frames = tmp_path / "frames"
    frames.mkdir()
    names = sorted(path.name.removesuffix(".pose.txt") for path in redkitchen.glob("*.pose.txt"))[::12][:12]
    for file in [*redkitchen.glob("*.txt"), *(found for name in names for found in redkitchen.glob(f"{name}.*"))]:
        if not file.name.startswith("frame") or file.name.split(".")[0] in names:
            shutil.copy(file, frames)
    run = tmp_path / "run"
    hatch_here(
        "train", "configs/rgbd_tiny.yaml", f"run_dir={run}", f"data.root={frames}",
        f"model.base={tiny_model}", *SHORT, *ALONE, "stages=[pasta]", "data.heldout_fraction=0.5",
        "data.max_overlap=1.0", "data.heldout_samples=6",
    )  # fmt: skip
    summary = json.loads((run / "data" / "train" / "summary.json").read_text())
    assert summary["samples"] > 0
    assert [row["step"] for row in metrics(run, "pasta")] == [1, 2, 3]
