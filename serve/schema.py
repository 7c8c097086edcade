"""What `POST /reason` and `/match` take and give, and how a wrong request is refused."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from hatch_ray.sample import ANSWER_FORMS

MAX_IMAGES = 16
MAX_SAMPLES = 16
MAX_IMAGE_CHARS = 28 * 2**20
"""Base64 characters of one image: a file of 21 MiB."""
MAX_QUESTION_CHARS = 8000
MAX_OPTION_CHARS = 1000
MAX_FORM_CHARS = 40
MAX_OPTIONS = 26
MAX_MARKS = 12
"""Of a photo that is matched: as many as questions of training have."""
GREEDY_BELOW = 1e-5
"""vLLM takes a temperature below this for 0."""

CONVENTION = (
    "matrix is the pose of camera `to` in the frame of camera `from`: x_from = matrix @ x_to, metres; "
    "axes x right, y down, z forward; composed in the camera's own frame (gravity is not known)"
)

GREY = "iVBORw0KGgoAAAANSUhEUgAAABwAAAAcCAAAAABXZoBIAAAAFElEQVR42mNowAMYRiVHJUclYQAA14+IELSdtnwAAAAASUVORK5CYII="
"""A PNG of 28 x 28 pixels, the smallest that is taken: examples can be sent as they are."""

Value = str | float | list[float] | dict[str, float]
"""A typed answer: letter or text, number, box [x1, y1, x2, y2], or the named numbers of a motion or view change."""


class _Model(BaseModel):
    model_config = ConfigDict(populate_by_name=True, protected_namespaces=(), use_attribute_docstrings=True)


class Refusal(ValueError):
    """A request that cannot be served; becomes the body of a 422 (or another status)."""

    def __init__(
        self, code: str, what: str, where: str, what_to_do: str, status: int = 422, retry_after_s: int | None = None
    ) -> None:
        super().__init__(what)
        self.status = status
        self.retry_after_s = retry_after_s
        self.body = {"code": code, "what": what, "where": where, "what_to_do": what_to_do}


class ErrorBody(_Model):
    """Every error has this form."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"code": "animated_image", "what": "the image has 12 frames",
                                       "where": "images.1", "what_to_do": "send each frame as one image"}},
    )  # fmt: skip

    code: str
    """A stable name, for programs."""
    what: str
    where: str
    """The field, as in `images.1`, or the part of the service."""
    what_to_do: str


Images = list[Annotated[str, Field(max_length=MAX_IMAGE_CHARS)]]
Temperature = Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
MaxTokens = Annotated[int, Field(ge=1)]
Place = Annotated[list[Annotated[float, Field(allow_inf_nan=False)]], Field(min_length=2, max_length=2)]
"""x, y: pixels of an upright photo as it was sent, (0, 0) the middle of the top left one."""
Places = Annotated[list[Place], Field(min_length=1, max_length=MAX_MARKS)]

EXAMPLES: list[Any] = [
    {"images": [GREY, GREY], "question": "How far is the red chair, in metres?", "answer_form": "number"},
    {"images": [GREY, GREY, GREY], "question": "Where is the sofa?", "options": ["on the left", "behind"],
     "temperature": 0.7, "samples": 5, "seed": 1},
]  # fmt: skip


class ReasonRequest(_Model):
    """A question over images of one place, in order."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra={"examples": EXAMPLES})

    images: Annotated[Images, Field(min_length=1, max_length=MAX_IMAGES)]
    """Base64 of PNG, JPEG, WebP or still GIF files; a data URI prefix is allowed."""
    question: Annotated[str, Field(max_length=MAX_QUESTION_CHARS)]
    """Text without chat-template tokens and control characters."""
    answer_form: Annotated[str, Field(max_length=MAX_FORM_CHARS, examples=list(ANSWER_FORMS))] | None = None
    """What the answer must look like, one of letter, number, box, camera_motion, view_change and text (a system of your
    own has others); it is part of the prompt, as in training. Left out, or free: letter where there are options, else
    text."""
    options: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=MAX_OPTION_CHARS)]],
        Field(max_length=MAX_OPTIONS),
    ] = []
    """Choices, which get the letters A, B, ... below the question as in training; the answer is a letter."""
    temperature: Temperature = 0.0
    """0 is greedy."""
    seed: Seed | None = None
    """Makes sampling at temperature > 0 repeatable."""
    samples: Annotated[int, Field(ge=1, le=MAX_SAMPLES)] = 1
    """Replies to draw and vote over; more than one needs a temperature."""
    max_tokens: MaxTokens | None = None
    """Longest reply; at most the service's own bound (serve.max_new_tokens), which is the default."""
    stream: bool = False
    """Send the text as it grows, as server-sent events."""
    constrained: bool = False
    """Let the model write nothing but the form of a reply, so that actions always parse."""


class MatchRequest(_Model):
    """Two photos of one place, and points on them of which the same places are to be found."""

    model_config = ConfigDict(
        extra="forbid", strict=True,
        json_schema_extra={"examples": [{"images": [GREY, GREY], "first": [[14.0, 14.0]], "second": [[14.0, 14.0]]}]},
    )  # fmt: skip

    images: Annotated[Images, Field(min_length=2, max_length=2)]
    """Base64 of PNG, JPEG, WebP or still GIF files; a data URI prefix is allowed."""
    first: Places | None = None
    """Points of the first photo, x and y in its pixels, which get the marks 1, 2, ..; left out: corners that the
    service finds, spread over a grid."""
    second: Places | None = None
    """The same of the second photo: what a mark of the first can be matched to."""
    temperature: Temperature = 0.0
    """0 is greedy."""
    seed: Seed | None = None
    """Makes sampling at temperature > 0 repeatable."""
    max_tokens: MaxTokens | None = None
    """Longest reply; at most the service's own bound (serve.max_new_tokens), which is the default."""
    stream: bool = False
    """Send the text as it grows, as server-sent events."""


class Plan(_Model):
    """The steps that take the camera of image `from` to that of image `to`."""

    source: Annotated[int, Field(alias="from")]
    to: int
    action: list[dict[str, float]]
    words: str
    """The steps in plain English."""


class Pose(_Model):
    """Where a plan ends (see `convention`)."""

    source: Annotated[int, Field(alias="from")]
    to: int
    matrix: list[list[float]]
    """4 x 4, rows."""
    translation_m: list[float]
    """The last column of the matrix: x right, y down, z forward."""
    rotation_deg: float
    """Angle of the whole rotation, 0 to 180."""
    axis: list[float]
    """Unit vector of the rotation's axis (right-handed); zeros where there is no rotation."""


class TripleFigure(BaseModel):
    """One triple of views (`hatch_ray.geometry.consistency`)."""

    views: list[int]
    metres: float
    degrees: float


class Consistency(BaseModel):
    """How far composing the plans i to j and j to k is from the plan i to k; the largest over all triples."""

    triples: list[TripleFigure]
    metres: float
    degrees: float


class VotedReply(BaseModel):
    """One of several replies."""

    answer: str | None
    text: str
    weight: float
    consistency: Consistency | None


class Votes(_Model):
    """The vote over several replies, weighted by consistency."""

    samples: int
    counts: dict[str, float]
    """Weight of each distinct value; replies without a readable value are left out."""
    agreement: float
    """0 to 1: the mean score that all replies would get, by weight, if the winner were the gold answer."""
    spread: float | None
    """Numbers only: the interquartile range, by weight."""
    replies: list[VotedReply]


class Tokens(_Model):
    """Token counts."""

    prompt: int
    """The whole prompt, images included."""
    images: int
    reply: int
    """Of all samples together."""


class Seconds(_Model):
    """Seconds by phase."""

    total: float
    decode: float
    """Images decoded, the prompt rendered and counted."""
    queue: float
    """Waited for a place in the service's queue."""
    first_token: float | None
    """From the engine's start on the request to its first token; null when the engine keeps no times."""
    generate: float
    """From the engine's start to its last token."""
    read: float
    """The reply parsed, composed and voted on."""


class ReasonReply(_Model):
    """The reply, read by the parser that training rewards."""

    answer: str | None
    """Null when the model wrote no single answer block."""
    value: Value | None
    """The answer by its form: letter or text, number, box [x1, y1, x2, y2], {"x", "y", "depth"} of a camera motion,
    {"move_right", "move_up", "move_forward", "rotate_up", "rotate_right"} of a view change; null when the answer cannot
    be read as one (`problems` says why)."""
    actions: list[Plan]
    """One a readable pair; none for a single image."""
    poses: list[Pose]
    convention: str = CONVENTION
    consistency: Consistency | None
    """Null when there is no triple of views with its three plans."""
    consistency_why: str | None
    """Why there is no consistency figure."""
    text: str
    """The model's words as they came."""
    format_ok: bool
    """Whether the text has the blocks and pairs that were asked for."""
    problems: list[str]
    """Names of what is wrong with the text (`hatch_ray.protocol.response`) or with the answer's value."""
    votes: Votes | None
    """Null for a single sample."""
    tokens: Tokens
    model_version: str
    seconds: Seconds


class Match(_Model):
    """Two points that the model takes for one place."""

    mark: int
    """Of the first photo, from 1 on."""
    partner: int
    """Of the second photo."""
    first: list[float]
    second: list[float]
    """x, y in pixels of each photo as it was sent."""


class MatchReply(_Model):
    """What the model says of every mark of the first photo, read by the parser that training rewards."""

    pairs: list[Match]
    none: list[int]
    """Marks of which it says that the second photo has no partner."""
    unread: list[int]
    """Marks of which it says nothing that can be read (`problems` says why)."""
    first: list[list[float]]
    second: list[list[float]]
    """All points, in the order of their marks."""
    text: str
    """The model's words as they came."""
    format_ok: bool
    """Whether the text has the blocks and the object that were asked for."""
    problems: list[str]
    tokens: Tokens
    model_version: str
    seconds: Seconds


class Health(_Model):
    status: Literal["ok"]
    model_version: str
    template: str
    max_images: int
    matches: bool
    """Whether `POST /match` is answered."""
