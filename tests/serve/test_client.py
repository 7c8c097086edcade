"""The client and `hatch ask`, against the real service; retries against a small server that is busy at first."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from typer.testing import CliRunner

from hatch_ray.cli import app
from hatch_ray.config import make_config, save_config
from hatch_ray.run_folder import RunFolder
from serve.client import Reasoner, ReasonError, Text
from serve.schema import ReasonReply
from tests.support.pictures import photo

FIELDS: dict[str, Any] = {"answer_form": "number", "max_tokens": 24}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    paths = [folder / f"view{index}.png" for index in range(3)]
    for index, path in enumerate(paths):
        photo(index).save(path)
    return paths


def test_the_client_needs_no_engine():
    code = "import sys, serve.client; print([m for m in ('ray', 'vllm', 'torch', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_paths_bytes_and_images_are_the_same_to_it(service, pictures):
    with Reasoner(service + "/") as reasoner:
        replies = [
            reasoner.ask(images, "How far?", **FIELDS)
            for images in (pictures[:2], [path.read_bytes() for path in pictures[:2]], [photo(0), photo(1)])
        ]
        assert isinstance(replies[0], ReasonReply)
        assert len({reply.text for reply in replies}) == 1
        assert reasoner.health()["model_version"] == replies[0].model_version
        *texts, last = reasoner.stream(pictures[:2], "How far?", **FIELDS)
        assert all(isinstance(text, Text) for text in texts)
        assert "".join(text.text for text in texts) == last.text == replies[0].text


def test_refusals_carry_their_reason(service, pictures):
    with Reasoner(service) as reasoner:
        for answer in (reasoner.ask, lambda *a, **k: list(reasoner.stream(*a, **k))):
            with pytest.raises(ReasonError, match="would all be the same") as refused:
                answer(pictures[:1], "How far?", samples=2)
            error = refused.value
            assert (error.code, error.where, error.status) == ("needs_temperature", "temperature", 422)
            assert error.what_to_do
        with pytest.raises(FileNotFoundError):
            reasoner.ask(["nowhere.png"], "How far?")
        with pytest.raises(TypeError, match="a list"):
            reasoner.ask(pictures[0], "How far?")
        with pytest.raises(TypeError, match="not int"):
            reasoner.ask([7], "How far?")


class Busy(BaseHTTPRequestHandler):
    """Answers from `plan`: (status, Retry-After, body), one a request; the last one for ever."""

    plan: ClassVar[list[tuple[int, str, bytes]]] = []

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        status, retry_after, body = self.plan.pop(0) if len(self.plan) > 1 else self.plan[0]
        self.send_response(status)
        if retry_after:
            self.send_header("retry-after", retry_after)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def busy() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Busy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


REFUSED = json.dumps({"code": "busy", "what": "w", "where": "server", "what_to_do": "wait"}).encode()


def waits(reasoner: Reasoner) -> list[float]:
    """Seconds that it waits, which it does not spend here."""
    found: list[float] = []
    reasoner._sleep = found.append
    return found


def test_a_busy_service_is_asked_again_when_it_says(busy):
    with Reasoner(busy, retries=3) as reasoner:
        waited = waits(reasoner)
        Busy.plan = [(429, "7", REFUSED), (503, "9999", REFUSED), (422, "", REFUSED)]
        with pytest.raises(ReasonError) as refused:
            reasoner.ask([b"x"], "?")
        assert (refused.value.status, waited) == (422, [7.0, 30.0])
        waited.clear()
        Busy.plan = [(429, "", REFUSED)]
        with pytest.raises(ReasonError) as refused:
            list(reasoner.stream([b"x"], "?"))
        assert refused.value.code == "busy"
        assert len(waited) == 3
        assert 0.4 <= waited[0] < waited[1] < waited[2] < 2.5


def test_what_is_no_service_is_named(busy):
    with Reasoner(busy) as reasoner:
        Busy.plan = [(404, "", b"<html>")]
        with pytest.raises(ReasonError, match="hatch-ray service") as refused:
            reasoner.ask([b"x"], "?")
        assert (refused.value.code, refused.value.status) == ("not_understood", 404)
        Busy.plan = [(200, "", b'event: text\ndata: {"text":"a","sample":0}\n\n')]
        with pytest.raises(ReasonError, match="without a reply"):
            list(reasoner.stream([b"x"], "?"))
    with Reasoner("http://127.0.0.1:9", retries=1) as reasoner:
        waited = waits(reasoner)
        with pytest.raises(ReasonError, match="hatch serve") as refused:
            reasoner.ask([b"x"], "?")
        assert (refused.value.code, refused.value.status, len(waited)) == ("unreachable", 0, 1)


def test_hatch_ask_tells_a_newcomer_what_the_model_said(service, pictures):
    names = [str(path) for path in pictures]
    told = CliRunner().invoke(
        app, ["ask", service, *names, "How far?", "--form", "number", "--samples", "3", "--constrained"]
    )
    assert told.exit_code == 0, told.output
    for words in ("3 replies, by weight", "agreement", "0 → 2", "consistency: the paths", "middle half within"):
        assert words in told.output
    told = CliRunner().invoke(app, ["ask", service, *names[:2], "How far?", "--form", "number", "--json"])
    assert ReasonReply.model_validate_json(told.stdout).answer is None
    told = CliRunner().invoke(app, ["ask", service, *names[:2], "How far?"])
    assert "the model's text is not as asked" in told.output


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["How far?"], "at least one image"),
        (["How far?", "view0.png"], "question comes last"),
        (["IMAGE", "How far?", "--form", "poem"], "unknown_answer_form"),
    ],
)
def test_hatch_ask_says_what_is_wrong(service, pictures, words, reason):
    told = CliRunner().invoke(app, ["ask", service, *[str(pictures[0]) if word == "IMAGE" else word for word in words]])
    assert isinstance(told.exception, (ValueError, FileNotFoundError))
    assert reason in str(told.exception)


def test_hatch_ask_finds_the_service_of_a_run(service, pictures, tiny_model, tmp_path):
    run = RunFolder(tmp_path)
    (tmp_path / "grpo").mkdir()
    run.stage_model("grpo").symlink_to(tiny_model)
    run.link_model("grpo")
    port = int(service.rsplit(":", 1)[1])
    save_config(make_config({"run_dir": str(tmp_path), "serve": {"port": port}}), run.config_path)
    told = CliRunner().invoke(app, ["ask", str(tmp_path), str(pictures[0]), "How far?"])
    assert told.exit_code == 0, told.output
    assert f"asking the service that runs at {service}" in told.output
