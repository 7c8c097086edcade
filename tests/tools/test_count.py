"""The table of lines by purpose: every file has one, the sums are right, and a commit is counted like files."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support.runs import REPOSITORY
from tools.count import PURPOSES, lines_at, lines_here, purpose, table


def last(text: str) -> int:
    return int(text.split()[-1].replace(",", ""))


def test_every_file_has_a_purpose_and_the_sum_is_all_lines() -> None:
    lines = lines_here(REPOSITORY)
    rows = table(lines).splitlines()[1:]
    assert 10 < len(rows) <= len(PURPOSES) + 2
    counted = [path for name in ("hatch_ray", "actors", "serve") for path in (REPOSITORY / name).rglob("*.py")]
    assert last(rows[-1]) == sum(len(path.read_text(encoding="utf-8").splitlines()) for path in counted)
    assert sum(map(last, rows[:-2])) == last(rows[-1])
    assert sum(last(row) for row in rows[:-2] if row.startswith("*")) == last(rows[-2])


def test_the_first_purpose_that_fits_is_a_files() -> None:
    assert purpose("hatch_ray/data/spar/reader.py") == "SPAR"
    assert purpose("hatch_ray/data/questions/camera.py") == "rooms, questions, RGB-D, store"
    assert purpose("actors/parity.py") == purpose("actors/weights/parity.py") == "fault tolerance"
    assert purpose("hatch_ray/model/tiny_text.py") == "hatch-tiny"


def test_a_file_without_a_purpose_is_named() -> None:
    with pytest.raises(SystemExit, match=r"no purpose: hatch_ray/blockchain\.py; add them"):
        table({"hatch_ray/blockchain.py": 7, "hatch_ray/cli.py": 1})


def test_a_commit_is_counted_like_the_files_it_holds(tmp_path: Path) -> None:
    for name in ("hatch_ray/cli.py", "actors/stages/recipe.py", "serve/app.py"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("a\nb\n", encoding="utf-8")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *words], cwd=tmp_path, check=True)
    before = lines_here(tmp_path)
    (tmp_path / "serve" / "app.py").write_text("a\n", encoding="utf-8")
    assert lines_at(tmp_path, "HEAD") == before != lines_here(tmp_path)
    with pytest.raises(SystemExit, match="--at nowhere: "):
        lines_at(tmp_path, "nowhere")
