"""Supervised fine-tuning on gold replies: QA SFT (answers alone) and ActoR's cold start (teacher actions, then answer).

TRL's SFTTrainer does the training (`actors/sft_stage.py` runs it in Ray Train). What is ours is the data: prompts are
tokenised as for inference, so that a trained model meets the very tokens it was trained on, and the loss covers the
reply and its end token alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig
from PIL import Image
from transformers import PrinterCallback, TrainerCallback
from trl import SFTConfig as TrlConfig
from trl import SFTTrainer

from hatch_ray.config_sections import ModelConfig, SftConfig
from hatch_ray.data.images import image_size, model_image, shrunk_size
from hatch_ray.disk import when_there_is_room
from hatch_ray.learning.pixels import PixelCache
from hatch_ray.model.prompt_tokens import ImagePatches, image_tokens_by_size, tokenize_prompt
from hatch_ray.protocol.prompt import Mode, gold_reply, sample_prompt
from hatch_ray.sample import Sample

IGNORED = -100
"""Label of a token that the loss leaves out."""


def choose_samples(samples: Sequence[Sample], fraction: float, seed: int) -> list[Sample]:
    """A seeded share of the samples with every task represented: `fraction` of each task, rounded up."""
    by_task: dict[str, list[int]] = {}
    for index, sample in enumerate(samples):
        by_task.setdefault(sample.task, []).append(index)
    chosen: list[int] = []
    for number, task in enumerate(sorted(by_task)):
        # The small allowance keeps 10 % of 30 at 3: in floating point it is 3.0000000000000004.
        count = math.ceil(fraction * len(by_task[task]) - 1e-9)
        chosen += np.random.default_rng([seed, number]).permutation(by_task[task])[:count].tolist()
    return [samples[index] for index in sorted(chosen)]


@dataclass(frozen=True)
class Encoded:
    """One sample as tokens: the prompt with its image tokens, the reply with its end token."""

    prompt_ids: tuple[int, ...]
    reply_ids: tuple[int, ...]
    images: tuple[ImagePatches, ...]


class SampleEncoder:
    """Turns samples into tokens and image patches, keeping both for the next epoch."""

    def __init__(self, processor: Any, mode: Mode, model: ModelConfig, pixels: PixelCache | None = None) -> None:
        self.processor = processor
        self.mode = mode
        self.model = model
        self.pixels = pixels or PixelCache(processor)
        self._texts: dict[str, tuple[str, tuple[int, ...]]] = {}
        self._prompts: dict[str, tuple[int, ...]] = {}
        self._image_lengths: dict[Path, int] = {}

    def _text(self, sample: Sample) -> tuple[str, tuple[int, ...]]:
        """The prompt's chat text and the reply's tokens."""
        if sample.id not in self._texts:
            messages = sample_prompt(sample, self.mode, self.model.template)
            prompt = self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            reply = self.processor.tokenizer(gold_reply(sample, self.mode), add_special_tokens=False)["input_ids"]
            self._texts[sample.id] = prompt, (*reply, self.processor.tokenizer.eos_token_id)
        return self._texts[sample.id]

    def _load(self, sample: Sample, index: int) -> Image.Image:
        return model_image(sample, index, self.model.max_pixels)

    def encode(self, sample: Sample) -> Encoded:
        """Tokens and patches of one sample."""
        images = tuple(
            self.pixels.get(
                (view.image_path, tuple(mark for mark in sample.marks if mark.view == index)),
                partial(self._load, sample, index),
            )
            for index, view in enumerate(sample.views)
        )
        prompt, reply_ids = self._text(sample)
        if sample.id not in self._prompts:
            self._prompts[sample.id] = tokenize_prompt(self.processor, prompt, images).token_ids
        return Encoded(self._prompts[sample.id], reply_ids, images)

    def length(self, sample: Sample) -> int:
        """Tokens of prompt and reply, from the sizes in the image files' headers (no image is decoded)."""
        prompt, reply_ids = self._text(sample)
        text_ids = self.processor.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        return len(text_ids) + len(reply_ids) + sum(self._image_tokens(view.image_path) - 1 for view in sample.views)

    def _image_tokens(self, path: Path) -> int:
        if path not in self._image_lengths:
            width, height = shrunk_size(*image_size(path), self.model.max_pixels)
            self._image_lengths[path] = image_tokens_by_size(self.processor, width, height)
        return self._image_lengths[path]

    def check(self, samples: Sequence[Sample]) -> None:
        """Raise ValueError naming the first sample that does not fit the context or has the name of another one."""
        seen: set[str] = set()
        for sample in samples:
            if sample.id in seen:
                raise ValueError(f"two samples are called {sample.id!r}; give every sample of a dataset its own id")
            seen.add(sample.id)
            check_length(sample, self.length(sample), self.model.max_length)


def check_length(sample: Sample, length: int, max_length: int) -> None:
    """Raise ValueError when prompt and reply do not fit the context: cutting would lose image tokens or the answer."""
    if length > max_length:
        raise ValueError(
            f"sample {sample.id} has {length} tokens (images, prompt and reply), more than model.max_length="
            f"{max_length}; raise it, or lower model.max_pixels"
        )


class ReplyCollator:
    """Batches rows of `make_dataset` for a Qwen2.5-VL: padded on the right, labels on reply tokens alone."""

    def __init__(self, encoder: SampleEncoder, samples: Sequence[Sample]) -> None:
        self.encoder = encoder
        self.samples = samples
        self.image_id = encoder.processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
        self.pad_id = encoder.processor.tokenizer.pad_token_id

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """input_ids, attention_mask, labels, mm_token_type_ids (B, L); pixel_values, image_grid_thw of all images."""
        encoded = [self.encoder.encode(self.samples[row["sample"]]) for row in rows]
        shape = len(encoded), max(len(item.prompt_ids) + len(item.reply_ids) for item in encoded)
        input_ids, labels = torch.full(shape, self.pad_id), torch.full(shape, IGNORED)
        attention_mask = torch.zeros(shape, dtype=torch.long)
        for row, item in enumerate(encoded):
            start, end = len(item.prompt_ids), len(item.prompt_ids) + len(item.reply_ids)
            input_ids[row, :start] = torch.tensor(item.prompt_ids)
            input_ids[row, start:end] = labels[row, start:end] = torch.tensor(item.reply_ids)
            attention_mask[row, :end] = 1
        images = [image for item in encoded for image in item.images]
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "labels": labels,
            # Without this the model takes image tokens for text and gives them text positions, silently.
            "mm_token_type_ids": (input_ids == self.image_id).long(),
            "pixel_values": torch.cat([image.pixels for image in images]),
            "image_grid_thw": torch.tensor([image.grid for image in images]),
        }


def make_dataset(samples: Sequence[Sample]) -> Dataset:
    """What SFTTrainer iterates over: a sample's index, and its image files (that column marks it as vision data)."""
    return Dataset.from_dict(
        {
            "sample": list(range(len(samples))),
            "images": [[str(view.image_path) for view in sample.views] for sample in samples],
        }
    )


def total_steps(n_samples: int, config: SftConfig) -> int:
    """Optimizer steps of a stage over n samples: max_steps, or by epochs (an epoch's last batch may be smaller)."""
    return config.max_steps or math.ceil(config.epochs * math.ceil(n_samples / config.batch_size))


def trl_config(
    config: SftConfig, model: ModelConfig, output_dir: Path, workers: int, gpu: bool, seed: int
) -> TrlConfig:
    """The stage's settings in TRL's terms, for one of `workers` workers."""
    return TrlConfig(
        output_dir=str(output_dir),
        per_device_train_batch_size=config.batch_size // workers,
        num_train_epochs=config.epochs,
        max_steps=config.max_steps or -1,
        learning_rate=config.lr,
        warmup_steps=config.warmup_steps,
        lr_scheduler_type="cosine" if config.schedule == "cosine" else "constant_with_warmup",
        weight_decay=config.weight_decay,
        max_grad_norm=config.grad_clip,
        seed=seed,
        bf16=model.dtype == "bfloat16",
        fp16=False,
        use_cpu=not gpu,
        gradient_checkpointing=gpu,
        ddp_find_unused_parameters=False,
        max_length=None,  # nothing is ever cut; SampleEncoder.check refuses what is too long
        remove_unused_columns=False,
        save_strategy="steps",
        save_steps=config.save_every,
        logging_steps=1,
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        report_to=[],
    )


def lora_config(rank: int) -> LoraConfig | None:
    """Adapters on the language model's linear layers (alpha = 2 rank), or None for rank 0."""
    if rank == 0:
        return None
    layers = r".*language_model\..*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
    return LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules=layers, task_type="CAUSAL_LM")


class StageTrainer(SFTTrainer):
    """TRL's trainer, which waits while its checkpoints find the disk full (`hatch_ray.disk`)."""

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        # Tried again, it writes over its files; they become a checkpoint of the run only when all are there.
        write = super()._save_checkpoint
        when_there_is_room(Path(self.args.output_dir), lambda: write(model, trial))


def make_trainer(
    model: Any,
    encoder: SampleEncoder,
    samples: Sequence[Sample],
    arguments: TrlConfig,
    lora_rank: int = 0,
    callbacks: Sequence[TrainerCallback] = (),
) -> SFTTrainer:
    """TRL's trainer over the samples' gold replies."""
    trainer = StageTrainer(
        model=model,
        args=arguments,
        train_dataset=make_dataset(samples),
        data_collator=ReplyCollator(encoder, samples),
        processing_class=encoder.processor,
        peft_config=lora_config(lora_rank),
        callbacks=list(callbacks),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer
