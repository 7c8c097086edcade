"""`ray start --head`, then `ray job submit --working-dir . -- hatch train ...`, as the README has it."""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
from runs import REPOSITORY, ROOMS, SHORT

pytestmark = pytest.mark.slow

BIN = Path(sys.executable).parent
AGENT_SECONDS = 120
JOB_SECONDS = 400


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def reserve_ports(count: int) -> list[int]:
    """Free ports outside 10002-19999, which Ray gives to its workers."""
    found: set[int] = set()
    while len(found) < count:
        port = free_port()
        if not 10000 <= port <= 20000:
            found.add(port)
    return sorted(found)


@pytest.fixture
def head(tmp_path):
    """A Ray head node with a dashboard, started by `ray start`; yields (environment, dashboard address)."""
    scratch = Path(tempfile.mkdtemp(prefix="hatch-", dir="/tmp"))
    token = scratch / "token"
    token.write_text(secrets.token_hex(32))
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    environment |= {
        "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "PATH": f"{BIN}:{os.environ['PATH']}",
    }  # fmt: skip
    # Another Ray on this machine, such as the session's, holds the agent's usual ports.
    gcs, dashboard, agent, agent_grpc, metrics = reserve_ports(5)
    subprocess.run(
        ["ray", "start", "--head", f"--port={gcs}", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
         f"--dashboard-agent-listen-port={agent}", f"--dashboard-agent-grpc-port={agent_grpc}",
         f"--metrics-export-port={metrics}", "--num-cpus=3", f"--object-store-memory={256 * 2**20}",
         f"--temp-dir={scratch / 'ray'}"],
        env=environment, check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    yield environment, f"http://127.0.0.1:{dashboard}"
    # `ray stop` would end every Ray on this machine: end the processes of this head alone.
    for process in psutil.process_iter(["pid", "cmdline"]):
        if any(str(scratch) in word for word in process.info["cmdline"] or []):
            os.kill(process.info["pid"], signal.SIGKILL)
    shutil.rmtree(scratch, ignore_errors=True)


def test_a_submitted_job_trains(head, tiny_model, tmp_path):
    environment, address = head
    run = tmp_path / "run"
    command = [
        "ray", "job", "submit", "--address", address, "--working-dir", ".", "--", "hatch", "train",
        "configs/tiny.yaml", f"run_dir={run}", f"model.base={tiny_model}", *SHORT, *ROOMS, "grpo.max_steps=1",
    ]  # fmt: skip
    end = time.monotonic() + AGENT_SECONDS
    while True:
        done = subprocess.run(
            command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=JOB_SECONDS
        )
        # The head answers before its job agent is up; Ray says so and asks to try again.
        if "No available agent" not in done.stderr or time.monotonic() > end:
            break
        time.sleep(2)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout + done.stderr
    progress = json.loads((run / "progress.json").read_text())
    assert all(progress[stage]["done"] for stage in ("pasta", "qa_sft", "cold_start", "grpo"))
