"""The two forms of an error: the service's own, and OpenAI's below /v1."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from serve.schema import Refusal

OPENAI_PREFIX = "/v1/"
OPENAI_TYPES = {401: "authentication_error", 429: "rate_limit_error"}


class OpenAIErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str


class OpenAIError(BaseModel):
    """OpenAI's form of an error."""

    model_config = ConfigDict(title="OpenAIError")

    error: OpenAIErrorDetail


def error_of(refusal: Refusal, path: str) -> tuple[int, dict[str, Any]]:
    """(status, JSON body) of a refusal for a request to this path."""
    return openai_error(refusal) if path.startswith(OPENAI_PREFIX) else (refusal.status, refusal.body)


def openai_error(refusal: Refusal) -> tuple[int, dict[str, Any]]:
    """(status, body) in OpenAI's form: whatever is wrong with a request's body is 400 there."""
    status = 400 if refusal.status in (413, 415, 422) else refusal.status
    body = refusal.body
    detail = {
        "message": f"{body['what']} ({body['where']}): {body['what_to_do']}",
        "type": OPENAI_TYPES.get(status, "invalid_request_error" if status < 500 else "server_error"),
        "param": body["where"],
        "code": body["code"],
    }
    return status, {"error": detail}
