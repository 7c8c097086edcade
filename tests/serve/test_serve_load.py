"""The service under load: a replica in this process first, then Ray Serve with two replicas of which one is killed."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import shutil
import signal
import socket
import time
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import jsonschema
import numpy as np
import psutil
import pytest
import schemathesis
from hypothesis import HealthCheck, assume, given, settings
from prometheus_client.parser import text_string_to_metric_families

import hatch_ray.manifest
from actors.runtime.checkpoints import Checkpoints
from hatch_ray.config import Config, make_config, save_config
from hatch_ray.run_folder import RunFolder
from serve.follow import newest_model
from serve.reason import prepare
from serve.schema import ReasonRequest
from serve.settings import Settings, model_version
from tests.support.pictures import photo
from tools.tiny import TinyConfig, make_tiny

pytestmark = pytest.mark.rest
MODEL = {"template": "compact-v1", "max_images": 3, "max_length": 768, "max_pixels": 112 * 112}


def encoded(image: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


A, B = encoded(photo(0)), encoded(photo(1, 300, 200))


def body(**fields: Any) -> dict[str, Any]:
    return {"images": [A, B], "question": "How far is the red chair?", "answer_form": "number"} | fields


def make_run(folder: Path, model: Path, serving: dict[str, Any]) -> tuple[Config, RunFolder]:
    """A run whose cold start is done, and whose GRPO is to come."""
    run = RunFolder(folder)
    shutil.copytree(model, run.stage_model("cold_start"))
    run.link_model("cold_start")
    config = make_config({"run_dir": str(folder), "model": MODEL, "serve": serving, "rollout": {"kv_cache_mb": 64}})
    save_config(config, run.config_path)
    return config, run


def write_state(run: RunFolder, step: int, model: Path) -> Path:
    """A GRPO state of the run, as the learner writes it."""
    states = Checkpoints(run.checkpoints("grpo"))
    states.write(step, lambda folder: shutil.copytree(model, folder / "model"))
    return run.checkpoints("grpo") / f"step-{step:06d}"


# --- one replica, in this process


class Replica:
    """A `Service` without Ray Serve: the same ASGI application, asked in memory."""

    def __init__(self, config: Config, run: RunFolder) -> None:
        from serve.app import asgi_app
        from serve.service import Service

        self.run_folder = run
        self.loop = asyncio.new_event_loop()

        async def start() -> Service:
            return Service(Settings.of(config, run))

        self.service = self.do(start())
        transport = httpx.ASGITransport(asgi_app(self.service))
        self.client = httpx.AsyncClient(transport=transport, base_url="http://service", timeout=120)

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)

    async def ask(self, **fields: Any) -> httpx.Response:
        return await self.client.post("/reason", json=body(**fields))

    async def idle(self) -> None:
        """Until the engine has no unfinished request."""
        async with asyncio.timeout(20):
            while self.service.engine.unfinished:
                await asyncio.sleep(0.01)

    def close(self) -> None:
        self.do(self.service.engine.close())
        self.loop.close()


@pytest.fixture(scope="module")
def replica(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replica]:
    serving = {"max_new_tokens": 32, "max_running": 4, "max_waiting": 32, "follow": True}
    replica = Replica(*make_run(tmp_path_factory.mktemp("replica"), tiny_model, serving))
    yield replica
    replica.close()


def test_the_same_seed_gives_what_a_rollout_gives(ray_cluster, engine_pool, tiny_model, replica):
    """Model, prompt, images and seed are the same, the temperature is 1: so are the words."""
    from actors.runtime.messages import Request, Sampling, StoredImage
    from hatch_ray.data.images import image_hash

    service = replica.service
    requests, served = [], []
    for seed in range(4):
        fields = body(temperature=1.0, seed=seed, images=[A, B][: 1 + seed % 2])
        prompt, images, _ = prepare(ReasonRequest(**fields), service.engine.settings, service.engine.processor)
        stored = tuple(StoredImage(image_hash(image), ray_cluster.put(np.asarray(image))) for image in images)
        requests.append(Request(str(seed), prompt, stored, seed))
        served.append(replica.do(replica.ask(**fields)).json()["text"])
    config = make_config({"model": MODEL, "rollout": {"cpus": 0.5, "kv_cache_mb": 64}})
    rollouts = engine_pool(tiny_model, config).generate(requests, Sampling(1, 1.0, 32))
    assert served == [rollout.replies[0].text for rollout in rollouts]
    assert len(set(served)) == 4


def test_beyond_the_queue_the_rest_is_told_to_come_again(replica, monkeypatch):
    monkeypatch.setattr(replica.service.door, "most_waiting", 2)

    async def go() -> list[httpx.Response]:
        return await asyncio.gather(*(replica.ask() for _ in range(9)))

    responses = replica.do(go())
    assert sorted(response.status_code for response in responses) == [200] * 6 + [429] * 3
    busy = next(response for response in responses if response.status_code == 429)
    assert busy.json()["code"] == "busy"
    assert int(busy.headers["retry-after"]) >= 1


def test_the_deadline_counts_while_waiting_and_frees_the_place(replica, monkeypatch):
    monkeypatch.setattr(replica.service, "deadline_s", 0.05)

    async def go() -> httpx.Response:
        async with replica.service.door.alone():
            return await replica.ask()

    response = replica.do(go())
    assert (response.status_code, response.json()["code"]) == (504, "too_slow")
    assert (replica.service.door.inside, replica.service.door.waiting) == (0, 0)


def test_a_deadline_ends_the_generation(replica, monkeypatch):
    monkeypatch.setattr(replica.service, "deadline_s", 0.01)
    response = replica.do(replica.ask())
    assert (response.status_code, response.json()["code"]) == (504, "too_slow")
    replica.do(replica.idle())
    assert replica.service.door.inside == 0
    monkeypatch.undo()
    assert replica.do(replica.ask()).status_code == 200


def test_a_cancelled_request_ends_its_generation(replica):
    async def go() -> None:
        asked = asyncio.create_task(replica.ask())
        async with asyncio.timeout(20):
            while not replica.service.engine.unfinished:
                await asyncio.sleep(0)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        await replica.idle()
        assert replica.service.door.inside == 0

    replica.do(go())


def test_ready_means_that_the_engine_wrote_a_token(replica, monkeypatch):
    monkeypatch.setattr("serve.service.READY_SECONDS", 60.0)
    ready = replica.do(replica.client.get("/readyz"))
    assert ready.status_code == 200
    assert ready.json()["model_version"] == replica.service.engine.settings.version
    asked = []
    monkeypatch.setattr(replica.service.engine, "sampling", lambda **_: asked.append(1) or 1 / 0)
    assert replica.do(replica.client.get("/readyz")).status_code == 200, "the answer holds for a while"
    assert not asked
    monkeypatch.setattr(replica.service, "_ready", (-1e9, True))
    response = replica.do(replica.client.get("/readyz"))
    assert (response.status_code, response.json()["code"]) == (503, "not_ready")


def test_a_new_model_is_taken_over_under_load_and_no_reply_is_mixed(replica, tmp_path, monkeypatch):
    """Every reply is what the version it names gives alone; none is an error; both versions answer."""
    service, run = replica.service, replica.run_folder
    seeds = range(20)

    async def all_seeds() -> list[tuple[str, str]]:
        responses = await asyncio.gather(*(replica.ask(temperature=1.0, seed=seed) for seed in seeds))
        assert {response.status_code for response in responses} == {200}
        return [(response.json()["model_version"], response.json()["text"]) for response in responses]

    async def look() -> None:
        await service.follower.look(service.engine.settings, service.take_over)

    before = service.engine.settings.version
    alone = {(before, seed): text for seed, (_, text) in zip(seeds, replica.do(all_seeds()), strict=True)}
    make_tiny(tmp_path / "new", 1)
    state = write_state(run, 10, tmp_path / "new")

    async def under_load() -> list[tuple[str, str]]:
        asked = asyncio.create_task(all_seeds())
        while service.door.inside < 4:
            await asyncio.sleep(0)
        await look()
        return await asked

    mixed = replica.do(under_load())
    after = service.engine.settings.version
    assert after == model_version(state / "model")
    assert after.startswith("grpo-")
    alone |= {(after, seed): text for seed, (_, text) in zip(seeds, replica.do(all_seeds()), strict=True)}
    assert [text for _, text in mixed] == [
        alone[version, seed] for (version, _), seed in zip(mixed, seeds, strict=True)
    ]
    assert {version for version, _ in mixed} == {before, after}
    assert all(alone[before, seed] != alone[after, seed] for seed in seeds)
    assert f'version="{after}"' in replica.do(replica.client.get("/metrics")).text

    # Neither half a state nor a model of another shape is taken.
    half = write_state(run, 20, tmp_path / "new")
    (half / "model" / "model.safetensors").write_bytes(b"half")
    monkeypatch.setattr(hatch_ray.manifest, "_good", set())  # as in a process that has not written the states
    replica.do(look())
    assert newest_model(run, ["cold_start", "grpo"]) == state / "model"
    shutil.rmtree(half)
    make_tiny(tmp_path / "wide", 0, TinyConfig(text_inner=96))
    write_state(run, 30, tmp_path / "wide")
    replica.do(look())
    assert service.engine.settings.version == after
    assert replica.do(replica.ask(temperature=1.0, seed=3)).json()["text"] == alone[after, 3]


# --- Ray Serve


@pytest.fixture(scope="module")
def two_replicas(service: str, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    from serve.launch import start_service, stop_service

    serving = {"max_new_tokens": 600, "replicas": 2, "cpus": 0.5, "deadline_seconds": 60}
    config, run = make_run(tmp_path_factory.mktemp("load"), tiny_model, serving)
    yield start_service(config, run, port=int(urlsplit(service).port or 0), name="load")
    stop_service("load")


def sample(url: str, name: str) -> float:
    """Sum over all replicas of one series of /metrics."""
    families = text_string_to_metric_families(httpx.get(f"{url}/metrics", timeout=30).text)
    return sum(sample.value for family in families for sample in family.samples if sample.name == name)


def until(what: Any, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.05)


def test_every_error_has_one_form(service):
    for method, path, status in [("GET", "/nowhere", 404), ("GET", "/reason", 405), ("POST", "/healthz", 405)]:
        response = httpx.request(method, service + path)
        assert response.status_code == status
        assert response.json().keys() == {"code", "what", "where", "what_to_do"}


def test_a_body_without_a_length_is_limited_too(service):
    response = httpx.post(f"{service}/reason", content=(b"x" * 2**20 for _ in range(17)), timeout=60)
    assert (response.status_code, response.json()["code"]) == (413, "body_too_large")
    response = httpx.post(f"{service}/reason", json=body(question="how far? " * 2**20), timeout=60)
    assert (response.status_code, response.json()["code"]) == (422, "too_long")


def test_a_slow_client_holds_no_place_and_is_told(service):
    where = urlsplit(service)
    with socket.create_connection((where.hostname, where.port)) as slow:
        slow.sendall(b"POST /reason HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n{")
        assert httpx.post(f"{service}/reason", json=body(), timeout=60).status_code == 200
        assert sample(service, "hatch_requests_running") == 0
        slow.settimeout(30)
        answer = b"".join(iter(lambda: slow.recv(65536), b""))  # the service closes the connection
    assert b" 408 " in answer.split(b"\r\n")[0]
    assert b'"slow_body"' in answer


def test_metrics_tell_of_all_replicas(two_replicas):
    with ThreadPoolExecutor(8) as pool:
        responses = list(
            pool.map(lambda _: httpx.post(f"{two_replicas}/reason", json=body(seed=0), timeout=90), range(8))
        )
    assert {response.status_code for response in responses} == {200}
    assert httpx.post(f"{two_replicas}/reason", json={}).status_code == 422
    text = httpx.get(f"{two_replicas}/metrics", timeout=30).text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    answered = [s for s in families["hatch_requests"].samples if s.labels["path"] == "/reason"]
    assert len({s.labels["replica"] for s in answered}) == 2
    assert sum(s.value for s in answered if s.labels["status"] == "200") == 8
    assert sample(two_replicas, "hatch_refused_total") == 1
    assert sample(two_replicas, "hatch_tokens_total") > 8 * 100
    assert len({s.labels["version"] for s in families["hatch_model"].samples}) == 1


def test_a_client_that_goes_away_ends_its_generation(two_replicas):
    where = urlsplit(two_replicas)
    content = json.dumps(body()).encode()
    head = f"POST {where.path}/reason HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    answered = sample(two_replicas, "hatch_phase_seconds_count")
    with socket.create_connection((where.hostname, where.port)) as client:
        client.sendall(f"{head}content-length: {len(content)}\r\n\r\n".encode() + content)
        until(lambda: sample(two_replicas, "hatch_engine_unfinished") == 1)
    until(lambda: sample(two_replicas, "hatch_engine_unfinished") == 0)
    assert sample(two_replicas, "hatch_requests_abandoned_total") == 1
    assert sample(two_replicas, "hatch_requests_running") == 0
    assert sample(two_replicas, "hatch_phase_seconds_count") - answered < 5, "it was not generated to its end"


def processes(app: str) -> list[psutil.Process]:
    """The replicas of a Ray Serve application."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.cmdline()[:1] and process.cmdline()[0].startswith(f"ray::ServeReplica:{app}:"):
                found.append(process)
    return found


def test_a_killed_replica_costs_its_requests_a_503_and_no_more(two_replicas):
    """kill -9 of one of two replicas under load: the other one answers, the lost one comes back, nothing hangs."""
    victims = processes("load")
    assert len(victims) == 2
    victim, engines = victims[0], victims[0].children(recursive=True)

    def one(number: int) -> httpx.Response:
        time.sleep(0.1 * number)
        return httpx.post(f"{two_replicas}/reason", json=body(seed=number), timeout=90)

    with ThreadPoolExecutor(24) as pool:
        asked = pool.map(one, range(24))
        until(lambda: sample(two_replicas, "hatch_engine_unfinished") >= 4)
        victim.send_signal(signal.SIGKILL)
        responses = list(asked)
    statuses = [response.status_code for response in responses]
    assert set(statuses) <= {200, 503}
    assert 503 in statuses, "the killed one had requests"
    assert statuses[-4:] == [200] * 4, "later ones go to the other replica"
    lost = next(response for response in responses if response.status_code == 503)
    assert lost.json()["code"] == "replica_lost"
    until(lambda: not any(engine.is_running() for engine in engines))
    until(lambda: len(processes("load")) == 2 and httpx.get(f"{two_replicas}/readyz", timeout=60).is_success)


def test_a_service_that_stops_answers_what_runs_first(two_replicas):
    from serve.launch import stop_service

    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(httpx.post, f"{two_replicas}/reason", json=body(), timeout=90)
        until(lambda: sample(two_replicas, "hatch_engine_unfinished") >= 1)
        stopping = pool.submit(stop_service, "load")
        assert running.result().status_code == 200
        stopping.result()
    response = httpx.post(f"{two_replicas}/reason", json=body(), timeout=90)
    assert response.status_code in (404, 503)
    assert response.json().keys() == {"code", "what", "where", "what_to_do"}


# --- a run of another system on the same engine


@pytest.fixture
def matching(replica: Replica) -> Iterator[Replica]:
    """The replica with the settings of a run of the system matching: the engine and its model are the same."""
    from serve.app import asgi_app

    before, client = replica.service.engine.settings, replica.client
    config = make_config({"system": "matching", "model": MODEL, "serve": {"max_new_tokens": 32}})
    replica.service.engine.settings = Settings(before.model, before.version, "grpo", before.run, config)
    transport = httpx.ASGITransport(asgi_app(replica.service))
    replica.client = httpx.AsyncClient(transport=transport, base_url="http://service", timeout=120)
    yield replica
    replica.service.engine.settings, replica.client = before, client


def test_marks_of_two_photos_are_matched(matching):
    def post(**fields: Any) -> httpx.Response:
        return matching.do(matching.client.post("/match", json={"images": [A, B]} | fields))

    given = {"first": [[20, 30], [90, 80]], "second": [[40, 40.5], [250, 150]]}
    reply = post(**given, temperature=1.0, seed=3)
    assert reply.status_code == 200, reply.text
    said = reply.json()
    assert said["first"] == given["first"] and said["second"] == given["second"]
    assert sorted([*said["none"], *said["unread"], *(pair["mark"] for pair in said["pairs"])]) == [1, 2]
    assert said["tokens"]["images"] > 16 and said["seconds"]["total"] >= said["seconds"]["decode"] > 0
    assert post(**given, temperature=1.0, seed=3).json()["text"] == said["text"]
    moved = [post(**given | {"first": [[20, 30], [90, y]]}).json()["text"] for y in (80, 20)]
    found = post().json()
    assert (
        1 <= len(found["first"]) <= 12 and 1 <= len(found["second"]) <= 12 and moved[0] == post(**given).json()["text"]
    )
    stream = post(**given, stream=True)
    assert stream.headers["content-type"].startswith("text/event-stream")
    assert json.loads(stream.text.rpartition("event: reply\ndata: ")[2].strip())["text"] == moved[0]
    files = [("images", ("a.png", base64.b64decode(image), "image/png")) for image in (A, B)]
    form = {"first": ["20,30", "90,80"], "second": ["40,40.5", "250,150"]}
    sent = matching.do(matching.client.post("/match", files=files, data=form))
    assert sent.status_code == 200 and sent.json()["text"] == moved[0]


@pytest.mark.parametrize(
    ("fields", "code", "where"),
    [
        ({"images": [A]}, "too_few_images", "images"),
        ({"images": [A, B, A]}, "too_many_images", "images"),
        ({"images": [A, "@@"]}, "bad_base64", "images.1"),
        ({"first": [[500, 3]]}, "point_outside", "first.0"),
        ({"first": [[20, 30], [22, 30]]}, "points_too_near", "first.1"),
        ({"second": [[1, 2, 3]]}, "too_many", "second.0"),
        ({"second": []}, "wrong_value", "second"),
        ({"first": [[9 * n, 9] for n in range(13)]}, "too_many", "first"),
        ({"max_tokens": 99}, "too_many_tokens", "max_tokens"),
        ({"question": "?"}, "unknown_field", "question"),
    ],
)
def test_what_cannot_be_matched_is_refused_as_in_reason(matching, fields, code, where):
    answer = matching.do(matching.client.post("/match", json={"images": [A, B]} | fields))
    assert (answer.status_code, answer.json()["code"], answer.json()["where"]) == (422, code, where), answer.text


def test_the_description_of_match_holds_whatever_is_sent(matching):
    description = matching.do(matching.client.get("/openapi.json")).json()
    route = description["paths"]["/match"]["post"]
    assert {"401", "404", "413", "429", "504"} <= set(route["responses"])
    schemas = description["components"]["schemas"]
    jsonschema.validate(
        schemas["MatchRequest"]["examples"][0], {"components": {"schemas": schemas}} | schemas["MatchRequest"]
    )
    form = route["requestBody"]["content"]["multipart/form-data"]["schema"]["properties"]
    assert list(form) == list(schemas["MatchRequest"]["properties"])
    operation = schemathesis.openapi.from_dict(description)["/match"]["POST"]

    @settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(operation.as_strategy())
    def ask(case: Any) -> None:
        assume(case.media_type == "application/json")
        answer = matching.do(matching.client.post("/match", json=case.body))
        assert str(answer.status_code) in route["responses"], answer.text
        if answer.status_code != 200:
            assert answer.json().keys() == {"code", "what", "where", "what_to_do"}

    ask()
