"""Server-sent events: a reply's text as it grows."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

from fastapi.responses import StreamingResponse

from serve.reason import Delta
from serve.schema import MatchReply, ReasonReply, Refusal

logger = logging.getLogger("ray.serve")

KEEP_ALIVE_S = 10.0
"""Without news for so long a comment is sent, or proxies close the connection."""
HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}
KEEP_ALIVE = ": keep-alive\n\n"
END = object()


def event(name: str, data: Any) -> str:
    """One server-sent event. ASCII JSON has nothing that a reader takes for a line break: one `data:` line holds it."""
    text = data if isinstance(data, str) else json.dumps(data, separators=(",", ":"))
    return f"event: {name}\ndata: {text}\n\n"


def reason_event(item: Delta | ReasonReply | MatchReply | Refusal) -> str:
    """An item of a streamed reply as an event: text, reply or error."""
    if isinstance(item, Delta):
        return event("text", {"text": item.text, "sample": item.sample})
    if isinstance(item, ReasonReply | MatchReply):
        return event("reply", item.model_dump_json(by_alias=True, ensure_ascii=True))
    return event("error", item.body)


async def last(items: AsyncGenerator[Any, None]) -> Any:
    """The last of the items, of which there is one at least. Raises what they raise."""
    found = None
    async with aclosing(items):
        async for item in items:
            found = item
    return found


async def stream(
    items: AsyncGenerator[Any, None], render: Callable[[Any], str], every_s: float = KEEP_ALIVE_S
) -> StreamingResponse:
    """The items as a text/event-stream, a comment whenever `every_s` passes without one.

    A Refusal before the first item, within `every_s`, is raised here and keeps its status; a later one becomes the last
    event. A client that leaves ends `items`.
    """
    source = _in_one_task(items, every_s)
    first = await anext(source)
    if isinstance(first, Refusal):
        await source.aclose()
        raise first

    async def events() -> AsyncIterator[str]:
        async with aclosing(source):
            yield KEEP_ALIVE if first is None else render(first)
            async for item in source:
                yield KEEP_ALIVE if item is None else render(item)

    return StreamingResponse(events(), media_type="text/event-stream", headers=HEADERS)


async def _in_one_task(items: AsyncGenerator[Any, None], every_s: float) -> AsyncGenerator[Any, None]:
    """The items; None whenever `every_s` passes without one; a Refusal that was raised comes last.

    One task runs `items` from its first line to its last: deadlines inside it belong to that task.
    """
    news: asyncio.Queue[Any] = asyncio.Queue()

    async def run() -> None:
        try:
            async with aclosing(items):
                async for item in items:
                    news.put_nowait(item)
        except Refusal as refusal:
            news.put_nowait(refusal)
        except Exception as error:
            logger.exception("a streamed request failed")
            what = f"the service failed ({type(error).__name__})"
            news.put_nowait(Refusal("internal_error", what, "server", "try again; if it stays, report it", status=500))
        finally:
            news.put_nowait(END)

    task = asyncio.create_task(run())
    try:
        while True:
            try:
                item = await asyncio.wait_for(news.get(), every_s)
            except TimeoutError:
                item = None
            if item is END:
                return
            yield item
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
