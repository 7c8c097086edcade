"""Every `hatch` command of the README and the pages is one that the command line takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from hatch_ray.cli import app
from hatch_ray.config import load_config
from tests.support.runs import REPOSITORY

PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
PLACEHOLDERS = {"N": "3", "CONFIG": "configs/tiny.yaml", "OUT": "out", "DIR": "out"}


def commands(page: Path) -> list[str]:
    """The lines of code blocks that begin with hatch, with those that \\ continues, without comments."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = re.findall(r"^(?:    |\$ )?((?:\.venv/bin/|time )?hatch [a-z].*)$", text, re.MULTILINE)
    return [re.sub(r"^(\.venv/bin/|time )|\[(?=--)|(?<=[a-z])\](?= |$)", "", line) for line in lines]


TYPED = [(page.name, line) for page in PAGES for line in commands(page)]


def parse(words: list[str]) -> dict[str, Any]:
    """What the command line makes of the words, without doing it."""
    command: Any = typer.main.get_command(app)
    context = None
    while True:
        context = command.make_context(words[0], words[1:], parent=context)
        if not hasattr(command, "resolve_command"):
            return dict(context.params)
        name, command, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        words = [name, *rest]


@pytest.mark.parametrize(("page", "line"), TYPED)
def test_a_command_of_a_page_is_understood(page: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    words = [PLACEHOLDERS.get(word, word) for word in shlex.split(line, comments=True)]
    asked = parse(words)
    if asked.get("config") and asked.get("overrides"):
        load_config(asked["config"], [text.replace("=PATH", "=/data") for text in asked["overrides"]])


def test_commands_were_found() -> None:
    assert len(TYPED) > 30
