"""SFT data: the tokens a reply is trained on, mixed image sizes, TRL's loss against a hand-made forward."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hatch_ray.config_sections import ModelConfig, SftConfig
from hatch_ray.learning.sft import (
    IGNORED,
    ReplyCollator,
    SampleEncoder,
    choose_samples,
    make_trainer,
    total_steps,
    trl_config,
)
from hatch_ray.model.base import load_model, load_processor
from hatch_ray.protocol.prompt import gold_reply, sample_prompt
from hatch_ray.protocol.response import parse_response
from hatch_ray.sample import Mark, Sample
from tests.support.wall_scene import wall_sample, wall_view

MODEL = ModelConfig(template="compact-v1", max_length=512)


@pytest.fixture(scope="module")
def processor(tiny_model: Path):  # type: ignore[no-untyped-def]
    return load_processor(tiny_model)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """Two and three views, one of them of another size, one with a mark."""
    folder = tmp_path_factory.mktemp("walls")
    two = wall_sample(folder, 0, [(0.0, 0.0), (1.0, 0.0)])
    three = wall_sample(folder, 1, [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0)])
    views = (three.views[0], wall_view(folder / "wide", 1, "wide", (1.0, 0.0), size=(224, 140)), three.views[2])
    return [two, replace(three, views=views, marks=(Mark(2, "red", (500.0, 500.0)),))]


@pytest.mark.parametrize("mode", ["direct", "language", "actions"])
def test_labels_are_exactly_the_reply_and_its_end_token(samples: list[Sample], processor, mode) -> None:  # type: ignore[no-untyped-def]
    batch = ReplyCollator(SampleEncoder(processor, mode, MODEL), samples)([{"sample": 0}, {"sample": 1}])
    for row, sample in enumerate(samples):
        labels = batch["labels"][row]
        trained = labels[labels != IGNORED]
        text = processor.tokenizer.decode(trained)
        assert text == gold_reply(sample, mode) + "<|im_end|>"
        assert parse_response(text.removesuffix("<|im_end|>"), len(sample.views), mode).format_ok
        assert torch.equal(batch["input_ids"][row][labels != IGNORED], trained)
        assert (labels[batch["attention_mask"][row] == 0] == IGNORED).all()


@pytest.mark.parametrize("mode", ["direct", "language", "actions"])
@pytest.mark.parametrize("template", ["compact-v1", "full-v1"])
def test_a_training_row_starts_with_the_tokens_of_inference(samples, processor, mode, template) -> None:  # type: ignore[no-untyped-def]
    """The whole processor on the inference prompt (add_generation_prompt) is the reference."""
    encoder = SampleEncoder(processor, mode, replace_template(template))
    for sample in samples:
        encoded = encoder.encode(sample)
        text = processor.apply_chat_template(
            sample_prompt(sample, mode, template), tokenize=False, add_generation_prompt=True
        )
        images = [encoder._load(sample, index) for index in range(len(sample.views))]
        reference = processor(text=[text], images=images, return_tensors="pt")
        assert list(encoded.prompt_ids) == reference["input_ids"][0].tolist()
        assert torch.equal(torch.cat([image.pixels for image in encoded.images]), reference["pixel_values"])
        assert [list(image.grid) for image in encoded.images] == reference["image_grid_thw"].tolist()
        assert encoder.length(sample) == len(encoded.prompt_ids) + len(encoded.reply_ids)
        whole = processor.apply_chat_template(
            [*sample_prompt(sample, mode, template), {"role": "assistant", "content": gold_reply(sample, mode)}],
            tokenize=False,
        )
        assert whole == text + gold_reply(sample, mode) + "<|im_end|>\n"


def replace_template(template: str) -> ModelConfig:
    return ModelConfig.model_validate(MODEL.model_dump() | {"template": template, "max_length": 2048})


def test_the_collator_agrees_with_the_processor_on_a_batch(samples: list[Sample], processor) -> None:  # type: ignore[no-untyped-def]
    encoder = SampleEncoder(processor, "direct", MODEL)
    batch = ReplyCollator(encoder, samples)([{"sample": 0}, {"sample": 1}])
    texts, images = [], []
    for sample in samples:
        prompt = sample_prompt(sample, "direct", "compact-v1")
        chat = processor.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        texts.append(chat + gold_reply(sample, "direct") + "<|im_end|>")
        images += [encoder._load(sample, index) for index in range(len(sample.views))]
    reference = processor(text=texts, images=images, padding=True, padding_side="right", return_tensors="pt")
    assert set(reference) == set(batch) - {"labels"}
    for name in reference:
        assert torch.equal(batch[name], reference[name]), name


def test_one_trl_step_has_the_loss_of_a_hand_made_forward(samples, processor, tiny_model, tmp_path) -> None:  # type: ignore[no-untyped-def]
    """Sum of the replies' token losses over the batch, divided by their number; each sample forwarded on its own."""
    encoder = SampleEncoder(processor, "actions", MODEL)
    reference = load_model(tiny_model)
    image_id = reference.config.image_token_id
    losses, count = torch.zeros(()), 0
    for sample in samples:
        item = encoder.encode(sample)
        ids = torch.tensor([item.prompt_ids + item.reply_ids])
        with torch.no_grad():
            logits = reference(
                input_ids=ids,
                pixel_values=torch.cat([image.pixels for image in item.images]),
                image_grid_thw=torch.tensor([image.grid for image in item.images]),
                mm_token_type_ids=(ids == image_id).long(),
            ).logits[0]
        start = len(item.prompt_ids)
        losses += torch.nn.functional.cross_entropy(logits[start - 1 : -1], ids[0, start:], reduction="sum")
        count += len(item.reply_ids)
    config = SftConfig(max_steps=1, batch_size=2, lr=1e-3)
    trainer = make_trainer(
        load_model(tiny_model), encoder, samples, trl_config(config, MODEL, tmp_path, workers=1, gpu=False, seed=0)
    )
    trainer.train()
    logged = trainer.state.log_history[0]
    assert logged["loss"] == pytest.approx((losses / count).item(), rel=1e-4)
    assert logged["grad_norm"] > 0


def test_training_learns_the_replies(samples, processor, tiny_model, tmp_path) -> None:  # type: ignore[no-untyped-def]
    """All weights learn, with LoRA the language model's adapters alone."""
    config = SftConfig(max_steps=8, batch_size=2, lr=2e-3)
    for rank in (0, 4):
        model = load_model(tiny_model)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        arguments = trl_config(config, MODEL, tmp_path / str(rank), workers=1, gpu=False, seed=0)
        encoder = SampleEncoder(processor, "direct", MODEL)
        trainer = make_trainer(model, encoder, samples, arguments, lora_rank=rank)
        trainer.train()
        history = [row["loss"] for row in trainer.state.log_history if "loss" in row]
        assert len(history) == 8
        assert history[-1] < history[0]
        trained = trainer.model.merge_and_unload() if rank else trainer.model
        changed = {name for name, tensor in trained.state_dict().items() if not torch.equal(tensor, before[name])}
        assert any("language_model" in name for name in changed)
        assert any("visual" in name for name in changed) == (rank == 0)


def test_a_share_keeps_every_task_and_follows_the_seed(samples: list[Sample]) -> None:
    many = [replace(samples[0], id=str(i), task="rare" if i % 30 == 0 else "common") for i in range(60)]
    chosen = choose_samples(many, 0.1, seed=0)
    assert sorted(sample.task for sample in chosen) == ["common"] * 6 + ["rare"]
    assert chosen == choose_samples(many, 0.1, seed=0)
    assert chosen != choose_samples(many, 0.1, seed=1)
    assert choose_samples(many, 1.0, seed=3) == many


def test_a_sample_longer_than_the_context_is_refused(samples: list[Sample], processor) -> None:  # type: ignore[no-untyped-def]
    encoder = SampleEncoder(processor, "actions", ModelConfig(template="compact-v1", max_length=100))
    with pytest.raises(ValueError, match=r"sample depth_prediction_oc_mv-0 has \d+ tokens .* model.max_length=100"):
        encoder.check(samples)


def test_two_samples_of_one_name_are_refused(samples: list[Sample], processor) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="two samples are called 'depth_prediction_oc_mv-0'"):
        SampleEncoder(processor, "actions", MODEL).check([samples[0], samples[0]])


def test_total_steps() -> None:
    assert total_steps(10, SftConfig(epochs=2, batch_size=4)) == 6
    assert total_steps(10, SftConfig(epochs=2, batch_size=4, max_steps=5)) == 5


def test_a_checkpoint_continues_with_the_losses_of_a_run_that_never_stopped(  # type: ignore[no-untyped-def]
    samples, processor, tiny_model, tmp_path
) -> None:
    """The weights must come from the folder itself: the trainer alone restores optimizer and order, not the weights."""
    encoder = SampleEncoder(processor, "direct", MODEL)

    def losses(model, steps: int, resume: Path | None = None) -> list[float]:  # type: ignore[no-untyped-def]
        config = SftConfig(max_steps=steps, batch_size=2, lr=2e-3, save_every=2)
        trainer = make_trainer(model, encoder, samples, trl_config(config, MODEL, tmp_path, 1, gpu=False, seed=0))
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
        return [row["loss"] for row in trainer.state.log_history if "loss" in row]

    whole = losses(load_model(tiny_model), 4)
    state = tmp_path / "checkpoint-2"
    assert losses(load_model(state), 4, state) == pytest.approx(whole, rel=1e-4)
    assert losses(load_model(tiny_model), 4, state)[2:] != pytest.approx(whole[2:], rel=1e-2)
