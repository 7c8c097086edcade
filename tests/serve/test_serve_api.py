"""The service's interface: typed replies, votes, streams, forms, constrained replies, OpenAI's form, OpenAPI."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import threading
import time
from collections import Counter
from itertools import permutations
from typing import Any

import httpx
import jsonschema
import numpy as np
import openai
import pytest
import schemathesis
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from hatch_ray.config import make_config
from serve.schema import ReasonReply, ReasonRequest, Refusal
from serve.settings import Settings
from tests.support.pictures import photo


def file_of(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


FILES = [file_of(photo(seed)) for seed in range(3)]
A, B, C = (base64.b64encode(file).decode() for file in FILES)
QUESTION = {"images": [A, B], "question": "How far is the red chair?", "answer_form": "number", "max_tokens": 24}


def ask(service: str, **fields: Any) -> httpx.Response:
    return httpx.post(f"{service}/reason", json=QUESTION | fields, timeout=60)


def told(response: httpx.Response, status: int, code: str, where: str) -> None:
    assert response.status_code == status, response.text
    body = response.json()
    assert (body["code"], body["where"]) == (code, where)
    assert set(body) == {"code", "what", "where", "what_to_do"}
    assert all(body.values())


# --- the reply


@pytest.mark.parametrize("images", [[A], [A, B], [A, B, C]])
def test_a_constrained_reply_parses_is_typed_and_its_poses_are_consistent_with_themselves(service, images):
    response = ask(service, images=images, constrained=True, temperature=1.0, seed=5, max_tokens=400)
    assert response.status_code == 200, response.text
    reply = response.json()
    pairs = [(i, j) for i in range(len(images)) for j in range(i + 1, len(images))]
    assert reply["format_ok"] is True
    assert reply["problems"] == []
    assert reply["value"] == float(reply["answer"])
    assert [(plan["from"], plan["to"]) for plan in reply["actions"]] == pairs
    assert [(pose["from"], pose["to"]) for pose in reply["poses"]] == pairs
    assert all(plan["words"] for plan in reply["actions"])
    for pose in reply["poses"]:
        assert [row[3] for row in pose["matrix"][:3]] == pose["translation_m"]
        assert 0 <= pose["rotation_deg"] <= 180
    if len(images) == 3:
        assert reply["consistency"]["triples"][0]["views"] == [0, 1, 2]
        assert reply["consistency"]["metres"] == reply["consistency"]["triples"][0]["metres"]
        assert reply["consistency_why"] is None
    else:
        assert reply["consistency"] is None
        assert "three images" in reply["consistency_why"]
    assert reply["tokens"]["images"] == 16 * len(images)
    assert reply["tokens"]["prompt"] > reply["tokens"]["images"]
    assert 0 < reply["tokens"]["reply"] <= 400
    seconds = reply["seconds"]
    assert seconds["total"] >= seconds["decode"] + seconds["generate"] - 0.01
    assert 0 < seconds["first_token"] <= seconds["generate"] + 0.01
    assert ReasonReply.model_validate(reply).model_dump(by_alias=True) == reply


def test_a_choice_gets_letters_as_in_training(service):
    fields = {"options": ["left", "right", "behind"], "answer_form": None, "constrained": True, "max_tokens": 400}
    drawn = {ask(service, temperature=2.0, seed=seed, **fields).json()["value"] for seed in range(6)}
    assert drawn <= {"A", "B", "C"}
    assert len(drawn) > 1


def test_several_samples_are_voted(service):
    fields = {"images": [A, B, C], "constrained": True, "max_tokens": 400, "temperature": 1.0, "seed": 1, "samples": 4}
    reply = ask(service, **fields).json()
    votes = reply["votes"]
    assert votes["samples"] == len(votes["replies"]) == 4
    assert len({one["text"] for one in votes["replies"]}) > 1
    assert any(one["text"] == reply["text"] and one["answer"] == reply["answer"] for one in votes["replies"])
    for one in votes["replies"]:
        far = one["consistency"]
        assert one["weight"] == pytest.approx(1 / (1 + far["metres"] + far["degrees"] / 30), abs=1e-5)
    assert 0 < votes["agreement"] <= 1
    assert votes["spread"] >= 0
    assert ask(service, **fields).json()["votes"] == votes
    told(ask(service, samples=2), 422, "needs_temperature", "temperature")
    assert ask(service).json()["votes"] is None


def test_a_reply_without_room_for_its_grammar_is_refused(service):
    told(ask(service, constrained=True, max_tokens=8), 422, "reply_does_not_fit", "max_tokens")
    told(ask(service, max_tokens=401), 422, "too_many_tokens", "max_tokens")


@pytest.mark.parametrize(
    ("fields", "code", "where"),
    [
        ({"options": ["one"]}, "options_need_letter", "answer_form"),
        ({"options": ["one"], "answer_form": "letter"}, "one_option", "options"),
        ({"options": ["a", "b <|im_start|>"], "answer_form": "letter"}, "reserved_token", "options.1"),
        ({"options": ["a", "b\nC. c"], "answer_form": "letter"}, "control_character", "options.1"),
        ({"options": ["a", ""], "answer_form": "letter"}, "wrong_value", "options.1"),
        ({"options": ["<|a", "b|>"], "answer_form": "letter"}, "reserved_token", "question, options"),
        ({"question": "a\x00b"}, "control_character", "question"),
        ({"question": "<|box_start|>"}, "reserved_token", "question"),
        ({"question": "x" * 10_000_000}, "too_long", "question"),
        ({"images": [A] * 17}, "too_many_images", "images"),
        ({"images": [A, "http://example.org/a.png"]}, "bad_base64", "images.1"),
        ({"samples": 0}, "wrong_value", "samples"),
        ({"samples": 17}, "wrong_value", "samples"),
        ({"max_tokens": 0}, "wrong_value", "max_tokens"),
        ({"stream": "yes"}, "wrong_value", "stream"),
        ({"temperature": True}, "wrong_value", "temperature"),
        ({"seed": 10**400}, "wrong_value", "seed"),
    ],
)
def test_wrong_fields_are_named(service, fields, code, where):
    told(ask(service, **fields), 422, code, where)


JSON, FORM = "application/json", "multipart/form-data"


@pytest.mark.parametrize(
    ("body", "kind", "status", "code", "where"),
    [
        (b'{"images": ["x"], "question": "?", "temperature": NaN}', JSON, 422, "wrong_value", "temperature"),
        (b'{"temperature": Infinity, "images": [""], "question": "?"}', JSON, 422, "wrong_value", "temperature"),
        (b"[" * 100_000, JSON, 422, "not_json", "body"),
        (b'{"seed": ' + b"9" * 5000 + b"}", JSON, 422, "not_json", "body"),
        (b"\xff\xfe{}", JSON, 422, "not_json", "body"),
        (b"[]", JSON, 422, "wrong_value", "body"),
        (b'{"\\ud800": 1}', JSON, 422, "wrong_value", "body"),
        (b'{"images": ["x"], "question": "?", "' + b"y" * 1000 + b'": 1}', JSON, 422, "unknown_field", "y" * 200),
        (b"", JSON, 422, "not_json", "body"),
        (b"question=x", "application/x-www-form-urlencoded", 415, "wrong_content_type", "content-type"),
        (b"x", FORM, 422, "bad_form", "body"),
        (b"x", f"{FORM}; boundary=b", 422, "bad_form", "body"),
    ],
)
def test_bodies_that_are_no_request(service, body, kind, status, code, where):
    told(httpx.post(f"{service}/reason", content=body, headers={"content-type": kind}, timeout=60), status, code, where)


# --- forms


def test_a_form_gives_what_json_gives(service):
    files = [("images", ("photo.txt", FILES[0], "text/plain")), ("images", ("x.exe", FILES[1]))]
    fields = {"question": QUESTION["question"], "answer_form": "number", "max_tokens": "24", "temperature": "0.0"}
    form = httpx.post(f"{service}/reason", files=files, data=fields, timeout=60)
    assert form.status_code == 200, form.text
    assert form.json()["text"] == ask(service).json()["text"]


@pytest.mark.parametrize(
    ("fields", "code", "where"),
    [
        ({"temperature": "NaN"}, "wrong_value", "temperature"),
        ({"temperature": "warm"}, "wrong_value", "temperature"),
        ({"samples": "1.5"}, "wrong_value", "samples"),
        ({"question": ["a", "b"]}, "repeated_field", "question"),
        ({"top_p": "1"}, "unknown_field", "top_p"),
        ({"question": "x" * 300_000}, "too_long", "question"),
        ({"question": "x" * 2_000_000}, "bad_form", "body"),
        ({"images": "not a file"}, "wrong_value", "images.0"),
        ({"question": "x" * 9_000}, "too_long", "question"),
        ({"options": ["a"] * 27}, "too_many", "options"),
    ],
)
def test_wrong_forms_get_the_errors_of_json(service, fields, code, where):
    files = [("images", ("a.png", FILES[0]))]
    told(httpx.post(f"{service}/reason", files=files, data={"question": "?"} | fields, timeout=60), 422, code, where)


def test_files_of_a_form_are_judged_by_their_bytes(service):
    def send(**files: Any) -> httpx.Response:
        return httpx.post(f"{service}/reason", files=files, data={"question": "?"}, timeout=60)

    told(send(images=("a.png", b"GIF89a nothing", "image/png")), 422, "not_an_image", "images.0")
    told(send(images=("a.png", b"", "image/png")), 422, "empty_image", "images.0")
    told(send(images=("a.png", file_of(photo(0), "TIFF"), "image/png")), 422, "not_an_image", "images.0")
    told(send(images=("a.png", FILES[0]), seed=("seed", b"1")), 422, "unexpected_file", "seed")
    many = [("images", ("a.png", FILES[0]))] * 17
    told(httpx.post(f"{service}/reason", files=many, data={"question": "?"}), 422, "too_many_images", "images")


# --- streams


def events(service: str, **fields: Any) -> list[tuple[str, Any]]:
    body = json.dumps(QUESTION | {"stream": True} | fields)
    with httpx.stream("POST", f"{service}/reason", content=body, timeout=60) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        text = response.read().decode()
    blocks = [block.split("\n") for block in text.strip().split("\n\n") if not block.startswith(":")]
    return [(block[0].removeprefix("event: "), json.loads(block[1].removeprefix("data: "))) for block in blocks]


def test_a_stream_ends_in_the_reply_that_json_gives(service):
    found = events(service)
    assert [name for name, _ in found] == ["text"] * (len(found) - 1) + ["reply"]
    assert len(found) > 5
    reply = found[-1][1]
    assert "".join(data["text"] for _, data in found[:-1]) == reply["text"]
    assert reply | {"seconds": 0} == ask(service).json() | {"seconds": 0}


def test_samples_of_a_stream_keep_apart(service):
    found = events(service, samples=3, temperature=1.0, seed=2)
    texts = ["".join(data["text"] for name, data in found[:-1] if data["sample"] == index) for index in range(3)]
    assert texts == [one["text"] for one in found[-1][1]["votes"]["replies"]]
    assert len(set(texts)) == 3


def test_a_stream_that_cannot_begin_has_a_status(service):
    told(ask(service, stream=True, images=["@@"]), 422, "bad_base64", "images.0")


def test_errors_and_silence_within_a_stream():
    """No service: an item, silence, then a refusal; then a client that leaves."""
    import asyncio
    from collections.abc import AsyncGenerator

    from serve.reason import Delta
    from serve.stream import reason_event, stream

    closed = []

    async def items() -> AsyncGenerator[Delta, None]:
        try:
            yield Delta(0, 'line\nbreak "x" \u2028')
            await asyncio.sleep(0.2)
            raise Refusal("too_slow", "what", "server", "wait", status=504)
        finally:
            closed.append(asyncio.current_task())

    async def whole() -> str:
        response = await stream(items(), reason_event, every_s=0.05)
        return "".join([part async for part in response.body_iterator])

    text = asyncio.run(whole())
    first, *silence, last = text.strip().split("\n\n")
    assert json.loads(first.removeprefix("event: text\ndata: "))["text"] == 'line\nbreak "x" \u2028'
    assert len(silence) >= 2
    assert set(silence) == {": keep-alive"}
    assert json.loads(last.removeprefix("event: error\ndata: "))["code"] == "too_slow"

    async def broken() -> AsyncGenerator[Delta, None]:
        yield Delta(0, "a")
        raise KeyError("secret")

    async def failing() -> str:
        return "".join([part async for part in (await stream(broken(), reason_event)).body_iterator])

    text = asyncio.run(failing())
    assert '"code":"internal_error"' in text
    assert "secret" not in text

    async def left() -> None:
        response = await stream(items(), reason_event, every_s=0.05)
        async for _ in response.body_iterator:
            break
        await response.body_iterator.aclose()
        assert len(closed) == 2

    asyncio.run(left())
    assert closed[0] is not closed[1]


# --- the prompt: options as in training; roles and images stay the template's


def test_options_stand_in_the_prompt_as_training_writes_them():
    from hatch_ray.data.questions.choices import as_choice
    from hatch_ray.data.questions.registry import Question
    from hatch_ray.sample import ANSWER_FORMS
    from serve.prepare import asked_question

    question = Question("Where is the lamp?", "left", {}, wrong=("right", "behind", "above"))
    trained = as_choice(question, "text", np.random.default_rng(3))
    rendered = {
        asked_question(
            ReasonRequest(images=[A], question="Where is the lamp?", options=list(order)), ANSWER_FORMS
        ): order
        for order in permutations(("left", "right", "behind", "above"))
    }
    assert len(rendered) == 24
    assert rendered[trained.text]["ABCD".index(trained.answer)] == "left"


@pytest.fixture(scope="module")
def processor(tiny_model):
    from hatch_ray.model.base import load_processor

    return load_processor(tiny_model)


PIECES = st.sampled_from(
    [
        "<|im_start|>",
        "<|im_end|>",
        "<|image_pad|>",
        "<|vision_start|>",
        "<|",
        "|>",
        "im_start",
        "\x00",
        "\x1b[2J",
        "\u202e",
    ]
    + [
        "<answer>",
        "</action>",
        "\ufeff",
        "system\n",
        "\u212a",
        "＜|im_end|＞",
        "{{ messages }}",
        "{% raw %}",
        "😀",
        "\r\n",
    ]
)


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(PIECES | st.text(max_size=6), min_size=1, max_size=8).map("".join), st.booleans())
def test_no_question_changes_roles_or_images(processor, text, as_option):
    from serve.prepare import prepare, special_tokens

    model = {"max_images": 4, "max_pixels": 224 * 224, "template": "compact-v1", "max_length": 4096}
    settings = Settings("", "v1", "actions", "", make_config({"model": model, "serve": {"max_new_tokens": 64}}))

    def rendered(question: str, options: list[str]) -> str:
        form = "letter"
        request = ReasonRequest(images=[A, B], question=question, answer_form=form, options=options)
        return prepare(request, settings, processor)[0]

    plain = rendered("?", ["a", "b"])
    try:
        prompt = rendered("?", ["a", text]) if as_option else rendered(text, ["a", "b"])
    except (Refusal, ValidationError):
        return
    ids = [processor.tokenizer(one).input_ids for one in (prompt, plain)]
    assert special_tokens(processor, ids[0]) == special_tokens(processor, ids[1])
    counted = Counter(processor.tokenizer.convert_ids_to_tokens(ids[0]))
    assert (counted["<|image_pad|>"], counted["<|im_start|>"], counted["<|im_end|>"]) == (2, 3, 2)


# --- OpenAI's form


def chat_message(*files: bytes, text: str = "How far is it?") -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{base64.b64encode(file).decode()}"}}
        for file in files
    ]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


SYSTEM = {"role": "system", "content": "You are a surveyor."}


@pytest.fixture(scope="module")
def client(service):
    with openai.OpenAI(base_url=f"{service}/v1", api_key="none", max_retries=0) as found:
        yield found


def test_openai_clients_get_the_text_of_reason(service, client):
    health = httpx.get(f"{service}/healthz").json()
    assert [model.id for model in client.models.list()] == ["hatch", health["model_version"]]
    expected = ask(service, answer_form="text", question="How far is it?").json()
    done = client.chat.completions.create(model="hatch", messages=chat_message(*FILES[:2]), max_completion_tokens=24)
    assert done.choices[0].message.content == expected["text"]
    assert done.choices[0].finish_reason == "length"
    assert done.model == health["model_version"]
    tokens = expected["tokens"]
    assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (tokens["prompt"], tokens["reply"])
    several = client.chat.completions.create(
        model=done.model, messages=chat_message(FILES[0]), n=3, temperature=1.0, seed=4, max_tokens=8
    )
    assert [choice.index for choice in several.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in several.choices}) == 3


def test_openai_clients_stream(client):
    asked: dict[str, Any] = {"model": "hatch", "messages": chat_message(FILES[0]), "max_tokens": 12}
    whole = client.chat.completions.create(**asked)
    with client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}) as chunks:
        found = list(chunks)
    assert "".join(one.choices[0].delta.content or "" for one in found[:-1]) == whole.choices[0].message.content
    assert found[0].choices[0].delta.role == "assistant"
    assert found[-2].choices[0].finish_reason == "length"
    assert found[-1].usage == whole.usage


@pytest.mark.parametrize(
    ("fields", "error", "code"),
    [
        ({"model": "gpt-5"}, openai.NotFoundError, "model_not_found"),
        ({"messages": chat_message(text="no image")}, openai.BadRequestError, "no_images"),
        ({"messages": [{"role": "user", "content": "no image"}]}, openai.BadRequestError, "no_images"),
        ({"messages": [SYSTEM, *chat_message(FILES[0])]}, openai.BadRequestError, "unsupported_messages"),
        ({"messages": []}, openai.BadRequestError, "wrong_value"),
        ({"messages": chat_message(FILES[0], text="<|im_end|>")}, openai.BadRequestError, "reserved_token"),
        ({"messages": chat_message(b"no image")}, openai.BadRequestError, "not_an_image"),
        ({"n": 2}, openai.BadRequestError, "needs_temperature"),
        ({"top_p": 0.5}, openai.BadRequestError, "wrong_value"),
        ({"max_tokens": 4000}, openai.BadRequestError, "too_many_tokens"),
        ({"stop": ["."]}, openai.BadRequestError, "unknown_field"),
        ({"stream": True, "n": 2}, openai.BadRequestError, "needs_temperature"),
    ],
)
def test_openai_clients_get_typed_errors(client, fields, error, code):
    asked = {"model": "hatch", "messages": chat_message(FILES[0]), "max_tokens": 8} | fields
    with pytest.raises(error) as raised:
        client.chat.completions.create(**asked)
    assert raised.value.code == code
    assert raised.value.param
    assert raised.value.body["message"]


def test_no_url_is_fetched(client):
    from http.server import BaseHTTPRequestHandler, HTTPServer

    server = HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    server.timeout = 1
    parts = [{"type": "image_url", "image_url": {"url": f"http://127.0.0.1:{server.server_port}/a.png"}}]
    met: list[int] = []
    server.process_request = lambda *_: met.append(1)  # type: ignore[assignment]
    waiting = threading.Thread(target=server.handle_request)
    waiting.start()
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(model="hatch", messages=[{"role": "user", "content": parts}])
    waiting.join()
    server.server_close()
    assert raised.value.code == "no_data_url"
    assert not met


# --- the description


@pytest.fixture(scope="module")
def description(service) -> dict[str, Any]:
    return httpx.get(f"{service}/openapi.json").json()


def test_the_examples_of_the_description_are_true(service, description):
    """They fit their schemas, and what the service is asked in them it answers."""
    schemas = description["components"]["schemas"]
    root = {"components": {"schemas": schemas}}
    for name in ("ReasonRequest", "ChatRequest"):
        assert schemas[name]["examples"]
    for schema in schemas.values():
        for example in [*schema.get("examples", []), *([schema["example"]] if "example" in schema else [])]:
            jsonschema.validate(example, root | schema)
    for path, name in (("/reason", "ReasonRequest"), ("/v1/chat/completions", "ChatRequest")):
        for example in schemas[name]["examples"]:
            response = httpx.post(f"{service}{path}", json=example | {"max_tokens": 8}, timeout=60)
            assert response.status_code == 200, response.text


def test_the_description_is_that_of_the_models_with_one_form_of_errors(description):
    reason = description["paths"]["/reason"]["post"]
    content = reason["requestBody"]["content"]
    assert content["application/json"]["schema"] == {"$ref": "#/components/schemas/ReasonRequest"}
    form = content["multipart/form-data"]["schema"]
    assert list(form["properties"]) == list(ReasonRequest.model_fields)
    assert form["properties"]["images"]["items"]["format"] == "binary"
    for path, method, error in (
        ("/reason", "post", "ErrorBody"), ("/v1/chat/completions", "post", "OpenAIError"),
        ("/metrics", "get", "ErrorBody"),
    ):  # fmt: skip
        responses = description["paths"][path][method]["responses"]
        assert {"401", "503"} <= set(responses)
        for status, response in responses.items():
            if status != "200":
                assert response["content"]["application/json"]["schema"] == {"$ref": f"#/components/schemas/{error}"}
    assert not {"HTTPValidationError", "ValidationError"} & set(description["components"]["schemas"])


BUDGET_S = 25.0
"""Of this process's own time, for all routes and both kinds of requests."""
EXAMPLES = 12


@pytest.mark.rest
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_whatever_is_sent_the_description_holds(service, description, mode):
    """Schemathesis: no 5xx, and no status, type or body that the description lacks, for right and wrong requests.

    That a text is an image in base64 no schema can say, so requests that fit it may be refused.
    """
    schema = schemathesis.openapi.from_dict(description)
    start, sent = time.process_time(), Counter()

    def ask_route(operation: Any) -> None:
        @seed(0)
        @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        @given(operation.as_strategy(generation_mode=mode))
        def one(case: Any) -> None:
            if time.process_time() - start < BUDGET_S / 2:
                case.call_and_validate(base_url=service, timeout=30, excluded_checks=[positive_data_acceptance])
                sent[operation.path] += 1

        one()

    for result in schema.get_all_operations():
        operation = result.ok()
        if mode is GenerationMode.POSITIVE or operation.method == "post":
            ask_route(operation)
    assert sent["/reason"] >= EXAMPLES // 2
    assert sent["/v1/chat/completions"] >= EXAMPLES // 2


def test_the_curl_of_the_readme_with_photos_of_3_megabytes(service, repository, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (1000, 1010, 3), dtype=np.uint8)
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(file_of(Image.fromarray(noise)))
        assert (tmp_path / name).stat().st_size > 3_000_000
    text = (repository / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    (command,) = [line.strip() for line in text.splitlines() if line.strip().startswith("curl ")]
    typed = command.replace("localhost:8000", service.removeprefix("http://"))
    done = subprocess.run(["bash", "-c", typed], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=50)
    reply = json.loads(done.stdout)
    assert reply.get("tokens", reply)["images"] > 0
    assert [(pose["from"], pose["to"]) for pose in reply["poses"]] in ([], [(0, 1)])
