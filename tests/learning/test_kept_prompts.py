"""A group whose replies pass some at a time, after its prompt: what one pass of the whole group gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hatch_ray.model.base import load_processor, recompute_activations, set_trainable
from hatch_ray.model.kept_prompts import KeptPrompts, apart
from hatch_ray.model.logprobs import ReplyScorer
from hatch_ray.model.lora import without_lora
from tests.learning.test_shared_prefix import gradients, make_groups, packed, policy

CASES: dict[str, dict[str, Any]] = {
    "all": {},
    "activations computed again": {"recompute": True},
    "adapters": {"lora": True, "recompute": True},
    "language": {"trainable": "language"},
    "vision": {"trainable": "vision", "recompute": True},
}


def scorer_of(tiny_model, lora=False, trainable="all", recompute=False):
    model = policy(tiny_model, lora)
    if not lora:
        set_trainable(model, trainable)
    recompute_activations(model, recompute, torch.device("cpu"))
    return ReplyScorer(model, temperature=0.9, banned=[7])


def loss_of(logprobs, start):
    """A sum whose weight of each token differs, and which is not linear."""
    weight = torch.cos(0.7 * (start + torch.arange(len(logprobs))))
    return (torch.tanh(logprobs / 8) * weight).sum() / 10


@pytest.mark.parametrize(
    "case", [case if case == "all" else pytest.param(case, marks=pytest.mark.rest) for case in CASES]
)
def test_loss_and_every_gradient_are_those_of_one_pass(tiny_model, case):
    """Parts of one, two and one replies."""
    processor = load_processor(tiny_model)
    texts, pictures, (group,) = make_groups(processor, [3])
    whole = scorer_of(tiny_model, **CASES[case])
    loss = loss_of(whole(packed(whole.model, processor, texts, pictures, [group]))[0], 0)
    loss.backward()
    scorer = scorer_of(tiny_model, **CASES[case])
    parts = [packed(scorer.model, processor, texts, pictures, [p]) for p in (group[:1], group[1:3], group[3:])]
    rows = [apart(part) for part in parts]
    kept, total, start = KeptPrompts(scorer.prompts(rows[0][0])), 0.0, 0
    for _, replies in rows:
        logprobs = scorer.replies(replies, kept)[0]
        part = loss_of(logprobs, start)
        part.backward()
        total, start = total + part.item(), start + len(logprobs)
    kept.backward()
    assert total == pytest.approx(loss.item(), abs=1e-6)
    found, expected = gradients(scorer.model), gradients(whole.model)
    assert found.keys() == expected.keys()
    assert max((found[name] - expected[name]).abs().max() for name in expected) < 1e-6
    assert max(gradient.abs().max() for gradient in expected.values()) > 1e-3
    assert scorer.encoder.encoded == 3


def test_rows_of_several_prompts_and_replies_give_what_their_batch_gives(tiny_model):
    """As a worker computes whole groups where another one has a long one; without a gradient, as for a reference."""
    processor = load_processor(tiny_model)
    scorer = scorer_of(tiny_model, lora=True)
    batch = packed(scorer.model, processor, *make_groups(processor, [2, 1, 3]))
    with torch.no_grad(), without_lora(scorer.model):
        expected = scorer(batch)
        prompts, replies = apart(batch)
        kept = KeptPrompts(scorer.prompts(prompts))
        found = scorer.replies(replies, kept)
        kept.backward()
    assert torch.allclose(found[0], expected[0], atol=1e-6) and torch.allclose(found[1], expected[1], atol=1e-5)


@pytest.mark.rest
def test_bfloat16_products_of_parts_are_close_to_those_of_one_pass(tiny_model):
    processor = load_processor(tiny_model)
    texts, pictures, (group,) = make_groups(processor, [2])
    scorer = scorer_of(tiny_model)
    scorer.compute = "bfloat16"
    prompt = packed(scorer.model, processor, texts, pictures, [group])
    expected = scorer(prompt)[0]
    prompts, replies = apart(prompt)
    assert torch.allclose(scorer.replies(replies, KeptPrompts(scorer.prompts(prompts)))[0], expected, atol=2e-2)
