"""hatch-tiny's second pretraining: the shipped model made wider and taught to read marks, with its old questions kept.

    python -m tools.pretrain_tiny --out OUT --marks hatch_ray/model/weights/hatch-tiny

The encoder first learns to tell marks (minutes), then everything is trained on questions about marks and named things
and on the first pretraining's own; views of 112 and of 224 pixels.
"""

from __future__ import annotations

import copy
import json
import logging
import random
import re
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration

from hatch_ray.data.rooms import RoomOptions
from hatch_ray.model.fast_vision import speed_up_vision
from tools.pretrain_data import HELDOUT_OFFSET, all_pairs
from tools.pretrain_heads import DenseHeads, RelationHeads, dense_targets
from tools.pretrain_mark_heads import (
    Attended,
    MarkAnswerHead,
    MarkHeads,
    MentionHead,
    mark_answer_numbers,
    mark_targets,
)
from tools.pretrain_marks import Asked, Shown, Style, draw_asked, place_numbers, show
from tools.pretrain_spots import SpotSet, render_spots
from tools.pretrain_tiny import (
    Packer,
    draw_questions,
    draw_views,
    image_grid,
    learning_rate,
    optimizer_for,
    patchify,
    report,
    save,
    step,
)
from tools.tiny import PATCH, TinyConfig
from tools.widen_tiny import WIDE, group_heads, widen

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MoreOptions:
    """Numbers of the recipe. minutes are wall time on the machine that runs it."""

    minutes: float = 75.0
    encoder_minutes: float = 5.0
    rooms: int = 1600
    rooms_224: int = 500
    heldout_rooms: int = 100
    views: int = 10
    views_224: int = 8
    batch: int = 10
    batch_224: int = 5
    encoder_batch: int = 48
    questions: int = 14
    lr: float = 1e-3
    encoder_lr: float = 1.2e-3
    weight_decay: float = 0.05
    warmup: float = 0.03
    large: float = 0.25
    """Share of the batches with views of 224 pixels."""
    old: float = 0.4
    """Share of the first pretraining's questions, where views carry marks; 0.6 where they carry none."""
    comparing: float = 0.6
    three_views: float = 0.15
    dense_weight: float = 0.3
    relation_weight: float = 0.5
    mark_weight: float = 0.5
    read_batch: int = 16
    """Views full of marks that the encoder alone reads beside each batch."""
    chat: float = 0.35
    calibration: int = 16
    """Rows of held-out questions by which key-value heads are grouped."""
    eval_minutes: float = 8.0
    save_minutes: float = 4.0


HEADS_FIRST, HEADS_LR = 0.1, 3e-3
"""The heads, which start from nothing, are trained alone for this share of the encoder's time, at that rate."""
OLD_WIDTH = TinyConfig().text_width
STYLES: dict[int, dict[Style, float]] = {
    112: {"colors": 0.6, "numbers": 0.15, "plain": 0.25},
    224: {"colors": 0.2, "numbers": 0.7, "plain": 0.1},
}


class Heads(nn.Module):
    """Everything that is thrown away after the training."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense, self.relations, self.marks = DenseHeads(width), RelationHeads(width), MarkHeads(width)
        self.mentions, self.answers = MentionHead(width), MarkAnswerHead(width)


class MarkPacker(Packer):
    """Packs `Asked`, and what the heads need of them."""

    def pack_asked(
        self, rows: Sequence[Sequence[Asked]], shown: Sequence[Shown], chat: bool
    ) -> dict[str, torch.Tensor]:
        """As Packer.pack, with `named` and `found` of MentionHead and `asked` of MarkAnswerHead."""
        views = shown[0].views
        after = "<|im_end|>\n<|im_start|>assistant\n" if chat else ""
        form = "<answer>{}</answer><|im_end|>" if chat else "{}\n"
        between = self.tokenizer.encode("\n<|im_start|>user\n") if chat else []
        texts = [text for row in rows for one in row for text in (one.question + after, form.format(one.answer))]
        encoded = self.tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
        at = iter(zip(encoded["input_ids"], encoded["offset_mapping"], strict=True))
        prefix = self.prefix(len(shown[0].indices), views.cells)
        ids, labels, kinds = [], [], []
        asked, named, found = [], [], []
        for index, (row, on) in enumerate(zip(rows, shown, strict=True)):
            line, target, kind = list(prefix), [-100] * len(prefix), [-1] * len(prefix)
            for number, one in enumerate(row):
                (question, offsets), (answer, _) = next(at), next(at)
                for end, place in one.named:
                    token = next(k for k, (_, stop) in enumerate(offsets) if stop >= end)
                    cell = place.view * views.cells + on.cell(place)
                    named.append([index, len(line) + token, cell, *place_numbers(on, place)])
                line += question
                if one.found is not None:
                    found.append([index, len(line) - 1, one.found.view * views.cells + on.cell(one.found)])
                numbers = mark_answer_numbers(one, views.grid)
                if numbers is not None:
                    asked.append([index, len(line) - 1, *numbers])
                line += answer + between
                target += [-100] * len(question) + answer + [-100] * len(between)
                kind += [number] * (len(line) - len(kind))
            ids.append(line)
            labels.append(target)
            kinds.append(kind)
        length = max(map(len, ids))

        def padded(lines: list[list[int]], fill: int) -> torch.Tensor:
            return torch.tensor([line + [fill] * (length - len(line)) for line in lines])

        input_ids = padded(ids, self.pad)
        return {
            "input_ids": input_ids,
            "labels": padded(labels, -100),
            "number": padded(kinds, -1),
            "attention_mask": padded([[1] * len(line) for line in ids], 0),
            "mm_token_type_ids": (input_ids == self.image).int(),
            "asked": torch.tensor(asked).view(-1, 3 + MarkAnswerHead.WIDTH),
            "named": torch.tensor(named).view(-1, 3 + MentionHead.WIDTH + 1),
            "found": torch.tensor(found).view(-1, 3),
        }


def draw_batch(
    views: SpotSet,
    n: int,
    n_views: int,
    questions: int,
    options: MoreOptions,
    rng: random.Random,
    style: Style | None = None,
) -> tuple[list[Shown], list[list[Asked]]]:
    """n rows: views with marks, and old and new questions about them in random order."""
    shown, rows = [], []
    styles = STYLES[views.size]
    for _ in range(n):
        room, indices = draw_views(views, n_views, rng)
        on = show(views, room, indices, style or rng.choices(tuple(styles), tuple(styles.values()))[0], rng)
        old = round(questions * (0.6 if on.style == "plain" else options.old))
        row = draw_asked(on, questions - old, rng)
        row += [
            Asked(re.match("[a-z]+", question).group() + "-old", question, answer)  # type: ignore[union-attr]
            for question, answer in draw_questions(views, room, indices, old, options.comparing, rng)
        ]
        rng.shuffle(row)
        shown.append(on)
        rows.append(row)
    return shown, rows


def forward(
    model: Qwen2_5_VLForConditionalGeneration, batch: dict[str, torch.Tensor], pixels: torch.Tensor, size: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[Attended]]:
    """Last hidden state; the merged tokens in raster order; the hidden state after, and what went into the attention
    of, the layers that MentionHead reads.
    """
    seen: list[torch.Tensor] = []
    attended: list[Attended] = []

    def keep(module: nn.Module, _arguments: object, given: dict[str, Any]) -> None:
        attended.append(Attended(module, given["hidden_states"], given["position_embeddings"]))

    layers = model.model.language_model.layers
    hooks = [
        model.model.visual.register_forward_hook(lambda _module, _input, output: seen.append(output.pooler_output)),
        layers[MentionHead.LAYER].register_forward_hook(lambda _module, _input, output: seen.append(output)),
        *(
            layers[layer].self_attn.register_forward_pre_hook(keep, with_kwargs=True)
            for layer in (MentionHead.LAYER, MentionHead.FOUND_LAYER)
        ),
    ]
    output = model.model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        mm_token_type_ids=batch["mm_token_type_ids"],
        pixel_values=pixels,
        image_grid_thw=image_grid(len(pixels) // (size // PATCH) ** 2, size),
        use_cache=False,
    )
    for hook in hooks:
        hook.remove()
    return output.last_hidden_state, *seen, attended


def losses(
    model: Qwen2_5_VLForConditionalGeneration,
    heads: Heads,
    batch: dict[str, torch.Tensor],
    pixels: torch.Tensor,
    shown: Sequence[Shown],
    options: MoreOptions,
) -> tuple[torch.Tensor, dict[str, float]]:
    """The weighted sum of all losses of one pass, and its parts."""
    views = shown[0].views
    n_views = len(shown[0].indices)
    last, merged, early, attended = forward(model, batch, pixels, views.size)
    labels = batch["labels"][:, 1:]
    keep = labels != -100
    text = nn.functional.cross_entropy(model.lm_head(last[:, :-1][keep]), labels[keep])
    room = np.array([on.room for on in shown])
    view = np.array([on.indices for on in shown])
    tokens = merged.view(len(shown) * n_views, views.cells, -1)
    dense, parts = heads.dense(tokens, dense_targets(views, np.repeat(room, n_views), view.reshape(-1)))
    marks, of_marks = heads.marks(tokens, mark_targets(shown))
    is_image = batch["mm_token_type_ids"] == 1
    of_images = early[is_image].view(len(shown), n_views, views.cells, -1)
    relation, of_relation = heads.relations(of_images, views, np.repeat(room[:, None], n_views, 1), view)
    mention, of_mention = heads.mentions(early, attended, is_image, batch["named"], batch["found"])
    answer = heads.answers(last, batch["asked"])
    total = (
        text
        + options.dense_weight * dense
        + options.mark_weight * marks
        + options.relation_weight * (relation + 2 * answer)
        + 0.5 * mention
    )
    more = {"text": float(text.detach()), "answer": float(answer.detach())}
    return total, more | parts | of_marks | of_relation | of_mention


def train_encoder(
    model: Qwen2_5_VLForConditionalGeneration,
    heads: Heads,
    sets: dict[int, SpotSet],
    options: MoreOptions,
    out: Path,
) -> None:
    """The encoder alone, with dense targets and marks.

    The heads start alone. Then the token of a cell may change in the stream's new dimensions, and stays near to what it
    was without the marks in the old ones, which the language model reads (views of 112 pixels; others it never saw).
    """
    rng, array_rng = random.Random(3), np.random.default_rng(3)
    visual, before = model.model.visual, copy.deepcopy(model.model.visual).requires_grad_(False)
    optimizer = optimizer_for([model.model.visual, heads.dense, heads.marks], options.weight_decay)
    start, count = time.monotonic(), 0
    mean: dict[str, float] = {}
    while (done := (time.monotonic() - start) / (options.encoder_minutes * 60)) < 1:
        size = 224 if rng.random() < 0.25 else 112
        views = sets[size]
        shown = []
        for _ in range(options.encoder_batch if size == 112 else options.encoder_batch // 4):
            room, indices = draw_views(views, 1, rng)
            shown.append(show(views, room, indices, "numbers" if rng.random() < 0.65 else "colors", rng, full=True))
        pixels = patchify(np.concatenate([on.images for on in shown]), array_rng)
        alone = done < HEADS_FIRST
        visual.requires_grad_(not alone)
        grid = image_grid(len(shown), size)
        merged = visual(pixels, grid).pooler_output
        tokens = merged.view(len(shown), views.cells, -1)
        at = np.array([on.room for on in shown]), np.array([on.indices[0] for on in shown])
        dense, parts = heads.dense(tokens, dense_targets(views, *at))
        marks, of_marks = heads.marks(tokens, mark_targets(shown))
        loss = dense + 2 * marks
        if size == 112 and not alone:
            with torch.no_grad():
                was = before(patchify(views.rgb[at]), grid).pooler_output[:, :OLD_WIDTH]
            stayed = (merged[:, :OLD_WIDTH] - was).square().mean() / was.square().mean()
            loss = loss + 2 * stayed
            parts["moved"] = float(stayed.detach())
        later = (done - HEADS_FIRST) / (1 - HEADS_FIRST)
        step(loss, optimizer, HEADS_LR if alone else learning_rate(later, options.encoder_lr, 0.1))
        count += 1
        for name, value in (parts | of_marks).items():
            mean[f"{name}{size}"] = 0.9 * mean.get(f"{name}{size}", value) + 0.1 * value
        if count % 10 == 0:
            report(out, {"stage": "encoder", "step": count, "seconds": time.monotonic() - start} | mean)


def read_marks(
    model: Qwen2_5_VLForConditionalGeneration,
    heads: Heads,
    views: SpotSet,
    n: int,
    rng: random.Random,
    array_rng: np.random.Generator,
) -> tuple[torch.Tensor, dict[str, float]]:
    """MarkHeads' loss on n views full of marks: reading is slow to learn, and an encoder's step is cheap."""
    shown = []
    for _ in range(n):
        room, indices = draw_views(views, 1, rng)
        shown.append(show(views, room, indices, "numbers" if rng.random() < 0.8 else "colors", rng, full=True))
    pixels = patchify(np.concatenate([on.images for on in shown]), array_rng)
    merged = model.model.visual(pixels, image_grid(n, views.size)).pooler_output
    loss, parts = heads.marks(merged.view(n, views.cells, -1), mark_targets(shown))
    return loss, {f"read_{name}": value for name, value in parts.items()}


def train_all(
    model: Qwen2_5_VLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    heads: Heads,
    sets: dict[int, SpotSet],
    heldout: dict[int, SpotSet],
    options: MoreOptions,
    out: Path,
) -> None:
    """Encoder and language model on packed questions; saves and evaluates as it goes."""
    rng, array_rng = random.Random(2), np.random.default_rng(2)
    packer = MarkPacker(tokenizer)
    optimizer = optimizer_for([model, heads], options.weight_decay)
    seconds = (options.minutes - options.encoder_minutes) * 60
    start, count = time.monotonic(), 0
    next_eval, next_save = min(120.0, options.eval_minutes * 60), options.save_minutes * 60
    mean: dict[str, float] = {}
    while (done := (time.monotonic() - start) / seconds) < 1:
        size = 224 if rng.random() < options.large else 112
        n = options.batch if size == 112 else options.batch_224
        n_views = 3 if rng.random() < options.three_views else 2
        chat = rng.random() < options.chat
        shown, rows = draw_batch(
            sets[size], n, n_views, options.questions * 2 // 3 if chat else options.questions, options, rng
        )
        if chat:
            for on, row in zip(shown, rows, strict=True):
                row.insert(rng.randrange(len(row)), Asked("pairs-old", *all_pairs(on.views, on.room, on.indices)))
        pixels = patchify(np.concatenate([on.images for on in shown]), array_rng)
        alone = done < options.warmup
        model.requires_grad_(not alone)
        loss, parts = losses(model, heads, packer.pack_asked(rows, shown, chat), pixels, shown, options)
        later = (done - options.warmup) / (1 - options.warmup)
        if not alone and options.read_batch:
            reading, of_reading = read_marks(model, heads, sets[112], options.read_batch, rng, array_rng)
            loss, parts = loss + options.mark_weight * reading, parts | of_reading
        step(loss, optimizer, HEADS_LR if alone else learning_rate(later, options.lr, options.warmup))
        count += 1
        for name, value in parts.items():
            mean[f"{name}{size}"] = 0.95 * mean.get(f"{name}{size}", value) + 0.05 * value
        spent = time.monotonic() - start
        if count % 20 == 0:
            report(out, {"stage": "all", "step": count, "seconds": spent} | mean)
        if spent > next_eval:
            next_eval = spent + options.eval_minutes * 60
            report(out, {"stage": "quick", "step": count, "seconds": spent} | look(model, packer, heldout, options))
        if spent > next_save:
            next_save = spent + options.save_minutes * 60
            save(model, tokenizer, out)
            save_file(
                {name: weight.contiguous() for name, weight in heads.state_dict().items()}, out / "heads.safetensors"
            )


@torch.no_grad()
def look(
    model: Qwen2_5_VLForConditionalGeneration,
    packer: MarkPacker,
    heldout: dict[int, SpotSet],
    options: MoreOptions,
    rows: int = 20,
) -> dict[str, str]:
    """By style and kind: the share of answers whose every token is the likeliest one, by true images and by another
    row's (in brackets), over packed held-out questions, and how many.
    """
    model.eval()
    result: dict[str, str] = {}
    for size, style in ((112, "colors"), (224, "numbers")):
        rng = random.Random(f"look {size}")
        shown, asked = draw_batch(heldout[size], rows, 2, options.questions, options, rng, style)  # type: ignore[arg-type]
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


def load_spots(out: Path, options: MoreOptions) -> tuple[dict[int, SpotSet], dict[int, SpotSet]]:
    """Training and held-out views of both sizes, rendered once into `out`/views."""
    found: dict[str, dict[int, SpotSet]] = {"train": {}, "heldout": {}}
    for size, rooms, views in ((112, options.rooms, options.views), (224, options.rooms_224, options.views_224)):
        room = RoomOptions(width=size, height=size, n_views=views, walk=False, min_ahead=2.2)
        for split, count, offset in (("train", rooms, 0), ("heldout", options.heldout_rooms, HELDOUT_OFFSET)):
            folder = out / "views" / f"{split}{size}"
            if not (folder / "done").exists():
                log.info("rendering %d rooms of %d pixels (%s)", count, size, split)
                render_spots(count, room, offset).save(folder)
            found[split][size] = SpotSet.load(folder)
    return found["train"], found["heldout"]


def start_wide(
    base: Path, views: SpotSet, rows: int, out: Path
) -> tuple[Qwen2_5_VLForConditionalGeneration, PreTrainedTokenizerFast]:
    """The model of a folder, made wider and its key-value heads grouped; what that did to its answers is reported.

    A model that is wide already stays as it is.
    """
    tokenizer = AutoTokenizer.from_pretrained(base)
    narrow = Qwen2_5_VLForConditionalGeneration.from_pretrained(base, dtype=torch.float32, use_safetensors=True)
    if narrow.config.text_config.hidden_size == WIDE.text_width:
        return narrow, tokenizer
    packer, rng = Packer(tokenizer), random.Random(4)
    drawn = [draw_views(views, 2, rng) for _ in range(rows)]
    batch = packer.pack([draw_questions(views, room, seen, 8, 0.6, rng) for room, seen in drawn], 2)
    pixels = patchify(np.concatenate([views.rgb[room, list(seen)] for room, seen in drawn]))
    keep = batch["labels"][:, 1:] != -100

    @torch.no_grad()
    def logits(model: Qwen2_5_VLForConditionalGeneration) -> torch.Tensor:
        speed_up_vision(model)
        last, *_ = forward(model.eval(), batch, pixels, views.size)
        result: torch.Tensor = model.lm_head(last[:, :-1][keep])
        return result

    def loss(model: Qwen2_5_VLForConditionalGeneration) -> float:
        return float(nn.functional.cross_entropy(logits(model), batch["labels"][:, 1:][keep]))

    wide = widen(narrow, tokenizer)
    away = float((logits(wide) - logits(narrow)).abs().max())
    row = {"stage": "widen", "logits_away": away, "loss_before": loss(narrow), "loss_wide": loss(wide)}
    kept = narrow.config.text_config.num_attention_heads
    grouped, orders = group_heads(wide, tokenizer, WIDE, kept, loss)
    report(out, row | {"loss_grouped": loss(grouped), "heads": orders})
    return grouped, tokenizer


def pretrain_more(out: Path, base: Path, seed: int = 0, options: MoreOptions | None = None) -> Path:
    """Render, widen, train and write `out`/model, `out`/metrics.jsonl and `out`/options.json.

    Where base is the model of an earlier run of this, its heads lie beside it, and the encoder's own stage is left out.
    """
    options = options or MoreOptions()
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "options.json").write_text(json.dumps({"seed": seed, "base": str(base), **asdict(options)}, indent=2))
    torch.manual_seed(seed)
    torch.set_float32_matmul_precision("medium")
    sets, heldout = load_spots(out, options)
    model, tokenizer = start_wide(base, heldout[112], options.calibration, out)
    model.train()
    speed_up_vision(model)
    heads, kept = Heads(WIDE.text_width), base.parent / "heads.safetensors"
    if kept.exists():
        heads.load_state_dict(load_file(kept))
    elif options.encoder_minutes > 0:
        train_encoder(model, heads, sets, options, out)
    train_all(model, tokenizer, heads, sets, heldout, options, out)
    save(model, tokenizer, out)
    return out / "model"
