"""What the description of the service shows: bodies, replies and errors of each route, as OpenAPI wants them."""

from __future__ import annotations

from typing import Any

from serve.errors import OpenAIError, openai_error
from serve.schema import CONVENTION, ErrorBody, Refusal

IMAGE = "iVBORw0KGgo...="
"""Stands for a file's base64 in the examples."""

QUESTION = {
    "images": [IMAGE, IMAGE],
    "question": "How far is the red chair (red box) from the lamp (blue box), in metres?",
    "answer_form": "number",
}
CHOICE = {
    "images": [IMAGE, IMAGE, IMAGE],
    "question": "Where is the sofa seen from the camera of the second image?",
    "options": ["on the left", "on the right", "behind"],
    "temperature": 0.7,
    "samples": 5,
    "seed": 1,
}
REASON_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {"$ref": "#/components/schemas/ReasonRequest"},
            "examples": {"a number": {"value": QUESTION}, "a choice, voted": {"value": CHOICE}},
        },
        "multipart/form-data": {
            "schema": {"$ref": "#/components/schemas/ReasonForm"},
            "encoding": {"images": {"contentType": "image/png, image/jpeg, image/webp, image/gif"}},
        },
    },
}

ACTION = '[{"from":0,"to":1,"action":[{"turn_right_deg":20},{"move_forward_m":1.3}]}]'
REPLY = {
    "answer": "2.4",
    "value": 2.4,
    "actions": [
        {
            "from": 0,
            "to": 1,
            "action": [{"turn_right_deg": 20.0}, {"move_forward_m": 1.3}],
            "words": "turn right 20°, then go forward 1.3 m",
        }
    ],
    "poses": [
        {
            "from": 0,
            "to": 1,
            "matrix": [
                [0.939693, 0.0, 0.34202, 0.444626],
                [0.0, 1.0, 0.0, 0.0],
                [-0.34202, 0.0, 0.939693, 1.2216],
                [0.0, 0.0, 0.0, 1.0],
            ],
            "translation_m": [0.444626, 0.0, 1.2216],
            "rotation_deg": 20.0,
            "axis": [0.0, 1.0, 0.0],
        }
    ],
    "convention": CONVENTION,
    "consistency": None,
    "consistency_why": "it takes three images",
    "text": f"<action>{ACTION}</action><answer>2.4</answer>",
    "format_ok": True,
    "problems": [],
    "votes": None,
    "tokens": {"prompt": 312, "images": 192, "reply": 58},
    "model_version": "grpo-1f0c2a9b3d4e",
    "seconds": {
        "total": 0.21, "decode": 0.012, "queue": 0.0, "first_token": 0.03, "generate": 0.19, "read": 0.002,
    },
}  # fmt: skip
EVENTS = (
    'event: text\ndata: {"text":"<action>[","sample":0}\n\n: keep-alive\n\n'
    'event: reply\ndata: {"answer":"2.4", ...}\n\n'
)
REASON_REPLIES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The reply; with `stream` server-sent events: `text` as it grows, then `reply` or `error`.",
        "content": {
            "application/json": {},
            "text/event-stream": {"schema": {"type": "string"}, "example": EVENTS},
        },
    }
}

CHAT = {
    "model": "hatch",
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{IMAGE}"}},
                {"type": "text", "text": "How far is the red chair?"},
            ],
        }
    ],
}
CHAT_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {"$ref": "#/components/schemas/ChatRequest"},
            "examples": {"one": {"value": CHAT}},
        }
    },
}
COMPLETION = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1795000000,
    "model": "grpo-1f0c2a9b3d4e",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "<answer>2.4 m</answer>"},
            "finish_reason": "stop",
            "logprobs": None,
        }
    ],
    "usage": {"prompt_tokens": 312, "completion_tokens": 12, "total_tokens": 324},
}
CHAT_REPLIES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The completion; with `stream` OpenAI's chunks as server-sent events.",
        "content": {
            "application/json": {},
            "text/event-stream": {
                "schema": {"type": "string"},
                "example": 'data: {"choices":[...]}\n\ndata: [DONE]\n\n',
            },
        },
    }
}

REFUSALS = {
    400: Refusal("bad_length", "content-length is not a number", "header content-length", "send a whole number", 400),
    401: Refusal("bad_key", "the request has no key", "header Authorization", "send `Authorization: Bearer KEY`", 401),
    404: Refusal("model_not_found", "there is no model 'gpt'", "model", "use hatch", 404),
    408: Refusal("slow_body", "the body was not here after 30 s", "body", "send it faster", 408),
    413: Refusal("body_too_large", "the body has more than 134217728 bytes", "body", "send smaller images", 413),
    415: Refusal("wrong_content_type", "the body is text/plain", "content-type", "send application/json", 415),
    422: Refusal("animated_image", "the image has 12 frames", "images.1", "send each frame as one image"),
    429: Refusal("busy", "32 requests run and 64 wait, no more are taken", "server", "try again in 3 s", 429),
    503: Refusal("engine_stopped", "the model's engine has stopped", "server", "try again in a minute", 503),
    504: Refusal("too_slow", "no reply within 60 s", "server", "try again later, ask for fewer tokens", 504),
}
MEANINGS = {
    400: "The request cannot be read.",
    401: "No key, or a wrong one (serve.api_key_env).",
    404: "No such model.",
    408: "The body came too slowly.",
    413: "The body is too large.",
    415: "Neither JSON nor a form.",
    422: "The request is wrong: `code` names the reason.",
    429: "Too many wait already; Retry-After says how many seconds to wait.",
    503: "The engine is not there; Ray Serve starts it anew.",
    504: "The deadline has passed; the generation was ended.",
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route with the service's own form of errors."""
    return {status: _shown(ErrorBody, MEANINGS[status], REFUSALS[status].body) for status in statuses}


def _shown(model: type, meaning: str, body: Any) -> dict[str, Any]:
    return {"model": model, "description": meaning, "content": {"application/json": {"example": body}}}


ERRORS = errors(400, 401, 408, 413, 415, 422, 429, 503, 504)
OPENAI_ERRORS: dict[int | str, dict[str, Any]] = {
    status: _shown(OpenAIError, MEANINGS[status], openai_error(REFUSALS[422 if status == 400 else status])[1])
    for status in (400, 401, 404, 408, 429, 503, 504)
}
