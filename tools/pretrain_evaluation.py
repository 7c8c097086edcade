"""What hatch-tiny answers to held-out questions while it is pretrained."""

from __future__ import annotations

import random
from collections import defaultdict

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration

from tools.pretrain_data import CELL_PX, QUESTIONS, TEXTS, ViewSet, ask
from tools.pretrain_heads import numbers_error
from tools.pretrain_mark_heads import forward
from tools.pretrain_packing import MarkPacker, Packer, draw_batch, draw_views
from tools.pretrain_spots import SpotSet
from tools.pretraining import image_grid, patchify


@torch.no_grad()
def evaluate(
    model: Qwen2_5_VLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    views: ViewSet,
    n: int = 64,
) -> dict[str, dict[str, float]]:
    """Greedy answers to single questions on held-out rooms, by true images and by another question's images.

    For each kind: the share of exact answers, and for answers with numbers the mean absolute error of each
    (an angle's side is its sign; angles wrap), true and swapped.
    """
    model.eval()
    result: dict[str, dict[str, float]] = {}
    packer = Packer(tokenizer)
    packer_left = tokenizer.padding_side
    for kind in QUESTIONS:
        rng = random.Random(f"evaluate {kind}")
        asked: list[tuple[int, tuple[int, ...], str, str]] = []
        while len(asked) < n:
            room, shown = draw_views(views, 2, rng)
            pair = ask(kind, views, room, shown, rng)
            if pair is not None:
                asked.append((room, shown, *pair))
        row: dict[str, float] = {}
        for name, shift in (("true", 0), ("swapped", 1)):
            shown_by = [asked[(index + shift) % n] for index in range(n)]
            pixels = patchify(np.concatenate([views.rgb[room, list(shown)] for room, shown, _, _ in shown_by]))
            replies = greedy(model, packer, [question for _, _, question, _ in asked], pixels, views.rgb.shape[2])
            golds = [answer for _, _, _, answer in asked]
            row[f"exact_{name}"] = float(np.mean([a.strip() == b.strip() for a, b in zip(replies, golds, strict=True)]))
            if kind in TEXTS:
                continue
            errors = [numbers_error(a, b) for a, b in zip(replies, golds, strict=True)]
            for index in range(len(errors[0])):
                row[f"error{index}_{name}"] = float(np.mean([error[index] for error in errors]))
        result[kind] = {key: round(value, 3) for key, value in row.items()}
    tokenizer.padding_side = packer_left
    model.train()
    return result


def greedy(
    model: Qwen2_5_VLForConditionalGeneration,
    packer: Packer,
    questions: list[str],
    pixels: torch.Tensor,
    size: int,
    max_new_tokens: int = 9,
) -> list[str]:
    """The answer lines to one question behind each pair of images."""
    tokenizer = packer.tokenizer
    prefix = packer.prefix(2, (size // CELL_PX) ** 2)
    ids = [prefix + tokenizer.encode(question) for question in questions]
    length = max(map(len, ids))
    input_ids = torch.tensor([[packer.pad] * (length - len(line)) + line for line in ids])
    output = model.generate(
        input_ids=input_ids,
        attention_mask=torch.tensor([[0] * (length - len(line)) + [1] * len(line) for line in ids]),
        mm_token_type_ids=(input_ids == packer.image).int(),
        pixel_values=pixels,
        image_grid_thw=image_grid(2 * len(questions), size),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=tokenizer.encode("\n")[0],
        pad_token_id=packer.pad,
    )
    return [text.split("\n")[0] for text in tokenizer.batch_decode(output[:, length:], skip_special_tokens=True)]


@torch.no_grad()
def look(
    model: Qwen2_5_VLForConditionalGeneration,
    packer: MarkPacker,
    heldout: dict[int, SpotSet],
    questions: int,
    old_share: float,
    comparing: float,
    rows: int = 20,
) -> dict[str, str]:
    """By style and kind: the share of answers whose every token is the likeliest one, by true images and by another
    row's (in brackets), over packed held-out questions, and how many.
    """
    model.eval()
    result: dict[str, str] = {}
    for size, style in ((112, "colors"), (224, "numbers")):
        rng = random.Random(f"look {size}")
        shown, asked = draw_batch(heldout[size], rows, 2, questions, old_share, comparing, rng, style)  # type: ignore[arg-type]
        batch = packer.pack_asked(asked, shown, False)
        right: dict[str, list[list[bool]]] = defaultdict(list)
        for turn in (0, 1):
            images = np.concatenate([shown[(index + turn) % rows].images for index in range(rows)])
            last, *_ = forward(model, batch, patchify(images), size)
            hit = model.lm_head(last[:, :-1]).argmax(-1) == batch["labels"][:, 1:]
            for index, row in enumerate(asked):
                for number, one in enumerate(row):
                    of_answer = (batch["number"][index, 1:] == number) & (batch["labels"][index, 1:] != -100)
                    ok = bool(hit[index][of_answer].all())
                    if turn == 0:
                        right[f"{size} {one.kind}"].append([ok])
                    else:
                        seen = right[f"{size} {one.kind} "]
                        seen.append([ok])
        for kind in sorted(name for name in right if not name.endswith(" ")):
            true, swapped = np.mean(right[kind]), np.mean(right[f"{kind} "])
            result[kind] = f"{true:.2f} ({swapped:.2f}) {len(right[kind])}"
    model.train()
    return result
