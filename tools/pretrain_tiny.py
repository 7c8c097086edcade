"""Pretraining of hatch-tiny, from a seed: first the encoder with dense targets, then everything on packed questions.

    python -m tools.pretrain_tiny --out OUT

Stage 1: every merged token of the encoder regresses what its patch shows (heads that are thrown away). Stage 2: many
short questions and answers behind two or three images, in random order, loss on the answers; the dense targets stay
with a small weight. Recipe, curves and what failed: docs/hatch-tiny.md.
"""

from __future__ import annotations

import json
import logging
import math
import random
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import nn
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration

from hatch_ray.cli import run_command
from hatch_ray.data.rooms import RoomOptions
from hatch_ray.model.fast_vision import speed_up_vision
from hatch_ray.run_folder import append_jsonl
from tools.pretrain_data import (
    CELL_PX,
    CELLS,
    COMPARING,
    HELDOUT_OFFSET,
    QUESTIONS,
    TEXTS,
    ViewSet,
    all_pairs,
    ask,
    render_views,
)
from tools.pretrain_heads import (
    AnswerHead,
    DenseHeads,
    RelationHeads,
    answer_numbers,
    dense_targets,
    numbers_error,
)
from tools.tiny import IMAGE_MEAN, IMAGE_STD, MERGE, PATCH, TinyConfig, new_tiny, save_processor

log = logging.getLogger(__name__)
app = typer.Typer(add_completion=False)


@dataclass(frozen=True)
class PretrainOptions:
    """Numbers of the recipe. minutes are wall time on the machine that runs it."""

    minutes: float = 75.0
    encoder_minutes: float = 5.0
    rooms: int = 1600
    heldout_rooms: int = 100
    views: int = 10
    batch: int = 16
    encoder_batch: int = 96
    questions: int = 12
    lr: float = 1e-3
    encoder_lr: float = 2e-3
    weight_decay: float = 0.05
    warmup: float = 0.03
    comparing: float = 0.6
    """Share of the questions that compare two images."""
    three_views: float = 0.25
    """Share of the batches with three images."""
    dense_weight: float = 0.3
    relation_weight: float = 0.5
    chat: float = 0.6
    """Share of the batches that are chats of half as many questions and one for all pairs of cameras, as JSON ..."""
    chat_from: float = 0.6
    """... after this share of stage 2."""
    eval_minutes: float = 8.0
    eval_n: int = 200
    """Held-out questions of each kind in the last evaluation; the others use 64 at most."""


def patchify(rgb: np.ndarray, rng: np.random.Generator | None = None) -> torch.Tensor:
    """(B, H, W, 3) uint8 -> (B * patches, 1176): what Qwen2.5-VL's processor gives; light colour changes with rng."""
    x = torch.from_numpy(np.ascontiguousarray(rgb)).float().permute(0, 3, 1, 2) / 255
    n, _, height, width = x.shape
    if rng is not None:
        gain = torch.tensor(rng.uniform(0.85, 1.15, (n, 1, 1, 1)) * rng.uniform(0.95, 1.05, (n, 3, 1, 1)))
        x = (x * gain.float() + torch.tensor(rng.uniform(-0.04, 0.04, (n, 1, 1, 1))).float()).clamp(0, 1)
    x = (x - torch.tensor(IMAGE_MEAN).view(1, 3, 1, 1)) / torch.tensor(IMAGE_STD).view(1, 3, 1, 1)
    rows, columns = height // (PATCH * MERGE), width // (PATCH * MERGE)
    x = x.view(n, 3, rows, MERGE, PATCH, columns, MERGE, PATCH).permute(0, 2, 5, 3, 6, 1, 4, 7)
    x = x.reshape(n, rows * columns * MERGE**2, 3, 1, PATCH, PATCH).expand(-1, -1, -1, 2, -1, -1)
    return x.reshape(n * rows * columns * MERGE**2, -1)


def image_grid(n: int, size: int) -> torch.Tensor:
    """(n, 3): time, rows and columns of patches of square images."""
    return torch.tensor([[1, size // PATCH, size // PATCH]] * n)


def encode_images(model: Qwen2_5_VLForConditionalGeneration, pixels: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    """(n, CELLS, text width) merged tokens."""
    tokens = model.model.get_image_features(pixels, grid).pooler_output
    return torch.stack(list(tokens))


class Packer:
    """Makes token batches: the chat prefix, the images, then question and answer after question and answer."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self.pad = tokenizer.convert_tokens_to_ids("<|endoftext|>")
        self.image = tokenizer.convert_tokens_to_ids("<|image_pad|>")

    def prefix(self, n_views: int, cells: int = CELLS) -> list[int]:
        """Token ids up to the first question."""
        content: list[dict[str, str]] = []
        for index in range(n_views):
            content += [{"type": "text", "text": f"Image {index}: "}, {"type": "image"}, {"type": "text", "text": "\n"}]
        text = self.tokenizer.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
        text = text.removesuffix("<|im_end|>\n").replace("<|image_pad|>", "<|image_pad|>" * cells)
        return self.tokenizer.encode(text)

    def pack(self, rows: list[list[tuple[str, str]]], n_views: int, chat: bool = False) -> dict[str, torch.Tensor]:
        """Right-padded ids, mask, types and labels (-100 outside the answers), a row a sequence; and `asked`.

        chat: each question is a user's turn and each answer the assistant's, in answer tags; else they follow in a row.
        """
        after_question = "<|im_end|>\n<|im_start|>assistant\n" if chat else ""
        answer_form = "<answer>{}</answer><|im_end|>" if chat else "{}\n"
        texts = [
            text
            for row in rows
            for question, answer in row
            for text in (question + after_question, answer_form.format(answer))
        ]
        between = self.tokenizer.encode("\n<|im_start|>user\n") if chat else []
        encoded = iter(self.tokenizer(texts, add_special_tokens=False)["input_ids"])
        prefix = self.prefix(n_views)
        ids, labels, asked = [], [], []
        for index, row in enumerate(rows):
            line, target = list(prefix), [-100] * len(prefix)
            for pair in row:
                question, answer = next(encoded), next(encoded)
                line += question
                numbers = answer_numbers(*pair)
                if numbers is not None:
                    asked.append((index, len(line) - 1, *numbers))
                line += answer + between
                target += [-100] * len(question) + answer + [-100] * len(between)
            ids.append(line)
            labels.append(target)
        length = max(map(len, ids))
        input_ids = torch.tensor([line + [self.pad] * (length - len(line)) for line in ids])
        return {
            "input_ids": input_ids,
            "labels": torch.tensor([line + [-100] * (length - len(line)) for line in labels]),
            "attention_mask": torch.tensor([[1] * len(line) + [0] * (length - len(line)) for line in ids]),
            "mm_token_type_ids": (input_ids == self.image).int(),
            "asked": torch.tensor(asked).view(-1, 5),
        }


def draw_views(views: ViewSet, n_views: int, rng: random.Random) -> tuple[int, tuple[int, ...]]:
    """A room and different views of it, in random order."""
    return rng.randrange(len(views.rgb)), tuple(rng.sample(range(views.rgb.shape[1]), n_views))


def draw_questions(
    views: ViewSet, room: int, shown: tuple[int, ...], n: int, comparing: float, rng: random.Random
) -> list[tuple[str, str]]:
    """n different questions about these views, in random order."""
    row: dict[str, str] = {}
    while len(row) < n:
        if rng.random() < comparing:
            kind = rng.choices(COMPARING, (3, 3, 2, 1))[0]
        else:
            kind = rng.choice(QUESTIONS[: -len(COMPARING)])
        pair = ask(kind, views, room, shown, rng)
        if pair is not None:
            row[pair[0]] = pair[1]
    return list(row.items())


def learning_rate(done: float, peak: float, warmup: float) -> float:
    """Linear warm-up, then cosine to a twentieth, by the share of the time that is done."""
    if done < warmup:
        return peak * done / warmup + 1e-6
    return peak * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0, (done - warmup) / (1 - warmup)))))


def optimizer_for(modules: list[nn.Module], weight_decay: float) -> torch.optim.AdamW:
    """AdamW; matrices decay, vectors do not."""
    parameters = [p for module in modules for p in module.parameters()]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.98))


def step(loss: torch.Tensor, optimizer: torch.optim.AdamW, lr: float) -> None:
    """One clipped update."""
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
    optimizer.step()


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
    labels = batch["labels"][:, 1:]
    keep = labels != -100
    logits = model.lm_head(output.last_hidden_state[:, :-1][keep])
    loss_text = nn.functional.cross_entropy(logits, labels[keep])
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


def report(out: Path, row: dict[str, Any]) -> None:
    """A line in metrics.jsonl and in the log."""
    append_jsonl(out / "metrics.jsonl", [row])
    log.info(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}))


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


def save(model: Qwen2_5_VLForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """The folder `out`/model in bfloat16, written beside and then renamed."""
    fresh, final, old = out / "model.tmp", out / "model", out / "model.old"
    state = {name: value.to(torch.bfloat16) for name, value in model.state_dict().items()}
    model.save_pretrained(fresh, state_dict=state)
    save_processor(tokenizer, fresh)
    if final.exists():
        final.rename(old)
    fresh.rename(final)
    if old.exists():
        for file in old.iterdir():
            file.unlink()
        old.rmdir()


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
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    rooms = RoomOptions(n_views=options.views, walk=False, min_ahead=2.2)
    (out / "options.json").write_text(json.dumps({"seed": seed, **asdict(options), "model": asdict(config)}, indent=2))
    torch.manual_seed(seed)
    # Matrix products in bfloat16 inside float32 training: 4 times as fast on CPUs with AMX.
    torch.set_float32_matmul_precision("medium")
    views, heldout = load_views(out, options, rooms)
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
        return
    from tools.pretrain_more import MoreOptions, pretrain_more  # it imports this file

    print(f"model: {pretrain_more(out, marks, seed, MoreOptions(minutes=minutes))}")


if __name__ == "__main__":
    run_command(app)
