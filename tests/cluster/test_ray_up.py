"""A real `ray up` with cluster.local.yaml, over SSH to this machine; a run is submitted, stopped, submitted again, and
`ray down`.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import yaml
from ray._private.ray_constants import get_runtime_env_default_excludes
from ray._private.runtime_env.packaging import create_package

from actors.runtime.checkpoints import Checkpoints, problem
from hatch_ray.run_folder import RunFolder
from tests.support.own_sshd import OwnSshd, missing, processes_of, stop_ray
from tests.support.runs import REPOSITORY, ROOMS, SHORT, metrics, reserve_ports

TITLES = ("RayTrainWorker", "TrainController", "RolloutEngine", "Verifier", "ExperienceBoard", "WeightsBoard")
RAY = str(Path(sys.executable).parent / "ray")
AGENT_SECONDS = 120
STEPS = 250
"""Enough that the first run is still at work when `ray job stop` has started."""


def test_the_upload_leaves_data_environment_and_runs_behind(tmp_path):
    """By Ray's own packing, of a checkout with all that lies about in one that is used."""
    tree = tmp_path / "checkout"
    ours = (
        "hatch_ray/data/store.py",
        "hatch_ray/model/weights/tiny.safetensors",
        "configs/tiny.yaml",
        "actors/stages/fit.py",
    )
    left = ("data/train/0.png", "scans/a.bin", "shared/x", "runs/tiny/model/model.safetensors", ".venv/bin/python",
            ".git/objects/aa", "docs/images/a.png", "tests/a.py", "actors/__pycache__/fit.pyc",
            ".pytest_cache/a")  # fmt: skip
    for name in (*ours, *left):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(b"x" * (2**20 if name in left else 10))
    for name in (".gitignore", ".rayignore"):
        shutil.copy(REPOSITORY / name, tree / name)
    package = tmp_path / "package.zip"
    create_package(str(tree), package, include_gitignore=True, excludes=get_runtime_env_default_excludes())
    names = set(zipfile.ZipFile(package).namelist())
    assert set(ours) <= names
    assert {name for name in names if not name.endswith("/")} - set(ours) <= {".gitignore", ".rayignore"}
    assert package.stat().st_size < 10_000


@dataclass
class Cluster:
    """A cluster that is up."""

    folder: Path
    file: Path
    environment: dict[str, str]
    address: str
    said: str

    def ray(self, *words: str, timeout: float = 300) -> str:
        """`ray ...` to its end; what it said. Fails with it when the exit code is not 0."""
        done = subprocess.run(
            [RAY, *words], cwd=REPOSITORY, env=self.environment, text=True, timeout=timeout,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
        return done.stdout

    def wait_for_agent(self) -> None:
        """Until the head takes jobs: it answers before its job agent is up."""
        end = time.monotonic() + AGENT_SECONDS
        while "No available agent" in self._probe() and time.monotonic() < end:
            time.sleep(1)

    def submit(self, name: str, words: list[str]) -> subprocess.Popen[str]:
        """`ray job submit`, its output a pipe."""
        command = [RAY, "job", "submit", "--address", self.address, "--submission-id", name, "--working-dir", "."]
        return subprocess.Popen(
            [*command, "--", "hatch", *words], cwd=REPOSITORY, env=self.environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def _probe(self) -> str:
        command = [RAY, "job", "submit", "--address", self.address, "--", "true"]
        done = subprocess.run(command, cwd="/", env=self.environment, capture_output=True, text=True, timeout=120)
        return done.stdout + done.stderr

    def roles(self) -> list[str]:
        """The processes of runs on the cluster by title. (Ray's own helpers, which hold nothing, may stay.)"""
        lines = []
        for process in processes_of(self.folder):
            with suppress(psutil.NoSuchProcess):
                lines.append(" ".join(process.cmdline()))
        return [line for line in lines if any(line.startswith(f"ray::{title}") for title in TITLES)]


def cluster_file(server: OwnSshd, token: Path, ports: list[int]) -> dict:
    """cluster.local.yaml with what it says to CHANGE, and ports and a folder beside those of other clusters here."""
    gcs, dashboard, agent, agent_grpc, metrics_port = ports
    config = yaml.safe_load((REPOSITORY / "cluster.local.yaml").read_text(encoding="utf-8"))
    config["cluster_name"] = server.folder.name
    config["provider"] |= {"head_ip": "127.0.0.1", "worker_ips": []}
    config["auth"] = server.auth
    config["file_mounts"] = {
        name: str(token) if name.endswith("auth_token") else source for name, source in config["file_mounts"].items()
    }
    config["setup_commands"] = [
        command.replace("BACKEND=gpu", "BACKEND=cpu") for command in config["setup_commands"]
    ]  # fmt: skip
    start, old = config["head_start_ray_commands"][0], "ray start --head --port=6379"
    memory = "--object-store-memory=8589934592"
    assert old in start and memory in start
    options = (
        f"--dashboard-port={dashboard} --dashboard-agent-listen-port={agent} "
        f"--dashboard-agent-grpc-port={agent_grpc} --metrics-export-port={metrics_port} --num-cpus=4 "
        f"--temp-dir={server.folder}/ray"
    )
    start = start.replace("HF_HOME=/shared", f"HF_HOME={server.folder}").replace(
        old, f"ray start --head --port={gcs} {options}"
    )
    config["head_start_ray_commands"] = [start.replace(memory, f"--object-store-memory={256 * 2**20}")]
    return config


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """`ray up` on this machine, and whatever happens nothing of it left."""
    if lacks := missing():
        pytest.skip(f"no SSH server to `ray up` to: {lacks}")
    folder = Path(tempfile.mkdtemp(prefix="hatch-", dir="/tmp"))
    token = folder / "auth_token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    port, *ports = reserve_ports(6)
    try:
        server = OwnSshd(folder, port)
    except RuntimeError as error:
        shutil.rmtree(folder)
        pytest.skip(f"an SSH server cannot run here: {error}")
    try:
        (server.home / "hatch-resources.json").write_text('{"learner": 2}')
        (server.home / "hatch-ray" / ".venv" / ".installed-cpu").touch()
        file = folder / "cluster.yaml"
        file.write_text(yaml.safe_dump(cluster_file(server, token, ports)))
        environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
        environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_TMPDIR": str(folder)}
        cluster = Cluster(folder, file, environment, f"http://127.0.0.1:{ports[1]}", "")
        cluster.said = cluster.ray("up", "-y", "--no-config-cache", str(file), timeout=300)
        yield cluster
    finally:
        stop_ray(folder)
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.rest
def test_ray_up_sets_a_machine_up_over_ssh(cluster):
    home = cluster.folder / "home"
    assert (home / "hatch-ray" / "configs" / "tiny.yaml").is_file(), "the checkout"
    assert not (home / "hatch-ray" / ".git").exists() and not (home / "hatch-ray" / "runs").exists()
    assert (home / ".ray" / "auth_token").read_text() == (cluster.folder / "auth_token").read_text()
    assert "hatch-ray/.venv/bin" in (home / ".bashrc").read_text()
    assert "To terminate the cluster" in cluster.said
    assert processes_of(cluster.folder)


@pytest.mark.rest
def test_a_submitted_run_streams_stops_with_a_checkpoint_and_goes_on(cluster, tiny_model, tmp_path):
    run, steps = tmp_path / "run", STEPS
    words = [
        "train", "configs/tiny.yaml", f"run_dir={run}", f"model.base={tiny_model}", *SHORT, *ROOMS,
        "stages=[cold_start]", f"cold_start.max_steps={steps}", "cold_start.save_every=1000", "tensorboard=false",
        "learner.workers=2", "learner.resources.learner=1",
    ]  # fmt: skip
    cluster.wait_for_agent()
    done = 0
    for name in ("first", "second"):
        stop_at_work(cluster, name, words, run, done + 2)
        trained = [row["step"] for row in metrics(run, "cold_start")]
        assert trained == list(range(1, len(trained) + 1)) and done + 2 <= len(trained) < steps
        done = len(trained)
        states = [(state.name, problem(state)) for state in Checkpoints(RunFolder(run).checkpoints("cold_start")).all()]
        assert states[-1] == (f"step-{done:06d}", None)
        end = time.monotonic() + 30
        while left := cluster.roles():
            assert time.monotonic() < end, f"left behind: {left}"
            time.sleep(0.3)


def stop_at_work(cluster, name, words, run, step):
    """Submit the run, follow its log, and `ray job stop` it once that step is logged; it says that it saved."""
    process = cluster.submit(name, words)
    assert process.stdout is not None
    seen = ""
    while "Cold start" not in seen:
        line = process.stdout.readline()
        assert line, f"the job ended before its stage began:\n{seen}"
        seen += line
    end = time.monotonic() + 300
    while len(metrics(run, "cold_start")) < step:
        assert process.poll() is None and time.monotonic() < end, seen
        time.sleep(0.1)
    assert cluster.roles()
    cluster.ray("job", "stop", "--address", cluster.address, name)
    rest = process.communicate(timeout=180)[0]
    assert "stopped as asked" in rest, rest
    assert "was stopped" in cluster.ray("job", "status", "--address", cluster.address, name)


@pytest.mark.rest
def test_ray_down_ends_it(cluster):
    cluster.ray("down", "-y", str(cluster.file))
    assert processes_of(cluster.folder) == []
