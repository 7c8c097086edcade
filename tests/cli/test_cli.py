"""What a user types wrong gets one line, exit code 2, and leaves nothing behind."""

import errno
import subprocess
import sys
from collections.abc import Callable
from subprocess import CompletedProcess

import pytest

from hatch_ray.cli import main
from tests.support.runs import REPOSITORY


@pytest.fixture
def hatch(monkeypatch, capfd) -> Callable[..., CompletedProcess[str]]:
    """`hatch ...` without a process of its own, which would import torch and Ray anew for each line."""

    def run(*words: str) -> CompletedProcess[str]:
        monkeypatch.chdir(REPOSITORY)
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setattr(sys, "argv", ["hatch", *words])
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        return CompletedProcess(words, int(end.value.code or 0), *capfd.readouterr())

    return run


def check_mistake(done: CompletedProcess[str], said: str) -> None:
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert len(done.stderr.strip().splitlines()) == 1


def test_more_than_the_machine_has_is_one_line_of_a_process_of_its_own(tmp_path):
    """Which starts Ray, finds what is missing, and ends."""
    words = ["train", "configs/tiny.yaml", f"run_dir={tmp_path}/run", "rollout.actors=500"]
    done = subprocess.run(
        [sys.executable, "-m", "hatch_ray.cli", *words], cwd=REPOSITORY, capture_output=True, text=True, timeout=120
    )
    check_mistake(done, "rollout")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "absent.yaml"], "config file absent.yaml does not exist"),
        (["train", "configs/tiny.yaml", "grpo.bata=1"], "did you mean 'grpo.beta'"),
        (["train", "configs/tiny.yaml", "grpo.lr=fast"], "grpo.lr"),
        (["train", "configs/tiny.yaml", "grpo.group_size=1"], "greater than or equal to 2"),
        (["train", "configs/tiny.yaml", "grpo"], "is not KEY=VALUE"),
        (["train", "configs/rgbd_tiny.yaml", "run_dir={tmp}/run"], "data.root=PATH"),
        (["train", "configs/rgbd_tiny.yaml", "run_dir={tmp}/run", "data.root={tmp}/nothing"], "is not a folder"),
        (["train", "configs/rgbd_tiny.yaml", "run_dir={tmp}/run", "data.root={tmp}/empty"], "empty"),
        (["train", "configs/tiny.yaml", "run_dir={tmp}/full"], "is not empty and is not a run folder"),
        (["train", "configs/tiny.yaml", "run_dir={tmp}/run", "model.base=./absent"], "does not exist"),
        (["train", "configs/tiny.yaml", "run_dir={tmp}/run", "model.base=no/such"], "no config.json of that name"),
        (["train", "configs/tiny.yaml", "run_dir={tmp}/run", "data.tasks=[cooking]"], "cooking"),
        (["demo", "grpo.bata=1"], "did you mean 'grpo.beta'"),
        (["eval", "{tmp}/nothing"], "is not a run folder"),
        (["report", "{tmp}/nothing"], "is not a run folder"),
        (["serve", "{tmp}/nothing"], "is not a run folder"),
        (["data", "show", "{tmp}/empty"], "index.jsonl"),
        (["ablate", "configs/tiny.yaml", "--out", "s3://bucket/runs"], "--out s3://bucket/runs is a bucket"),
        (["report", "s3://bucket/.."], "s3://BUCKET/FOLDER"),
        (["ask", "http://localhost:8000", "{tmp}/a.png", "b.jpg"], "b.jpg, is an image: the question comes last"),
        (["ask", "localhost:8000", "{tmp}/a.png", "Where?"], "write its URL: http://localhost:8000"),
        (["data", "check", "{tmp}/empty"], "holds no posed RGB-D frames"),
        (
            ["data", "check", "{tmp}/empty", "--convention", "metres"],
            "'metres' is not known; known are",
        ),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(hatch, tmp_path, words, said):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    (tmp_path / "empty").mkdir()
    check_mistake(hatch(*(word.replace("{tmp}", str(tmp_path)) for word in words)), said)
    assert not (tmp_path / "run").exists()
    assert sorted(path.name for path in (tmp_path / "full").iterdir()) == ["notes.txt"]


@pytest.mark.parametrize(
    "config",
    ["tiny", "rgbd_tiny", "hatch_3b", "hatch_3b_lora", "hatch_7b", "hatch_qwen3_4b", "viewpoint_7b", "wbm_8b"],
)
def test_dry_run_shows_plan_resources_and_memory_without_a_gpu(hatch, config):
    done = hatch("train", f"configs/{config}.yaml", "--dry-run")
    assert done.returncode == 0, done.stderr
    stages = {"viewpoint_7b": ["View SFT"], "wbm_8b": []}.get(config, ["PaStA", "QA SFT", "Cold start"])
    for word in (*stages, "GRPO", "learner", "rollout", "reward", "GB", "activations"):
        assert word in done.stdout
    if config == "viewpoint_7b":
        assert "64 GPUs" in done.stdout and "1024 prompts x 16" in done.stdout and "8.29 B" in done.stdout
    if config == "hatch_3b":
        assert "4 GPUs" in done.stdout and "3.75 B" in done.stdout and "grpo.redraw" not in done.stdout
        done = hatch("train", f"configs/{config}.yaml", "--dry-run", "grpo.redraw=2")
        assert "4 prompts x 8, sampled at most 3 times" in " ".join(done.stdout.replace("│", " ").split()), done.stdout
    if config == "hatch_qwen3_4b":
        assert "4 GPUs" in done.stdout and "4.44 B" in done.stdout


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "/data/x"),
            "No space left on device: /data/x; the disk is full",
        ),
        (OSError(errno.EIO, "Input/output error"), "Input/output error"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "/data"), "Is a directory: /data"),
        (ConnectionError("ray://head:1 connection timeout"), "ray://head:1 connection timeout"),
        (TimeoutError(), "TimeoutError"),
    ],
)
def test_every_refusal_of_the_system_is_one_line(hatch, tmp_path, monkeypatch, error, said):
    """A full disk while data is built, among others; nothing half-written stays."""

    def fail(*_):
        raise error

    monkeypatch.setattr("hatch_ray.data.images._save", fail)
    small = ["data.samples=4", "data.heldout_samples=2", "data.rooms.train_scenes=1", "data.rooms.heldout_scenes=1"]
    check_mistake(hatch("data", "build", "configs/tiny.yaml", "--out", str(tmp_path / "data"), *small), said)
    assert list(tmp_path.iterdir()) == []


def test_datasets_are_built_and_shown(hatch, tmp_path):
    small = ["data.samples=4", "data.heldout_samples=2", "data.rooms.train_scenes=1", "data.rooms.heldout_scenes=1"]
    done = hatch("data", "build", "configs/tiny.yaml", "--out", str(tmp_path / "data"), *small)
    assert done.returncode == 0, done.stderr
    page = tmp_path / "samples.html"
    done = hatch("data", "show", str(tmp_path / "data" / "train"), "--out", str(page))
    assert done.returncode == 0, done.stderr
    assert page.read_text(encoding="utf-8").count("data:image/") >= 4
    both = [word.replace("data.", "views.").replace("samples=4", "samples=40") for word in small]
    done = hatch("data", "build", "configs/viewpoint_tiny.yaml", "--out", str(tmp_path / "two"), *small, *both)
    assert done.returncode == 0, done.stderr
    assert all((tmp_path / "two" / name / "index.jsonl").is_file() for name in ("views/train", "data/heldout"))
    done = hatch("data", "show", str(tmp_path / "two"), "--out", str(page))
    assert done.returncode == 0, done.stderr
    for section in ("views", "data"):
        assert "ego_rotation" in page.with_stem(f"samples-{section}").read_text(encoding="utf-8")


def test_doctor_says_that_this_machine_can_run_the_demo(hatch):
    done = hatch("doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "vLLM" in done.stdout and "Ray" in done.stdout
