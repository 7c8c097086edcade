"""A request's body as a ReasonRequest: JSON, or a form with files. One validation, the same errors."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException

from serve.schema import MAX_IMAGE_CHARS, MAX_IMAGES, MAX_OPTIONS, ReasonRequest, Refusal, refusal_of

FORM = "multipart/form-data"
LISTS = ("images", "options")
MAX_FIELDS = len(ReasonRequest.model_fields) + MAX_OPTIONS + MAX_IMAGES
MAX_FIELD_BYTES = 2**18
"""Of one text field of a form: 8,000 characters of a question take 32,000 bytes at most."""
THREAD_ABOVE_BYTES = 2**16
"""A body above this is parsed in a thread, so that others are answered meanwhile."""

Body = TypeVar("Body", bound=BaseModel)


async def read_request(request: Request) -> ReasonRequest:
    """The body of `POST /reason`. Raises Refusal (415 for a body that is neither JSON nor a form)."""
    kind = content_type(request)
    if kind == FORM:
        return await _read_form(request)
    return await read_json(request, ReasonRequest)


async def read_json(request: Request, model: type[Body]) -> Body:
    """A JSON body as `model`; a missing content type counts as JSON. Raises Refusal."""
    kind = content_type(request)
    if kind and kind != "application/json" and not kind.endswith("+json"):
        what = f"the body is {kind[:100]}"
        raise Refusal("wrong_content_type", what, "content-type", "send application/json", status=415)
    body = await request.body()
    if len(body) > THREAD_ABOVE_BYTES:
        return await asyncio.to_thread(_validated, body, model)
    return _validated(body, model)


def content_type(request: Request) -> str:
    """The media type in lower case, without parameters; empty when there is none."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _validated(body: bytes, model: type[Body]) -> Body:
    try:
        fields = json.loads(body.decode())
    except (ValueError, RecursionError) as error:
        what = f"the body is not JSON: {str(error)[:200]}"
        raise Refusal("not_json", what, "body", "send a JSON object as the body") from None
    return _checked(fields, model)


def _checked(fields: Any, model: type[Body], **how: Any) -> Body:
    try:
        return model.model_validate(fields, **how)
    except ValidationError as error:
        mistake = dict(error.errors(include_url=False, include_input=False)[0])
        raise refusal_of(mistake, model.model_fields) from None


async def _read_form(request: Request) -> ReasonRequest:
    """Repeated `images` files, repeated `options`, and the other fields once each."""
    try:
        async with request.form(max_files=MAX_IMAGES + 1, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD_BYTES) as form:
            fields = await _fields(form)
    except HTTPException as error:
        mend = "send multipart/form-data with repeated images files and the other fields once each, all short"
        raise Refusal("bad_form", f"the form cannot be read: {error.detail}", "body", mend) from None
    return await asyncio.to_thread(_checked, fields, ReasonRequest, strict=False)


async def _fields(form: FormData) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name in form:
        values = [await _text_of(value, name, index) for index, value in enumerate(form.getlist(name))]
        if name not in LISTS and len(values) > 1:
            raise Refusal("repeated_field", f"{name} is there {len(values)} times", name, "send it once")
        fields[name] = values if name in LISTS else values[0]
    return fields


async def _text_of(value: UploadFile | str, name: str, index: int) -> str:
    """A field's text; a file's bytes as base64, as they come in JSON."""
    if isinstance(value, str):
        return value
    if name != "images":
        raise Refusal("unexpected_file", f"{name} is a file", name, "send the files as images, the rest as text")
    if (value.size or 0) * 4 > MAX_IMAGE_CHARS * 3:
        what = f"the file has {value.size} bytes, at most {MAX_IMAGE_CHARS * 3 // 4} are read"
        raise Refusal("too_long", what, f"images.{index}", "scale the image down before sending")
    return base64.b64encode(await value.read()).decode()
