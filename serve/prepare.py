"""A question over images as a prompt: checked, rendered as training renders it, and counted."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from PIL import Image

from hatch_ray.data.images import shrink
from hatch_ray.data.questions.choices import listed
from hatch_ray.model.prompt_tokens import widened_length
from hatch_ray.protocol.prompt import check_text
from hatch_ray.sample import Sample
from hatch_ray.systems.base import System
from serve.images import decode_image
from serve.schema import GREEDY_BELOW, ReasonRequest, Refusal
from serve.settings import Settings


def prepare(request: ReasonRequest, settings: Settings, processor: Any) -> tuple[str, list[Image.Image], int]:
    """The rendered prompt, the images as the model sees them, and the tokens that a reply finds room for beside them.

    Raises Refusal for everything that cannot be asked.
    """
    model = settings.config.model
    if len(request.images) > model.max_images:
        what = f"{len(request.images)} images, this model takes at most {model.max_images}"
        what_to_do = "send fewer images, or serve a model that was trained with more (model.max_images)"
        raise Refusal("too_many_images", what, "images", what_to_do)
    _check_sampling(request, settings.config.serve.max_new_tokens)
    question = asked_question(request, settings.system.answer_forms)
    images = [decode_image(text, index) for index, text in enumerate(request.images)]
    images = [shrink(image, model.max_pixels) for image in images]
    asked = (settings.system, settings.stage, len(images), form_of(request, settings.system.answer_forms))
    prompt = _render(processor, question, *asked)
    token_ids = processor.tokenizer(prompt).input_ids
    if special_tokens(processor, token_ids) != _own_tokens(processor, *asked):
        what = "the question changes the chat template's own tokens"
        raise Refusal("reserved_token", what, "question", "remove what looks like a token of the chat template")
    length = widened_length(processor, len(token_ids), [image.size for image in images])
    if length >= model.max_length:
        what = f"the prompt has {length} tokens, images included; the context has {model.max_length}"
        what_to_do = "shorten the question, or send fewer or smaller images"
        raise Refusal("prompt_too_long", what, "question, images", what_to_do)
    return prompt, images, model.max_length - length


def _check_sampling(request: ReasonRequest, most_tokens: int) -> None:
    if request.samples > 1 and request.temperature < GREEDY_BELOW:
        what = f"{request.samples} samples at temperature {request.temperature:g} would all be the same"
        raise Refusal("needs_temperature", what, "temperature", "set a temperature such as 0.7, or samples to 1")
    if request.max_tokens is not None and request.max_tokens > most_tokens:
        what = f"max_tokens is {request.max_tokens}, this service writes at most {most_tokens}"
        raise Refusal("too_many_tokens", what, "max_tokens", "ask for fewer, or serve with a higher max_new_tokens")


def asked_question(request: ReasonRequest, forms: Sequence[str]) -> str:
    """The question with its options, as a select question of training has them. Raises Refusal."""
    if not request.question.strip():
        raise Refusal("empty_question", "the question is empty", "question", "write a question")
    _check_words(request.question, "question", "\n\r\t")
    if not request.options:
        return request.question
    if (form := form_of(request, forms)) != "letter":
        what = f"with options the answer is a letter, not a {form}"
        raise Refusal("options_need_letter", what, "answer_form", "set answer_form to letter, or leave it out")
    if len(request.options) == 1:
        raise Refusal("one_option", "there is one option only", "options", "give two options at least, or none")
    for index, option in enumerate(request.options):
        _check_words(option, f"options.{index}", "")
    question = f"{request.question} {listed(request.options)}"
    _check_words(question, "question, options", "\n\r\t")
    return question


def _check_words(text: str, where: str, allowed: str) -> None:
    found = next((letter for letter in text if unicodedata.category(letter) == "Cc" and letter not in allowed), None)
    if found is not None:
        what = f"the text holds the control character U+{ord(found):04X}"
        raise Refusal("control_character", what, where, "remove it")
    try:
        check_text(text)
    except ValueError as error:
        raise Refusal("reserved_token", str(error), where, "remove the token") from None


def form_of(request: ReasonRequest, forms: Sequence[str]) -> str:
    """The form that the prompt asks for, one of the system's. Raises Refusal for another one."""
    form = request.answer_form
    if form is None or form == "free":
        usual = "letter" if request.options else "text"
        return usual if usual in forms else forms[0]
    if form not in forms:
        what = f"this model has no answer form {form!r}"
        raise Refusal("unknown_answer_form", what, "answer_form", f"use one of {', '.join(forms)}")
    return form


def _render(processor: Any, question: str, system: System, stage: str, n_views: int, form: str) -> str:
    messages = system.prompt(Sample.asked(question, n_views, form), stage)
    return processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)


@lru_cache(maxsize=256)
def _own_tokens(processor: Any, system: System, stage: str, n_views: int, form: str) -> list[int]:
    """The special tokens of a prompt with a plain question: roles and images are the template's alone."""
    return special_tokens(
        processor, processor.tokenizer(_render(processor, "?", system, stage, n_views, form)).input_ids
    )


def special_tokens(processor: Any, token_ids: Sequence[int]) -> list[int]:
    """The ids of the chat template's tokens among those of a prompt, in order: roles, ends, image placeholders."""
    special = _special_ids(processor.tokenizer)
    return [token for token in token_ids if token in special]


@lru_cache(maxsize=8)
def _special_ids(tokenizer: Any) -> frozenset[int]:
    added = tokenizer.added_tokens_decoder
    return frozenset(token for token, entry in added.items() if entry.special or entry.content.startswith("<|"))
