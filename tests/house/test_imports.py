"""A process imports what its role needs: a reward actor with torch would cost seconds and hundreds of megabytes."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.imports import ROLES, imports_of


@pytest.mark.parametrize("name", ROLES)
def test_a_role_does_without(name: str, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repository)
    _, modules = imports_of(ROLES[name])
    assert not modules & set(ROLES[name].without)
