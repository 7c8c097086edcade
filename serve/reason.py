"""A question over images: its prompt as training renders it, and the model's text as a reply."""

from __future__ import annotations

from typing import Any

from PIL import Image

from hatch_ray.data.images import shrink
from hatch_ray.geometry.actions import compose
from hatch_ray.model.prompt_tokens import image_tokens_by_size
from hatch_ray.protocol.prompt import build_prompt
from hatch_ray.protocol.response import parse_response
from serve.images import decode_image
from serve.schema import Plan, Pose, ReasonReply, ReasonRequest, Refusal
from serve.settings import Settings


def prompt_length(processor: Any, prompt: str, images: list[Image.Image]) -> int:
    """Tokens of a rendered prompt as the engine counts them: an image's placeholder becomes its merged patches."""
    tokens = sum(image_tokens_by_size(processor, image.width, image.height) for image in images)
    return len(processor.tokenizer(prompt).input_ids) - len(images) + tokens


def prepare(request: ReasonRequest, settings: Settings, processor: Any) -> tuple[str, list[Image.Image]]:
    """The rendered prompt and the images as the model sees them; Refusal for everything that cannot be asked."""
    if len(request.images) > settings.max_images:
        raise Refusal(
            "too_many_images",
            f"{len(request.images)} images, this model takes at most {settings.max_images}",
            "images",
            "send fewer images, or serve a model that was trained with more (model.max_images)",
        )
    if not request.question.strip():
        raise Refusal("empty_question", "the question is empty", "question", "write a question")
    images = [decode_image(text, index) for index, text in enumerate(request.images)]
    images = [shrink(image, settings.max_pixels) for image in images]
    try:
        messages = build_prompt(request.question, len(images), request.answer_form, settings.mode, settings.template)
    except ValueError as error:
        raise Refusal("reserved_token", str(error), "question", "remove the token") from None
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    length = prompt_length(processor, prompt, images)
    if length >= settings.max_length:
        raise Refusal(
            "prompt_too_long",
            f"the prompt has {length} tokens, images included; the context has {settings.max_length}",
            "question, images",
            "shorten the question, or send fewer or smaller images",
        )
    return prompt, images


def read(text: str, n_views: int, settings: Settings, seconds: float) -> ReasonReply:
    """The reply's answer, actions and poses, by the parser that training rewards."""
    response = parse_response(text, n_views, settings.mode)
    actions, poses = [], []
    for (source, target), atoms in sorted(response.plans.items()):
        actions.append(Plan(source=source, to=target, action=[{name: value} for name, value in atoms]))
        matrix = compose(atoms, None).as_matrix().round(6).tolist()
        poses.append(Pose(source=source, to=target, matrix=matrix))
    return ReasonReply(
        answer=response.answer,
        actions=actions,
        poses=poses,
        text=text,
        format_ok=response.format_ok,
        problems=list(response.problems),
        model_version=settings.version,
        seconds=round(seconds, 4),
    )
