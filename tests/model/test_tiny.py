"""hatch-tiny: tokenizer, folder, processor, faster encoder, pretraining's questions, and a run of a few seconds."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoProcessor, AutoTokenizer, Qwen2_5_VLForConditionalGeneration

from hatch_ray.data.rooms import PRETRAIN_SEEDS, Room, RoomOptions
from hatch_ray.model import source
from hatch_ray.model.fast_vision import speed_up_vision
from hatch_ray.model.pretrain import (
    Packer,
    PretrainOptions,
    draw_questions,
    encode_images,
    image_grid,
    patchify,
    pretrain,
)
from hatch_ray.model.pretrain_data import CELLS, QUESTIONS, ViewSet, ask, render_views
from hatch_ray.model.pretrain_heads import numbers_error
from hatch_ray.model.source import tiny_model_path
from hatch_ray.model.tiny import TinyConfig, make_tiny, new_tiny, train_tokenizer
from hatch_ray.model.tiny_text import random_reply, tokenizer_corpus

SMALL = TinyConfig(text_layers=2, vision_layers=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("tiny"), seed=0, config=SMALL)


@pytest.fixture(scope="module")
def views() -> ViewSet:
    return render_views(3, RoomOptions(n_views=4))


TOKENIZER = train_tokenizer(tokenizer_corpus(), TinyConfig().vocab_size)


@given(st.text(max_size=60))
def test_any_text_survives_the_tokenizer(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text, add_special_tokens=False)) == text


def test_digits_stand_alone_and_json_is_short(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pieces = [tokenizer.decode([token]) for token in tokenizer.encode("307 12.45")]
    assert pieces == ["3", "0", "7", " ", "1", "2", ".", "4", "5"]
    reply = '<action>[{"from":0,"to":1,"action":[{"turn_right_deg":30},{"move_forward_m":1.4}]}]</action><answer>'
    assert len(tokenizer.encode(reply)) <= 14
    assert random_reply(random.Random(0), 2) == random_reply(random.Random(0), 2)


def test_a_letter_stands_alone_in_its_answer() -> None:
    """One token for letter and tags together would be so rare that no cold start teaches it."""
    for tokenizer in (TOKENIZER, AutoTokenizer.from_pretrained(tiny_model_path())):
        for letter in "ABCD":
            pieces = [
                tokenizer.decode([token]) for token in tokenizer.encode(f"}}]}}]</action><answer>{letter}</answer>")
            ]
            assert pieces[-2:] == [letter, "</answer>"]


def test_the_folder_is_a_qwen_model(folder: Path) -> None:
    """The processor expands an image to 16 tokens, and the model accepts what it gives."""
    processor = AutoProcessor.from_pretrained(folder)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder)
    message = [{"role": "user", "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "Where?"}]}]
    text = processor.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
    assert text.startswith("<|im_start|>system\n") and text.endswith("<|im_start|>assistant\n")
    images = [Image.fromarray(Room(0).frame(index).rgb) for index in (0, 1)]
    batch = processor(text=[text], images=images, return_tensors="pt")
    assert int((batch["input_ids"] == processor.image_token_id).sum()) == 2 * CELLS
    assert model(**batch).logits.shape[-1] == model.config.text_config.vocab_size
    assert not torch.equal(model.lm_head.weight, model.model.language_model.embed_tokens.weight)
    raw = patchify(np.stack([np.asarray(image) for image in images]))
    torch.testing.assert_close(batch["pixel_values"], raw, atol=1e-5, rtol=0)


def test_the_same_seed_gives_the_same_weights() -> None:
    first, second, other = (new_tiny(seed, SMALL)[0].state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_a_small_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match="vocab_size"):
        new_tiny(0, TinyConfig(vocab_size=200))


def test_the_faster_encoder_gives_the_same(views: ViewSet) -> None:
    model = new_tiny(0, SMALL)[0]
    pixels = patchify(views.rgb[0])
    before = encode_images(model, pixels, image_grid(4, 112))
    speed_up_vision(model)
    torch.testing.assert_close(encode_images(model, pixels, image_grid(4, 112)), before, atol=1e-5, rtol=1e-4)


def test_missing_weights_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(source, "__file__", str(tmp_path / "source.py"))
    with pytest.raises(ValueError, match="hatch tiny pretrain"):
        tiny_model_path()


def test_the_shipped_weights_are_small_and_load() -> None:
    path = tiny_model_path()
    assert sum(file.stat().st_size for file in path.glob("*.safetensors")) <= 10 * 2**20
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(path, dtype=torch.float32)
    assert not model.config.tie_word_embeddings
    assert all(bool(value.isfinite().all()) for value in model.state_dict().values())


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
