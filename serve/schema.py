"""What `POST /reason` takes and gives, and how a wrong request is refused."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from hatch_ray.sample import AnswerForm

MAX_IMAGE_CHARS = 28 * 2**20
"""Base64 characters of one image: a file of 21 MiB."""
MAX_QUESTION_CHARS = 8000

CONVENTION = (
    "matrix is the pose of camera `to` in the frame of camera `from`: x_from = matrix @ x_to, metres; "
    "axes x right, y down, z forward; composed in the camera's own frame (gravity is not known)"
)


class Refusal(ValueError):
    """A request that cannot be served; becomes the body of a 422 (or another status)."""

    def __init__(
        self, code: str, what: str, where: str, what_to_do: str, status: int = 422, retry_after_s: int | None = None
    ) -> None:
        super().__init__(what)
        self.status = status
        self.retry_after_s = retry_after_s
        self.body = {"code": code, "what": what, "where": where, "what_to_do": what_to_do}


class ReasonRequest(BaseModel):
    """A question over images of one place, in order."""

    model_config = ConfigDict(extra="forbid", strict=True)

    images: Annotated[list[Annotated[str, Field(max_length=MAX_IMAGE_CHARS)]], Field(min_length=1)]
    """Base64 of PNG, JPEG, WebP or still GIF files; a data URI prefix is allowed."""
    question: Annotated[str, Field(max_length=MAX_QUESTION_CHARS)]
    answer_form: AnswerForm = "text"
    """What the answer must look like; it is part of the prompt, as in training."""
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] = 0.0
    """0 is greedy."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    """Makes sampling at temperature > 0 repeatable."""


class Plan(BaseModel):
    """The steps that take the camera of image `from` to that of image `to`."""

    model_config = ConfigDict(populate_by_name=True)

    source: Annotated[int, Field(alias="from")]
    to: int
    action: list[dict[str, float]]


class Pose(BaseModel):
    """Where a plan ends (see CONVENTION)."""

    model_config = ConfigDict(populate_by_name=True)

    source: Annotated[int, Field(alias="from")]
    to: int
    matrix: list[list[float]]
    """4 x 4, rows."""


class ReasonReply(BaseModel):
    """The reply, read by the parser that training rewards."""

    answer: str | None
    """None when the model wrote no single answer block."""
    actions: list[Plan]
    """One a readable pair; none for a single image."""
    poses: list[Pose]
    convention: str = CONVENTION
    text: str
    """The model's words as they came."""
    format_ok: bool
    problems: list[str]
    """Names of what is wrong with the text (`hatch_ray.protocol.response`)."""
    model_version: str
    seconds: float


class Health(BaseModel):
    status: Literal["ok"]
    model_version: str
    template: str
    max_images: int


PYDANTIC_CODES = {
    "missing": ("missing_field", "add the field"),
    "extra_forbidden": ("unknown_field", "remove it; the fields are " + ", ".join(ReasonRequest.model_fields)),
    "json_invalid": ("not_json", "send a JSON object as the body"),
    "literal_error": ("unknown_answer_form", "use one of the listed values"),
    "string_too_long": ("too_long", "send less"),
}


def refusal_of(mistake: dict[str, Any]) -> Refusal:
    """The first pydantic error of a request as a refusal."""
    where = ".".join(str(part) for part in mistake["loc"] if part != "body") or "body"
    if where == "images" and mistake["type"] == "too_short":
        return Refusal("no_images", "the list of images is empty", where, "send at least one image as base64")
    default = ("wrong_value", "correct the value; see docs/serving.md")
    code, what_to_do = PYDANTIC_CODES.get(mistake["type"], default)
    return Refusal(code, mistake["msg"], where, what_to_do)
