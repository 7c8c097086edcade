"""The one form of every error, below /v1 in OpenAI's words; every way in which a request goes wrong ends here."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection

from serve.schema import ErrorBody, Refusal

OPENAI_PREFIX = "/v1/"
OPENAI_TYPES = {401: "authentication_error", 429: "rate_limit_error"}
FORM = "multipart/form-data"
LONGEST = 200
"""Characters of a request's own words, such as a field's name, that an error repeats."""

PYDANTIC_CODES = {
    "missing": ("missing_field", "add the field"),
    "extra_forbidden": ("unknown_field", "remove it"),
    "json_invalid": ("not_json", "send a JSON object as the body"),
    "literal_error": ("wrong_value", "use one of the listed values"),
    "string_too_long": ("too_long", "send less"),
    "too_long": ("too_many", "send fewer"),
}
"""Kind of a pydantic error -> our code, and what to do."""


class OpenAIErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str


class OpenAIError(BaseModel):
    """OpenAI's form of an error."""

    error: OpenAIErrorDetail


def described(*statuses: int | str, model: type[BaseModel] = ErrorBody) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that may refuse with these statuses."""
    return {status: {"model": model} for status in statuses}


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


def refusal_response(refusal: Refusal, scope: Any) -> JSONResponse:
    """The refusal as the answer to this request, of which `scope["refused"]` keeps the code for the metrics."""
    scope["refused"] = refusal.body["code"]
    openai = scope["path"].startswith(OPENAI_PREFIX)
    status, body = openai_error(refusal) if openai else (refusal.status, refusal.body)
    headers = {} if refusal.retry_after_s is None else {"Retry-After": str(refusal.retry_after_s)}
    if refusal.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(body, status_code=status, headers=headers)


def content_type(request: HTTPConnection) -> str:
    """The media type in lower case, without parameters; empty when there is none."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def add_error_handlers(api: FastAPI) -> None:
    """Give every error of `api` the one form: refusals, requests that are no request, paths that are none, mistakes."""

    async def told(request: Request, error: Exception) -> JSONResponse:
        response = refusal_response(_refusal_of(request, error), request.scope)
        response.headers.update(getattr(error, "headers", None) or {})
        return response

    for kind in (Refusal, RequestValidationError, HTTPException, Exception):
        api.add_exception_handler(kind, told)


def _refusal_of(request: Request, error: Exception) -> Refusal:
    """An error in our words; what is no refusal of ours, FastAPI's or Starlette's is a mistake of ours."""
    match error:
        case Refusal():
            return error
        case RequestValidationError():
            return invalid_request(request, error.errors()[0])
        case HTTPException(status_code=400) if content_type(request) == FORM:
            what_to_do = "send multipart/form-data with repeated images files and the other fields once each, all short"
            return Refusal("bad_form", f"the form cannot be read: {error.detail}", "body", what_to_do)
        case HTTPException(status_code=400):
            what = "the body is not JSON that can be read"
            return Refusal("not_json", what, "body", "send a JSON object as the body")
        case HTTPException(status_code=status):
            code = {404: "no_such_path", 405: "wrong_method"}.get(status, "wrong_request")
            what = f"{request.method} {_short(request.url.path)}: {error.detail}"
            return Refusal(code, what, "path", "see docs/serving.md or /openapi.json", status)
    what = "the service made a mistake; its log has the details"  # `serve.guard.Counted` logs it
    return Refusal("internal_error", what, "server", "report it, with the request", status=500)


def invalid_request(request: Request, mistake: dict[str, Any]) -> Refusal:
    """The first pydantic error of a request."""
    place, problem, what = _place(mistake["loc"]), mistake["type"], _short(mistake["msg"])
    if isinstance(mistake.get("input"), bytes):  # FastAPI parses nothing but JSON here
        what = f"the body is {_short(request.headers.get('content-type', ''))}"
        return Refusal("wrong_content_type", what, "content-type", "send application/json", status=415)
    match place, problem:
        case "body", "missing":
            return Refusal("not_json", "the body is empty", place, "send a JSON object as the body")
        case _, "json_invalid":
            return Refusal("not_json", f"the body is not JSON: {mistake['ctx']['error']}", "body", "send a JSON object")
        case _, "extra_forbidden" if "." not in place:
            fields = ", ".join(request.scope["route"].body_field.field_info.annotation.model_fields)
            return Refusal("unknown_field", f"there is no field {place}", place, f"remove it; the fields are {fields}")
        case "images", "too_short":
            if (least := mistake["ctx"]["min_length"]) > 1:
                return Refusal("too_few_images", f"it takes {least} images", place, f"send {least} images")
            return Refusal("no_images", "the list of images is empty", place, "send at least one image")
        case "images", "too_long":
            return Refusal(
                "too_many_images", f"more than {mistake['ctx']['max_length']} images", place, "send fewer images"
            )
        case "answer_form", _:
            return Refusal("unknown_answer_form", what, place, "use one of the listed values")
    if isinstance(mistake.get("input"), UploadFile) and not place.startswith("images"):
        return Refusal("unexpected_file", f"{place} is a file", place, "send the files as images, the rest as text")
    code, what_to_do = PYDANTIC_CODES.get(problem, ("wrong_value", "correct the value; see docs/serving.md"))
    return Refusal(code, what, place, what_to_do)


def _place(location: tuple[str | int, ...]) -> str:
    """The dotted place in the request as it was sent: without "body", and the name of a part's type that pydantic adds.

    ("body", "messages", 0, "content", 2, "image_url", "image_url", "url") is messages.0.content.2.image_url.url.
    """
    sent = [part for before, part in pairwise(location)
            if not (isinstance(before, int) and part in ("text", "image_url"))]  # fmt: skip
    return _short(".".join(map(str, sent))) or "body"


def _short(words: str) -> str:
    """Words of a request, cut, and without halves of letters that no JSON can hold."""
    return words[:LONGEST].encode("utf-8", "replace").decode()
