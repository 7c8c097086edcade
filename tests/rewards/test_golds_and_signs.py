"""Every gold that is accepted can be met by its copy, and no script's minus sign is lost."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hatch_ray.benchmarks.spar_scorers import KINDS, check_gold, fixed
from hatch_ray.benchmarks.spar_scorers import SCORERS as SPAR_SCORERS
from hatch_ray.data.refusals import Refusal
from hatch_ray.data.spar.layout import TASKS
from hatch_ray.data.spar.record import read_record
from hatch_ray.protocol.values import OTHER_MINUSES, gold_fault, numbers_in
from hatch_ray.rewards.terms import SCORERS, score_answer
from hatch_ray.sample import AnswerForm
from tests.support.hostile import ODD
from tests.support.spar_tree import record

MINUSES = sorted(
    {chr(code) for code in range(0x110000) if unicodedata.category(chr(code)) == "Pd"}
    | set(OTHER_MINUSES)
    | {"- ", "\u2212 ", "minus ", "Minus ", "negative ", "\u061c-", "\u200f\u2212", "-\u200e", "\u8ca0"}
)


@pytest.mark.parametrize(
    ("form", "gold", "prediction", "reward"),
    [
        ("number", "2.4", "\u22122.4", 0.0),
        ("number", "2.4", "\u20132.4", 0.0),
        ("number", "2.4", "\uff0d2.4", 0.0),
        ("number", "2.4", "\ufe632.4", 0.0),
        ("number", "-2.4", "\u22122.4", 1.0),
        ("number", "2.4", "minus 2.4", 0.0),
        ("view_change", "move_left:0.3", "move_right:\u22120.3", 1.0),
        ("view_change", "move_right:0.3", "move_right:\u22120.3", 0.8),
        ("camera_motion", "(500,400),2.0", "(500,400),\u22122.0", 0.5),
        ("number", "2.4", "\u20112.4", 0.0),
    ],
)
def test_signs_of_other_kinds(form: AnswerForm, gold: str, prediction: str, reward: float) -> None:
    assert score_answer(prediction, gold, form)[0] == pytest.approx(reward, abs=1e-3)


@pytest.mark.parametrize("minus", MINUSES)
@pytest.mark.parametrize("text", ["2.4", ".5", "7", "\uff12.\uff14"])
def test_every_minus_is_one(minus: str, text: str) -> None:
    assert numbers_in(minus + text) == numbers_in("-" + text) == [-number for number in numbers_in(text)]


@settings(max_examples=300)
@given(
    minus=st.sampled_from(MINUSES),
    value=st.floats(0.01, 100).map(lambda value: f"{value:.2f}"),
    gold=st.floats(0.01, 100).map(lambda value: f"{value:.2f}"),
    word=st.sampled_from(["move_right", "move_up", "rotate_left", "move_backward"]),
)
def test_a_negated_prediction_never_earns_more(minus: str, value: str, gold: str, word: str) -> None:
    pairs: list[tuple[AnswerForm, str, str, str]] = [
        ("number", f"{minus}{value}", value, gold),
        ("view_change", f"{word}:{minus}{value}", f"{word}:{value}", f"{word}:{gold}"),
        ("camera_motion", f"(500,400),{minus}{value}", f"(500,400),{value}", f"(500,400),{gold}"),
    ]
    for form, negated, prediction, wanted in pairs:
        assert score_answer(negated, wanted, form)[0] <= score_answer(prediction, wanted, form)[0]
    task = "depth_prediction_oc_mv"
    assert fixed(f"<answer>{minus}{value}</answer>", gold, task) <= fixed(f"<answer>{value}</answer>", gold, task)


GOLDS: list[tuple[AnswerForm, str]] = [
    ("view_change", "move_right:0.3,move_up:0.1,"),
    ("view_change", "move_right:0.3,move_left:0.2"),
    ("view_change", "move_sideways:0.3"),
    ("view_change", "rotate_clockwise:5"),
    ("box", "[30,20,10,40]"),
    ("box", "[10,20,10,40]"),
    ("text", "(white chair)"),
    ("letter", "AB"),
    ("number", "2 or 3"),
    ("camera_motion", "(1,2)"),
]
gold_text = st.lists(
    st.one_of(
        st.sampled_from(ODD), st.text(max_size=4), st.sampled_from(["A", "(b)", "move_right:", "rotate_up:", ",", "-"]),
        st.floats(-1e4, 1e4).map(str), st.integers(-50, 1050).map(str),
    ),
    max_size=8,
).map("".join)  # fmt: skip


def meets_itself(gold: str, form: AnswerForm) -> None:
    if gold_fault(gold, form) is None:
        assert score_answer(gold, gold, form) == (1.0, "")
    elif form != "text":
        assert score_answer(gold, gold, form)[0] == 0


@pytest.mark.parametrize(("form", "gold"), GOLDS)
def test_golds_that_failed(form: AnswerForm, gold: str) -> None:
    meets_itself(gold, form)
    assert (gold_fault(gold, form) is None) == (gold == "move_right:0.3,move_up:0.1,")


@settings(max_examples=500)
@given(gold=gold_text, form=st.sampled_from(sorted(SCORERS)))
def test_every_gold_that_is_accepted_is_met_by_its_copy(gold: str, form: AnswerForm) -> None:
    meets_itself(gold, form)


@settings(max_examples=300)
@given(gold=gold_text, task=st.sampled_from(["view_change_infer", "camera_motion_infer", "depth_prediction_oc_mv"]),
       form=st.sampled_from(["fill", "select"]))  # fmt: skip
def test_every_gold_that_spar_rows_are_read_with_is_met_by_its_copy(gold: str, task: str, form: str) -> None:
    marks = {"red_point": [[1, 2]], "blue_point": [[3, 4]], "point_img_idx": [[0, 1]]} if TASKS[task].marks else {}
    try:
        read = read_record(record(task, gold, views=(0, 1)) | marks, form)
    except Refusal:
        return
    assert score_answer(read.answer, read.answer, read.form) == (1.0, "")


@settings(max_examples=300)
@given(gold=gold_text, task=st.sampled_from(sorted(KINDS)))
def test_every_gold_of_spar_bench_is_met_by_its_copy_under_every_scorer(gold: str, task: str) -> None:
    if check_gold(gold, task) is None:
        assert {scorer(gold, gold, task) for scorer in SPAR_SCORERS.values()} == {1.0}
