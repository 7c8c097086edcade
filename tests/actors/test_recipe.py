"""Two stages of the recipe for real, in small. One run is left alone; another loses its driver in both stages, an
engine, a judge and a learner worker, and has its weights carried by the other carrier: both end alike, to the last bit.
(`make chaos` does that with all four stages.)
"""

import json
import shutil
import tempfile
import time
from pathlib import Path

import pytest
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

from tests.support.runs import (
    ALONE,
    ROOMS,
    SHORT,
    differences,
    finish,
    hatch,
    kill,
    kill_worker,
    metrics,
    rows_of,
    start,
    wait_for_step,
)
from tests.support.taught import TASKS

STAGES = ["cold_start", "grpo"]
"""PaStA and QA SFT, stopped and resumed, are in test_supervised_stage."""
STEPS = 8
"""GRPO steps: enough that each fault meets a run at work."""

pytestmark = pytest.mark.rest


def words(run: Path, model: Path, *more: str) -> list[str]:
    """A batch of three leaves the first stage to one of the learner's two workers, which starts the sooner. One judge:
    of several, one that dies without work is noticed when it is given some, which these steps are too short for.
    """
    return [
        "train", "configs/tiny.yaml", f"run_dir={run}", f"model.base={model}", *SHORT, *ROOMS,
        f"data.tasks=[{','.join(TASKS)}]", f"stages=[{','.join(STAGES)}]",
        "cold_start.batch_size=3", f"grpo.max_steps={STEPS}", "grpo.save_every=2", "grpo.lr=5e-4",
        "reward_actors.actors=1", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(taught_model, tmp_path_factory):
    """The run that loses nothing."""
    run = tmp_path_factory.mktemp("runs") / "undisturbed"
    hatch(*words(run, taught_model))
    return run


@pytest.fixture(scope="module")
def disturbed(taught_model, tmp_path_factory):
    """(run, output of the last start) of a run that lost its driver twice, and in GRPO three of its workers."""
    run = tmp_path_factory.mktemp("runs") / "disturbed"
    with tempfile.TemporaryDirectory(prefix="hatch-", dir="/tmp", ignore_cleanup_errors=True) as scratch:
        # What a cluster that was killed leaves behind: a run must not wait for it.
        (Path(scratch) / "ray").mkdir()
        (Path(scratch) / "ray" / "ray_current_cluster").write_text("127.0.0.1:1")
        yield run, disturb(run, taught_model, {"RAY_TMPDIR": scratch})


def disturb(run, model, environment):
    """The output of the last of the run's three starts."""
    said = words(run, model, "rollout.weights=nixl")
    process = start(said, environment)
    wait_for_step(process, run, "cold_start", 1, timeout=240)
    kill(process)
    process = start(said, environment)
    for step, title in ((1, "RolloutEngine.generate"), (2, "RewardJudge"), (3, "RayTrainWorker")):
        wait_for_step(process, run, "grpo", step, timeout=240)
        before = len(rows_of(run / "recoveries.jsonl"))
        kill_worker(process, title)
        wait_for_recovery(process, run, before)
    wait_for_step(process, run, "grpo", 5, timeout=240)
    kill(process)
    process = start(said, environment)
    output = finish(process, 300)
    assert process.returncode == 0, output
    return output


def wait_for_recovery(process, run: Path, before: int) -> None:
    end = time.monotonic() + 240
    while len(rows_of(run / "recoveries.jsonl")) <= before:
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < end, "no recovery"
        time.sleep(0.1)


def test_deaths_change_no_bit_of_the_run(undisturbed, disturbed):
    assert differences(undisturbed, disturbed[0]) == []
    learned = [row["grad_norm"] for row in metrics(disturbed[0], "grpo")]
    assert sum(norm > 0 for norm in learned) >= STEPS // 2, "nothing was learned that could have differed"


def test_each_recovery_is_told_and_counted(disturbed):
    run, output = disturbed
    told = [row["what"] for row in rows_of(run / "recoveries.jsonl")]
    assert told == ["rollout engine", "reward judge", "learner worker"]
    assert "already done" in output and "GRPO" in output


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
    assert {"completion", "images", "prompt", "advantage", "plans", "terms", "reasons"} <= set(rows[0])
    assert {row["step"] for row in rows} == set(range(STEPS))
    assert {"format", "action", "answer", "total", "d_t", "d_r"} <= set(rows[0]["terms"])


def test_eval_and_report_of_the_run(disturbed):
    run, _ = disturbed
    output = hatch("eval", str(run))
    assert "images swapped" in output and "best constant" in output
    final = json.loads((run / "eval" / "final.json").read_text())
    assert final["samples"] == 12 and final["overall"]["format"]["low"] <= final["overall"]["format"]["high"]
    hatch("report", str(run))
    page = (run / "report.html").read_text()
    assert "<svg" in page and "data:image/" in page and "http://" not in page.replace("http://www.w3.org", "")


def test_another_config_is_refused_by_name(disturbed, taught_model):
    run, _ = disturbed
    process = start([*words(run, taught_model), "grpo.beta=0.5"])
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 2 and "grpo.beta" in output and "0.5" in output


def test_the_same_on_a_dozen_real_frames(redkitchen, tiny_model, tmp_path):
    """PaStA, the stage that looks at the frames' depth and poses."""
    frames = tmp_path / "frames"
    frames.mkdir()
    names = sorted(path.name.removesuffix(".pose.txt") for path in redkitchen.glob("*.pose.txt"))[::12][:12]
    for file in [*redkitchen.glob("*.txt"), *(found for name in names for found in redkitchen.glob(f"{name}.*"))]:
        if not file.name.startswith("frame") or file.name.split(".")[0] in names:
            shutil.copy(file, frames)
    run = tmp_path / "run"
    hatch(
        "train", "configs/rgbd_tiny.yaml", f"run_dir={run}", f"data.root={frames}", f"model.base={tiny_model}",
        *SHORT, *ALONE, "stages=[pasta]", "data.heldout_fraction=0.5", "data.max_overlap=1.0",
        "data.heldout_samples=6",
    )  # fmt: skip
    summary = json.loads((run / "data" / "train" / "summary.json").read_text())
    assert summary["samples"] > 0
    assert [row["step"] for row in metrics(run, "pasta")] == [1, 2, 3]
