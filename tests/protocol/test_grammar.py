"""The grammar of replies: what it lets through parses, what training writes it lets through, its size is bounded."""

from __future__ import annotations

import json
from functools import lru_cache
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hatch_ray.geometry.actions import ATOMS
from hatch_ray.protocol.grammar import MAX_STEPS, reply_grammar
from hatch_ray.protocol.prompt import format_plans, plans_in_words, reply_mode
from hatch_ray.protocol.response import parse_response
from serve.values import typed_value

FORMS = ("letter", "number", "box", "camera_motion", "view_change", "text")
GOLD = {
    "letter": "B",
    "number": "2.4",
    "box": "[10,200,300,1000]",
    "camera_motion": "(500,0),3.6",
    "view_change": "move_left:0.4,move_up:0.0,move_backward:12.0,rotate_up:0,rotate_right:30",
    "text": "the second image, [10,20,30,40] (red chair)",
}


@pytest.fixture(scope="module")
def compile_grammar(tiny_model):
    """Grammar text -> a fresh matcher over the tiny model's tokens, and the vocabulary's size."""
    import xgrammar
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    info = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=len(tokenizer))
    compiler = xgrammar.GrammarCompiler(info, max_threads=1)
    compiled = lru_cache(maxsize=None)(compiler.compile_grammar)
    return lambda text: (xgrammar.GrammarMatcher(compiled(text)), tokenizer)


def walk(matcher, tokenizer, seed: int) -> str:
    """A reply of tokens drawn evenly from all that the grammar allows: the wildest model there is."""
    import xgrammar

    rng, ids = np.random.default_rng(seed), []
    mask = xgrammar.allocate_token_bitmask(1, len(tokenizer))
    while not matcher.is_terminated():
        matcher.fill_next_token_bitmask(mask)
        bits = torch.arange(32, dtype=torch.int32)
        allowed = np.flatnonzero(((mask[0, :, None] >> bits) & 1).flatten()[: len(tokenizer)].numpy())
        ids.append(int(rng.choice(allowed)))
        assert matcher.accept_token(ids[-1])
        assert len(ids) < 4000
    return tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("mode", ["actions", "language", "direct"])
@pytest.mark.parametrize("n_views", [1, 2, 3])
@pytest.mark.parametrize("form", FORMS)
def test_whatever_the_grammar_allows_parses(compile_grammar, form, n_views, mode):
    grammar = reply_grammar(n_views, form, mode, 0, fits=lambda text: True)
    for seed in range(4):
        text = walk(*compile_grammar(grammar), seed)
        response = parse_response(text, n_views, mode)
        assert response.format_ok, (text, response.problems)
        if form != "box":  # four numbers need not be a box
            assert typed_value(response.answer, form)[1] == "", text


def test_a_letter_is_one_of_the_options(compile_grammar):
    grammar = reply_grammar(1, "letter", "actions", 3, fits=lambda text: True)
    answers = {parse_response(walk(*compile_grammar(grammar), seed), 1, "actions").answer for seed in range(40)}
    assert answers == {"A", "B", "C"}


steps = st.sampled_from(ATOMS).flatmap(
    lambda name: st.tuples(
        st.just(name),
        st.integers(0, 360).map(float) if name.endswith("_deg") else st.integers(0, 200).map(lambda n: n / 10),
    )
)


@settings(max_examples=60)
@given(st.data())
def test_what_training_writes_is_allowed(compile_grammar, data):
    n_views, form = data.draw(st.integers(1, 4)), data.draw(st.sampled_from(FORMS))
    mode = reply_mode(data.draw(st.sampled_from(("actions", "language"))), n_views)
    plans = {pair: tuple(data.draw(st.lists(steps, max_size=MAX_STEPS))) for pair in combinations(range(n_views), 2)}
    block = {
        "actions": f"<action>{format_plans(plans)}</action>",
        "language": f"<think>{plans_in_words(plans)}</think>",
        "direct": "",
    }[mode]
    matcher, tokenizer = compile_grammar(reply_grammar(n_views, form, mode, 0, fits=lambda text: True))
    gold = f"{block}<answer>{GOLD[form]}</answer>"
    assert matcher.accept_string(gold), gold
    assert matcher.accept_token(tokenizer.eos_token_id)
    assert matcher.is_terminated()


def test_a_number_outside_the_limits_is_not_allowed(compile_grammar):
    grammar = reply_grammar(2, "number", "actions", 0, fits=lambda text: True)
    start = '<action>[{"from":0,"to":1,"action":['
    for good, bad in (("360", "361"), ("99", "007"), ("0", "400")):
        assert compile_grammar(grammar)[0].accept_string(start + '{"turn_left_deg":' + good + "}")
        assert not compile_grammar(grammar)[0].accept_string(start + '{"turn_left_deg":' + bad + "}")
    assert compile_grammar(grammar)[0].accept_string(start + '{"move_up_m":20.0}')
    assert not compile_grammar(grammar)[0].accept_string(start + '{"move_up_m":20.1}')
    assert not compile_grammar(grammar)[0].accept_string(start + '{"move_left_m":1.0}')


@pytest.mark.parametrize("limit", [230, 300, 500, 1000])
def test_the_longest_reply_fits(compile_grammar, limit):
    """The steps of a pair are cut until a whole reply fits; a token that a model adds would be too many."""
    grammar = reply_grammar(3, "number", "actions", 0, fits=lambda text: len(text) <= limit)
    longest = max(len(walk(*compile_grammar(grammar), seed)) for seed in range(12))
    assert longest <= limit
    wider = reply_grammar(3, "number", "actions", 0, fits=lambda text: True)
    assert (grammar == wider) == (limit == 1000)


def test_what_cannot_fit_is_refused():
    with pytest.raises(ValueError, match="120 pairs"):
        reply_grammar(16, "number", "actions", 0, fits=lambda text: len(text) < 2000)
    with pytest.raises(ValueError, match="does not fit"):
        reply_grammar(1, "text", "actions", 0, fits=lambda text: len(text) < 20)
    assert json.dumps(reply_grammar(16, "number", "direct", 0, fits=lambda text: len(text) < 60))
