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
from dataclasses import dataclass

import torch

from hatch_ray.model.group_attention import KeysAndValues, PromptLayout, ReplyLayout
from hatch_ray.model.packing import PackedBatch
from hatch_ray.model.prompt_tokens import ImagePatches


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
