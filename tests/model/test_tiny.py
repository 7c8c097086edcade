"""hatch-tiny: tokenizer, folder, processor, the faster encoder, the shipped weights."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoProcessor, AutoTokenizer, Qwen2_5_VLForConditionalGeneration

from hatch_ray.data.rooms import Room, RoomOptions
from hatch_ray.model import source
from hatch_ray.model.fast_vision import speed_up_vision
from hatch_ray.model.source import tiny_model_path
from tools.pretrain_data import CELLS, ViewSet, render_views
from tools.pretrain_tiny import encode_images
from tools.pretraining import image_grid, patchify
from tools.tiny import TinyConfig, make_tiny, new_tiny, train_tokenizer
from tools.tiny_text import random_reply, tokenizer_corpus

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
    with pytest.raises(ValueError, match="reinstall hatch-ray"):
        tiny_model_path()


def test_the_shipped_weights_are_small_and_load() -> None:
    path = tiny_model_path()
    assert sum(file.stat().st_size for file in path.glob("*.safetensors")) <= 10 * 2**20
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(path, dtype=torch.float32)
    assert not model.config.tie_word_embeddings
    assert all(bool(value.isfinite().all()) for value in model.state_dict().values())
