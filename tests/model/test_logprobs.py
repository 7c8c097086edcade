"""Packed scoring equals one row for each reply; prompts equal the processor's; masks and errors."""

import pytest
import torch

from hatch_ray.model.base import (
    banned_token_ids,
    eos_token_ids,
    load_model,
    load_processor,
    part_checksum,
    save_model,
    set_trainable,
)
from hatch_ray.model.logprobs import ReplyScorer
from hatch_ray.model.packing import pack
from hatch_ray.model.prompt_tokens import process_image, tokenize_prompt
from hatch_ray.protocol.prompt import build_prompt
from tests.support.pictures import photo


@pytest.fixture(scope="module")
def policy(tiny_model):
    return load_model(tiny_model), load_processor(tiny_model)


def prompt_text(processor, n_views, question="How far is the red chair?"):
    messages = build_prompt(question, n_views, "number", "actions", "compact-v1")
    return processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)


def plain_logprobs(model, processor, text, images, reply):
    """The reference: the processor's own tokens, one row, the model's own positions."""
    inputs = processor(text=[text], images=images, return_tensors="pt")
    tokens = torch.tensor([reply])
    types = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(tokens)], 1)
    ids = torch.cat([inputs["input_ids"], tokens], 1)
    with torch.no_grad():
        logits = model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            mm_token_type_ids=types,
            pixel_values=inputs["pixel_values"],
            image_grid_thw=inputs["image_grid_thw"],
        ).logits
    logprobs = logits[0, -len(reply) - 1 : -1].log_softmax(-1)
    return logprobs.gather(-1, tokens[0, :, None])[:, 0]


def test_packed_rows_equal_one_row_for_each_reply(policy):
    model, processor = policy
    pictures = [[photo(1)], [photo(2), photo(3, 112, 84)], [photo(4), photo(5, 150, 100), photo(6, 60, 60)]]
    texts = [prompt_text(processor, len(group)) for group in pictures]
    replies = [[[5, 6, 7], [8]], [[9, 10, 11, 12, 13], [14, 15]], [[16] * 9, [17, 18]]]
    prompts = [
        tokenize_prompt(processor, text, [process_image(processor, image) for image in group])
        for text, group in zip(texts, pictures, strict=True)
    ]
    batch = pack(model, prompts, replies)
    with torch.no_grad():
        found, _ = ReplyScorer(model)(batch)
    expected = [
        plain_logprobs(model, processor, text, group, reply)
        for text, group, answers in zip(texts, pictures, replies, strict=True)
        for reply in answers
    ]
    assert torch.allclose(found, torch.cat(expected), atol=2e-6)
    assert batch.reply.tolist() == [i for i, part in enumerate(expected) for _ in part]


def test_prompt_equals_the_processors(policy):
    _, processor = policy
    images = [photo(1), photo(2, 150, 100)]
    text = prompt_text(processor, 2)
    inputs = processor(text=[text], images=images, return_tensors="pt")
    prompt = tokenize_prompt(processor, text, [process_image(processor, image) for image in images])
    assert list(prompt.token_ids) == inputs["input_ids"][0].tolist()
    assert torch.equal(torch.cat([image.pixels for image in prompt.images]), inputs["pixel_values"])


def test_number_of_images_must_match(policy):
    _, processor = policy
    with pytest.raises(ValueError, match="2 image placeholders for 1 images"):
        tokenize_prompt(processor, prompt_text(processor, 2), [process_image(processor, photo(1))])


def test_temperature_and_ban_are_applied(policy):
    model, processor = policy
    prompt = tokenize_prompt(processor, prompt_text(processor, 1), [process_image(processor, photo(1))])
    batch = pack(model, [prompt], [[[5]]])
    with torch.no_grad():
        logits = model(
            input_ids=batch.input_ids, mm_token_type_ids=(batch.input_ids == model.model.config.image_token_id).int(),
            pixel_values=prompt.images[0].pixels, image_grid_thw=torch.tensor([prompt.images[0].grid]),
        ).logits[0, -2]  # fmt: skip
        logits[[7, 9]] = -torch.inf
        expected = (logits / 0.5).log_softmax(-1)
        found, entropy = ReplyScorer(model, temperature=0.5, banned=[7, 9])(batch)
    assert found.item() == pytest.approx(expected[5].item(), abs=1e-5)
    assert entropy.item() == pytest.approx(-(expected.exp() * expected).nansum().item(), abs=1e-4)


def test_scoring_in_pieces_changes_nothing(policy, monkeypatch):
    model, processor = policy
    prompt = tokenize_prompt(processor, prompt_text(processor, 1), [process_image(processor, photo(1))])
    batch = pack(model, [prompt], [[[5, 6, 7, 8, 9]]])
    whole, _ = ReplyScorer(model)(batch)
    whole.sum().backward()
    gradient = model.lm_head.weight.grad.clone()
    model.zero_grad()
    monkeypatch.setattr("hatch_ray.model.logprobs.HEAD_CHUNK", 2 * model.lm_head.out_features)
    pieces, _ = ReplyScorer(model)(batch)
    pieces.sum().backward()
    assert torch.allclose(whole, pieces)
    assert torch.allclose(gradient, model.lm_head.weight.grad, atol=1e-6)
    model.zero_grad()


def test_special_and_unused_tokens_are_banned_and_ends_are_not(policy):
    model, processor = policy
    ends = eos_token_ids(model, processor)
    vocabulary = model.lm_head.out_features
    banned = banned_token_ids(processor, vocabulary, ends)
    for token in ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|im_start|>"):
        assert processor.tokenizer.convert_tokens_to_ids(token) in banned
    assert processor.tokenizer.convert_tokens_to_ids("<|im_end|>") in ends
    assert not set(ends) & set(banned)
    assert set(range(len(processor.tokenizer), vocabulary)) <= set(banned)
    ordinary = processor.tokenizer("<answer>3.5</answer>")["input_ids"]
    assert not set(ordinary) & set(banned)


def test_saved_folder_is_complete_and_equal(policy, tmp_path):
    model, processor = policy
    out = save_model(model, processor, tmp_path / "model")
    again = load_model(out)
    for part in ("all", "vision", "language"):
        assert part_checksum(again, part) == part_checksum(model, part)
    assert load_processor(out, 3136).image_processor.size["longest_edge"] == 3136
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_freeze_plan(tiny_model):
    model = load_model(tiny_model)
    learning = set_trainable(model, "vision")
    assert learning
    assert all(name.startswith("model.visual.") for name in learning)
    before = part_checksum(model, "language")
    next(p for p in model.parameters() if p.requires_grad).data.add_(1)
    assert part_checksum(model, "language") == before
    assert set(set_trainable(model, "language")) | set(learning) == set(set_trainable(model, "all"))


@pytest.mark.parametrize(("base", "message"), [("./nowhere", "does not exist"), ("{tmp}", "no config.json")])
def test_wrong_model_folder_is_one_clear_error(tmp_path, base, message):
    with pytest.raises(ValueError, match=message):
        load_model(base.format(tmp=tmp_path))
