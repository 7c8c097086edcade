"""Token batches of the pretraining: a chat prefix, the images, then question and answer after question and answer."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

import torch
from transformers import BatchEncoding, PreTrainedTokenizerFast

from tools.pretrain_data import CELLS, COMPARING, QUESTIONS, ViewSet, ask
from tools.pretrain_heads import answer_numbers
from tools.pretrain_mark_heads import MarkAnswerHead, MentionHead, mark_answer_numbers
from tools.pretrain_mark_questions import draw_asked
from tools.pretrain_marks import Asked, Shown, Style, place_numbers, show
from tools.pretrain_spots import SpotSet

STYLES: dict[int, dict[Style, float]] = {
    112: {"colors": 0.6, "numbers": 0.15, "plain": 0.25},
    224: {"colors": 0.2, "numbers": 0.7, "plain": 0.1},
}


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
        encoded, between = self._encode([pair for row in rows for pair in row], chat)
        turns = iter(encoded["input_ids"])
        prefix = self.prefix(n_views)
        ids, labels, asked = [], [], []
        for index, row in enumerate(rows):
            line, target = list(prefix), [-100] * len(prefix)
            for pair in row:
                question, answer = next(turns), next(turns)
                line += question
                numbers = answer_numbers(*pair)
                if numbers is not None:
                    asked.append((index, len(line) - 1, *numbers))
                line += answer + between
                target += [-100] * len(question) + answer + [-100] * len(between)
            ids.append(line)
            labels.append(target)
        return self._batch(ids, labels) | {"asked": torch.tensor(asked).view(-1, 5)}

    def _encode(self, pairs: Sequence[tuple[str, str]], chat: bool) -> tuple[BatchEncoding, list[int]]:
        """Questions and answers in turn, with the places of their tokens; and the ids between two pairs."""
        after = "<|im_end|>\n<|im_start|>assistant\n" if chat else ""
        form = "<answer>{}</answer><|im_end|>" if chat else "{}\n"
        texts = [text for question, answer in pairs for text in (question + after, form.format(answer))]
        between = self.tokenizer.encode("\n<|im_start|>user\n") if chat else []
        return self.tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True), between

    def _batch(self, ids: list[list[int]], labels: list[list[int]]) -> dict[str, torch.Tensor]:
        input_ids = padded(ids, self.pad)
        return {
            "input_ids": input_ids,
            "labels": padded(labels, -100),
            "attention_mask": padded([[1] * len(line) for line in ids], 0),
            "mm_token_type_ids": (input_ids == self.image).int(),
        }


def padded(lines: list[list[int]], fill: int) -> torch.Tensor:
    """(lines, the longest's length), filled to the right."""
    length = max(map(len, lines))
    return torch.tensor([line + [fill] * (length - len(line)) for line in lines])


class MarkPacker(Packer):
    """Packs `Asked`, and what the heads need of them."""

    def pack_asked(
        self, rows: Sequence[Sequence[Asked]], shown: Sequence[Shown], chat: bool
    ) -> dict[str, torch.Tensor]:
        """As Packer.pack, with `named` and `found` of MentionHead and `asked` of MarkAnswerHead."""
        views = shown[0].views
        encoded, between = self._encode([(one.question, one.answer) for row in rows for one in row], chat)
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
        return self._batch(ids, labels) | {
            "number": padded(kinds, -1),
            "asked": torch.tensor(asked).view(-1, 3 + MarkAnswerHead.WIDTH),
            "named": torch.tensor(named).view(-1, 3 + MentionHead.WIDTH + 1),
            "found": torch.tensor(found).view(-1, 3),
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


def draw_batch(
    views: SpotSet,
    n: int,
    n_views: int,
    questions: int,
    old_share: float,
    comparing: float,
    rng: random.Random,
    style: Style | None = None,
) -> tuple[list[Shown], list[list[Asked]]]:
    """n rows: views with marks, and old and new questions about them in random order. old_share: of the first
    pretraining's questions where views carry marks; 0.6 where they carry none.
    """
    shown, rows = [], []
    styles = STYLES[views.size]
    for _ in range(n):
        room, indices = draw_views(views, n_views, rng)
        on = show(views, room, indices, style or rng.choices(tuple(styles), tuple(styles.values()))[0], rng)
        old = round(questions * (0.6 if on.style == "plain" else old_share))
        row = draw_asked(on, questions - old, rng)
        row += [
            Asked(re.match("[a-z]+", question).group() + "-old", question, answer)  # type: ignore[union-attr]
            for question, answer in draw_questions(views, room, indices, old, comparing, rng)
        ]
        rng.shuffle(row)
        shown.append(on)
        rows.append(row)
    return shown, rows
