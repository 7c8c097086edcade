"""A client of the service: `Reasoner(url).ask(["a.jpg", "b.jpg"], "How far ...?", answer_form="number")`.

Imports neither Ray nor vLLM nor torch: a robot's program needs httpx, pydantic and (for PIL images) Pillow.
"""

from __future__ import annotations

import base64
import io
import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from serve.schema import MatchReply, ReasonReply

Picture = str | Path | bytes | Any
"""A file's path, a file's bytes, or a PIL image."""
Points = Sequence[Sequence[float]]

RETRIED = (429, 503)
MAX_RETRIES = 4
MAX_WAIT_S = 30.0
"""The longest wait before one retry, whatever Retry-After says."""
FIRST_WAIT_S = 0.5
TIMEOUT_S = 180.0


class ReasonError(Exception):
    """What the service refused. `status` is the HTTP status, 0 where the service could not be reached."""

    def __init__(self, code: str, what: str, where: str, what_to_do: str, status: int = 0) -> None:
        super().__init__(f"{what} ({where}): {what_to_do}")
        self.code, self.what, self.where, self.what_to_do, self.status = code, what, where, what_to_do, status


@dataclass(frozen=True)
class Text:
    """New text of one sample of a streamed reply."""

    text: str
    sample: int


class Reasoner(AbstractContextManager["Reasoner"]):
    """Asks one service. Usable from several threads; close it, or use it as a context manager.

    url: the service's base, such as http://127.0.0.1:8000. key: its API key, where it wants one. retries: how often a
    request that the service was too busy for (429, 503), or that did not reach it, is sent again: after Retry-After,
    else after a wait that doubles; at most 30 s each.
    """

    def __init__(
        self, url: str, key: str | None = None, timeout_s: float = TIMEOUT_S, retries: int = MAX_RETRIES
    ) -> None:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self.url, self.retries = url.rstrip("/"), retries
        self._http = httpx.Client(base_url=self.url, headers=headers, timeout=timeout_s)
        self._sleep: Callable[[float], None] = time.sleep

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def health(self) -> dict[str, Any]:
        """What /healthz says: status, model_version, template, max_images."""
        return self._answered("GET", "/healthz").json()

    def ask(self, images: Sequence[Picture], question: str, **fields: Any) -> ReasonReply:
        """The reply. fields: as in `POST /reason` (answer_form, options, temperature, seed, samples, ...).

        Raises ReasonError when the service refuses or cannot be reached, FileNotFoundError for an absent image.
        """
        response = self._answered("POST", "/reason", _body(images, question, fields | {"stream": False}))
        return ReasonReply.model_validate_json(response.content)

    def match(
        self, images: Sequence[Picture], first: Points | None = None, second: Points | None = None, **fields: Any
    ) -> MatchReply:
        """Which points of two photos are one place. first, second: pixels x, y of each; None: the service finds some.

        fields: as in `POST /match`. Raises as `ask` does.
        """
        body = {"images": _encoded(images), "first": first, "second": second} | fields | {"stream": False}
        return MatchReply.model_validate_json(self._answered("POST", "/match", body).content)

    def stream(self, images: Sequence[Picture], question: str, **fields: Any) -> Iterator[Text | ReasonReply]:
        """Text as it grows, then the reply. Leaving the loop ends the generation. Raises as `ask` does."""
        body = _body(images, question, fields | {"stream": True})
        response = self._answered("POST", "/reason", body, stream=True)
        try:
            for name, data in _events(response.iter_lines()):
                if name == "text":
                    yield Text(**json.loads(data))
                elif name == "reply":
                    yield ReasonReply.model_validate_json(data)
                    return
                elif name == "error":
                    raise ReasonError(**json.loads(data), status=response.status_code)
        except httpx.TransportError as error:
            raise self._unreachable(error) from None
        finally:
            response.close()
        raise ReasonError("cut_off", "the stream ended without a reply", self.url, "ask again")

    def _answered(
        self, method: str, path: str, body: dict[str, Any] | None = None, stream: bool = False
    ) -> httpx.Response:
        """The response, a good one; busy services and lost connections are tried again."""
        request = self._http.build_request(method, path, json=body)
        for retry in range(self.retries + 1):
            wait = ""
            try:
                response = self._http.send(request, stream=stream)
                if response.is_success:
                    return response
                response.read()
                failed, again = _error_of(response), response.status_code in RETRIED
                wait = response.headers.get("retry-after", "")
            except httpx.TransportError as error:
                failed, again = self._unreachable(error), not isinstance(error, httpx.TimeoutException)
            if retry == self.retries or not again:
                raise failed
            self._sleep(_seconds(wait, retry))
        raise AssertionError("the last try returns or raises")

    def _unreachable(self, error: Exception) -> ReasonError:
        what = f"no answer from the service ({error or type(error).__name__})"
        return ReasonError("unreachable", what, self.url, "check the address, and that `hatch serve` runs")


def _seconds(retry_after: str, retry: int) -> float:
    if retry_after.isdecimal():
        return min(float(retry_after), MAX_WAIT_S)
    return min(FIRST_WAIT_S * 2**retry * random.uniform(0.8, 1.2), MAX_WAIT_S)


def _body(images: Sequence[Picture], question: str, fields: dict[str, Any]) -> dict[str, Any]:
    return {"images": _encoded(images), "question": question} | fields


def _encoded(images: Sequence[Picture]) -> list[str]:
    if isinstance(images, (str, Path, bytes)):
        raise TypeError("images is a list: write [image] for a single one")
    return [encoded(image) for image in images]


def encoded(image: Picture) -> str:
    """A path, a file's bytes or a PIL image (sent as PNG) as base64."""
    if isinstance(image, (str, Path)):
        data = Path(image).expanduser().read_bytes()
    elif isinstance(image, (bytes, bytearray, memoryview)):
        data = bytes(image)
    elif hasattr(image, "save"):
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        data = buffer.getvalue()
    else:
        raise TypeError(f"an image is a path, bytes or a PIL image, not {type(image).__name__}")
    return base64.b64encode(data).decode()


def _error_of(response: httpx.Response) -> ReasonError:
    try:
        return ReasonError(**response.json(), status=response.status_code)
    except (ValueError, TypeError):
        what = f"status {response.status_code} without a reason that can be read"
        what_to_do = "check that this address is a hatch-ray service"
        return ReasonError("not_understood", what, str(response.request.url), what_to_do, response.status_code)


def _events(lines: Iterator[str]) -> Iterator[tuple[str, str]]:
    """(event, data) of server-sent events; comments are left out."""
    name = ""
    data: list[str] = []
    for line in lines:
        if not line:
            if data:
                yield name, "\n".join(data)
            name, data = "", []
        elif line.startswith("event:"):
            name = line.removeprefix("event:").strip()
        elif line.startswith("data:"):
            data.append(line.removeprefix("data:").removeprefix(" "))
