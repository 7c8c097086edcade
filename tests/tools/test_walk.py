"""The printed way of a sample is the code's way, and it grows no longer."""

from __future__ import annotations

import pytest

from tools import walk


def test_each_hop_is_a_call_and_the_way_is_no_longer_than_it_was() -> None:
    found = walk.entries()
    assert len(found) <= 20 and max(found.values()) <= 3


def test_a_hop_that_is_gone_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = "actors/stages/grpo.py:drive -> actors/learner/learner.py:update"
    monkeypatch.setattr(walk, "WAY", gone)
    with pytest.raises(SystemExit, match=r"grpo\.py:drive does not call actors/learner/learner\.py:update"):
        walk.entries()
    monkeypatch.setattr(walk, "WAY", "actors/stages/grpo.py:drove -> actors/learner/learner.py:update")
    with pytest.raises(SystemExit, match="has no function drove"):
        walk.entries()
