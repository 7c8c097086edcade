"""A group that is too long for one pass: its prompt is computed once, and its replies some at a time.

    prompts   forward: the keys and values of every layer, and what comes out at each prompt's last token, stay with
              their graph; images are encoded here
    replies   forward and backward, one micro-batch after the other, against copies that collect gradients
    prompts   backward, once, from what was collected

The sum of the replies' gradients goes through the prompt as it would in one pass: the result is the same, and prompt
and images are neither computed nor passed backward again. The idea is gradient caching's (Gao and others, 2021,
"Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup"), here between prompt and replies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from hatch_ray.model.group_attention import KeysAndValues, PromptLayout, ReplyLayout
from hatch_ray.model.packing import PackedBatch
from hatch_ray.model.prompt_tokens import ImagePatches, Prompt


@dataclass(frozen=True)
class PromptRow:
    """The NG prompts of a `PackedBatch`, a row of P tokens; last (NG,): the place of each one's last token."""

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    layout: PromptLayout
    images: tuple[ImagePatches, ...]
    feature: torch.Tensor
    last: torch.Tensor


@dataclass(frozen=True)
class ReplyRow:
    """The replies of a `PackedBatch`, a row of R tokens. predictor (N,): what predicts each scored token, counted among
    the prompts' last tokens and then the row's. The layout's `kept` is empty: `ReplyScorer.replies` puts it in."""

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    layout: ReplyLayout
    predictor: torch.Tensor
    target: torch.Tensor


class KeptPrompts:
    """What replies need of their prompts: copies of what the scorer's `prompts` gave, which collect gradients."""

    def __init__(self, outputs: Sequence[torch.Tensor]) -> None:
        self._outputs = outputs
        self._copies = [output.detach().requires_grad_(output.requires_grad) for output in outputs]

    @property
    def last(self) -> torch.Tensor:
        """(NG, d): what comes out of the language model at each prompt's last token."""
        return self._copies[0]

    @property
    def keys_and_values(self) -> KeysAndValues:
        return KeysAndValues(dict(enumerate(zip(self._copies[1::2], self._copies[2::2], strict=True))))

    def backward(self) -> None:
        """Pass what the replies' backward passes left through the prompts; nothing where there were none."""
        pairs = [(o, c.grad) for o, c in zip(self._outputs, self._copies, strict=True) if c.grad is not None]
        if pairs:
            torch.autograd.backward(*zip(*pairs, strict=True))


def apart(batch: PackedBatch) -> tuple[PromptRow, ReplyRow]:
    """The prompts and the replies of a batch, each as a row of its own."""
    layout = batch.layout
    padded = layout.prompt_index.numel()
    first = layout.place < padded  # (T,): tokens of prompts
    within = torch.where(first, first.cumsum(0), (~first).cumsum(0)) - 1  # each token's place in the row it goes to
    last = batch.predictor[first[batch.predictor]].unique()  # in the order of groups, each of which has a reply
    prompt_index = within[layout.prompt_index]
    reply_index = torch.where(first[layout.reply_index], 0, within[layout.reply_index])  # padding points at token 0
    at_prompt = first[batch.predictor]
    predictor = torch.where(
        at_prompt,
        torch.searchsorted(last, batch.predictor).clamp(max=len(last) - 1),
        len(last) + within[batch.predictor],
    )
    prompts = PromptRow(
        batch.input_ids[:, first],
        batch.position_ids[:, :, first],
        PromptLayout(prompt_index, layout.place[first], KeysAndValues()),
        batch.images,
        batch.feature,
        within[last],
    )
    place = layout.place[~first] - padded
    replies = ReplyRow(
        batch.input_ids[:, ~first],
        batch.position_ids[:, :, ~first],
        ReplyLayout(prompt_index, reply_index, layout.group, place, layout.mask, KeysAndValues()),
        predictor,
        batch.target,
    )
    return prompts, replies


@dataclass(frozen=True)
class Unit:
    """Micro-batches, by number, whose prompts are computed once. passes: 1, prompts and replies together, or how often
    replies pass after their prompts; more than there are micro-batches where another worker has more."""

    batches: tuple[int, ...]
    passes: int


def make_units(prompts: Sequence[Sequence[Prompt]], shared: bool = True) -> list[Unit]:
    """The units of micro-batches with these prompts: neighbours with the same one are parts of a group. Most parts
    first; shared=False: each micro-batch alone."""
    units: list[list[int]] = []
    for number, own in enumerate(prompts):
        if shared and units and prompts[number - 1][-1] is own[0]:
            units[-1].append(number)
        else:
            units.append([number])
    return sorted((Unit(tuple(unit), len(unit)) for unit in units), key=lambda unit: unit.passes, reverse=True)


def with_passes(units: Sequence[Unit], passes: Sequence[int]) -> list[Unit]:
    """The units with so many passes each, and empty ones after them: as workers of a sharded model go together."""
    own = [*units, *[Unit((), 0)] * (len(passes) - len(units))]
    return [replace(unit, passes=count) for unit, count in zip(own, passes, strict=True)]
