"""The page at `/` and its files: static, from the package, nothing from elsewhere."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse

from serve.schema import Refusal

FOLDER = Path(__file__).parent / "page"
MEDIA_TYPES = {
    ".css": "text/css",
    ".html": "text/html",
    ".jpg": "image/jpeg",
    ".js": "text/javascript",
    ".json": "application/json",
    ".svg": "image/svg+xml",
}
"""What is served; a file of another kind (licences, notes) is not."""
FILES = {path.relative_to(FOLDER).as_posix(): path for path in sorted(FOLDER.rglob("*")) if path.suffix in MEDIA_TYPES}
"""By the name under `/page/`. A name that is not here is not looked for on disk."""
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}

pages = APIRouter(include_in_schema=False)


@pages.get("/")
def index() -> FileResponse:
    """The page."""
    return _file("index.html")


@pages.get("/page/{name:path}")
def page_file(name: str) -> FileResponse:
    """One of its scripts, styles and examples. Raises Refusal (404) when there is none of that name."""
    if name not in FILES:
        raise Refusal("not_found", f"the page has no file {name[:100]!r}", "path", "open /", status=404)
    return _file(name)


def _file(name: str) -> FileResponse:
    path = FILES[name]
    return FileResponse(path, media_type=MEDIA_TYPES[path.suffix], headers=HEADERS)
