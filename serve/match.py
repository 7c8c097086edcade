"""`POST /match`: points of two photos are marked as in training, and the model says which marks are one place.

The marked photos go the way of `/reason`.
"""

from __future__ import annotations

import asyncio
import base64
import io
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from hatch_ray.data.images import shrink
from hatch_ray.data.numbered import draw_circle, footprint
from hatch_ray.systems.matching.corners import corners
from hatch_ray.systems.matching.prompt import question_text
from hatch_ray.systems.matching.reply import read_reply
from hatch_ray.systems.matching.system import Matching
from serve.images import decode_image
from serve.reason import Delta, written_for
from serve.reply import Clock, Written, seconds_of
from serve.schema import MAX_MARKS, Match, MatchReply, MatchRequest, ReasonRequest, Refusal, Tokens
from serve.settings import Settings

NAMES = ("first", "second")


@dataclass(frozen=True)
class Marked:
    """A photo as the model sees it, with its marks, as base64 of a PNG; points (n, 2): pixels of the photo as sent."""

    picture: str
    points: np.ndarray


def matcher(settings: Settings) -> Matching:
    """The run's system, which matches. Raises Refusal (404) for another one."""
    system = settings.system
    if isinstance(system, Matching):
        return system
    what = f"this run's model is of the system {settings.config.system}, which matches no marks"
    raise Refusal("no_matcher", what, "path", "serve a run of the system matching, or ask POST /reason", status=404)


def mark(text: str, index: int, given: Sequence[Sequence[float]] | None, max_pixels: int) -> Marked:
    """One photo, its points marked: those given, else corners. Raises Refusal."""
    photo = decode_image(text, index)
    seen = shrink(photo, max_pixels)
    scale, guard = np.divide(seen.size, photo.size), footprint(seen.width, MAX_MARKS)
    if given is None:
        places = corners(np.asarray(seen), guard)
        if not len(places):
            what = f"nothing in images.{index} stands out that could be marked"
            raise Refusal("no_points", what, NAMES[index], "send points of your own, or a photo that shows more")
        points = (places + 0.5) / scale - 0.5
    else:
        points = np.array(given, dtype=float)
        places = np.rint((points + 0.5) * scale - 0.5).clip(0, np.array(seen.size) - 1)
        _check(points, places, index, photo, guard)
    seen = seen.copy()
    draw = ImageDraw.Draw(seen)
    for number, (x, y) in enumerate(places, start=1):
        draw_circle(draw, str(number), (int(x), int(y)), seen.size)
    buffer = io.BytesIO()
    seen.save(buffer, "PNG", compress_level=1)
    return Marked(base64.b64encode(buffer.getvalue()).decode(), points)


def _check(points: np.ndarray, places: np.ndarray, index: int, photo: Image.Image, guard: int) -> None:
    outside = ~((points >= -0.5) & (points <= np.array(photo.size) - 0.5)).all(axis=1)
    if outside.any():
        number = int(outside.argmax())
        x, y = points[number]
        what = f"the point ({x:g}, {y:g}) lies outside the photo of {photo.width} x {photo.height} pixels"
        raise Refusal("point_outside", what, f"{NAMES[index]}.{number}", "send pixels of the upright photo")
    apart = np.hypot(*(places[:, None] - places[None]).transpose(2, 0, 1)) + np.diag([np.inf] * len(places))
    if apart.min(initial=np.inf) < guard:
        one, two = sorted(int(k) for k in np.unravel_index(int(apart.argmin()), apart.shape))
        gap = f"{apart.min():.0f} pixels apart"
        what = f"points {one} and {two} are {gap} in the photo that the model sees, marks need {guard}"
        raise Refusal("points_too_near", what, f"{NAMES[index]}.{two}", "leave one out")


async def match(
    engine: Any, settings: Settings, request: MatchRequest, clock: Clock
) -> AsyncGenerator[Delta | MatchReply, None]:
    """A Delta for each piece of text, where the request asks for a stream, then the MatchReply."""
    start, system = time.perf_counter(), matcher(settings)
    max_pixels = settings.config.model.max_pixels

    def marked() -> list[Marked]:
        points = (request.first, request.second)
        return [mark(request.images[index], index, points[index], max_pixels) for index in range(2)]

    first, second = await asyncio.to_thread(marked)
    marking = time.perf_counter() - start
    asked = ReasonRequest.model_construct(
        **request.model_dump(include={"temperature", "seed", "max_tokens", "stream"}),
        images=[first.picture, second.picture],
        question=question_text(len(first.points), len(second.points)),
        answer_form=system.answer_forms[0],
    )
    async with aclosing(written_for(engine, settings, asked, clock)) as pieces:
        async for piece in pieces:
            if isinstance(piece, Delta):
                yield piece
                continue
            reply = read(piece, first.points, second.points, system.thinks(settings.stage), settings.version)
            clock["decode"] += marking
            clock["total"] = clock.get("queue", 0.0) + time.perf_counter() - start
            reply.seconds = seconds_of(clock)
            yield reply


def read(written: Written, first: np.ndarray, second: np.ndarray, thinking: bool, version: str) -> MatchReply:
    """The reply; `seconds` are left at 0."""
    text = written.texts[0]
    found = read_reply(text, len(first), len(second), thinking)
    told = {number: found.pairs.get(number) for number in range(1, len(first) + 1)}
    shown = [points.round(2).tolist() for points in (first, second)]
    pairs = [
        Match(mark=number, partner=partner, first=shown[0][number - 1], second=shown[1][partner - 1])
        for number, partner in told.items()
        if partner
    ]
    return MatchReply(
        pairs=pairs,
        none=[number for number, partner in told.items() if partner == 0],
        unread=[number for number, partner in told.items() if partner is None],
        first=shown[0],
        second=shown[1],
        text=text,
        format_ok=found.blocks and found.whole,
        problems=[problem.partition(":")[2] for problem in found.problems],
        tokens=Tokens(prompt=written.prompt_tokens, images=written.image_tokens, reply=written.lengths[0]),
        model_version=version,
        seconds=seconds_of({}),
    )
