"""Log-probabilities of replies under the policy, with each prompt of a group computed once (`packing`).

Values of all scored tokens come flat, (N,), in the order group, reply, token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.utils.checkpoint import checkpoint

from hatch_ray.model.base import BAN_BIAS, computing
from hatch_ray.model.families import family_of
from hatch_ray.model.group_attention import use_group_attention
from hatch_ray.model.image_features import ImageEncoder, blank_image
from hatch_ray.model.kept_prompts import KeptPrompts, PromptRow, ReplyRow, Unit, apart
from hatch_ray.model.packing import PackedBatch

if TYPE_CHECKING:  # a GPU without the rest of the environment can compute with this (`bench/gpu.sh`)
    from hatch_ray.config_sections import Precision

HEAD_CHUNK = 2**28
"""Largest number of logits held at once; more are computed in pieces, and again in the backward pass."""


class ReplyScorer(nn.Module):
    """Maps a `PackedBatch` to (log-probabilities (N,), entropies (N,)) under temperature and the ban of tokens.

    A module, so that DistributedDataParallel and FSDP can wrap it. Both results are float32; the entropy (nats, of the
    same tempered and masked distribution) has no gradient. compute: of the matrix products, whatever the weights are.
    `prompts` and then `replies`, as often as wanted, do the same in steps, as `each` has them.
    """

    def __init__(
        self, model: nn.Module, temperature: float = 1.0, banned: Sequence[int] = (), compute: Precision = "float32"
    ) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        use_group_attention(model)
        self.model = model
        self.family = family_of(model.config)
        self.encoder = ImageEncoder(model.model.visual)
        self.temperature = temperature
        self.residual = next(model.parameters()).dtype
        self.compute = compute
        vocabulary = model.lm_head.out_features
        bias = torch.zeros(vocabulary)
        bias[list(banned)] = BAN_BIAS
        self.register_buffer("bias", bias.to(next(model.parameters()).device), persistent=False)

    def forward(self, batch: PackedBatch) -> tuple[torch.Tensor, torch.Tensor]:
        with self._computing():
            return self._scored(self._hidden(batch), batch.target)

    def each(
        self, units: Sequence[Unit], packed: Sequence[PackedBatch]
    ) -> Iterator[tuple[int | None, torch.Tensor, torch.Tensor]]:
        """Each micro-batch's number and results, unit by unit; number None: a pass that is only made because other
        workers make one. Who wants gradients passes backward what comes before asking for more."""
        for unit in units:
            own = [packed[number] for number in unit.batches]
            more = unit.passes - len(own)
            batches = own + [min(own or packed, key=lambda batch: batch.input_ids.shape[1])] * more
            numbers = [*unit.batches, *[None] * more]
            if unit.passes == 1:
                yield numbers[0], *self(batches[0])
                continue
            rows = [apart(batch) for batch in batches]
            kept = KeptPrompts(self.prompts(rows[0][0]))
            for number, (_, replies) in zip(numbers, rows, strict=True):
                yield number, *self.replies(replies, kept)
            kept.backward()

    @torch.no_grad()
    def distributions(self, batch: PackedBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, vocabulary) float32 each: logits as the head gives them, and log-probabilities, of every token in the
        place of each scored one."""
        with self._computing():
            logits = self.model.lm_head(self._hidden(batch)).float()
            return logits, self._logprobs(logits)

    def _computing(self) -> torch.autocast:
        return computing(self.model, self.compute, self.bias.device)

    def prompts(self, row: PromptRow) -> tuple[torch.Tensor, ...]:
        """For `KeptPrompts`: (NG, d) at the prompts' last tokens, then each layer's keys and values."""
        with self._computing():
            hidden = self._all_hidden(row)[row.last]
        kept = row.layout.kept.by_layer
        return hidden, *(tensor for layer in sorted(kept) for tensor in kept[layer])

    def replies(self, row: ReplyRow, kept: KeptPrompts) -> tuple[torch.Tensor, torch.Tensor]:
        """What the forward pass gives for a whole batch."""
        core, layout = self.model.model, replace(row.layout, kept=kept.keys_and_values)
        with self._computing():
            hidden = self.family.language(core, self._embedded(row.input_ids), row.position_ids, layout)[0]
            return self._scored(torch.cat([kept.last, hidden])[row.predictor], row.target)

    def _hidden(self, batch: PackedBatch) -> torch.Tensor:
        """(N, d): what the head turns into the logits of each scored token."""
        return self._all_hidden(batch)[batch.predictor]

    def _all_hidden(self, row: PackedBatch | PromptRow) -> torch.Tensor:
        """(T, d): the last hidden state of each token of a row that may hold images."""
        core, embedded, seen = self.model.model, self._embedded(row.input_ids), None
        if row.images:
            features = self.encoder(row.images).to(embedded.dtype)[row.feature]
            seen = row.input_ids == core.config.image_token_id, features
        elif isinstance(core.visual, FSDPModule):  # other workers run it now, each with its part
            embedded = embedded + 0 * self.encoder([blank_image(core.visual)]).sum()
        return self.family.language(core, embedded, row.position_ids, row.layout, seen)[0]

    def _embedded(self, ids: torch.Tensor) -> torch.Tensor:
        """(1, T, d). Where FSDP gathers weights in bfloat16, what runs from layer to layer stays in the dtype of the
        masters."""
        embedded: torch.Tensor = self.model.model.language_model.embed_tokens(ids).to(self.residual)
        return embedded

    def _logprobs(self, logits: torch.Tensor) -> torch.Tensor:
        return ((logits + self.bias) / self.temperature).log_softmax(-1)

    def _scored(self, hidden: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        step = max(1, HEAD_CHUNK // len(self.bias))
        if len(hidden) <= step:
            return self._score(hidden, target)
        pieces = [
            checkpoint(self._score, h, t, use_reentrant=False)
            for h, t in zip(hidden.split(step), target.split(step), strict=True)
        ]
        return torch.cat([p[0] for p in pieces]), torch.cat([p[1] for p in pieces])

    def _score(self, hidden: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logprobs = self._logprobs(self.model.lm_head(hidden).float())
        with torch.no_grad():
            entropy = -(logprobs.exp() * logprobs).sum(-1)
        return logprobs.gather(-1, target[:, None])[:, 0].clone(), entropy  # FSDP's hooks are lost on a view
