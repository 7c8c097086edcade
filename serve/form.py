"""`POST /reason` and `/match` as forms: the fields of JSON, with the images as files."""

from __future__ import annotations

import base64
from typing import Annotated, Any

from fastapi import Request, UploadFile
from fastapi.routing import APIRoute
from pydantic import AfterValidator, ConfigDict, Field, WithJsonSchema
from pydantic_core import PydanticCustomError
from starlette.requests import HTTPConnection
from starlette.routing import Match

from serve.errors import FORM, content_type
from serve.schema import MAX_IMAGE_CHARS, MAX_IMAGES, MAX_MARKS, MatchRequest, ReasonRequest, Refusal

LISTS = ("images", "options", "first", "second")
MAX_FILE_BYTES = MAX_IMAGE_CHARS // 4 * 3


def _not_too_long(file: UploadFile) -> UploadFile:
    if (file.size or 0) > MAX_FILE_BYTES:
        raise PydanticCustomError("string_too_long", f"the file has more than {MAX_FILE_BYTES} bytes")
    return file


ImageFile = Annotated[
    UploadFile,
    AfterValidator(_not_too_long),
    WithJsonSchema({"type": "string", "format": "binary", "contentMediaType": "image/*"}),
]


class ReasonForm(ReasonRequest):
    """A question over images of one place, in order: each a file of its own."""

    model_config = ConfigDict(strict=False, json_schema_extra=None)

    images: Annotated[list[ImageFile], Field(min_length=1, max_length=MAX_IMAGES)]  # type: ignore[assignment]
    """PNG, JPEG, WebP or still GIF files."""

    async def as_request(self) -> ReasonRequest:
        """The same question as JSON brings it."""
        return ReasonRequest.model_construct(**self.model_dump(exclude={"images"}), images=await _texts(self.images))


Point = Annotated[str, Field(pattern=r"^-?\d{1,6}(\.\d{1,6})?,-?\d{1,6}(\.\d{1,6})?$", examples=["120,80.5"])]
"""x,y"""
Points = Annotated[list[Point], Field(max_length=MAX_MARKS)]


class MatchForm(MatchRequest):
    """Two photos of one place, each a file of its own, and points on them, each as x,y."""

    model_config = ConfigDict(strict=False, json_schema_extra=None)

    images: Annotated[list[ImageFile], Field(min_length=2, max_length=2)]  # type: ignore[assignment]
    """PNG, JPEG, WebP or still GIF files."""
    first: Points = Field(default_factory=list)  # type: ignore[assignment]
    """Points of the first photo, which get the marks 1, 2, ..; left out: corners that the service finds."""
    second: Points = Field(default_factory=list)  # type: ignore[assignment]
    """The same of the second photo."""

    async def as_request(self) -> MatchRequest:
        """The same as JSON brings it."""
        told = {name: _places(points) for name, points in (("first", self.first), ("second", self.second))}
        rest = self.model_dump(exclude={"images", "first", "second"})
        return MatchRequest.model_construct(**rest | told, images=await _texts(self.images))


def _places(points: Any) -> list[list[float]] | None:
    return [[float(part) for part in point.split(",")] for point in points] or None


async def _texts(files: Any) -> list[str]:
    return [base64.b64encode(await file.read()).decode() for file in files]


class FormRoute(APIRoute):
    """A route for forms alone, beside one of the same path for JSON."""

    def matches(self, scope: Any) -> Any:
        if scope["type"] == "http" and content_type(HTTPConnection(scope)) == FORM:
            return super().matches(scope)
        return Match.NONE, {}


async def each_field_once(http: Request) -> None:
    """Raise Refusal where a field that is no list is there twice: FastAPI would take the last in silence."""
    form = await http.form()
    for name in form:
        if name not in LISTS and (count := len(form.getlist(name))) > 1:
            raise Refusal("repeated_field", f"{name} is there {count} times", name, "send it once")
