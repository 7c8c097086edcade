"""Advantages and loss: against their definitions, and against TRL's GRPOTrainer on the same batch."""

import copy
from pathlib import Path

import pytest
import torch
from datasets import Dataset

from hatch_ray.learning.grpo import STD_EPSILON, alike, group_advantages, grpo_loss
from hatch_ray.model.base import load_model, load_processor
from hatch_ray.model.logprobs import ReplyScorer
from hatch_ray.model.packing import pack
from hatch_ray.model.prompt_tokens import process_image, tokenize_prompt
from hatch_ray.protocol.prompt import build_prompt
from tests.support.pictures import photo

SETTINGS = {"clip": 0.2, "beta": 0.01, "importance_cap": 2.0}


def test_advantages_are_centred_and_scaled_in_each_group():
    rewards = torch.tensor([[0.0, 1.0, 2.0, 3.0], [5.0, 5.0, 9.0, 5.0]])
    advantages, zero = group_advantages(rewards)
    assert not zero.any()
    assert torch.allclose(advantages.sum(1), torch.zeros(2), atol=1e-6)
    expected = (rewards[0] - 1.5) / (rewards[0].std() + STD_EPSILON)
    assert torch.allclose(advantages[0], expected)


def test_equal_rewards_give_no_signal_even_with_rounding():
    third = torch.tensor([1.9, 1.9, 1.9, 1.9]) + torch.tensor([0.0, 1e-7, -1e-7, 0.0])
    advantages, zero = group_advantages(third[None])
    assert zero.all()
    assert (advantages == 0).all()


@pytest.mark.parametrize("rewards", [torch.zeros(3), torch.zeros(3, 1), torch.tensor([[0.0, float("nan")]])])
def test_bad_rewards_are_refused(rewards):
    with pytest.raises(ValueError):
        group_advantages(rewards)


def test_first_update_has_ratio_one_and_plain_policy_gradient():
    logprobs = torch.randn(5, requires_grad=True)
    advantages = torch.randn(5)
    terms = grpo_loss(
        logprobs, logprobs.detach(), logprobs.detach(), advantages, None, clip=0.2, beta=0.0, importance_cap=2.0
    )
    terms.loss.sum().backward()
    assert torch.allclose(logprobs.grad, -advantages)
    assert not terms.clipped.any()


def test_clip_stops_the_gradient_of_what_has_moved_far_enough():
    old = torch.zeros(4)
    logprobs = torch.tensor([0.5, 0.5, -0.5, -0.5], requires_grad=True)
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0])
    terms = grpo_loss(logprobs, old, old, advantages, None, clip=0.2, beta=0.0, importance_cap=2.0)
    terms.loss.sum().backward()
    assert terms.clipped.tolist() == [1, 0, 0, 1]
    assert (logprobs.grad == 0).tolist() == [True, False, False, True]


def test_importance_correction_is_cut_at_the_cap():
    old = torch.zeros(2)
    sampled = torch.log(torch.tensor([0.25, 2.0]))
    logprobs = torch.zeros(2, requires_grad=True)
    terms = grpo_loss(logprobs, old, sampled, torch.ones(2), None, clip=0.2, beta=0.0, importance_cap=2.0)
    assert torch.allclose(terms.loss, torch.tensor([-2.0, -0.5]))
    assert terms.corrected.tolist() == [1, 0]


def test_kl_is_never_negative_and_zero_at_the_reference():
    # In float64: for nearly equal probabilities the estimator is a small difference of large terms.
    logprobs, reference = torch.randn(2, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    args = (logprobs, logprobs, logprobs, torch.zeros(50, dtype=torch.float64))
    away = grpo_loss(*args, reference, clip=0.2, beta=0.1, importance_cap=2.0)
    same = grpo_loss(*args, logprobs, clip=0.2, beta=0.1, importance_cap=2.0)
    assert (away.kl > 0).all()
    assert (same.kl == 0).all()


def test_beta_without_reference_is_refused():
    x = torch.zeros(2)
    with pytest.raises(ValueError, match="reference"):
        grpo_loss(x, x, x, x, None, clip=0.2, beta=0.1, importance_cap=2.0)


@pytest.fixture(scope="module")
def batch(tiny_model: Path):
    """Two prompts of two images, three replies each, with made-up sampling log-probabilities and advantages."""
    processor = load_processor(tiny_model)
    generator = torch.Generator().manual_seed(5)
    texts, images, replies = [], [], []
    for index in range(2):
        messages = build_prompt(f"How far is the chair? {'It is red. ' * index}", 2, "number", "actions", "compact-v1")
        texts.append(processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
        images.append([photo(2 * index), photo(2 * index + 1, 112, 84)])
        replies.append([torch.randint(0, 1000, (n,), generator=generator).tolist() for n in (4, 9, 6)])
    flat = [reply for group in replies for reply in group]
    sampled = [torch.randn(len(reply), generator=generator) * 0.4 - 7.3 for reply in flat]
    old = [s + torch.randn(len(s), generator=generator) * 0.6 for s in sampled]
    advantages = torch.tensor([1.1, -0.3, -0.8, 0.0, 0.9, -0.9])
    return processor, texts, images, replies, flat, sampled, old, advantages


def trl_loss(folder: Path, tmp_path: Path, batch, temperature: float, **settings):
    """Loss and gradients of TRL's own `_compute_loss`, and the reference's log-probabilities that it used."""
    from trl import GRPOConfig, GRPOTrainer

    processor, texts, images, _replies, flat, sampled, old, advantages = batch
    config = GRPOConfig(
        output_dir=str(tmp_path),
        use_cpu=True,
        report_to=[],
        beta=SETTINGS["beta"],
        epsilon=SETTINGS["clip"],
        temperature=temperature,
        num_generations=3,
        per_device_train_batch_size=6,
        gradient_accumulation_steps=1,
        max_completion_length=16,
        bf16=False,
        **{"loss_type": "dapo"} | settings,
    )
    model = load_model(folder).train()
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=config,
        train_dataset=Dataset.from_list([{"prompt": "x"}] * 6),
        processing_class=copy.deepcopy(processor),
    )
    trainer.use_vllm, trainer.vllm_importance_sampling_correction = True, True
    trainer.current_gradient_accumulation_steps = 1
    pad = processor.tokenizer.pad_token_id
    processor.tokenizer.padding_side = "left"
    inputs = processor(
        text=[text for text in texts for _ in range(3)],
        images=[image for group in images for _ in range(3) for image in group],
        padding=True,
        return_tensors="pt",
    )
    width = max(map(len, flat))

    def right_padded(rows, value, dtype):
        return torch.stack([torch.tensor([*row, *([value] * (width - len(row)))], dtype=dtype) for row in rows])

    completion_ids = right_padded(flat, pad, torch.long)
    completion_mask = right_padded([[1] * len(r) for r in flat], 0, torch.long)
    log_ratio = right_padded([(o - s).tolist() for o, s in zip(old, sampled, strict=True)], 0.0, torch.float32)
    vision = {
        "pixel_values": inputs["pixel_values"],
        "image_grid_thw": inputs["image_grid_thw"],
        "num_images": [2] * 6,
        "mm_token_type_ids": torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(completion_ids)], 1),
    }
    reference = load_model(folder)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(
                0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
            )
    trainer_reference = copy.deepcopy(reference)
    from trl.trainer.utils import add_fused_lm_head

    add_fused_lm_head(trainer_reference, temperature=temperature)
    input_ids = torch.cat([inputs["input_ids"], completion_ids], 1)
    attention = torch.cat([inputs["attention_mask"], completion_mask], 1)
    with torch.no_grad():
        ref, _, _ = trainer._get_per_token_logps_and_entropies(trainer_reference, input_ids, attention, width, **vision)
    loss = trainer._compute_loss(
        model,
        {
            "prompt_ids": inputs["input_ids"],
            "prompt_mask": inputs["attention_mask"],
            "completion_ids": completion_ids,
            "completion_mask": completion_mask,
            "advantages": advantages,
            "old_per_token_logps": right_padded([o.tolist() for o in old], 0.0, torch.float32),
            "importance_sampling_ratio": torch.exp(log_ratio).clamp(max=SETTINGS["importance_cap"]),
            "ref_per_token_logps": ref,
            "num_items_in_batch": completion_mask.sum(),
            **vision,
        },
    )
    loss.backward()
    return loss.item(), {name: p.grad for name, p in model.named_parameters()}, reference


VARIANTS = {
    "GRPO": ({}, {}),
    "clip-higher": ({"epsilon_high": 0.5}, {"clip_high": 0.5}),
    "GSPO": ({"importance_sampling_level": "sequence"}, {"ratio": "sequence"}),
    "sequence mean": ({"loss_type": "grpo"}, {"mean": "sequence"}),
}


@pytest.mark.parametrize(
    ("temperature", "variant"), [(1.0, "GRPO"), (0.7, "GRPO"), *((1.0, name) for name in VARIANTS if name != "GRPO")]
)
def test_loss_and_gradient_equal_trl(tiny_model, tmp_path, batch, temperature, variant):
    """Ours packs a group's replies behind one prompt; TRL pads one row a reply. All gradients must agree."""
    processor, texts, images, replies, flat, sampled, old, advantages = batch
    theirs, ours = VARIANTS[variant]
    expected, gradients, reference = trl_loss(tiny_model, tmp_path, batch, temperature, **theirs)
    model = load_model(tiny_model).train()
    prompts = [
        tokenize_prompt(processor, text, [process_image(processor, image) for image in group])
        for text, group in zip(texts, images, strict=True)
    ]
    packed = pack(model, prompts, replies)
    logprobs, _ = ReplyScorer(model, temperature)(packed)
    with torch.no_grad():
        ref, _ = ReplyScorer(reference, temperature)(packed)
    terms = grpo_loss(
        logprobs, torch.cat(old), torch.cat(sampled), advantages[packed.reply], ref, **SETTINGS,
        clip_high=ours.get("clip_high", 0.0), reply_N=packed.reply if "ratio" in ours else None,
    )  # fmt: skip
    tokens = sum(map(len, flat))
    weights = alike(packed.reply, tokens / len(flat)) if "mean" in ours else 1.0
    loss = (terms.loss * weights).sum() / tokens
    loss.backward()
    assert 0 < terms.clipped.sum() < len(terms.clipped)
    assert 0 < terms.corrected.sum() < len(terms.corrected)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    scale = max(g.abs().max().item() for g in gradients.values() if g is not None)
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter.grad, gradients[name], rtol=1e-4, atol=1e-5 * scale), name
