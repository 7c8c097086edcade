"""Chat requests as clients send them: taken, or refused where they are wrong, in the chat route's words."""

from __future__ import annotations

import base64
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest

from serve.chat import ChatRequest, _chat_words, reason_request
from serve.images import decode_image
from serve.schema import Refusal
from serve.settings import Settings
from tests.serve.test_serve import encoded
from tests.support.pictures import photo

A = encoded(photo(0))
URL = f"data:image/png;base64,{A}"
SETTINGS = cast(Settings, SimpleNamespace(version="v1"))


def request(*parts: Any, **fields: Any) -> dict[str, Any]:
    content = [*parts, {"type": "text", "text": "How far is it?"}]
    return {"model": "hatch", "messages": [{"role": "user", "content": content}]} | fields


def image(url: object = URL, **fields: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url} | fields}


@pytest.mark.parametrize(
    "sent",
    [
        request(image(detail=None)),
        request(image(detail="high")),
        request({"type": "image_url", "image_url": URL}),
        request(image(f"data:image/png;charset=utf-8;base64,{A}")),
        request(image(f"data:image/svg+xml;name=a.png;charset=utf-8;base64,{A}")),
        request(image(), stop=None, tools=None, response_format=None, logit_bias=None, n=None, seed=None),
    ],
)
def test_what_clients_send_is_taken(sent: dict[str, Any]) -> None:
    asked = reason_request(ChatRequest.model_validate(sent), SETTINGS)
    assert asked.question == "How far is it?"
    assert decode_image(asked.images[0], 0).size == (112, 112)


@pytest.mark.parametrize(
    ("sent", "code", "where", "what_to_do"),
    [
        (request(image(detail="ultra")), "wrong_value", "messages.0.content.0.image_url.detail", "listed values"),
        (request(image(detail=3)), "wrong_value", "messages.0.content.0.image_url.detail", "listed values"),
        (request({"type": "image_url"}), "missing_field", "messages.0.content.0.image_url", "add the field"),
        (request({"type": "image_url", "image_url": 5}), "wrong_value", "messages.0.content.0.image_url", "correct"),
        (request(image(size=3)), "unknown_field", "messages.0.content.0.image_url.size", "remove it"),
        (request(image(), {"type": "audio"}), "wrong_value", "messages.0.content.1", "correct"),
        (request(image(), stop=["."]), "unknown_field", "stop", "the fields are model, messages, n, temperature"),
        (request(image(), top_p=0.5), "wrong_value", "top_p", "listed values"),
        (
            {"model": "hatch", "messages": [{"role": "user", "content": 3}]},
            "wrong_value",
            "messages.0.content",
            "correct",
        ),
    ],
)
def test_what_is_wrong_is_said_where_it_stands(
    service: str, sent: dict[str, Any], code: str, where: str, what_to_do: str
) -> None:
    response = httpx.post(f"{service}/v1/chat/completions", json=sent, timeout=60)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (400, code, where)
    assert what_to_do in error["message"]


def test_an_unknown_field_of_reason_names_the_fields_of_reason(service: str) -> None:
    response = httpx.post(f"{service}/reason", json={"images": [A], "question": "?", "stop": "."}, timeout=60)
    assert "the fields are images, question, answer_form" in response.json()["what_to_do"]


def test_a_picture_that_is_none_is_named_by_its_part(service: str) -> None:
    """The engine says images.1; the client sent it as the third part."""
    none = image(f"data:image/png;base64,{base64.b64encode(b'no image').decode()}")
    sent = request(image(), {"type": "text", "text": "and"}, none)
    error = httpx.post(f"{service}/v1/chat/completions", json=sent, timeout=60).json()["error"]
    assert (error["code"], error["param"]) == ("not_an_image", "messages.0.content.2.image_url")


@pytest.mark.parametrize(
    ("where", "said"), [("question", "messages.0.content"), ("samples", "n"), ("server", "server")]
)
def test_other_places_are_the_chat_requests_own(where: str, said: str) -> None:
    with pytest.raises(Refusal) as refused, _chat_words(ChatRequest.model_validate(request(image()))):
        raise Refusal("code", "what", where, "what to do")
    assert refused.value.body["where"] == said
