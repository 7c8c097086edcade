"""The OpenAPI description of the service: FastAPI's, with the bodies that the routes read by hand."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

import hatch_ray
from serve.chat import ChatRequest
from serve.examples import COMPLETION, REPLY
from serve.schema import ReasonRequest

REF = "#/components/schemas/{model}"
ABOUT = "Spatial reasoning over several photos of one place: answers, camera actions, poses and their consistency."


def document(api: FastAPI) -> dict[str, Any]:
    """The description as JSON values."""
    described = get_openapi(title="hatch-ray", version=hatch_ray.__version__, description=ABOUT, routes=api.routes)
    schemas = described.setdefault("components", {}).setdefault("schemas", {})
    for model in (ReasonRequest, ChatRequest):
        schemas |= _schemas(model)
    schemas["ReasonForm"] = _form(schemas["ReasonRequest"])
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    for path, example in (("/reason", REPLY), ("/v1/chat/completions", COMPLETION)):
        # FastAPI leaves out what is null.
        described["paths"][path]["post"]["responses"]["200"]["content"]["application/json"]["example"] = example
    return described


def _schemas(model: type[BaseModel]) -> dict[str, Any]:
    schema = model.model_json_schema(ref_template=REF)
    return schema.pop("$defs", {}) | {model.__name__: schema}


def _form(schema: dict[str, Any]) -> dict[str, Any]:
    """The same fields as a form has them: the images are files."""
    files = {"type": "array", "minItems": 1, "maxItems": schema["properties"]["images"]["maxItems"]}
    files["items"] = {"type": "string", "format": "binary", "contentMediaType": "image/*"}
    return schema | {"title": "ReasonForm", "properties": schema["properties"] | {"images": files}}
