"""Places, deadlines, keys and bodies of the service, without an engine."""

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
from types import SimpleNamespace
from typing import Any

import httpx
import psutil
import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

import serve.guard
from hatch_ray.config import ConfigError, make_config
from serve.guard import Edge, EdgeLimits, Guard, allow_origins
from serve.limits import Admission
from serve.metrics import Metrics, exposition
from serve.schema import Refusal

JSON_KEYS = {"code", "what", "where", "what_to_do"}


def places(running: int = 2, waiting: int = 1, deadline: float = 5.0) -> Admission:
    serving = {"max_running": running, "max_waiting": waiting, "deadline_seconds": deadline}
    settings = SimpleNamespace(config=make_config({"serve": serving}))
    return Admission(lambda: settings, Metrics("0"))


async def hold(admission: Admission, until: asyncio.Event) -> str:
    try:
        async with admission.admit():
            await until.wait()
            return "done"
    except Refusal as refusal:
        return str(refusal.body["code"])


def test_beyond_the_queue_a_request_is_refused_at_once():
    async def go() -> None:
        admission, until = places(), asyncio.Event()
        tasks = [asyncio.create_task(hold(admission, until)) for _ in range(5)]
        done, _ = await asyncio.wait(tasks, timeout=0.1)
        assert [task.result() for task in done] == ["busy", "busy"]
        assert (admission.running, admission.waiting) == (2, 1)
        with pytest.raises(Refusal) as refusal:
            async with admission.admit():
                pass
        assert (refusal.value.status, refusal.value.retry_after_s) == (429, 2)
        until.set()
        assert sorted(await asyncio.gather(*tasks)) == ["busy", "busy", "done", "done", "done"]
        assert (admission.running, admission.waiting) == (0, 0)

    asyncio.run(go())


def test_the_deadline_counts_while_waiting_and_frees_the_place():
    async def go() -> None:
        admission, never = places(running=1, deadline=0.05), asyncio.Event()
        assert await asyncio.gather(hold(admission, never), hold(admission, never)) == ["too_slow", "too_slow"]
        assert (admission.running, admission.waiting) == (0, 0)

    asyncio.run(go())


@given(st.lists(st.tuples(st.sampled_from(["start", "cancel", "finish"]), st.integers(0, 11)), max_size=40))
def test_no_order_of_starts_ends_and_cancels_loses_a_place(steps):
    async def go() -> None:
        admission = places(running=2, waiting=3)
        ends = [asyncio.Event() for _ in range(12)]
        tasks: dict[int, asyncio.Task[str]] = {}
        for what, index in steps:
            if what == "start" and index not in tasks:
                tasks[index] = asyncio.create_task(hold(admission, ends[index]))
            elif what == "cancel" and index in tasks:
                tasks[index].cancel()
            elif what == "finish":
                ends[index].set()
            if index % 2:  # else the next step comes before the loop has run: a place is given and taken back at once
                await asyncio.sleep(0)
            assert admission.running <= 2
            assert admission.waiting <= 3
        for end in ends:
            end.set()
        await asyncio.gather(*tasks.values(), return_exceptions=True)
        assert (admission.running, admission.waiting) == (0, 0)
        assert await hold(admission, ends[0]) == "done"

    asyncio.run(go())


def test_alone_waits_for_those_that_run_and_makes_the_others_wait():
    async def go() -> None:
        admission, until, events = places(), asyncio.Event(), []
        first = asyncio.create_task(hold(admission, until))
        await asyncio.sleep(0)

        async def change() -> None:
            async with admission.alone():
                events.append((admission.running, admission.waiting))
                await asyncio.sleep(0.02)
                events.append((admission.running, admission.waiting))

        changing = asyncio.create_task(change())
        await asyncio.sleep(0.01)
        assert events == []
        later = asyncio.create_task(hold(admission, until))
        await asyncio.sleep(0.01)
        until.set()
        assert await asyncio.gather(first, changing, later) == ["done", None, "done"]
        assert events == [(0, 1), (0, 1)]

    asyncio.run(go())


# --- around the routes


async def echo(scope: Any, receive: Any, send: Any) -> None:
    message = await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(len(message["body"])).encode()})


async def fails(scope: Any, receive: Any, send: Any) -> None:
    raise ValueError("a secret of the request")


def ask(app: Any, path: str = "/reason", method: str = "POST", **request: Any) -> httpx.Response:
    async def go() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as client:
            return await client.request(method, path, **request)

    return asyncio.run(go())


def guard(app: Any = echo, key: str = "", metrics: Metrics | None = None) -> Guard:
    return Guard(app, metrics or Metrics("0"), max_body=100, body_seconds=0.1, key=key, log_requests=False)


async def chunks(count: int, pause: float = 0.0) -> AsyncIterator[bytes]:
    for _ in range(count):
        await asyncio.sleep(pause)
        yield b"x" * 30


AROUND: list[Callable[[], Any]] = [guard, lambda: Edge(echo, EdgeLimits(100, 0.1))]


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


def test_a_mistake_of_ours_is_told_without_what_the_request_held():
    metrics = Metrics("0")
    response = ask(guard(fails, metrics=metrics), content=b"{}")
    assert (response.status_code, response.json()["code"]) == (500, "internal_error")
    assert "secret" not in response.text
    assert (
        'hatch_requests_total{path="other",replica="0",status="500"} 1.0' in exposition([metrics.families()]).decode()
    )


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
    response = ask(Edge(app, EdgeLimits(100, 1.0)))
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert response.json().keys() == JSON_KEYS
    assert response.headers.get("retry-after") == ("7" if status == 429 else None)


def test_the_proxy_leaves_alone_what_the_service_answers():
    assert ask(Edge(answers(422, '{"code": "x"}', "application/json"), EdgeLimits(100, 1.0))).json() == {"code": "x"}
    assert ask(Edge(answers(200, "hatch_x 1"), EdgeLimits(100, 1.0))).text == "hatch_x 1"


def test_metrics_of_replicas_are_one_text_each_family_once():
    replicas = [Metrics("a"), Metrics("b")]
    for number, metrics in enumerate(replicas):
        metrics.request("/reason", 200)
        metrics.phases({"queue": 0.01, "total": 1.0 + number})
        metrics.model("grpo-1")
        metrics.model("grpo-2")
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
