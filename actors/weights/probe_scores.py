"""The learner's answer to a probe of the parity gate (`parity.py`): how likely tokens are right after a prompt."""

from __future__ import annotations

import numpy as np

from actors.runtime.messages import LIKELIEST, Probe, ProbeScores
from hatch_ray.model.logprobs import ReplyScorer
from hatch_ray.model.packing import pack
from hatch_ray.model.prompt_tokens import Prompt

BOUND = {"float32": 1e-3, "bfloat16": 0.2}
"""Largest mean difference (nats) between learner and vLLM over a probe's tokens. Noise in float32 stays below 2e-4."""


def score_probe(
    scorer: ReplyScorer, probe: Probe, prompt: Prompt, blank: Prompt | None, version: int, dtype: str
) -> ProbeScores:
    """The learner's answer. prompt, blank: the tokenised prompts of the probe; `blank` is left out where None."""
    scored = next_token_logprobs(scorer, prompt)
    banned = tuple(np.flatnonzero(scorer.bias.cpu().numpy() < 0).tolist())
    core = scorer.model.model.config  # type: ignore[union-attr]
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    vision = {int(getattr(core, name)) for name in names}  # type: ignore[arg-type]
    tokens = [*np.argsort(-scored, kind="stable")[:LIKELIEST].tolist(), *sorted(vision)]
    grey = None if blank is None else next_token_logprobs(scorer, blank)[tokens]
    return ProbeScores(
        probe, version, prompt.token_ids, tuple(tokens), scored[tokens], grey, banned, scorer.temperature, BOUND[dtype]
    )


def next_token_logprobs(scorer: ReplyScorer, prompt: Prompt) -> np.ndarray:
    """(vocabulary,) float32: the token that follows the prompt."""
    any_token = 0  # the packed row needs a reply; what it is does not matter for the place before it
    batch = pack(scorer.model, [prompt], [[(any_token,)]]).to(scorer.bias.device)
    return np.asarray(scorer.distributions(batch)[0].cpu().numpy(), dtype=np.float32)
