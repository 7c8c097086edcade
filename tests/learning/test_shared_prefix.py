"""A group computed with its prompt once equals one row for each completion: loss and every gradient, against
transformers' own forward pass on the processor's own tokens."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from actors.stages.dry_run import describe
from hatch_ray.config import make_config
from hatch_ray.learning.grpo import grpo_loss
from hatch_ray.model.base import load_model, load_processor
from hatch_ray.model.fast_vision import speed_up_vision
from hatch_ray.model.group_attention import group_attention, make_layout
from hatch_ray.model.logprobs import ReplyScorer
from hatch_ray.model.lora import add_lora
from hatch_ray.model.packing import pack
from hatch_ray.model.prompt_tokens import process_image, tokenize_prompt
from hatch_ray.protocol.prompt import build_prompt
from tests.support.pictures import photo
from tools.tiny import TinyConfig, make_tiny
from tools.tiny_qwen3 import TinyQwen3

RELATIVE = 1e-5
SIZES = [(112, 112), (112, 84), (150, 100), (60, 60), (84, 140), (56, 56), (112, 56), (84, 84)]
SETTINGS = {"clip": 0.2, "beta": 0.01, "importance_cap": 2.0}


def make_groups(processor, image_counts, seed=0):
    """Prompts with photos of unequal sizes, four replies each of unequal lengths, without an end token (truncated)."""
    random = torch.Generator().manual_seed(seed)
    texts, pictures, replies = [], [], []
    for number, count in enumerate(image_counts):
        pictures.append([photo(10 * number + view, *SIZES[(number + view) % len(SIZES)]) for view in range(count)])
        question = f"How far is the chair? {'It is red. ' * number}"
        messages = build_prompt(question, count, "number", "actions", "compact-v1")
        texts.append(processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
        lengths = torch.randint(1, 14, (4,), generator=random).tolist()
        replies.append([torch.randint(5, 300, (n,), generator=random).tolist() for n in lengths])
    return texts, pictures, replies


def loss_of(logprobs, reference):
    """GRPO's loss with made-up old and sampled log-probabilities; all terms are active."""
    n = torch.arange(len(logprobs))
    old, sampled = logprobs.detach() + 0.3 * torch.sin(n), logprobs.detach() + 0.4 * torch.cos(n)
    advantages = torch.cos(0.7 * n)
    terms = grpo_loss(logprobs, old, sampled, advantages, reference, **SETTINGS)
    return terms.loss.sum() / len(logprobs)


def naive_logprobs(model, processor, texts, pictures, replies):
    """One row for each completion, images again: transformers' own forward pass."""
    found = []
    for text, images, group in zip(texts, pictures, replies, strict=True):
        inputs = processor(text=[text], images=images, return_tensors="pt")
        for reply in group:
            tokens = torch.tensor([reply])
            logits = model(
                input_ids=torch.cat([inputs["input_ids"], tokens], 1),
                mm_token_type_ids=torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(tokens)], 1),
                pixel_values=inputs["pixel_values"], image_grid_thw=inputs["image_grid_thw"],
            ).logits  # fmt: skip
            logprobs = logits[0, -len(reply) - 1 : -1].log_softmax(-1)
            found.append(logprobs.gather(-1, tokens[0, :, None])[:, 0])
    return torch.cat(found)


def packed(model, processor, texts, pictures, replies, shared=True):
    prompts = [
        tokenize_prompt(processor, text, [process_image(processor, image) for image in images])
        for text, images in zip(texts, pictures, strict=True)
    ]
    return pack(model, prompts, replies, shared)


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


QWEN2_5 = {"text_width": 256, "text_heads": 4, "kv_heads": 2, "window": 2, "full_blocks": (3,), "text_layers": 2}
"""Grouped keys and values, and windows of four tokens in three blocks of the encoder."""
MODELS = {
    "Qwen2.5-VL": TinyConfig(**QWEN2_5),
    "Qwen2.5-VL, tied": TinyConfig(**QWEN2_5, tied=True),
    "Qwen3-VL": TinyQwen3(text_layers=3),
    "Qwen3-VL, tied": TinyQwen3(text_layers=3, tied=True),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder for each of MODELS."""
    folder = tmp_path_factory.mktemp("models")
    return {name: make_tiny(folder / name, 0, config) for name, config in MODELS.items()}


def policy(folder, lora=False):
    model = load_model(folder).train()
    if lora:
        add_lora(model, 4)
        random = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name:  # B is zero at the start, which would hide the gradient of A
                    parameter.copy_(torch.randn(parameter.shape, generator=random) / 50)
    return model


@pytest.mark.parametrize(
    ("name", "image_counts", "lora"),
    [
        ("Qwen2.5-VL", [3], False),
        ("Qwen2.5-VL", [8], True),
        ("Qwen2.5-VL, tied", [1], False),
        ("Qwen2.5-VL, tied", [2, 1, 3], False),
        ("Qwen3-VL", [1], False),
        ("Qwen3-VL", [8], False),
        ("Qwen3-VL", [2, 1, 3], True),
        ("Qwen3-VL, tied", [3], False),
    ],
    ids=str,
)
def test_loss_and_every_gradient_equal_the_naive_ones(models, name, image_counts, lora):
    tiny_model = models[name]
    processor = load_processor(tiny_model)
    groups = make_groups(processor, image_counts)
    reference = load_model(tiny_model).requires_grad_(False)
    found = {}
    for way in ("naive", "shared", "unshared"):
        model = policy(tiny_model, lora)
        if way == "naive":
            logprobs, ref = (naive_logprobs(m, processor, *groups) for m in (model, reference))
        else:
            speed_up_vision(model)
            batch = packed(model, processor, *groups, shared=way == "shared")
            logprobs, ref = (ReplyScorer(m)(batch)[0] for m in (model, reference))
        loss = loss_of(logprobs, ref)
        loss.backward()
        found[way] = loss.item(), gradients(model)
        reference = load_model(tiny_model).requires_grad_(False)
    expected, wanted = found["naive"]
    for way in ("shared", "unshared"):
        loss, got = found[way]
        assert loss == pytest.approx(expected, rel=RELATIVE)
        assert set(got) == set(wanted)
        assert lora or any("visual" in name for name in got)
        for name, gradient in wanted.items():
            # Key biases move no softmax: their gradient is nought but rounding, compared with the weights' beside it.
            scale = gradient.norm() if "k_proj.bias" not in name else wanted[name.replace("bias", "weight")].norm()
            assert (got[name] - gradient).norm() <= RELATIVE * scale, (way, name)


def test_an_image_that_occurs_twice_is_encoded_once(tiny_model):
    processor = load_processor(tiny_model)
    model = load_model(tiny_model)
    text = make_groups(processor, [2])[0][0]
    named = [process_image(processor, photo(3), key="a"), process_image(processor, photo(4), key="b")]
    prompts = [tokenize_prompt(processor, text, images) for images in (named, named[::-1], [named[0]] * 2)]
    replies = [[[5, 6], [7]]] * 3
    expected = ReplyScorer(model)(pack(model, prompts, replies, shared=False))[0]
    scorer = ReplyScorer(model)
    batch = pack(model, prompts, replies)
    assert torch.allclose(scorer(batch)[0], expected, atol=1e-5)
    assert len(batch.images) == scorer.encoder.encoded == 2
    scorer(batch)
    assert scorer.encoder.encoded == 4  # the encoder learns: what it gave before is no longer true


def test_a_frozen_encoder_sees_each_image_once_and_forgets_beyond_its_bound(tiny_model):
    processor = load_processor(tiny_model)
    model = load_model(tiny_model).requires_grad_(False)
    text = make_groups(processor, [1])[0][0]
    images = [process_image(processor, photo(number), key=str(number)) for number in range(3)]
    batches = [pack(model, [tokenize_prompt(processor, text, [image])], [[[5, 6]]]) for image in images]
    fresh = [ReplyScorer(model)(batch)[0] for batch in batches]
    scorer = ReplyScorer(model)
    for _ in range(2):
        for batch, expected in zip(batches, fresh, strict=True):
            assert torch.equal(scorer(batch)[0], expected)
    assert scorer.encoder.encoded == 3
    scorer.encoder.kept_bytes = 1
    for batch, expected in zip(batches * 2, fresh * 2, strict=True):
        assert torch.equal(scorer(batch)[0], expected)
    both = pack(model, [tokenize_prompt(processor, text, [images[0]]), tokenize_prompt(processor, text, [images[2]])],
                [[[5, 6]], [[5, 6]]])  # fmt: skip
    assert torch.allclose(scorer(both)[0], torch.cat([fresh[0], fresh[2]]), atol=1e-5)


lengths = st.lists(st.tuples(st.integers(1, 9), st.lists(st.integers(1, 6), min_size=1, max_size=4)),
                   min_size=1, max_size=4)  # fmt: skip


@given(lengths, st.sampled_from([(4, 4), (4, 2), (4, 1)]))
def test_attention_equals_a_dense_mask(groups, heads):
    """Against one softmax over the whole row with the mask written out."""
    layout = make_layout([p for p, _ in groups], [replies for _, replies in groups])
    owner, part = [], []
    for index, (p, replies) in enumerate(groups):
        for number, length in enumerate([p, *replies]):
            owner += [index] * length
            part += [number] * length
    owner_T, part_T, n = torch.tensor(owner), torch.tensor(part), len(owner)
    before = torch.ones(n, n, dtype=torch.bool).tril()
    same = (owner_T[:, None] == owner_T) & ((part_T == 0) | (part_T[:, None] == part_T))
    random = torch.Generator().manual_seed(n)
    query, key, value = (
        torch.randn(1, h, n, 8, generator=random, dtype=torch.float64) for h in (heads[0], *heads[1:] * 2)
    )
    wide_key, wide_value = (tensor.repeat_interleave(heads[0] // heads[1], dim=1) for tensor in (key, value))
    scores = (query @ wide_key.mT * 0.3).masked_fill(~(before & same), -torch.inf)
    expected = (scores.softmax(-1) @ wide_value).transpose(1, 2)
    assert torch.allclose(group_attention(query, key, value, layout, 0.3), expected, atol=1e-12)


def test_no_mask_grows_with_the_square_of_the_row(tiny_model):
    """8 replies of 64 tokens after a prompt of 4,000: the mask covers one reply's keys, not all pairs of tokens."""
    layout = make_layout([4000], [[64] * 8])
    row = 4000 + 8 * 64
    assert sum(tensor.nbytes for tensor in vars(layout).values()) < row * row / 50


def test_a_model_with_sliding_windows_says_so_and_computes_a_row_a_reply(models, tmp_path):
    folder = tmp_path / "sliding"
    shutil.copytree(models["Qwen2.5-VL"], folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1}
    del config["text_config"]["layer_types"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"sliding has layers that .*set grpo\.shared_prefix=false"):
        describe(make_config({"model": {"base": str(folder)}}), Console(quiet=True))
    describe(make_config({"model": {"base": str(folder)}, "grpo": {"shared_prefix": False}}), Console(quiet=True))

    processor, model = load_processor(folder), load_model(folder).train()
    assert model.config.text_config.layer_types == ["full_attention", "sliding_attention"]
    groups = make_groups(processor, [2, 1])
    with pytest.raises(ValueError, match="the model has layers that"):
        ReplyScorer(model)(packed(model, processor, *groups))
    expected = naive_logprobs(model, processor, *groups)
    expected.sum().backward()
    wanted = gradients(model)
    model.zero_grad()
    found = ReplyScorer(model)(packed(model, processor, *groups, shared=False))[0]
    found.sum().backward()
    assert torch.allclose(found, expected, atol=1e-5)
    assert all((gradient - wanted[name]).norm() <= 1e-4 * model.get_parameter(name).grad.norm() + 1e-4
               for name, gradient in gradients(model).items())  # fmt: skip
    full = naive_logprobs(load_model(models["Qwen2.5-VL"]), processor, *groups)
    assert (full - expected).abs().max() > 0.01, "the windows change what is computed"


def test_plain_calls_of_the_model_still_work(tiny_model):
    """A model that a scorer was made of generates and scores as before: attention falls back to plain SDPA there."""
    processor = load_processor(tiny_model)
    groups = make_groups(processor, [2])
    before = naive_logprobs(load_model(tiny_model), processor, *groups)
    model = load_model(tiny_model)
    ReplyScorer(model)
    assert torch.allclose(naive_logprobs(model, processor, *groups), before, atol=1e-6)
