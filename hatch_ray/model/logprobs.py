"""Log-probabilities of replies under the policy, with each prompt of a group computed once (`packing`).

Values of all scored tokens come flat, (N,), in the order group, reply, token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.utils.checkpoint import checkpoint

from hatch_ray.model.base import BAN_BIAS
from hatch_ray.model.families import family_of
from hatch_ray.model.group_attention import use_group_attention
from hatch_ray.model.image_features import ImageEncoder, blank_image
from hatch_ray.model.packing import PackedBatch

if TYPE_CHECKING:  # a GPU without the rest of the environment can compute with this (`bench/gpu.sh`)
    from hatch_ray.config_sections import Precision

HEAD_CHUNK = 2**28
"""Largest number of logits held at once; more are computed in pieces, and again in the backward pass."""


class ReplyScorer(nn.Module):
    """Maps a `PackedBatch` to (log-probabilities (N,), entropies (N,)) under temperature and the ban of tokens.

    A module, so that DistributedDataParallel and FSDP can wrap it. Both results are float32; the entropy (nats, of the
    same tempered and masked distribution) has no gradient. compute: of the matrix products, whatever the weights are.
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
        self.half = compute == "bfloat16"
        vocabulary = model.lm_head.out_features
        bias = torch.zeros(vocabulary)
        bias[list(banned)] = BAN_BIAS
        self.register_buffer("bias", bias.to(next(model.parameters()).device), persistent=False)

    def forward(self, batch: PackedBatch) -> tuple[torch.Tensor, torch.Tensor]:
        with self._computing():
            hidden = self._hidden(batch)
            step = max(1, HEAD_CHUNK // len(self.bias))
            if len(hidden) <= step:
                return self._score(hidden, batch.target)
            pieces = [
                checkpoint(self._score, h, t, use_reentrant=False)
                for h, t in zip(hidden.split(step), batch.target.split(step), strict=True)
            ]
            return torch.cat([p[0] for p in pieces]), torch.cat([p[1] for p in pieces])

    @torch.no_grad()
    def distributions(self, batch: PackedBatch) -> torch.Tensor:
        """(N, vocabulary) float32: the log-probabilities of every token in the place of each scored one."""
        with self._computing():
            return self._logprobs(self._hidden(batch))

    def _computing(self) -> torch.autocast:
        """Matrix products in bfloat16, where they are. Copies of weights that layers make again are not kept."""
        again = bool(self.model.is_gradient_checkpointing)
        return torch.autocast(self.bias.device.type, torch.bfloat16, enabled=self.half, cache_enabled=not again)

    def _hidden(self, batch: PackedBatch) -> torch.Tensor:
        """(N, d): what the head turns into the logits of each scored token."""
        core = self.model.model
        # Where FSDP gathers weights in bfloat16, what runs from layer to layer stays in the dtype of the masters.
        embedded = core.language_model.embed_tokens(batch.input_ids).to(self.residual)
        seen = None
        if batch.images:
            features = self.encoder(batch.images).to(embedded.dtype)[batch.feature]
            seen = batch.input_ids == core.config.image_token_id, features
        elif isinstance(core.visual, FSDPModule):  # other workers run it now, each with its part
            embedded = embedded + 0 * self.encoder([blank_image(core.visual)]).sum()
        hidden = self.family.language(core, embedded, batch.position_ids, batch.layout, seen)
        return hidden[0, batch.predictor]

    def _logprobs(self, hidden: torch.Tensor) -> torch.Tensor:
        return ((self.model.lm_head(hidden).float() + self.bias) / self.temperature).log_softmax(-1)

    def _score(self, hidden: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logprobs = self._logprobs(hidden)
        with torch.no_grad():
            entropy = -(logprobs.exp() * logprobs).sum(-1)
        return logprobs.gather(-1, target[:, None])[:, 0].clone(), entropy  # FSDP's hooks are lost on a view
