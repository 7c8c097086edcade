"""The whole recipe for real, in small: rooms and real frames; killed in two stages, resumed, evaluated, reported."""

import json
import shutil

import pytest
from runs import ROOMS, SHORT, hatch, kill, metrics, start, wait_for_step
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

STAGES = ["pasta", "qa_sft", "cold_start", "grpo"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def killed_and_resumed(tiny_model, tmp_path_factory):
    """A run that was killed inside PaStA and inside GRPO, and ran to its end."""
    run = tmp_path_factory.mktemp("runs") / "rooms"
    words = ["train", "configs/tiny.yaml", f"run_dir={run}", f"model.base={tiny_model}", *SHORT, *ROOMS]
    for stage, step in (("pasta", 1), ("grpo", 2)):
        process = start(words)
        wait_for_step(process, run, stage, step, timeout=240)
        kill(process)
    return run, hatch(*words)


def test_every_stage_finishes_after_the_kills(killed_and_resumed):
    run, output = killed_and_resumed
    progress = json.loads((run / "progress.json").read_text())
    assert [stage for stage in STAGES if progress[stage]["done"]] == STAGES
    assert "already done" in output and "GRPO" in output


def test_no_grpo_step_is_missing_or_logged_twice(killed_and_resumed):
    run, _ = killed_and_resumed
    assert [row["step"] for row in metrics(run, "grpo")] == [1, 2, 3, 4]
    for row in metrics(run, "grpo"):
        assert 0 <= row["reward_format"] <= 1 and 0 <= row["reward_action"] <= 1


def test_every_stage_leaves_a_hugging_face_folder(killed_and_resumed):
    run, _ = killed_and_resumed
    for stage in STAGES:
        folder = run / stage / "model"
        model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder)
        assert model.num_parameters() > 1e5
        assert AutoProcessor.from_pretrained(folder).tokenizer.eos_token_id is not None
    assert (run / "model").resolve() == (run / "grpo" / "model").resolve()


def test_pasta_changed_the_encoder_and_nothing_else(killed_and_resumed, tiny_model):
    run, _ = killed_and_resumed
    before = Qwen2_5_VLForConditionalGeneration.from_pretrained(tiny_model).state_dict()
    after = Qwen2_5_VLForConditionalGeneration.from_pretrained(run / "pasta" / "model").state_dict()
    changed = {name for name in before if not before[name].equal(after[name])}
    assert changed and all("visual" in name for name in changed)


def test_samples_hold_each_reward_term(killed_and_resumed):
    run, _ = killed_and_resumed
    rows = [json.loads(line) for line in (run / "samples" / "grpo.jsonl").read_text().splitlines()]
    assert len({(row["step"], row["id"]) for row in rows}) >= 8
    assert {"completion", "images", "prompt", "advantage", "plans", "terms", "reasons"} <= set(rows[0])
    assert {"format", "action", "answer", "total", "d_t", "d_r"} <= set(rows[0]["terms"])


def test_eval_and_report_of_the_run(killed_and_resumed):
    run, _ = killed_and_resumed
    output = hatch("eval", str(run))
    assert "images swapped" in output and "best constant" in output
    final = json.loads((run / "eval" / "final.json").read_text())
    assert final["samples"] == 12 and final["overall"]["format"]["low"] <= final["overall"]["format"]["high"]
    hatch("report", str(run))
    page = (run / "report.html").read_text()
    assert "<svg" in page and "data:image/" in page and "http://" not in page.replace("http://www.w3.org", "")


def test_another_config_is_refused_by_name(killed_and_resumed, tiny_model):
    run, _ = killed_and_resumed
    words = [
        "train",
        "configs/tiny.yaml",
        f"run_dir={run}",
        f"model.base={tiny_model}",
        *SHORT,
        *ROOMS,
        "grpo.beta=0.5",
    ]
    process = start(words)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 2 and "grpo.beta" in output and "0.5" in output


def test_the_same_on_a_dozen_real_frames(redkitchen, tiny_model, tmp_path):
    frames = tmp_path / "frames"
    frames.mkdir()
    names = sorted(path.name.removesuffix(".pose.txt") for path in redkitchen.glob("*.pose.txt"))[::12][:12]
    for file in [*redkitchen.glob("*.txt"), *(found for name in names for found in redkitchen.glob(f"{name}.*"))]:
        if not file.name.startswith("frame") or file.name.split(".")[0] in names:
            shutil.copy(file, frames)
    run = tmp_path / "run"
    hatch(
        "train", "configs/rgbd_tiny.yaml", f"run_dir={run}", f"data.root={frames}", f"model.base={tiny_model}",
        *SHORT, "data.heldout_fraction=0.5", "data.max_overlap=1.0", "data.heldout_samples=6", "grpo.max_steps=2",
    )  # fmt: skip
    summary = json.loads((run / "data" / "train" / "summary.json").read_text())
    assert summary["samples"] > 0
    assert [row["step"] for row in metrics(run, "grpo")] == [1, 2]
