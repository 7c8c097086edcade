"""Pretraining of hatch-tiny, from a seed: first the encoder with dense targets, then everything on packed questions.

    python -m tools.pretrain_tiny --out OUT

Stage 1: every merged token of the encoder regresses what its patch shows (heads that are thrown away). Stage 2: many
short questions and answers behind two or three images, in random order, loss on the answers; the dense targets stay
with a small weight. Recipe, curves and what failed: docs/hatch-tiny.md.
"""

from __future__ import annotations

import logging
import random
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration

from hatch_ray.cli import run_command
from hatch_ray.data.rooms import RoomOptions
from hatch_ray.model.fast_vision import speed_up_vision
from tools.pretrain_data import (
    CELLS,
    HELDOUT_OFFSET,
    ViewSet,
    all_pairs,
    render_views,
)
from tools.pretrain_evaluation import evaluate
from tools.pretrain_heads import (
    AnswerHead,
    DenseHeads,
    RelationHeads,
    dense_targets,
)
from tools.pretrain_more import MoreOptions, pretrain_more
from tools.pretrain_packing import Packer, draw_questions, draw_views
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
from tools.tiny import TinyConfig, new_tiny

log = logging.getLogger(__name__)
app = typer.Typer(add_completion=False)


@dataclass(frozen=True)
class PretrainOptions(Recipe):
    """Numbers of the recipe."""

    chat_from: float = 0.6
    """Chats come after this share of stage 2, with half as many questions."""
    eval_n: int = 200
    """Held-out questions of each kind in the last evaluation; the others use 64 at most."""


def encode_images(model: Qwen2_5_VLForConditionalGeneration, pixels: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    """(n, CELLS, text width) merged tokens."""
    tokens = model.model.get_image_features(pixels, grid).pooler_output
    return torch.stack(list(tokens))


def train_encoder(
    model: Qwen2_5_VLForConditionalGeneration, heads: DenseHeads, views: ViewSet, options: PretrainOptions, out: Path
) -> None:
    """Stage 1: the encoder alone, with dense targets."""
    rng = np.random.default_rng(1)
    optimizer = optimizer_for([model.model.visual, heads], options.weight_decay)
    start, count, seconds = time.monotonic(), 0, options.encoder_minutes * 60
    grid = image_grid(options.encoder_batch, views.rgb.shape[2])
    while (done := (time.monotonic() - start) / seconds) < 1:
        room = rng.integers(len(views.rgb), size=options.encoder_batch)
        view = rng.integers(views.rgb.shape[1], size=options.encoder_batch)
        tokens = encode_images(model, patchify(views.rgb[room, view], rng), grid)
        loss, parts = heads(tokens, dense_targets(views, room, view))
        step(loss, optimizer, learning_rate(done, options.encoder_lr, options.warmup))
        count += 1
        if count % 50 == 0:
            report(out, {"stage": "encoder", "step": count, "seconds": time.monotonic() - start} | parts)


def train_all(
    model: Qwen2_5_VLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    heads: DenseHeads,
    relations: RelationHeads,
    answers: AnswerHead,
    views: ViewSet,
    heldout: ViewSet,
    options: PretrainOptions,
    out: Path,
) -> None:
    """Stage 2: encoder and language model on packed questions; evaluates and saves as it goes."""
    rng, array_rng = random.Random(2), np.random.default_rng(2)
    packer = Packer(tokenizer)
    optimizer = optimizer_for([model, heads, relations, answers], options.weight_decay)
    seconds = (options.minutes - options.encoder_minutes) * 60
    start, count, next_eval = time.monotonic(), 0, options.eval_minutes * 60
    mean: dict[str, float] = {}
    while (done := (time.monotonic() - start) / seconds) < 1:
        n_views = 3 if rng.random() < options.three_views else 2
        drawn = [draw_views(views, n_views, rng) for _ in range(options.batch)]
        rows = [draw_questions(views, room, shown, options.questions, options.comparing, rng) for room, shown in drawn]
        room = np.repeat([room for room, _ in drawn], n_views)
        view = np.array([v for _, shown in drawn for v in shown])
        chat = done > options.chat_from and rng.random() < options.chat
        if chat:
            rows = [
                [all_pairs(views, room, shown), *row[: options.questions // 2]]
                for (room, shown), row in zip(drawn, rows, strict=True)
            ]
            for row in rows:
                rng.shuffle(row)
        batch = packer.pack(rows, n_views, chat)
        pixels = patchify(views.rgb[room, view], array_rng)
        loss_text, loss_dense, loss_relation, parts = losses(
            model, heads, relations, answers, batch, pixels, views, room, view
        )
        step(
            loss_text + options.dense_weight * loss_dense + options.relation_weight * loss_relation,
            optimizer,
            learning_rate(done, options.lr, options.warmup),
        )
        count += 1
        for name, value in ({"text": float(loss_text.detach())} | parts).items():
            mean[name] = 0.98 * mean.get(name, value) + 0.02 * value
        spent = time.monotonic() - start
        if count % 50 == 0:
            report(out, {"stage": "all", "step": count, "seconds": spent} | mean)
        if spent > next_eval:
            next_eval = spent + options.eval_minutes * 60
            report(
                out,
                {"stage": "eval", "step": count, "seconds": spent}
                | evaluate(model, tokenizer, heldout, min(64, options.eval_n)),
            )
            save(model, tokenizer, out)
    report(
        out, {"stage": "eval", "step": count, "seconds": seconds} | evaluate(model, tokenizer, heldout, options.eval_n)
    )


def losses(
    model: Qwen2_5_VLForConditionalGeneration,
    heads: DenseHeads,
    relations: RelationHeads,
    answers: AnswerHead,
    batch: dict[str, torch.Tensor],
    pixels: torch.Tensor,
    views: ViewSet,
    room: np.ndarray,
    view: np.ndarray,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, dict[str, float]]:
    """Text loss, dense loss, relation and answer loss of one pass; room and view (images,) in the batch's order."""
    grid = image_grid(len(room), views.rgb.shape[2])
    seen: list[torch.Tensor] = []
    layer = model.model.language_model.layers[relations.LAYER]
    hooks = [
        module.register_forward_hook(lambda _module, _input, output: seen.append(output))
        for module in (model.model.visual.merger, layer)
    ]
    output = model.model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        mm_token_type_ids=batch["mm_token_type_ids"],
        pixel_values=pixels,
        image_grid_thw=grid,
        use_cache=False,
    )
    for hook in hooks:
        hook.remove()
    loss_text = text_loss(model, output.last_hidden_state, batch["labels"])
    # A 112 x 112 view is one attention window, so the merger's rows are already in raster order.
    tokens = seen[0].view(len(room), CELLS, -1)
    loss_dense, parts = heads(tokens, dense_targets(views, room, view))
    rows = len(batch["input_ids"])
    of_images = seen[1][batch["mm_token_type_ids"] == 1].view(rows, len(room) // rows, CELLS, -1)
    by_row = (rows, len(room) // rows)
    loss_relation, more = relations(of_images, views, room.reshape(by_row), view.reshape(by_row))
    loss_answer = answers(output.last_hidden_state, batch["asked"])
    parts |= more | {"answer": float(loss_answer.detach())}
    return loss_text, loss_dense, loss_relation + 2 * loss_answer, parts


def load_views(out: Path, options: PretrainOptions, rooms: RoomOptions) -> tuple[ViewSet, ViewSet]:
    """Training and held-out views, rendered once into `out`/views."""
    sets = []
    for name, count, offset in (("train", options.rooms, 0), ("heldout", options.heldout_rooms, HELDOUT_OFFSET)):
        folder = out / "views" / name
        if not (folder / "done").exists():
            log.info("rendering %d rooms (%s)", count, name)
            render_views(count, rooms, offset).save(folder)
        sets.append(ViewSet.load(folder))
    return sets[0], sets[1]


def pretrain(
    out: Path, seed: int = 0, options: PretrainOptions | None = None, config: TinyConfig | None = None
) -> Path:
    """Render, train and write `out`/model (Hugging Face folder), `out`/metrics.jsonl and `out`/options.json."""
    options, config = options or PretrainOptions(), config or TinyConfig()
    begin(out, seed, options, {"model": asdict(config)})
    views, heldout = load_views(out, options, RoomOptions(n_views=options.views, walk=False, min_ahead=2.2))
    model, tokenizer = new_tiny(seed, config)
    model.train()
    speed_up_vision(model)
    width = config.text_width
    heads, relations, answers = DenseHeads(width), RelationHeads(width), AnswerHead(width)
    if options.encoder_minutes > 0:
        train_encoder(model, heads, views, options, out)
    train_all(model, tokenizer, heads, relations, answers, views, heldout, options, out)
    save(model, tokenizer, out)
    return out / "model"


@app.command()
def main(
    out: Annotated[Path, typer.Option(help="folder to write")],
    seed: Annotated[int, typer.Option(help="seed of rooms, weights and order")] = 0,
    minutes: Annotated[float, typer.Option(min=0.1, help="training time")] = 75.0,
    marks: Annotated[Path | None, typer.Option(help="go on from this model's folder: wider, and taught marks")] = None,
) -> None:
    """Pretrain hatch-tiny on rooms of its own: from random weights, or on marks from an earlier pretraining."""
    if marks is None:
        print(f"model: {pretrain(out, seed, PretrainOptions(minutes=minutes))}")
    else:
        print(f"model: {pretrain_more(out, marks, seed, MoreOptions(minutes=minutes))}")


if __name__ == "__main__":
    run_command(app)
