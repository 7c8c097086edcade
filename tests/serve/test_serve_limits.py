"""The door, keys, bodies and errors of the service, and what Ray Serve is told of it: without an engine."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import psutil
import pytest
import uvicorn
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

import serve.guard
from hatch_ray.config import ConfigError, make_config, save_config
from hatch_ray.run_folder import RunFolder
from serve.app import ReasonService, allow_origins
from serve.application import application
from serve.deployment import SPARE_PLACES, bound
from serve.door import Door
from serve.errors import add_error_handlers
from serve.guard import Counted, Guard, edge
from serve.metrics import Metrics, exposition
from serve.schema import Refusal
from serve.settings import Settings

JSON_KEYS = {"code", "what", "where", "what_to_do"}


async def stay(door: Door, until: asyncio.Event) -> str:
    try:
        async with door.place():
            await until.wait()
            return "done"
    except Refusal as refusal:
        return str(refusal.body["code"])


def test_beyond_the_queue_a_request_is_refused_at_once():
    async def go() -> None:
        door, until = Door(2, 1), asyncio.Event()
        tasks = [asyncio.create_task(stay(door, until)) for _ in range(5)]
        done, _ = await asyncio.wait(tasks, timeout=0.1)
        assert [task.result() for task in done] == ["busy", "busy"]
        assert (door.inside, door.waiting) == (2, 1)
        with pytest.raises(Refusal) as refusal:
            async with door.place():
                pass
        assert (refusal.value.status, refusal.value.retry_after_s) == (429, 2)
        until.set()
        assert sorted(await asyncio.gather(*tasks)) == ["busy", "busy", "done", "done", "done"]
        assert (door.inside, door.waiting) == (0, 0)

    asyncio.run(go())


def test_without_a_queue_a_place_that_is_free_is_given():
    async def go() -> None:
        door, until = Door(1, 0), asyncio.Event()
        tasks = [asyncio.create_task(stay(door, until)) for _ in range(2)]
        await asyncio.sleep(0)
        until.set()
        assert await asyncio.gather(*tasks) == ["done", "busy"]

    asyncio.run(go())


async def close(door: Door) -> None:
    async with door.alone():
        for _ in range(3):
            assert door.inside == 0
            await asyncio.sleep(0)


@given(st.lists(st.tuples(st.sampled_from(["enter", "cancel", "leave", "alone"]), st.integers(0, 11)), max_size=40))
def test_no_order_of_comings_goings_and_changes_loses_a_place(steps):
    async def go() -> None:
        door = Door(2, 3)
        ends = [asyncio.Event() for _ in range(12)]
        tasks: dict[int, asyncio.Task[str]] = {}
        changes: list[asyncio.Task[None]] = []
        for what, index in steps:
            if what == "enter" and index not in tasks:
                tasks[index] = asyncio.create_task(stay(door, ends[index]))
            elif what == "cancel" and index in tasks:
                tasks[index].cancel()
            elif what == "leave":
                ends[index].set()
            elif what == "alone" and all(change.done() for change in changes):  # a follower's, one after the other
                changes.append(asyncio.create_task(close(door)))
            if index % 2:  # else the next step comes before the loop has run: a place is given and taken back at once
                await asyncio.sleep(0)
            assert door.inside <= 2
            assert door.waiting <= 3
        for end in ends:
            end.set()
        await asyncio.gather(*changes)
        await asyncio.gather(*tasks.values(), return_exceptions=True)
        assert (door.inside, door.waiting, door.closed) == (0, 0, False)
        assert await stay(door, ends[0]) == "done"

    asyncio.run(go())


def test_a_change_of_models_waits_for_those_that_run_and_makes_the_others_wait():
    async def go() -> None:
        door, until, events = Door(2, 1), asyncio.Event(), []
        first = asyncio.create_task(stay(door, until))
        await asyncio.sleep(0)

        async def change() -> None:
            async with door.alone():
                events.append((door.inside, door.waiting))
                await asyncio.sleep(0.02)
                events.append((door.inside, door.waiting))

        changing = asyncio.create_task(change())
        await asyncio.sleep(0.01)
        assert events == []
        later = asyncio.create_task(stay(door, until))
        await asyncio.sleep(0.01)
        until.set()
        assert await asyncio.gather(first, changing, later) == ["done", None, "done"]
        assert events == [(0, 1), (0, 1)]

    asyncio.run(go())


# --- what Ray Serve is told


@pytest.fixture
def run(tiny_model, tmp_path) -> RunFolder:
    run = RunFolder(tmp_path / "run")
    (run.path / "grpo").mkdir(parents=True)
    run.stage_model("grpo").symlink_to(tiny_model)
    run.link_model("grpo")
    save_config(make_config({"run_dir": str(run.path), "serve": {"replicas": 2}}), run.config_path)
    return run


def told(app: Any) -> Any:
    return app._bound_deployment


def test_a_config_file_of_ray_serve_gets_what_hatch_serve_gets(run, monkeypatch):
    """Kubernetes and `serve deploy` name serve.application: the same queue, limits, stop, key and scaling."""
    overrides = ["serve.max_running=7", "serve.max_waiting=9", "serve.deadline_seconds=50", "serve.max_replicas=4",
                 "serve.cpus=3", "serve.gpus=0.5", "serve.api_key_env=OUR_KEY"]  # fmt: skip
    with pytest.raises(ConfigError, match="OUR_KEY, which is not set"):
        application({"run": str(run.path), "overrides": overrides})
    monkeypatch.setenv("OUR_KEY", "s3cret")
    found = told(application({"run": str(run.path), "overrides": overrides}))
    assert found.name == ReasonService.name == "ReasonService"
    assert found.max_ongoing_requests == 7 + 9 + SPARE_PLACES, "the replica itself refuses, and tells its health"
    assert found.max_queued_requests == 7 + 9
    config = found._deployment_config
    assert config.graceful_shutdown_timeout_s == 50
    assert (config.backpressure_config.status_code, config.backpressure_config.retry_after_s) == (429, 1)
    assert (config.autoscaling_config.min_replicas, config.autoscaling_config.max_replicas) == (2, 4)
    options = found.ray_actor_options
    assert (options["num_cpus"], options["num_gpus"]) == (3, 0.5)
    assert options["runtime_env"]["env_vars"]["OUR_KEY"] == "s3cret"
    launched = told(bound(Settings.of(found.init_args[0].config, run)))
    assert launched.ray_actor_options == options
    assert launched._deployment_config.model_dump() == config.model_dump()


# --- around the routes


async def echo(scope: Any, receive: Any, send: Any) -> None:
    message = await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(len(message["body"])).encode()})


def ask(app: Any, path: str = "/reason", method: str = "POST", **request: Any) -> httpx.Response:
    async def go() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as client:
            return await client.request(method, path, **request)

    return asyncio.run(go())


def guard(app: Any = echo, key: str = "", metrics: Metrics | None = None) -> Counted:
    return Counted(Guard(app, max_body=100, body_seconds=0.1, key=key), metrics or Metrics("0"))


async def chunks(count: int, pause: float = 0.0) -> AsyncIterator[bytes]:
    for _ in range(count):
        await asyncio.sleep(pause)
        yield b"x" * 30


AROUND: list[Callable[[], Any]] = [guard, lambda: edge(echo, 100, 0.1)]


@pytest.mark.parametrize("around", AROUND, ids=["replica", "proxy"])
def test_bodies_have_a_limit_with_and_without_a_length_and_a_time(around):
    assert ask(around(), content=b"x" * 100).text == "100"
    assert ask(around(), content=chunks(3)).text == "90"
    for content in (b"x" * 101, chunks(4)):
        response = ask(around(), content=content)
        assert (response.status_code, response.json()["code"]) == (413, "body_too_large")
    response = ask(around(), content=chunks(3, pause=0.06))
    assert (response.status_code, response.json()["code"]) == (408, "slow_body")
    response = ask(around(), headers={"content-length": "many"})
    assert (response.status_code, response.json()["code"]) == (400, "bad_length")


@pytest.mark.parametrize("around", AROUND, ids=["replica", "proxy"])
def test_a_refusal_reaches_a_client_that_is_still_sending(around):
    """A server that closes on unread bytes resets the connection, and the answer is lost on its way."""
    with listening(around()) as address, socket.create_connection(address, timeout=20) as client:
        client.sendall(b"POST /reason HTTP/1.1\r\nhost: a\r\ncontent-length: 3001000\r\n\r\n" + b"x" * 1000)
        time.sleep(0.3)  # it has been answered now
        for _ in range(3):
            client.sendall(b"x" * 1_000_000)
            time.sleep(0.1)
        answer = read_all(client)
    assert answer.startswith(b"HTTP/1.1 413 ") and b"connection: close" in answer
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == "body_too_large"


def test_a_refusal_without_a_body_keeps_the_connection():
    request = b"POST /reason HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n"
    with listening(guard(key="s3cret")) as address, socket.create_connection(address, timeout=20) as client:
        for _ in range(2):
            client.sendall(request)
            assert client.recv(65536).startswith(b"HTTP/1.1 401 ")


def test_a_body_that_nobody_asked_for_is_no_error(caplog):
    request = b"GET /healthz HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\n\r\nx"
    with listening(guard()) as address, socket.create_connection(address, timeout=20) as client:
        client.sendall(request)
        assert client.recv(65536).startswith(b"HTTP/1.1 200 ")
    assert not caplog.records


def test_a_refusal_is_counted_before_the_rest_of_the_body_comes_and_few_wait_for_theirs(monkeypatch):
    monkeypatch.setattr(serve.guard, "MAX_LINGERING", 2)
    monkeypatch.setattr(serve.guard, "LINGER_SECONDS", 20.0)
    metrics = Metrics("0")
    request = b"POST /reason HTTP/1.1\r\nhost: a\r\ncontent-length: 101\r\n\r\n"
    with listening(guard(metrics=metrics)) as address, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection(address, timeout=10)) for _ in range(4)]
        for client in clients:
            client.sendall(request)
            assert client.recv(20).startswith(b"HTTP/1.1 413 ")
        counted = 'hatch_requests_total{path="other",replica="0",status="413"} 4.0'
        assert counted in exposition([metrics.families()]).decode()
        for client in clients[2:]:  # closed at once, as two linger already
            assert b"body_too_large" in read_all(client)


@pytest.mark.parametrize("around", AROUND, ids=["replica", "proxy"])
def test_a_client_that_never_stops_sending_is_cut_off(around, monkeypatch):
    monkeypatch.setattr(serve.guard, "LINGER_SECONDS", 0.2)
    with listening(around()) as address, socket.create_connection(address, timeout=20) as client:
        client.sendall(b"POST /reason HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000000\r\n\r\n")
        assert client.recv(20).startswith(b"HTTP/1.1 413 ")
        with pytest.raises(ConnectionError):
            send_slowly(client, 1000)


def read_all(client: socket.socket) -> bytes:
    return b"".join(iter(lambda: client.recv(65536), b""))


def send_slowly(client: socket.socket, count: int) -> None:
    for _ in range(count):
        client.sendall(b"x")
        time.sleep(0.01)


@contextlib.contextmanager
def listening(app: Any) -> Iterator[tuple[str, int]]:
    """The address at which uvicorn, which Ray Serve uses too, serves `app`."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, lifespan="off", log_level="warning", log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield server.servers[0].sockets[0].getsockname()
    finally:
        server.should_exit = True
        thread.join()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"authorization": "Bearer wrong"}, 401),
        ({"authorization": "Basic s3cret"}, 401),
        ({"authorization": "Bearer s3cret"}, 200),
        ({"authorization": "bearer s3cret"}, 200),
        ({"x-api-key": "s3cret"}, 200),
        ({"x-api-key": "S3CRET"}, 401),
    ],
)
def test_with_a_key_only_those_who_have_it_may_ask(headers, status):
    response = ask(guard(key="s3cret"), headers=headers)
    assert response.status_code == status
    if status == 401:
        assert response.json().keys() == JSON_KEYS
        assert response.headers["www-authenticate"] == "Bearer"
    for path in ("/", "/healthz", "/readyz", "/page/app.js"):
        assert ask(guard(key="s3cret"), path, "GET").status_code == 200
        assert ask(guard(key="s3cret"), path, "POST", content=b"x").status_code == 401, "no body is read without a key"
    assert ask(guard(key="s3cret"), "/metrics").status_code == 401


PAGE = "https://robots.example.org"


@pytest.mark.parametrize(("origin", "allowed"), [(PAGE, PAGE), ("https://elsewhere.example.org", None), ("null", None)])
def test_only_pages_of_a_named_origin_may_ask_and_read_the_answer(origin, allowed):
    app = allow_origins(guard(key="s3cret"), [PAGE])
    asks = {"access-control-request-method": "POST", "access-control-request-headers": "content-type, x-api-key"}
    before = ask(app, method="OPTIONS", headers={"origin": origin} | asks)
    assert before.status_code == (200 if allowed else 400)
    assert before.headers.get("access-control-allow-origin") == allowed
    for headers, status in (({"x-api-key": "s3cret"}, 200), ({}, 401)):
        response = ask(app, headers={"origin": origin} | headers)
        assert response.status_code == status
        assert response.headers.get("access-control-allow-origin") == allowed
        assert response.headers.get("access-control-allow-credentials") is None
    assert "access-control-allow-origin" not in ask(guard(), headers={"origin": origin}).headers


def test_a_mistake_of_ours_is_told_without_what_the_request_held(caplog):
    api, metrics = FastAPI(), Metrics("0")
    add_error_handlers(api)

    @api.post("/reason")
    def fails() -> None:
        raise ValueError("a secret of the request")

    response = ask(guard(api, metrics=metrics), content=b"{}")
    assert (response.status_code, response.json()["code"]) == (500, "internal_error")
    assert "secret" not in response.text
    assert [record.message for record in caplog.records if record.name == "hatch_ray.serve"] == ["POST /reason failed"]
    text = exposition([metrics.families()]).decode()
    assert 'hatch_requests_total{path="/reason",replica="0",status="500"} 1.0' in text
    assert 'hatch_refused_total{code="internal_error",replica="0"} 1.0' in text


def answers(status: int, text: str, kind: str = "text/plain") -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", kind.encode()), (b"retry-after", b"7")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": text.encode()})

    return app


async def silent(scope: Any, receive: Any, send: Any) -> None: ...


@pytest.mark.parametrize(
    ("app", "status", "code"),
    [
        (answers(404, "Path '/reason' not found."), 503, "stopping"),
        (answers(408, "Request timed out"), 504, "too_slow"),
        (answers(429, "Request dropped due to backpressure"), 429, "busy"),
        (answers(503, "Deployment unavailable"), 503, "replica_lost"),
        (silent, 503, "replica_lost"),
    ],
)
def test_what_ray_serve_answers_itself_gets_our_form(app, status, code):
    response = ask(edge(app, 100, 1.0))
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert response.json().keys() == JSON_KEYS
    assert response.headers.get("retry-after") == ("7" if status == 429 else None)


def test_the_proxy_leaves_alone_what_the_service_answers():
    assert ask(edge(answers(422, '{"code": "x"}', "application/json"), 100, 1.0)).json() == {"code": "x"}
    assert ask(edge(answers(200, "hatch_x 1"), 100, 1.0)).text == "hatch_x 1"


def test_metrics_of_replicas_are_one_text_each_family_once():
    replicas = [Metrics("a"), Metrics("b")]
    for number, metrics in enumerate(replicas):
        metrics.requests.labels("/reason", 200).inc()
        metrics.phases({"queue": 0.01, "total": 1.0 + number})
        metrics.serves("grpo-1")
        metrics.serves("grpo-2")
    text = exposition(metrics.families() for metrics in replicas).decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert text.count("# TYPE hatch_requests_total ") == 1
    assert {s.labels["replica"]: s.value for s in families["hatch_requests"].samples} == {"a": 1.0, "b": 1.0}
    assert {s.labels["version"] for s in families["hatch_model"].samples} == {"grpo-2"}


def test_fewer_replicas_at_most_than_at_least_is_a_mistake():
    with pytest.raises(ConfigError, match=r"serve\.max_replicas=1 is below serve\.replicas=2"):
        make_config({"serve": {"replicas": 2, "max_replicas": 1}})


PARENT = """
import multiprocessing, os, time
def engine():
    import serve.worker
    print(os.getpid(), flush=True)
    time.sleep(600)
if __name__ == "__main__":
    multiprocessing.get_context("spawn").Process(target=engine).start()
"""


def test_a_process_of_the_engine_ends_when_its_replica_is_killed(tmp_path, repository):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    environment = os.environ | {"PYTHONPATH": str(repository)}
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    psutil.wait_procs([child], timeout=20)
    assert not child.is_running()
