"""The table of promises, and docs/reliability.md: every test that they name is there, and in the part that is said."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

from tests.support.runs import REPOSITORY

TESTS = REPOSITORY / "tests"


def marked(node: ast.expr) -> bool:
    return "mark.rest" in ast.unparse(node)


@cache
def parts(path: Path) -> dict[str, str]:
    """The part of `make` that runs each test of a file: "test" or "rest"."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    whole = any(
        isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark" and marked(node.value)
        for node in tree.body
    )
    return {
        node.name: "rest" if whole or any(map(marked, node.decorator_list)) else "test"
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


@cache
def files() -> dict[str, Path]:
    """Test files by name; no two have the same."""
    found = sorted(TESTS.rglob("test_*.py"))
    by_name = {path.name: path for path in found}
    assert len(by_name) == len(found), "two files have one name"
    return by_name


def rows(path: Path) -> list[list[str]]:
    """The cells of every row of a page's tables, their headings among them."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]


def named(text: str, file: str | None) -> tuple[list[tuple[str, str]], str | None]:
    """(file, test) of all tests that a cell names in code, and the file that was named last. Without a file's name a
    test is of the last one; a file alone names all its tests; "test_x_..." all that begin so.
    """
    found = []
    for words in re.findall(r"`((?:\w+/)?test_[^`]*)`", text):
        name, _, test = words.rpartition(": ")
        if words.endswith(".py"):
            name, test = words, "test_..."
        if name:
            file = name.rpartition("/")[2]
            assert file in files(), f"there is no {file}"
            assert str(files()[file]).endswith(f"tests/{name}") or "/" not in name, f"{name} lies elsewhere"
        assert file is not None, f"{words}: of which file?"
        known = parts(files()[file])
        names = [other for other in known if other.startswith(test[:-3])] if test.endswith("...") else [test]
        assert names and set(names) <= known.keys(), f"{file} has no {test}"
        found += [(file, name) for name in names]
    return found, file


def test_every_promise_has_tests_in_the_part_that_is_said():
    checked = 0
    for promise, tests, part in rows(TESTS / "README.md"):
        if promise == "promise" or set(promise) <= {"-"}:
            continue
        checked += 1
        found, _ = named(tests, None)
        assert found, f"{promise}: no test"
        said = {parts(files()[file])[test] for file, test in found}
        assert said == set(part.split(", ")), f"{promise}: {part} is said, the tests are in {said}"
    assert checked > 50


def test_every_test_that_the_page_of_reliability_names_is_there():
    file, count = None, 0
    for line in (REPOSITORY / "docs" / "reliability.md").read_text(encoding="utf-8").splitlines():
        found, file = named(line, file)
        count += len(found)
    assert count > 50


def test_what_continuous_integration_runs_is_both_parts():
    steps = (REPOSITORY / ".ci" / "run").read_text(encoding="utf-8").split()
    assert steps[-4:] == ["make", "test", "make", "test-rest"]
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    assert '-m pytest -m "not rest"\n' in makefile and "-m pytest -m rest\n" in makefile
