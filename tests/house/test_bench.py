"""The measurements' own code: what is counted and computed, and that the page shows the kept results."""

import copy
import time
from types import SimpleNamespace

import pytest
import torch

from bench import page, shapes
from bench.learner import Update, make_prompts, products
from bench.measure import in_turn


def test_the_performance_page_is_made_from_the_kept_results():
    assert page.PAGE.read_text(encoding="utf-8") == page.page(), "run `python -m bench.page`"


def test_ways_take_turns_and_warm_up_is_not_counted():
    calls: list[str] = []

    def way(name: str, seconds: float) -> None:
        calls.append(name)
        time.sleep(seconds)

    found = in_turn({"a": lambda: way("a", 0.02), "b": lambda: way("b", 0.0)}, rounds=3)
    assert calls == ["a", "b"] * 4
    assert found["a"]["least"] >= 0.02 and set(found["b"]) == {"median", "least", "most"}


def test_slow_ways_need_fewer_rounds_but_one_always_counts(monkeypatch):
    now = 0.0

    def way(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr("bench.measure.time", SimpleNamespace(perf_counter=lambda: now))
    for enough, rounds in [(0.5, 1), (1.0, 1 + 2), (2.5, 1 + 3), (100.0, 1 + 5)]:
        now = 0.0
        found = in_turn({"a": lambda: way(1.0)}, rounds=5, enough=enough)
        assert (now, found["a"]["median"]) == (rounds, 1.0)


def test_the_ceiling_is_the_ratio_of_tokens():
    assert shapes.ceiling(prompt=100, group=8, reply=0) == 8
    assert shapes.ceiling(prompt=0, group=8, reply=100) == 1
    assert shapes.ceiling(prompt=235, group=8, reply=128) == pytest.approx(8 * 363 / (235 + 1024))


@pytest.mark.parametrize("shared", [True, False])
def test_an_update_has_the_tokens_that_are_counted(shared):
    load = shapes.Load(prompts=2, images=2, pixels=56, group=3, reply=5)
    model, _ = shapes.make_model("6m", "cpu", torch.float32)
    prompts = make_prompts(model, load)
    update = Update(model, copy.deepcopy(model).requires_grad_(False), prompts, load, shared)
    tokens = sum(batch.input_ids.numel() for batch in update.batches)
    prompt = len(prompts[0].token_ids)
    assert tokens == 2 * (prompt + 15 if shared else 3 * (prompt + 5))
    images = sum(len(batch.images) for batch in update.batches)
    assert images == (4 if shared else 12)
    for _ in range(2):
        update()
    assert update.policy.encoder.encoded == 2 * images


def test_products_grow_with_the_replies_and_not_with_sharing():
    model, _ = shapes.make_model("6m", "meta", torch.float32)
    small, large = (shapes.Load(1, 2, 112, 8, reply) for reply in (64, 128))
    prompts = make_prompts(model, small)
    more = products(model, prompts, large) / products(model, prompts, small)
    assert 1 < more < 2
    language = sum(p.numel() for p in model.model.language_model.layers.parameters())
    assert products(model, prompts, small) > 8 * language * (len(prompts[0].token_ids) + 8 * 64)
