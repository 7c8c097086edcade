"""hatch-tiny's second pretraining: the shipped model made wider and taught to read marks, with its old questions kept.

    python -m tools.pretrain_tiny --out OUT --marks hatch_ray/model/weights/hatch-tiny

The encoder first learns to tell marks (minutes), then everything is trained on questions about marks and named things
and on the first pretraining's own; views of 112 and of 224 pixels.
"""

from __future__ import annotations

import copy
import logging
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration

from hatch_ray.data.rooms import RoomOptions
from hatch_ray.model.fast_vision import speed_up_vision
from tools.pretrain_data import HELDOUT_OFFSET, all_pairs
from tools.pretrain_evaluation import look
from tools.pretrain_heads import dense_targets
from tools.pretrain_mark_heads import Heads, forward, mark_targets
from tools.pretrain_marks import Asked, Shown, show
from tools.pretrain_packing import MarkPacker, draw_batch, draw_views
from tools.pretrain_spots import SpotSet, render_spots
from tools.pretraining import (
    Recipe,
    begin,
    image_grid,
    learning_rate,
    optimizer_for,
    patchify,
    report,
    save,
    step,
    text_loss,
)
from tools.tiny import TinyConfig
from tools.widen_tiny import WIDE, start_wide

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MoreOptions(Recipe):
    """Numbers of the recipe; chats have two thirds as many questions."""

    rooms_224: int = 500
    views_224: int = 8
    batch: int = 10
    batch_224: int = 5
    encoder_batch: int = 48
    questions: int = 14
    encoder_lr: float = 1.2e-3
    large: float = 0.25
    """Share of the batches with views of 224 pixels."""
    old: float = 0.4
    """Share of the first pretraining's questions, where views carry marks; 0.6 where they carry none."""
    three_views: float = 0.15
    mark_weight: float = 0.5
    read_batch: int = 16
    """Views full of marks that the encoder alone reads beside each batch."""
    chat: float = 0.35
    calibration: int = 16
    """Rows of held-out questions by which key-value heads are grouped."""
    save_minutes: float = 4.0


HEADS_FIRST, HEADS_LR = 0.1, 3e-3
"""The heads, which start from nothing, are trained alone for this share of the encoder's time, at that rate."""
OLD_WIDTH = TinyConfig().text_width


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
    text = text_loss(model, last, batch["labels"])
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
        questions = options.questions * 2 // 3 if chat else options.questions
        shown, rows = draw_batch(sets[size], n, n_views, questions, options.old, options.comparing, rng)
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
            report(
                out,
                {"stage": "quick", "step": count, "seconds": spent}
                | look(model, packer, heldout, options.questions, options.old, options.comparing),
            )
        if spent > next_save:
            next_save = spent + options.save_minutes * 60
            save(model, tokenizer, out)
            save_file(
                {name: weight.contiguous() for name, weight in heads.state_dict().items()}, out / "heads.safetensors"
            )


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


def pretrain_more(out: Path, base: Path, seed: int = 0, options: MoreOptions | None = None) -> Path:
    """Render, widen, train and write `out`/model, `out`/metrics.jsonl and `out`/options.json.

    Where base is the model of an earlier run of this, its heads lie beside it, and the encoder's own stage is left out.
    """
    options = options or MoreOptions()
    begin(out, seed, options, {"base": str(base)})
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
