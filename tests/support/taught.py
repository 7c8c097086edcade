"""A random model after a minute of schooling: its replies have the form of an answer and differ in reward."""

from __future__ import annotations

from pathlib import Path

import torch

from hatch_ray.config import make_config
from hatch_ray.data.build import build_dataset
from hatch_ray.data.store import model_images, read_dataset
from hatch_ray.model.base import load_model, load_processor, save_model
from hatch_ray.model.logprobs import ReplyScorer
from hatch_ray.model.packing import pack
from hatch_ray.model.prompt_tokens import process_image, tokenize_prompt
from hatch_ray.protocol.prompt import gold_reply, sample_prompt

TASKS = ["depth_prediction_oc_mv", "distance_prediction_oo_mv"]
PIXELS = 112 * 112
LOSS = 1.0
"""Nats a token at which the lesson ends: the form is there, the numbers still vary."""


def teach(tiny: Path, out: Path, steps: int = 200) -> Path:
    """Teach a model the answers' form, in the prompts of ActoR, on samples of rooms; a Hugging Face folder."""
    rooms = {"train_scenes": 3, "heldout_scenes": 1, "views_per_scene": 6}
    config = make_config({"data": {"samples": 8, "tasks": TASKS, "max_views": 2, "rooms": rooms}})
    build_dataset(config.data, 1, "train", out.parent / "lesson")
    model, processor = load_model(tiny), load_processor(tiny, PIXELS)
    prompts, replies = [], []
    for sample in read_dataset(out.parent / "lesson"):
        text = processor.apply_chat_template(
            sample_prompt(sample, "actions", "compact-v1"), add_generation_prompt=True, tokenize=False
        )
        images = [process_image(processor, image) for image in model_images(sample, PIXELS)]
        prompts.append(tokenize_prompt(processor, text, images))
        tokens = processor.tokenizer(gold_reply(sample, "direct"))["input_ids"]
        replies.append([[*tokens, processor.tokenizer.eos_token_id]])
    batch = pack(model, prompts, replies)
    scorer, optimizer = ReplyScorer(model), torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        loss = -scorer(batch)[0].mean()
        if loss < LOSS:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    else:
        raise RuntimeError(f"the lesson did not help: {loss:.2f} nats a token after {steps} steps")
    return save_model(model, processor, out)
