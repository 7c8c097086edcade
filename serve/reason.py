"""A request's way through the engine: its prompt in, its text as it grows, its reply out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from PIL import Image

from hatch_ray.model.prompt_tokens import image_tokens_by_size
from serve.prepare import form_of, prepare
from serve.reply import Clock, Written, read, seconds_of
from serve.schema import ReasonReply, ReasonRequest, Refusal
from serve.settings import Settings


@dataclass(frozen=True)
class Delta:
    """New text of one sample."""

    sample: int
    text: str


def sampling_of(engine: Any, request: ReasonRequest, settings: Settings, room: int) -> Any:
    """vLLM's parameters: deltas for a stream, else the end alone, which costs the event loop less.

    room: tokens that the context has left. Raises Refusal when a constrained reply cannot fit.
    """
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    max_tokens = request.max_tokens or settings.config.serve.max_new_tokens
    grammar = None
    if request.constrained:
        fits = _grammar(engine.processor.tokenizer, request, settings, min(max_tokens, room))
        grammar = StructuredOutputsParams(grammar=fits)
    return engine.sampling(
        n=request.samples,
        temperature=request.temperature,
        seed=request.seed,
        max_tokens=max_tokens,
        output_kind=RequestOutputKind.DELTA if request.stream else RequestOutputKind.FINAL_ONLY,
        structured_outputs=grammar,
    )


def _grammar(tokenizer: Any, request: ReasonRequest, settings: Settings, room: int) -> str:
    system, n_views, n_options = settings.system, len(request.images), len(request.options)
    form = form_of(request, system.answer_forms)
    try:
        return system.grammar(
            n_views, form, settings.stage, n_options, lambda text: len(tokenizer(text).input_ids) <= room
        )
    except ValueError as error:
        what_to_do = "raise max_tokens, send fewer images, or leave constrained out"
        raise Refusal("reply_does_not_fit", f"{error} ({room} tokens)", "max_tokens", what_to_do) from None


async def written_for(
    engine: Any, settings: Settings, request: ReasonRequest, clock: Clock
) -> AsyncGenerator[Delta | Written, None]:
    """A Delta for each piece of text, where the request asks for a stream, then one Written.

    The prompt and its parameters are made in a thread ("decode"). Raises Refusal for what cannot be asked, and (503)
    when the engine dies. Leaving early ends the generation.
    """
    from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

    def ready() -> tuple[str, list[Image.Image], Any]:
        prompt, images, room = prepare(request, settings, engine.processor)
        return prompt, images, sampling_of(engine, request, settings, room)

    start = time.perf_counter()
    prompt, images, sampling = await asyncio.to_thread(ready)
    begun = time.perf_counter()
    clock["decode"] = begun - start
    tokens: list[list[int]] = [[] for _ in range(request.samples)]
    ends, prompt_tokens = [""] * request.samples, 0
    try:
        async with aclosing(engine.generate(prompt, images, sampling)) as outputs:
            async for output in outputs:
                prompt_tokens = len(output.prompt_token_ids or ())
                if output.metrics is not None and output.metrics.first_token_latency > 0:
                    clock["first_token"] = output.metrics.first_token_latency
                for piece in output.outputs:
                    tokens[piece.index] += piece.token_ids
                    ends[piece.index] = piece.finish_reason or ""
                    if piece.text and request.stream:
                        clock.setdefault("first_token", time.perf_counter() - begun)
                        yield Delta(piece.index, piece.text)
    except (EngineDeadError, EngineGenerateError):
        what = "the model's engine has stopped and is being started anew"
        raise Refusal("engine_stopped", what, "server", "try again in a minute", status=503) from None
    texts = [engine.text(ids) for ids in tokens]
    clock["generate"] = time.perf_counter() - begun
    image_tokens = sum(image_tokens_by_size(engine.processor, image.width, image.height) for image in images)
    yield Written(texts, [len(ids) for ids in tokens], ends, prompt_tokens, image_tokens)


async def respond(
    engine: Any, settings: Settings, request: ReasonRequest, clock: Clock
) -> AsyncGenerator[Delta | ReasonReply, None]:
    """A Delta for each piece of text, where the request asks for a stream, then the ReasonReply.

    clock: what is known of the seconds by phase ("queue"); the rest is written into it.
    """
    start = time.perf_counter()
    async with aclosing(written_for(engine, settings, request, clock)) as pieces:
        async for piece in pieces:
            if isinstance(piece, Delta):
                yield piece
                continue
            reading = time.perf_counter()
            reply = await asyncio.to_thread(read, piece, request, settings)
            clock["read"] = time.perf_counter() - reading
            clock["total"] = clock.get("queue", 0.0) + time.perf_counter() - start
            reply.seconds = seconds_of(clock)
            yield reply
