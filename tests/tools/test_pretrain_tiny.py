"""hatch-tiny's pretraining: its questions hold their answers, labels are the answers alone, and a run of seconds."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration
from typer.testing import CliRunner

from hatch_ray.data.rooms import PRETRAIN_SEEDS, RoomOptions
from tools.pretrain_data import CELLS, QUESTIONS, ViewSet, ask, render_views
from tools.pretrain_heads import numbers_error
from tools.pretrain_packing import Packer, draw_questions
from tools.pretrain_tiny import PretrainOptions, app, pretrain
from tools.tiny import TinyConfig, train_tokenizer
from tools.tiny_text import tokenizer_corpus

SMALL = TinyConfig(text_layers=2, vision_layers=1)
TOKENIZER = train_tokenizer(tokenizer_corpus(), TinyConfig().vocab_size)


@pytest.fixture(scope="module")
def views() -> ViewSet:
    return render_views(3, RoomOptions(n_views=4))


def test_questions_hold_their_answers(views: ViewSet) -> None:
    """Answers agree with poses: directions are opposite, and a point seen from its own camera has its own bearing."""
    rng = random.Random(0)
    for kind in QUESTIONS:
        asked = [ask(kind, views, room, (0, 1), rng) for room in range(3) for _ in range(30)]
        texts = [pair for pair in asked if pair is not None]
        assert texts, kind
        assert all(question.endswith("?") and answer for question, answer in texts)
        assert not any("turn_" in answer or "move_" in answer for _, answer in texts)
    turn = ask("direction", views, 0, (0, 1), rng)
    assert turn is not None
    true = (views.heading[0, 1] - views.heading[0, 0] + 180) % 360 - 180
    assert turn[0] == "direction0to1?"
    assert numbers_error(turn[1], "right0")[0] == pytest.approx(abs(true), abs=0.51)
    assert ("right" in turn[1]) == (round(true) >= 0)


def test_match_points_at_the_same_place(views: ViewSet) -> None:
    """The patch found in the other view shows a thing at the same place, within the patch's size."""
    room, a, b, cell = (index[0] for index in np.nonzero(views.cell_of >= 0))
    assert a == b and views.cell_of[room, a, b, cell] == cell, "a view's patch is its own match"
    near = []
    for room, a, b, cell in zip(*np.nonzero(views.cell_of >= 0), strict=True):
        if a != b:
            other = views.point[room, b, views.cell_of[room, a, b, cell]]
            near.append(np.linalg.norm(other - views.point[room, a, cell]))
    assert np.median(near) < 0.8


def test_packed_labels_are_the_answers(views: ViewSet) -> None:
    packer = Packer(TOKENIZER)
    rng = random.Random(1)
    rows = [draw_questions(views, 0, (0, 1), 5, 0.5, rng) for _ in range(3)]
    batch = packer.pack(rows, 2)
    for index, row in enumerate(rows):
        labels = batch["labels"][index]
        assert TOKENIZER.decode(labels[labels != -100]) == "".join(answer + "\n" for _, answer in row)
        assert int(batch["mm_token_type_ids"][index].sum()) == 2 * CELLS


@pytest.mark.parametrize(
    ("reply", "gold", "errors"),
    [
        ("left10,1.5", "right10,1.0", [20.0, 0.5]),
        ("350", "10", [20.0]),
        ("none", "right5,1.0", [5.0, 1.0]),
        ("east0.5south1.0", "west0.5south1.0", [1.0, 0.0]),
    ],
)
def test_numbers_error(reply: str, gold: str, errors: list[float]) -> None:
    assert numbers_error(reply, gold) == pytest.approx(errors)


def test_a_short_pretraining_writes_a_loadable_folder(tmp_path: Path) -> None:
    options = PretrainOptions(minutes=0.15, encoder_minutes=0.05, rooms=3, heldout_rooms=2, views=4, batch=4, eval_n=4)
    path = pretrain(tmp_path, seed=0, options=options, config=SMALL)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert set(QUESTIONS) <= set(rows[-1])
    assert {"exact_true", "exact_swapped"} <= set(rows[-1]["heading"])
    weights = Qwen2_5_VLForConditionalGeneration.from_pretrained(path, dtype=torch.float32).state_dict()
    assert all(bool(value.isfinite().all()) for value in weights.values())
    assert AutoTokenizer.from_pretrained(path).encode("12") == TOKENIZER.encode("12")
    assert PRETRAIN_SEEDS > 1_000_000


def test_the_command_takes_a_folder_and_a_time() -> None:
    shown = CliRunner().invoke(app, ["--out", "unused", "--minutes", "0"])
    assert shown.exit_code == 2 and "0.1" in shown.output
