"""The parser that rewards, evaluation and the service share (reference: traps 9 of section 10)."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hatch_ray.geometry.actions import ATOMS
from hatch_ray.protocol.prompt import build_prompt, format_plans, plans_in_words
from hatch_ray.protocol.response import parse_response

PAIR = '{"from":0,"to":1,"action":[{"turn_right_deg":30}]}'


def reply(actions: str, answer: str = "2.4") -> str:
    return f"<action>{actions}</action><answer>{answer}</answer>"


def test_a_good_reply():
    response = parse_response(reply(f"[{PAIR}]"), 2)
    assert response.format_ok
    assert response.plans == {(0, 1): (("turn_right_deg", 30.0),)}
    assert response.answer == "2.4"


plans = st.lists(st.tuples(st.sampled_from(ATOMS), st.one_of(st.integers(0, 20), st.floats(0, 20))), max_size=12).map(
    tuple
)


@given(st.integers(2, 4).flatmap(lambda n: st.tuples(st.just(n), st.lists(plans, min_size=6, max_size=6))))
def test_what_the_teacher_writes_is_read_back(case):
    n, lists = case
    pairs = [(i, j) for i in range(n) for j in range(i + 1, n)]
    wanted = dict(zip(pairs, lists, strict=False))
    response = parse_response(reply(format_plans(wanted)), n)
    assert response.format_ok
    assert response.plans == {pair: tuple((k, float(v)) for k, v in atoms) for pair, atoms in wanted.items()}


@given(st.text(max_size=200), st.integers(1, 3))
def test_any_text_is_survived(text, n):
    parse_response(text, n)
    parse_response(reply(text, text), n)


@given(
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.floats(), st.text(max_size=8)),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.dictionaries(st.sampled_from(["from", "to", "action", "x"]), inner, max_size=3),
        ),
    )
)
def test_any_json_is_survived(tree):
    response = parse_response(reply(json.dumps(tree)), 2)
    assert response.problems


@pytest.mark.parametrize(
    ("text", "n", "problem"),
    [
        ("", 2, "no_action_block"),
        ("<action>[]", 2, "unclosed_action_block"),
        (f"<action>[{PAIR}]</action>", 2, "no_answer_block"),
        (f"<action>[{PAIR}]</action><answer>2", 2, "unclosed_answer_block"),
        (reply(f"[{PAIR}]") + "<answer>3</answer>", 2, "several_answer_blocks"),
        (reply(f"[{PAIR}]") + f"<action>[{PAIR}]</action>", 2, "several_action_blocks"),
        (f"<answer>2</answer><action>[{PAIR}]</action>", 2, "answer_before_action"),
        ("Sure: " + reply(f"[{PAIR}]"), 2, "text_outside_blocks"),
        (reply(f"[{PAIR}]", "  "), 2, "empty_answer"),
        (reply(f"```json\n[{PAIR}]\n```"), 2, "bad_json"),
        (reply(f"[{PAIR},]"), 2, "bad_json"),
        (reply(f"[{PAIR.replace('30', 'NaN')}]"), 2, "bad_json"),
        (reply(f"[{PAIR.replace('30', '1e999')}]"), 2, "bad_action"),
        (reply(f"[{PAIR.replace('30', '-1')}]"), 2, "bad_action"),
        (reply(f"[{PAIR.replace('30', 'true')}]"), 2, "bad_action"),
        (reply('[{"from":0,"to":1,"action":[{"turn_right_deg":"30"}]}]'), 2, "bad_action"),
        (reply('[{"from":0,"to":1,"action":[{"move_forward_px":30}]}]'), 2, "bad_action"),
        (reply('[{"from":0,"to":1,"action":[{"turn_up_deg":1,"move_up_m":1}]}]'), 2, "bad_action"),
        (reply('[{"from":0,"to":1,"action":[{"turn_up_deg":1,"turn_up_deg":2}]}]'), 2, "bad_json"),
        (reply('[{"from":0,"to":1,"action":[' + ",".join(['{"turn_up_deg":1}'] * 13) + "]}]"), 2, "bad_action"),
        (reply('[{"from":true,"to":1,"action":[]}]'), 2, "bad_entry"),
        (reply('[{"from":0,"to":1}]'), 2, "bad_entry"),
        (reply(PAIR), 2, "not_a_list"),
        (reply(f"[{PAIR},{PAIR}]"), 2, "duplicate_pair"),
        (reply(f"[{PAIR},{PAIR.replace('0', '1', 1).replace(':1,', ':0,')}]"), 2, "unknown_pair"),
        (reply(f"[{PAIR}]"), 3, "missing_pair"),
        (reply("[" * 5000), 2, "bad_json"),
        (reply(" " * 30000), 2, "action_block_too_long"),
        (reply(f"[{PAIR}]"), 1, "unasked_action_block"),
    ],
)
def test_each_fault_has_its_name(text, n, problem):
    response = parse_response(text, n)
    assert problem in response.problems and not response.format_ok


def test_a_duplicate_costs_its_own_pair_only():
    other = '{"from":0,"to":2,"action":[]}'
    response = parse_response(reply(f"[{PAIR},{PAIR},{PAIR},{other}]"), 3)
    assert set(response.plans) == {(0, 2)}


def test_a_bad_entry_leaves_the_others():
    response = parse_response(reply(f'[{PAIR},{{"from":0,"to":2,"action":[1]}}]'), 3)
    assert set(response.plans) == {(0, 1)}


def test_one_view_is_answered_directly():
    response = parse_response("<answer>B</answer>", 1)
    assert response.format_ok and response.answer == "B"
    text = str(build_prompt("How many?", 1, "number"))
    assert "<action>" not in text and "'type': 'image'" in text


@pytest.mark.parametrize("token", ["<|im_start|>", "<|image_pad|>", "<|vision_start|>"])
def test_template_tokens_in_a_question_are_refused(token):
    with pytest.raises(ValueError, match="reserved token"):
        build_prompt(f"hello {token} there", 2, "number")


@given(st.lists(plans, min_size=3, max_size=3))
def test_a_language_reply_is_the_same_motion_in_words(lists):
    pairs = [(0, 1), (0, 2), (1, 2)]
    words = plans_in_words(dict(zip(pairs, lists, strict=True)))
    response = parse_response(f"<think>{words}</think><answer>B</answer>", 3, "language")
    assert response.format_ok and response.answer == "B" and not response.plans
    assert [words.count(f"Image {i} to image {j}: ") for i, j in pairs] == [1, 1, 1]
    assert words.count("degrees") + words.count(" m,") + words.count(" m.") == sum(map(len, lists))


@pytest.mark.parametrize(
    ("text", "mode", "problem"),
    [
        ("<think> \n</think><answer>B</answer>", "language", "empty_think_block"),
        ("<answer>B</answer>", "language", "no_think_block"),
        ("<think>turn<answer>B</answer>", "language", "unclosed_think_block"),
        ("<think>a</think><think>b</think><answer>B</answer>", "language", "several_think_blocks"),
        ("<answer>B</answer><think>turn right</think>", "language", "answer_before_think"),
        ("<think>a</think>so<answer>B</answer>", "language", "text_outside_blocks"),
        ("<think>so <answer>B</answer></think>", "language", "answer_inside_think"),
        ("<think><answer>B</answer></think>", "language", "empty_think_block"),
        (reply(f"[{PAIR}]"), "language", "unasked_action_block"),
        ("<think>a</think>" + reply(f"[{PAIR}]"), "actions", "unasked_think_block"),
        ("<think>a</think><answer>B</answer>", "direct", "unasked_think_block"),
    ],
)
def test_each_mode_wants_its_own_block(text, mode, problem):
    assert problem in parse_response(text, 2, mode).problems


def test_one_view_is_answered_directly_in_every_mode():
    for mode in ("actions", "language", "direct"):
        assert parse_response("<answer>B</answer>", 1, mode).format_ok
        assert build_prompt("How far?", 1, "number", mode) == build_prompt("How far?", 1, "number", "direct")
    assert len({str(build_prompt("How far?", 2, "number", mode)) for mode in ("actions", "language", "direct")}) == 3
