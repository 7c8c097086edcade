"""`hatch serve RUN serve.haproxy=true` as a user types it: asked over HAProxy, and stopped by SIGTERM."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import httpx
import pytest

from hatch_ray.config import make_config, save_config
from hatch_ray.run_folder import RunFolder
from tests.serve.test_serve_load import body
from tests.support.runs import finish, kill, reserve_ports, start

START_SECONDS = 240


@pytest.mark.rest
def test_hatch_serve_over_haproxy(tiny_model: Path, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    (run.path / "grpo").mkdir()
    run.stage_model("grpo").symlink_to(tiny_model)
    run.link_model("grpo")
    model = {"template": "compact-v1", "max_images": 3, "max_length": 768, "max_pixels": 112 * 112}
    config = make_config({"run_dir": str(run.path), "model": model, "rollout": {"kv_cache_mb": 64}})
    save_config(config, run.config_path)
    port, statistics, metrics = reserve_ports(3)
    process = start(
        ["serve", str(run.path), "serve.haproxy=true", f"serve.port={port}", "serve.max_body_mb=1"],
        {"RAY_SERVE_HAPROXY_STATS_PORT": str(statistics), "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics)},
    )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_up(process, url)
        assert httpx.get(f"http://127.0.0.1:{statistics}/stats", timeout=30).is_success, "HAProxy is in front"
        reply = httpx.post(f"{url}/reason", json=body(), timeout=120)
        assert reply.status_code == 200 and reply.json()["tokens"]["reply"] > 0
        for response, status, code in (
            (httpx.post(f"{url}/reason", content=b"x" * 2**21, timeout=60), 413, "body_too_large"),
            (httpx.post(f"{url}/reason", json={}, timeout=60), 422, None),
            (httpx.get(f"{url}/nowhere", timeout=60), 404, "no_such_path"),
        ):
            assert response.status_code == status
            assert response.json().keys() == {"code", "what", "where", "what_to_do"}
            assert code in (None, response.json()["code"])
        with httpx.stream("POST", f"{url}/reason", json=body(stream=True), timeout=120) as stream:
            events = [line for line in stream.iter_lines() if line.startswith("event: ")]
        assert "event: text" in events and events[-1] == "event: reply"
        process.send_signal(signal.SIGTERM)
        output = finish(process, 120)
    except BaseException:
        if process.poll() is None:
            kill(process)
        raise
    assert process.returncode == 0 and "stopping" in output, output
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/healthz", timeout=5)


def wait_until_up(process, url: str) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        assert process.poll() is None, process.stdout.read()
        try:
            if httpx.get(f"{url}/healthz", timeout=5).is_success:
                return
        except httpx.TransportError:
            time.sleep(0.3)
    raise AssertionError("the service did not come up")
