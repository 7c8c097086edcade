"""SFT: the tokens a reply is trained on, mixed image sizes, our loss and steps against TRL's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hatch_ray.config_sections import GrpoConfig, ModelConfig, SftConfig
from hatch_ray.data.store import SampleOrder, stage_steps
from hatch_ray.learning.sft import SampleEncoder, pack_samples, reply_loss, share_by_task
from hatch_ray.model.base import load_model, load_processor
from hatch_ray.model.logprobs import ReplyScorer
from hatch_ray.protocol.prompt import gold_reply, sample_prompt
from hatch_ray.protocol.response import parse_response
from hatch_ray.sample import Mark, Sample
from tests.support.hatch import encoder_of
from tests.support.trl_sft import Collator, trl_history
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
def test_what_is_scored_is_exactly_the_reply_and_its_end_token(
    samples: list[Sample], processor, tiny_model, mode
) -> None:  # type: ignore[no-untyped-def]
    batch = pack_samples(load_model(tiny_model), encoder_of(processor, mode, MODEL), samples)
    for number, sample in enumerate(samples):
        scored = batch.reply == number
        text = processor.tokenizer.decode(batch.target[scored])
        assert text == gold_reply(sample, mode) + "<|im_end|>"
        assert parse_response(text.removesuffix("<|im_end|>"), len(sample.views), mode).format_ok
        assert torch.equal(batch.input_ids[0, batch.predictor[scored][1:]], batch.target[scored][:-1])


@pytest.mark.parametrize("mode", ["direct", "language", "actions"])
@pytest.mark.parametrize("template", ["compact-v1", "full-v1"])
def test_a_training_row_starts_with_the_tokens_of_inference(samples, processor, mode, template) -> None:  # type: ignore[no-untyped-def]
    """The whole processor on the inference prompt (add_generation_prompt) is the reference."""
    encoder = encoder_of(processor, mode, replace_template(template))
    for sample in samples:
        prompt, reply = encoder.prompt(sample), encoder.reply(sample)
        text = processor.apply_chat_template(
            sample_prompt(sample, mode, template), tokenize=False, add_generation_prompt=True
        )
        images = [encoder.load(sample, index) for index in range(len(sample.views))]
        reference = processor(text=[text], images=images, return_tensors="pt")
        assert list(prompt.token_ids) == reference["input_ids"][0].tolist()
        assert torch.equal(torch.cat([image.pixels for image in prompt.images]), reference["pixel_values"])
        assert [list(image.grid) for image in prompt.images] == reference["image_grid_thw"].tolist()
        assert encoder.length(sample) == len(prompt.token_ids) + len(reply)
        whole = processor.apply_chat_template(
            [*sample_prompt(sample, mode, template), {"role": "assistant", "content": gold_reply(sample, mode)}],
            tokenize=False,
        )
        assert whole == text + gold_reply(sample, mode) + "<|im_end|>\n"


def replace_template(template: str) -> ModelConfig:
    return ModelConfig.model_validate(MODEL.model_dump() | {"template": template, "max_length": 2048})


def test_the_yardsticks_collator_agrees_with_the_processor_on_a_batch(samples: list[Sample], processor) -> None:  # type: ignore[no-untyped-def]
    encoder = encoder_of(processor, "direct", MODEL)
    batch = Collator(encoder, samples)([{"sample": 0}, {"sample": 1}])
    texts, images = [], []
    for sample in samples:
        prompt = sample_prompt(sample, "direct", "compact-v1")
        chat = processor.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        texts.append(chat + gold_reply(sample, "direct") + "<|im_end|>")
        images += [encoder.load(sample, index) for index in range(len(sample.views))]
    reference = processor(text=texts, images=images, padding=True, padding_side="right", return_tensors="pt")
    assert set(reference) == set(batch) - {"labels"}
    for name in reference:
        assert torch.equal(batch[name], reference[name]), name


def train(model, encoder: SampleEncoder, batches: list[list[Sample]], lr: float) -> list[float]:  # type: ignore[no-untyped-def]
    """Our steps without Ray: the losses."""
    scorer = ReplyScorer(model.train())
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer, losses = torch.optim.AdamW(learning, lr=lr, weight_decay=0.0), []
    for batch in batches:
        packed = pack_samples(model, encoder, batch)
        loss = reply_loss(scorer(packed)[0], len(packed.target))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_our_steps_are_those_of_trls_trainer(samples, processor, tiny_model, tmp_path) -> None:  # type: ignore[no-untyped-def]
    """Losses and weights after four steps over unequal images, one of them marked, twice in a batch."""
    encoder = encoder_of(processor, "actions", MODEL)
    many = [*samples, replace(samples[0], id="again"), replace(samples[1], id="once more")]
    order = SampleOrder(len(many), 3, 0)
    batches = [[many[index] for index in order.indices(step)] for step in range(4)]
    ours, theirs = load_model(tiny_model), load_model(tiny_model)
    losses = train(ours, encoder, batches, 1e-3)
    settings = {"learning_rate": 1e-3, "lr_scheduler_type": "constant", "weight_decay": 0.0, "max_grad_norm": 1.0}
    history = trl_history(theirs, encoder, batches, tmp_path, **settings)
    assert losses == pytest.approx([row["loss"] for row in history], rel=1e-4)
    start, found = load_model(tiny_model).state_dict(), theirs.state_dict()
    for name, weight in ours.state_dict().items():
        moved = (found[name] - start[name]).norm()
        assert (weight - found[name]).norm() < 0.02 * moved + 1e-5, name


def test_the_parts_of_workers_make_the_loss_of_the_whole_batch(samples, processor, tiny_model) -> None:  # type: ignore[no-untyped-def]
    encoder, model = encoder_of(processor, "actions", MODEL), load_model(tiny_model)
    scorer = ReplyScorer(model)
    tokens = sum(len(encoder.reply(sample)) for sample in samples)
    with torch.no_grad():
        whole = reply_loss(scorer(pack_samples(model, encoder, samples))[0], tokens)
        parts = [reply_loss(scorer(pack_samples(model, encoder, [sample]))[0], tokens, 2) for sample in samples]
    assert (sum(parts) / 2).item() == pytest.approx(whole.item(), rel=1e-5)


def test_training_learns_the_replies(samples, processor, tiny_model) -> None:  # type: ignore[no-untyped-def]
    """All weights learn, with LoRA the language model's adapters alone."""
    from hatch_ray.model.lora import add_lora, merged_weights

    for rank in (0, 4):
        model = load_model(tiny_model)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        if rank:
            add_lora(model, rank)
        losses = train(model, encoder_of(processor, "direct", MODEL), [samples] * 8, 2e-3)
        assert losses[-1] < losses[0]
        trained = dict(merged_weights(model)) if rank else model.state_dict()
        changed = {name for name, tensor in trained.items() if not torch.equal(tensor, before[name])}
        assert any("language_model" in name for name in changed)
        assert any("visual" in name for name in changed) == (rank == 0)


def test_recomputed_activations_give_the_same_gradient(samples, processor, tiny_model) -> None:  # type: ignore[no-untyped-def]
    """What the stage switches on on GPUs, over packed rows."""
    encoder, gradients = encoder_of(processor, "actions", MODEL), []
    for recomputed in (False, True):
        model = load_model(tiny_model).train()
        if recomputed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        packed = pack_samples(model, encoder, samples)
        reply_loss(ReplyScorer(model)(packed)[0], len(packed.target)).backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], rtol=1e-4, atol=1e-6), name


def test_a_share_keeps_every_task_and_follows_the_seed(samples: list[Sample]) -> None:
    many = [replace(samples[0], id=str(i), task="rare" if i % 30 == 0 else "common") for i in range(60)]
    chosen = share_by_task(many, 0.1, seed=0)
    assert sorted(sample.task for sample in chosen) == ["common"] * 6 + ["rare"]
    assert chosen == share_by_task(many, 0.1, seed=0)
    assert chosen != share_by_task(many, 0.1, seed=1)
    assert share_by_task(many, 1.0, seed=3) == many


def test_a_sample_longer_than_the_context_is_refused(samples: list[Sample], processor) -> None:  # type: ignore[no-untyped-def]
    encoder = encoder_of(processor, "actions", ModelConfig(template="compact-v1", max_length=100))
    with pytest.raises(ValueError, match=r"sample depth_prediction_oc_mv-0 has \d+ tokens .* model.max_length=100"):
        encoder.check(samples)


def test_two_samples_of_one_name_are_refused(samples: list[Sample], processor) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="two samples are called 'depth_prediction_oc_mv-0'"):
        encoder_of(processor, "actions", MODEL).check([samples[0], samples[0]])


def test_steps_of_a_stage() -> None:
    assert stage_steps(SftConfig(epochs=2), 10, 4) == 5
    assert stage_steps(SftConfig(epochs=1), 10, 4) == 3, "the last step is filled from the next epoch"
    assert stage_steps(SftConfig(max_steps=2), 10, 4) == 2
    assert stage_steps(SftConfig(max_steps=2000), 500, 1) == 2000, "max_steps stands in place of epochs"
    assert stage_steps(GrpoConfig(max_steps=2000), 500, 1) == 2000, "and means the same for GRPO"
