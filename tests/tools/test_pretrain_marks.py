"""The pretraining on marks: a wider model says the same, marks lie where questions say, and a run of seconds."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from hatch_ray.data.markers import COLORS
from hatch_ray.data.rooms import RoomOptions
from tools.pretrain_mark_questions import MARK_QUESTIONS, ask_about, draw_asked
from tools.pretrain_marks import show
from tools.pretrain_more import MoreOptions, pretrain_more
from tools.pretrain_packing import MarkPacker
from tools.pretrain_spots import SpotSet, render_spots
from tools.tiny import make_tiny, new_tiny
from tools.widen_tiny import WIDE, group_heads, widen


@pytest.fixture(scope="module")
def views() -> SpotSet:
    return render_spots(3, RoomOptions(width=224, height=224, n_views=3, walk=False))


def test_a_wider_model_says_the_same_and_then_shares_its_key_value_heads() -> None:
    narrow, tokenizer = new_tiny(0, WIDE.__class__())
    ids = torch.randint(0, 1000, (2, 30), generator=torch.Generator().manual_seed(0))
    wide = widen(narrow, tokenizer)
    with torch.no_grad():
        said = narrow.eval()(input_ids=ids).logits
        assert wide.eval()(input_ids=ids).logits == pytest.approx(said, abs=1e-3)
        tried: list[float] = []

        def away(model: Qwen2_5_VLForConditionalGeneration) -> float:
            tried.append(float((model(input_ids=ids).logits - said).square().mean()))
            return tried[-1]

        grouped, orders = group_heads(wide, tokenizer, WIDE, 3, away)
        assert len(orders) == 4 and grouped.config.text_config.num_key_value_heads == 2
        assert away(grouped.eval()) == pytest.approx(min(tried[-7:-1]), rel=1e-3), "the last layer's best way"


def test_marks_lie_where_the_questions_say(views: SpotSet) -> None:
    rng = random.Random(0)
    kinds = set()
    for turn in range(60):
        on = show(views, turn % 3, (0, 1), rng.choice(("colors", "numbers")), rng)
        for place in (place for places in on.marked for place in places):
            row, column = divmod(on.cell(place), views.grid)
            cell = on.images[place.view, 28 * row : 28 * row + 28, 28 * column : 28 * column + 28].reshape(-1, 3)
            if place.box is None:
                assert (cell == COLORS.get(place.label, (0, 255, 0))).all(axis=1).any(), place
        for kind in MARK_QUESTIONS:
            asked = ask_about(kind, on, rng)
            if asked is None:
                continue
            kinds.add(kind)
            if kind == "same" and asked.found is not None:
                assert np.allclose(asked.found.point, asked.named[0][1].point) and asked.answer == asked.found.label
            if kind == "distance":
                (_, a), (_, b) = asked.named
                assert float(asked.answer) == pytest.approx(np.linalg.norm(a.point - b.point), abs=0.051)
    assert kinds == set(MARK_QUESTIONS)


def test_a_packed_place_ends_with_its_name(views: SpotSet) -> None:
    _, tokenizer = new_tiny(0, WIDE)
    rng = random.Random(1)
    shown = [show(views, 0, (0, 2), style, rng) for style in ("colors", "numbers", "plain")]
    rows = [draw_asked(on, 6, rng) for on in shown]
    for chat in (False, True):
        batch = MarkPacker(tokenizer).pack_asked(rows, shown, chat)
        names = [place.text for row in rows for one in row for _, place in one.named]
        for name, (row, at, cell) in zip(names, batch["named"][:, :3].long().tolist(), strict=True):
            assert tokenizer.decode(batch["input_ids"][row, : at + 1]).endswith(name)
            assert 0 <= cell < 2 * views.cells


@pytest.mark.rest
def test_a_short_run_writes_a_wider_folder(tmp_path: Path) -> None:
    base = make_tiny(tmp_path / "base")
    options = MoreOptions(
        minutes=0.15, encoder_minutes=0.05, rooms=2, rooms_224=2, heldout_rooms=2, views=3, views_224=3, batch=2,
        batch_224=2, encoder_batch=4, calibration=2, eval_minutes=0.02,
    )  # fmt: skip
    path = pretrain_more(tmp_path / "out", base, options=options)
    rows = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["loss_wide"] == pytest.approx(rows[0]["loss_before"], abs=0.01)
    assert any(row["stage"] == "quick" and "224 same" in row for row in rows)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(path, dtype=torch.float32)
    assert model.config.text_config.num_key_value_heads == 2
    assert all(bool(value.isfinite().all()) for value in model.state_dict().values())
