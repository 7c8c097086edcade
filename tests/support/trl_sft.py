"""TRL's SFTTrainer over given batches of samples: the yardstick of our own loop."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import SequentialSampler
from transformers import PrinterCallback
from trl import SFTConfig, SFTTrainer

from hatch_ray.learning.sft import SampleEncoder
from hatch_ray.sample import Sample

IGNORED = -100


class Collator:
    """Batches padded on the right, labels on reply tokens alone."""

    def __init__(self, encoder: SampleEncoder, samples: Sequence[Sample]) -> None:
        self.encoder, self.samples = encoder, samples
        self.pad_id = encoder.processor.tokenizer.pad_token_id

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        samples = [self.samples[row["sample"]] for row in rows]
        prompts = [self.encoder.prompt(sample) for sample in samples]
        replies = [self.encoder.reply(sample) for sample in samples]
        lengths = [len(p.token_ids) + len(r) for p, r in zip(prompts, replies, strict=True)]
        shape = len(samples), max(lengths)
        input_ids, labels = torch.full(shape, self.pad_id), torch.full(shape, IGNORED)
        attention_mask = torch.zeros(shape, dtype=torch.long)
        for row, (prompt, reply) in enumerate(zip(prompts, replies, strict=True)):
            start, end = len(prompt.token_ids), lengths[row]
            input_ids[row, :start] = torch.tensor(prompt.token_ids)
            input_ids[row, start:end] = labels[row, start:end] = torch.tensor(reply)
            attention_mask[row, :end] = 1
        images = [image for prompt in prompts for image in prompt.images]
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "labels": labels,
            "mm_token_type_ids": (input_ids == self.encoder.processor.image_token_id).long(),
            "pixel_values": torch.cat([image.pixels for image in images]),
            "image_grid_thw": torch.tensor([image.grid for image in images]),
        }


class InOrder(SFTTrainer):
    """The dataset's own order."""

    def _get_train_sampler(self, dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(dataset if dataset is not None else self.train_dataset)


def trl_history(
    model: Any, encoder: SampleEncoder, batches: Sequence[Sequence[Sample]], folder: Path, **settings: Any
) -> list[dict[str, float]]:
    """Train on the batches, one step each; what TRL logs of every step."""
    samples = [sample for batch in batches for sample in batch]
    rows = {
        "sample": list(range(len(samples))),
        "images": [[str(view.image_path) for view in sample.views] for sample in samples],  # marks it as vision data
    }
    arguments = SFTConfig(
        output_dir=str(folder), per_device_train_batch_size=len(batches[0]), max_steps=len(batches), use_cpu=True,
        bf16=False, gradient_checkpointing=False, max_length=None, remove_unused_columns=False, save_strategy="no",
        logging_steps=1, disable_tqdm=True, report_to=[], **settings,
    )  # fmt: skip
    trainer = InOrder(
        model=model, args=arguments, train_dataset=Dataset.from_dict(rows), data_collator=Collator(encoder, samples),
        processing_class=encoder.processor,
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return [row for row in trainer.state.log_history if "loss" in row]
